"""Race: several explainers explain a feature, each text is judged on the *select* windows, the best one stays.

    among: {short: {use: plain}, long: {use: cot}}  ->  detection on select, a text each  ->  the winner

The select figure of a winner is biased up: it is the largest of several noisy figures, so part of it is luck. With
n equally good texts and a standard error s of each figure, the winner's lies above its true value by s times the mean
of the largest of n normal numbers (0.56 s for two, 1.16 s for five). So it is kept in the record to tell candidates
apart and is no score: the winner is scored on held-out windows, which had no part in the choice. (arXiv 2410.13928
chooses the best of five interventions on the prompts that it tests on; here nothing is chosen there.)

Details of the record: `candidates` by name, in the recipe's order: text, label and balanced accuracy on `select`, or
the `status` of one that gave none; `winner`, its name; `judge`, where another LLM judged than explained. Of equals
the earlier wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, NoEvidence, RecipeError, Refused, Unreadable
from autointerp.evidence import Evidence
from autointerp.explainers.inner import Held, OnSelectWindows, inner_explainer, inner_scorer
from autointerp.explainers.judged import OnSelect, judge_on_select
from autointerp.explainers.protocol import Explained, status_of
from autointerp.scorers.question import all_of
from autointerp.sections import PluginSection
from autointerp.splits import Select
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Race(OnSelectWindows):
    """Lets several explainers compete on select windows and keeps the best text."""

    among: dict[str, PluginSection] = field(
        default_factory=lambda: {"plain": {"use": "plain"}, "cot": {"use": "cot"}}
    )
    """Explainers by name, at least two."""
    scorer: PluginSection = field(default_factory=lambda: {"use": "detection"})
    """How select windows are judged."""

    needs_llm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.among) < 2:
            raise RecipeError(
                f"race: {len(self.among)} explainer runs, and two or more must. Name them, e.g. "
                "{use: race, among: {short: {use: plain}, long: {use: cot}}}."
            )
        self.inner()  # raises

    def templates(self) -> tuple[str, ...]:
        return self.inner().templates()

    def inner(self) -> Held:
        explainers = {name: inner_explainer(f"among.{name}", section) for name, section in self.among.items()}
        return Held(explainers, inner_scorer("scorer", self.scorer))

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Raises what the first of them raised where none gives a text."""
        inner = self.inner()
        assert evidence.select is not None  # declared
        ran = await all_of(
            [_run(inner, name, evidence, evidence.select, asking) for name in inner.explainers]
        )
        finished = [one for one in ran if isinstance(one, _Finished)]
        if not finished:
            raise next(one.failure for one in ran if isinstance(one, _Failed))
        winner = finished[0]
        for one in finished[1:]:
            if one.judged.beats(winner.judged):
                winner = one
        details: Json = {"winner": winner.name, "candidates": {one.name: _told(one) for one in ran}}
        if asking.judge is not None:
            details["judge"] = str(asking.judge.identity)
        return Explained(winner.explained.text, winner.explained.label, details)


@dataclass(frozen=True, slots=True)
class _Finished:
    name: str
    explained: Explained
    judged: OnSelect


@dataclass(frozen=True, slots=True)
class _Failed:
    name: str
    failure: Unreadable | Refused | NoEvidence | LLMBadRequest


async def _run(
    inner: Held, name: str, evidence: Evidence, select: Select, asking: Asking
) -> _Finished | _Failed:
    """One that gives no text, or one that can't be judged, drops out; what else goes wrong is raised."""
    try:
        explained = await inner.explainers[name].explain(inner.evidence(name, evidence), asking)
        judged = await judge_on_select(inner.scorer, explained.text, select, asking)
    except (Unreadable, Refused, NoEvidence, LLMBadRequest) as failure:
        return _Failed(name, failure)
    return _Finished(name, explained, judged)


def _told(one: _Finished | _Failed) -> Json:
    """What the record says of a candidate."""
    match one:
        case _Finished(_, explained, judged):
            told: Json = {"text": explained.text, "label": explained.label, "select": judged.accuracy}
            return told | ({"details": explained.details} if explained.details else {})
        case _Failed(_, failure):
            return {"status": status_of(failure), "reason": str(failure)}
