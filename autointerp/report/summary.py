"""A run in numbers: the funnel from asked to scored with reasons, and mean scores with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

from autointerp.floors import Row, load
from autointerp.garbage import uncollected
from autointerp.journal import unit_of_feature
from autointerp.report.panel import BesideControl, ControlSummary, beside_controls, control_summaries
from autointerp.report.scores import (
    Beside,
    PairSummary,
    Places,
    ScoreSummary,
    pair_summary,
    score_summary,
)
from autointerp.run import Run
from autointerp.scored import Instance
from autointerp.types import EXPLAINABLE

MEANINGS: Final[dict[str, str]] = {
    "dead": "never fire on this corpus",
    "too_few": "too few active windows or documents",
    "dense": "fire nearly everywhere: no silent windows",
    "unreadable": "the LLM's answer could not be read",
    "untestable": "no windows that this scorer could set against each other",
    "refused": "the LLM declined",
    "bad_request": "the server would not take the request",
    "no_evidence": "nothing is known to explain them by",
    "no_windows": "explained without windows, so there is nothing to test on",
}
"""What a status that ends a feature's way means."""


@dataclass(frozen=True, slots=True)
class ExplainerSummary:
    explainer: str
    n_explained: int
    ends: dict[str, int]
    n_open: int
    """Explainable features that have no record yet."""
    n_refused: int = 0
    """Features that some LLM declined to explain, also those that a fallback then explained."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One dictionary of a run, over the features the recipe asks for."""

    path: Path
    """Of the run."""
    dictionary: str
    n_asked: int
    n_sampled: int
    by_status: dict[str, int]
    explainers: list[ExplainerSummary]
    scores: list[ScoreSummary]
    pairs: list[PairSummary]
    controls: list[ControlSummary]
    floors: list[Row]
    """What the run's control runs score, where there are any."""

    @property
    def n_alive(self) -> int:
        return self.n_sampled - self.by_status.get("dead", 0)

    @property
    def n_explainable(self) -> int:
        return sum(self.by_status.get(status, 0) for status in EXPLAINABLE)


def summarise(run: Run, dictionary: str) -> Summary:
    """Reads the journals. Raises RunError. Memory: one unit's records, and a few numbers a score."""
    with uncollected():
        return _summarise(run, dictionary)


def _summarise(run: Run, dictionary: str) -> Summary:
    asked = {str(feature): unit_of_feature(feature.index) for feature in run.asked(dictionary)}
    units = sorted(set(asked.values()))
    statuses: Counter[str] = Counter()
    without_windows: set[str] = set()
    for unit in units:
        records = run.existing("sample", dictionary).read(unit)
        statuses.update(record["status"] for key, record in records.items() if key in asked)
        without_windows.update(key for key, record in records.items() if record["status"] not in EXPLAINABLE)
    explainers = [
        _explainer(run, dictionary, name, asked, without_windows, statuses.total())
        for name in run.recipe.explainers
    ]
    n_explainable = sum(statuses[status] for status in EXPLAINABLE)
    beside = Beside(n_explainable, statuses.total() - statuses["dead"], statuses.total())
    places = Places(run, dictionary, asked, without_windows)
    scores = [score_summary(places, explainer, scorer, beside) for explainer, scorer in run.scored()]
    pairs = [
        pair
        for scorer in run.recipe.scorers
        for first, second in combinations(run.recipe.explainers, 2)
        if (pair := pair_summary(places, first, second, scorer)) is not None
    ]
    return Summary(
        path=run.path,
        dictionary=dictionary,
        n_asked=len(asked),
        n_sampled=statuses.total(),
        by_status=dict(statuses),
        explainers=explainers,
        scores=scores,
        pairs=pairs,
        controls=list(control_summaries(run, dictionary)),
        floors=[row for row in load(run) if row.instance.dictionary == dictionary],
    )


def beside_all(summaries: Sequence[Summary]) -> Iterator[tuple[Instance, BesideControl]]:
    """Every score beside each of its controls."""
    for summary in summaries:
        for score in summary.scores:
            for one in beside_controls(score.explainer, score.scorer, summary.controls, summary.floors):
                yield Instance(summary.dictionary, score.explainer, score.scorer), one


def _explainer(
    run: Run, dictionary: str, name: str, asked: dict[str, str], without_windows: set[str], n_sampled: int
) -> ExplainerSummary:
    statuses: Counter[str] = Counter()
    explains_all, n_refused = False, 0
    for unit in sorted(set(asked.values())):
        records = run.existing("explain", dictionary, name).read(unit)
        statuses.update(record["status"] for key, record in records.items() if key in asked)
        n_refused += sum(
            record["status"] == "refused" or "refused_by" in record
            for key, record in records.items()
            if key in asked
        )
        explains_all = explains_all or not without_windows.isdisjoint(records)
    n_able = n_sampled if explains_all else n_sampled - len(without_windows.intersection(asked))
    n_open = n_able - statuses.total()
    n_explained = statuses.pop("ok", 0)
    return ExplainerSummary(name, n_explained, dict(statuses), n_open, n_refused)
