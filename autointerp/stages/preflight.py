"""Before anything costly: does the LLM answer, is there room on the disk, what will it take."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import DiskFull, LLMBadRequest, NoEvidence, Refused, Unreadable
from autointerp.evidence import needs_of
from autointerp.explainers.protocol import Explainer
from autointerp.journal import Journal
from autointerp.llm.protocol import Capabilities
from autointerp.llm.replay import Replayed
from autointerp.progress import Progress, Stop, until_stopped
from autointerp.resolve import Resolved
from autointerp.run import Run
from autointerp.scorers import question
from autointerp.scorers.blocks import packing_of
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import instance
from autointerp.splits import Heldout
from autointerp.stages.abilities import check_abilities
from autointerp.stages.asked import Asked
from autointerp.stages.examples import example_evidence, example_pushes, example_windows, few_pushes
from autointerp.stages.llms import connected
from autointerp.stages.texts import texts_of

_BYTES_A_FIRING: Final = 8
_BYTES_A_TOKEN: Final = 4
_BYTES_A_FEATURE: Final = 60_000  # windows, sample, explanation, trials and replies, generously
_BYTES_OF_EFFECTS: Final = 30_000  # measured: 25,000 at the default number of prompts
_UNKNOWN_L0: Final = 100
"""Firings a token assumed of a dictionary whose selector doesn't say."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take, before it starts."""

    n_tokens: int
    context_length: int
    n_features: int
    """Over all dictionaries."""
    disk_bytes: int
    elsewhere: tuple[str, ...] = ()
    """Sentences about dictionaries that read another place than their checkpoints say."""


def plan(run: Run, resolved: Resolved) -> Plan:
    recipe = run.recipe
    firings = {name: resolved.firings_a_token(name) or _UNKNOWN_L0 for name in recipe.dictionaries}
    n_features = sum(len(run.asked(name)) for name in recipe.dictionaries)
    assert recipe.cache.context_length is not None  # filled by `resolve`
    return Plan(
        n_tokens=recipe.cache.n_tokens,
        context_length=recipe.cache.context_length,
        n_features=n_features,
        disk_bytes=round(recipe.cache.n_tokens * (_BYTES_A_TOKEN + _BYTES_A_FIRING * sum(firings.values())))
        + _top_up_bytes(run, firings)
        + n_features * (_BYTES_A_FEATURE + (_BYTES_OF_EFFECTS if run.needs_effects else 0)),
        elsewhere=tuple(
            f"dictionary '{name}' reads {found.place}, as asked; its checkpoint says "
            + "+".join(map(str, found.stated))
            for name, found in resolved.dictionaries.items()
            if found.stated
        ),
    )


def _top_up_bytes(run: Run, firings: Mapping[str, float]) -> int:
    """What the further rows take, if every feature lacks windows by no more than a row: fewer or rarer
    features fire less. `firings` a token, of all features of each dictionary."""
    cache, n_columns = run.recipe.cache, run.identities.n_columns
    a_feature = cache.top_up_below / cache.n_tokens
    of_lacking = sum(min(of_all, n_columns(name) * a_feature) for name, of_all in firings.items())
    return round(cache.top_up * (_BYTES_A_TOKEN + _BYTES_A_FIRING * of_lacking))


def _packing(scorer: Scorer, capabilities: Capabilities) -> int:
    """Windows a request of a scorer; one that doesn't say asks about all at once."""
    packing = packing_of(getattr(scorer, "packing", "all"), getattr(scorer, "sequential", None))
    k = question.packed(packing, capabilities)
    return 1_000_000 if k is None else k


def check_disk(run: Run, planned: Plan) -> None:
    """Raises DiskFull where the plan needs more room than there is."""
    run.path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run.path).free
    used = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    if planned.disk_bytes - used > free:
        raise DiskFull(
            f"the run needs about {planned.disk_bytes / 1e9:.1f} GB, but {run.path} has {free / 1e9:.1f} GB "
            f"free. Use another --out, or fewer tokens: --set cache.n_tokens=..."
            + (" or a smaller --top-up." if run.recipe.cache.top_up else "")
        )


async def preflight(run: Run, progress: Progress, stop: Stop) -> None:
    """Connects the LLMs and checks them. Raises LLMErrors and Interrupted."""
    async with connected(run, progress) as llms:
        await until_stopped(check_llms(run, llms), stop)


async def check_llms(run: Run, llms: Mapping[str, Asked]) -> None:
    """One prompt of full size to each LLM that costs something, as its explainers and scorers will send.

    Always asked anew, so that a run which goes on learns what the server says today; each time the
    prompts differ, so no request is made twice. One that answers later is only asked whether it can work.
    Raises LLMErrors, and RecipeError where an LLM can't do what a scorer needs.
    """
    requests = Journal(run.path / "requests" / "preflight", None)
    usage = Journal(run.path / "usage" / "preflight", None)
    check_abilities(run, llms)
    turn = f"{len(requests.units()):04d}"
    for role, asked in llms.items():
        if asked.delayed is not None:
            await asked.delayed.check()
        elif asked.paid:
            noted = Replayed(asked.llm, requests, usage, turn)
            try:
                await _try(run, role, Asking(noted, f"preflight {turn}", run.recipe.seed, run.prompts))
            finally:
                noted.close_files()


async def _try(run: Run, role: str, asking: Asking) -> None:
    # What is said doesn't matter here, only that something is.
    with contextlib.suppress(Unreadable, Refused):
        try:
            await _ONCE.get(role, _explain_once)(run, asking)
        except LLMBadRequest as error:
            raise LLMBadRequest(
                f"the {role} LLM would not take a prompt of full size: {error} Is its context too short? "
                f"Fewer windows make shorter prompts: --set sampling.n_shown=20."
            ) from error


async def _explain_once(run: Run, asking: Asking) -> None:
    for section in run.recipe.explainers.values():
        explainer: Explainer = instance("explainers", section)
        if explainer.needs_llm:
            with contextlib.suppress(NoEvidence):
                await explainer.explain(example_evidence(run, few=True), asking)
                return


async def _judge_once(run: Run, asking: Asking) -> None:
    for section in run.recipe.scorers.values():
        scorer: Scorer = instance("scorers", section)
        if scorer.needs_llm and role_of(scorer) == "judge":
            if "probe" in needs_of(scorer):
                await texts_of(scorer, "words for animals", asking)
                return
            if "effects" in needs_of(scorer):
                active, _ = example_windows(run, run.recipe.sampling.n_heldout, 0)
                pushed = example_pushes(few_pushes(run.recipe.intervention), active, active, active)
                if pushed is not None:
                    await scorer.judge("words for animals", Heldout((), (), pushed.heldout), asking)
                return
            n = min(_packing(scorer, asking.llm.capabilities), run.recipe.sampling.n_heldout)
            await scorer.judge(
                "words for animals", Heldout(*example_windows(run, (n + 1) // 2, n // 2)), asking
            )
            return


async def _embed_once(run: Run, asking: Asking) -> None:
    scorers = [instance("scorers", section) for section in run.recipe.scorers.values()]
    if any(scorer.needs_llm and role_of(scorer) == "embedder" for scorer in scorers):
        active, _ = example_windows(run, 1, 0)
        await asking.llm.embed([window.text for window in active])


_ONCE: Final = {"judge": _judge_once, "embedder": _embed_once}
"""By role; who else is asked explains."""
