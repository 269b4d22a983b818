"""What a run's LLM requests will take: a few features are explained and judged by nobody, and what would have
been sent is counted.

The features are sampled ones where there are any, else windows of full size that could come from any run.
Answers are the lexical backend's, which have the form that is asked for. Where the number of requests depends on the
answers (sequential scoring), it is that of judges of mixed quality (`stages/looks.py`). Tokens are estimated from the
texts (no tokenizer of an LLM on a server is known here), and are meant to be right within a fifth for English.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Final, get_args

from autointerp import draw
from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, NoEvidence, Refused, Unreadable
from autointerp.evidence import Evidence, needs_explanation, needs_of
from autointerp.explainers.protocol import Explainer
from autointerp.llm.dialects import Addressed
from autointerp.llm.lexical import LexicalLLM
from autointerp.llm.protocol import ByRequest, Capabilities, LLMIdentity, Prices, Reply, Request, Role, Usage
from autointerp.panel import controls_of, scorer_section
from autointerp.prompting import Prompt
from autointerp.run import Run
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import FALLBACK, PluginSection, fallback_of, instance
from autointerp.sequential import Sequential
from autointerp.stages.evidence import UnitEvidence
from autointerp.stages.looks import by_look
from autointerp.stages.preflight import example_evidence, example_windows
from autointerp.stages.sample import by_unit, load_vocabulary, unit_windows
from autointerp.stages.texts import texts_of
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import EXPLAINABLE, Heldout

N_TRIED: Final = 8
"""Features that are looked at."""
BLOCK: Final = 256
"""Characters that a prompt cache takes or leaves, some 64 tokens (servers: 16 to 128)."""
OWN_BLOCK: Final = 64
"""Of an engine on one's own cards: 16 tokens."""
EXPLAINING: Final = ("explainer", FALLBACK)
"""Roles that are asked by explainers; the others are by scorers."""
REFUSED: Final = 0.05
"""Share of features that the first LLM is taken to refuse, where there is a fallback: nobody knows before."""
EXPLANATION_TOKENS: Final = 60
"""A sentence and a label of an LLM: the lexical backend's are shorter."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one role, over all its features, if each has enough windows and every answer is readable."""

    role: str
    llm: str
    n_requests: int
    prompt_tokens: int
    cached_tokens: int
    """Of these, those that stand at the beginning of an earlier prompt, where the server caches."""
    completion_tokens: int
    cost: float | None
    """US dollars; None where no price is known."""


async def expected(run: Run) -> list[Expected]:
    """For each role whose LLM costs something, and what it is asked about controls."""
    n_features = sum(len(run.asked(name)) for name in run.recipe.dictionaries)
    cases = _cases(run)
    found: list[Expected] = []
    sections = {role: run.recipe.llms.of(role) for role in get_args(Role)}
    for role, section in (sections | {FALLBACK: fallback_of(run.recipe.llms.explainer)}).items():
        if section is None or not (backend := instance("llm", section)).paid:
            continue
        prices, cached_from = _known(backend)
        metered = Metered(cached_from)
        for number, case in enumerate(cases):
            await _ask(run, role, Asking(metered, f"expected {number}", run.recipe.seed, run.prompts), case)
        if metered.usages:
            times = n_features / len(cases) * (REFUSED if role == FALLBACK else 1)
            found.append(_scaled(role, backend.identity().model, metered, prices, times))
        if role in EXPLAINING:
            continue
        metered = await _controls(run, role, cases, cached_from)
        if metered.usages:
            times = _n_on_panels(run) / len(cases)
            found.append(_scaled(f"{role} of controls", backend.identity().model, metered, prices, times))
    return found


async def _controls(run: Run, role: str, cases: Sequence[_Case], cached_from: int | None) -> Metered:
    """What is asked about control explanations."""
    metered = Metered(cached_from)
    for number, case in enumerate(cases):
        asking = Asking(metered, f"expected {number}", run.recipe.seed, run.prompts)
        for control in controls_of(run.recipe):
            await _leniently(role, scorer_section(run.recipe, control), asking, case)
    return metered


