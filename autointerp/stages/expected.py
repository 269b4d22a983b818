"""What the LLM requests that are left of a run will take: a few features are explained and judged by nobody, and what
would have been sent is counted.

The features are sampled ones where there are any, else windows of full size that could come from any run.
Answers are the lexical backend's, which have the form that is asked for. Where the number of requests depends on the
answers (sequential scoring), it is that of judges of mixed quality (`stages/looks.py`); where explanations are drawn
to choose from, all are taken to differ. Where pushing features has not been tried yet, every strength is taken to be
found.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, NoEvidence, Refused, Unreadable
from autointerp.evidence import needs_of
from autointerp.explainers.protocol import Explainer
from autointerp.llm.dialects import Addressed
from autointerp.llm.exchange import Prices
from autointerp.llm.protocol import Role
from autointerp.panel import controls_of, scorer_section
from autointerp.run import Run
from autointerp.run.made_from import judge_of_candidates
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import PluginSection, fallbacks_of, instance
from autointerp.sequential import Sequential
from autointerp.stages.cases import Case, cases
from autointerp.stages.looks import by_look
from autointerp.stages.metered import Metered
from autointerp.stages.outstanding import Outstanding, outstanding
from autointerp.stages.texts import texts_of

SCORING: Final = ("judge", "embedder")
"""Roles that are asked by scorers, and the judge by explainers that choose, too; the others are by explainers."""
REFUSED: Final = 0.05
"""Share of features that an LLM is taken to refuse, where there is a fallback: nobody knows before."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one role, over all features that are left to it, if every answer is readable."""

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
    left = outstanding(run)
    tried = cases(run)
    found: list[Expected] = []
    llms = run.recipe.llms
    sections = [(role, llms.of(role), 1.0) for role in get_args(Role)]
    fallbacks = enumerate(fallbacks_of(llms.explainer).items(), start=1)
    for role, section, share in [*sections, *((name, one, REFUSED**n) for n, (name, one) in fallbacks)]:
        if section is None or not (backend := instance("llm", section)).paid:
            continue
        prices, cached_from = _known(backend)
        metered = Metered(cached_from)
        weights = _Weights(left, len(tried), share)
        for number, case in enumerate(tried):
            await _ask(run, role, metered, number, case, weights)
        if metered.usages:
            found.append(_summed(role, backend.identity().model, metered, prices))
        if role not in SCORING:
            continue
        metered = await _controls(run, role, tried, cached_from, weights)
        if metered.usages:
            found.append(_summed(f"{role} of controls", backend.identity().model, metered, prices))
    return found


@dataclass(frozen=True, slots=True)
class _Weights:
    """Features that each one tried stands for."""

    left: Outstanding
    n_tried: int
    share: float
    """Of them that the role is asked about."""

    def of(self, n_left: int) -> float:
        return n_left / self.n_tried * self.share


async def _controls(
    run: Run, role: str, tried: Sequence[Case], cached_from: int | None, weights: _Weights
) -> Metered:
    """What is asked about control explanations."""
    metered = Metered(cached_from)
    for number, case in enumerate(tried):
        for control in controls_of(run.recipe):
            if weight := weights.of(weights.left.control[control]):
                asking = _asking(run, metered.standing_for(weight), number)
                await _leniently(role, scorer_section(run.recipe, control), asking, case)
    return metered


def _summed(role: str, llm: str, metered: Metered, prices: Prices | None) -> Expected:
    usages = metered.usages
    return Expected(
        role,
        llm,
        n_requests=round(sum(share for _, share in usages)),
        prompt_tokens=round(sum(usage.prompt_tokens * share for usage, share in usages)),
        cached_tokens=round(sum(usage.cached_tokens * share for usage, share in usages)),
        completion_tokens=round(sum(usage.completion_tokens * share for usage, share in usages)),
        cost=None if prices is None else sum(prices.of(usage) * share for usage, share in usages),
    )


def _asking(run: Run, metered: Metered, number: int) -> Asking:
    return Asking(metered, f"expected {number}", run.recipe.seed, run.prompts)


async def _ask(run: Run, role: str, metered: Metered, number: int, case: Case, weights: _Weights) -> None:
    """What one feature takes of one role, for as many features as it stands for."""
    nobody, left = Metered(None), weights.left
    for name, section in run.recipe.explainers.items():
        is_judged = judge_of_candidates(run.recipe.llms, instance("explainers", section)) is not None
        weight = weights.of(left.explain[name])
        if not weight:
            continue
        asking = _asking(run, metered.standing_for(weight), number)
        if role not in SCORING:
            judge = nobody if is_judged else None
            await _leniently(role, section, dataclasses.replace(asking, judge=judge), case)
        elif role == "judge" and is_judged:
            await _leniently(
                "explainer", section, dataclasses.replace(asking, llm=nobody, judge=asking.llm), case
            )
    for place, n_left in left.score.items() if role in SCORING else ():
        if weight := weights.of(n_left):
            asking = _asking(run, metered.standing_for(weight), number)
            await _leniently(role, run.recipe.scorers[place[1]], asking, case)


async def _leniently(role: str, section: PluginSection, asking: Asking, case: Case) -> None:
    """What was sent until a plug-in gives up is counted: it may ask what nobody here can answer."""
    for llm in (asking.llm, asking.judge):
        if isinstance(llm, Metered):
            llm.forget()
    with contextlib.suppress(Unreadable, Refused, NoEvidence, LLMBadRequest):
        await _one(role, section, asking, case)


async def _one(role: str, section: PluginSection, asking: Asking, case: Case) -> None:
    if role not in SCORING:
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
        await scorer.judge(_EXPLANATION, case.heldout(scorer), asking)
        return
    assert isinstance(asking.llm, Metered)
    for number, (ended, share) in enumerate(by_look(rule)):
        other: Scorer = instance("scorers", section | {"sequential": ended})
        standing = dataclasses.replace(asking, llm=asking.llm.standing_for(share))
        await other.judge(_turned(number), case.heldout(other), standing)


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