def _n_on_panels(run: Run) -> int:
    """Features, if all that are asked for have enough windows."""
    controls = run.recipe.controls
    most = 0 if controls is None else controls.panel
    return sum(min(most, len(run.asked(name))) for name in run.recipe.dictionaries)


def _scaled(role: str, llm: str, metered: Metered, prices: Prices | None, times: float) -> Expected:
    usages = metered.usages
    return Expected(
        role,
        llm,
        n_requests=round(sum(share for _, share in usages) * times),
        prompt_tokens=round(sum(usage.prompt_tokens * share for usage, share in usages) * times),
        cached_tokens=round(sum(usage.cached_tokens * share for usage, share in usages) * times),
        completion_tokens=round(sum(usage.completion_tokens * share for usage, share in usages) * times),
        cost=None if prices is None else sum(prices.of(usage) * share for usage, share in usages) * times,
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """A feature."""

    evidence: Callable[[Explainer], Evidence]
    heldout: Heldout


async def _ask(run: Run, role: str, asking: Asking, case: _Case) -> None:
    sections = run.recipe.explainers if role in EXPLAINING else run.recipe.scorers
    for section in sections.values():
        for _ in range(_times(run, role, section)):
            await _leniently(role, section, asking, case)


async def _leniently(role: str, section: PluginSection, asking: Asking, case: _Case) -> None:
    """What was sent until a plug-in gives up is counted: it may ask what nobody here can answer."""
    with contextlib.suppress(Unreadable, Refused, NoEvidence, LLMBadRequest):
        await _one(role, section, asking, case)


def _times(run: Run, role: str, section: PluginSection) -> int:
    """How often a plug-in asks about a feature: each explainer once, each scorer about every explanation."""
    is_once = role in EXPLAINING or not needs_explanation(instance("scorers", section))
    return 1 if is_once else len(run.recipe.explainers)


async def _one(role: str, section: PluginSection, asking: Asking, case: _Case) -> None:
    if role in EXPLAINING:
        explainer: Explainer = instance("explainers", section)
        if explainer.needs_llm:
            await explainer.explain(case.evidence(explainer), asking)
        return
    scorer: Scorer = instance("scorers", section)
    if not scorer.needs_llm or role_of(scorer) != role:
        return
    if "probe" in needs_of(scorer):
        await texts_of(scorer, _EXPLANATION, asking)
        return
    rule: Sequential | None = getattr(scorer, "sequential", None)
    if rule is None:
        await scorer.judge(_EXPLANATION, case.heldout, asking)
        return
    assert isinstance(asking.llm, Metered)
    for number, (ended, share) in enumerate(by_look(rule)):
        other: Scorer = instance("scorers", section | {"sequential": ended})
        standing = dataclasses.replace(asking, llm=asking.llm.standing_for(share))
        await other.judge(_turned(number), case.heldout, standing)


_EXPLANATION: Final = (
    "Words for animals and birds, and what they do, in short sentences of old stories for children."
)


def _turned(n: int) -> str:
    """Another explanation of the same length: a prompt cache holds nothing of what stands behind it."""
    words = _EXPLANATION.split(" ")
    n = (n + 1) % len(words)
    return " ".join(words[n:] + words[:n])


def _known(backend: object) -> tuple[Prices | None, int | None]:
    """Prices, and from how many tokens on a prompt is cached (None: never)."""
    if not isinstance(backend, Addressed):
        local = getattr(backend, "local", False)
        return None, 0 if local else None
    dialect = backend.dialect()
    return dialect.prices, dialect.cached_from or None


def _cases(run: Run) -> list[_Case]:
    """Windows of a few sampled features, chosen by a keyed hash; without samples, made-up ones."""
    for dictionary in run.recipe.dictionaries:
        able: list[tuple[str, str]] = []
        for unit, features in by_unit(run.asked(dictionary)):
            records = run.sample(dictionary).read(unit)
            keys = [str(feature) for feature in features]
            able += [(unit, key) for key in keys if key in records and records[key]["status"] in EXPLAINABLE]
        if able:
            order = sorted(able, key=lambda one: draw.key(run.recipe.seed, "expected", one[1]))[:N_TRIED]
            vocabulary = load_vocabulary(run)
            return [_sampled_case(run, dictionary, unit, key, vocabulary) for unit, key in order]
    sampling = run.recipe.sampling
    active, silent = example_windows(run, sampling.n_heldout, sampling.n_heldout_silent)
    hard = example_windows(run, 0, sampling.n_hard, "same_token")[1]
    return [_Case(lambda _: example_evidence(run), Heldout(active, silent + hard))]


def _sampled_case(run: Run, dictionary: str, unit: str, key: str, vocabulary: Vocabulary) -> _Case:
    windows = unit_windows(run, dictionary, unit, [key], vocabulary)
    evidence = UnitEvidence(run, dictionary, unit, windows, vocabulary)
    return _Case(partial(evidence.of, key), windows[key].heldout(key))


class Metered(ByRequest):
    """Stands for an LLM: answers lexically, counts what an LLM would have been sent."""

    identity = LLMIdentity("metered")
    capabilities = Capabilities()

    def __init__(self, cached_from: int | None, count: Callable[[str], int] | None = None) -> None:
        """`cached_from`: tokens from which on a beginning that was sent before is cached; None: none is. `count`:
        tokens of a text; None: the estimate."""
        self.usages: list[tuple[Usage, float]] = []
        """Of each request, and what share of a request it stands for."""
        self._share = 1.0
        self._count = n_tokens if count is None else count
        self._cached_from = cached_from
        self._lexical = LexicalLLM()
        self._seen: set[int] = set()

    def standing_for(self, share: float) -> Metered:
        """One whose requests are counted among those of this one, each as a share of a request; both have one
        cache."""
        other = copy(self)
        other._share = share
        return other

    def _use(self, usage: Usage) -> None:
        self.usages.append((usage, self._share))

    async def answer(self, request: Request) -> Reply:
        *turns, last = (f"\n{turn.role}\n{turn.content}" for turn in request.prompt.messages)
        beginning = "".join(turns)
        self._seen_before(beginning)  # it is the same in all prompts, and a run has many
        text = beginning + last
        n_prompt = self._count(text)
        cached = self._count(text[: self._seen_before(text)])
        if self._cached_from is None or cached < self._cached_from:
            cached = 0
        reply = await request.to(self._lexical)
        is_explanation = request.prompt.template.name.startswith("explain/")
        n_answer = EXPLANATION_TOKENS if is_explanation else min(request.max_tokens, self._count(reply.text))
        self._use(Usage(prompt_tokens=n_prompt, cached_tokens=cached, completion_tokens=n_answer))
        return reply

    def _seen_before(self, text: str) -> int:
        """Characters at its beginning that are cached, which all of it is from now on."""
        size = OWN_BLOCK if self._cached_from == 0 else BLOCK
        ends = range(size, len(text) + 1, size)
        blocks = [hash(text[:end]) for end in ends]
        n_known = next((n for n, block in enumerate(blocks) if block not in self._seen), len(blocks))
        self._seen.update(blocks)
        return n_known * size

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        text = "".join(turn.content for turn in prompt.messages) + continuation
        self._use(Usage(prompt_tokens=n_tokens(text), completion_tokens=1))
        return [-1.0] * max(1, n_tokens(continuation))

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        text = "".join(turn.content for turn in prompt.messages) + "".join(piece + filler for piece in pieces)
        self._use(Usage(prompt_tokens=self._count(text), completion_tokens=1))
        return [dict.fromkeys(labels, -1.0)] * len(pieces)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self._use(Usage(prompt_tokens=sum(map(n_tokens, texts))))
        return [[1.0, 0.0]] * len(texts)

    async def close(self) -> None:
        """Nothing to free."""


_PIECE: Final = re.compile(r"[A-Za-z]+|[0-9]{1,3}|\n+| {2,}|[^\s\w]|[^\sA-Za-z0-9]")


def n_tokens(text: str) -> int:
    """About how many tokens an LLM with a vocabulary of 100,000 and more makes of it: a word of up to seven
    letters, three digits, a sign, or a character of another script is one, a longer word one more every six."""
    return sum(1 + max(0, len(piece) - 2) // 6 for piece in _PIECE.findall(text))
