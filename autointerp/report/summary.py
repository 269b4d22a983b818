"""A run in numbers: the funnel from asked to scored with reasons, and mean scores with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from autointerp.dictionaries.caveats import CAVEATS
from autointerp.dictionaries.thresholds import NO_CANDIDATES
from autointerp.fits import density
from autointerp.floors import Row, load
from autointerp.report.panel import BesideControl, ControlSummary, beside_controls, control_summaries
from autointerp.report.scores import (
    Beside,
    PairSummary,
    ScoreSummary,
    pair_summary,
    score_summary,
)
from autointerp.report.sums import Explained
from autointerp.report.tally import Tally, Tallying
from autointerp.run import CHECK, Run
from autointerp.scored import Instance
from autointerp.spread import bundles, spread, worth
from autointerp.stages.sample import by_unit
from autointerp.types import EXPLAINABLE

MEANINGS: Final[dict[str, str]] = {
    "dead": "never fire on this corpus",
    "no_candidates": NO_CANDIDATES,
    "too_few": "too few active windows or documents",
    "dense": "fire nearly everywhere: no silent windows",
    "unreadable": "the LLM's answer could not be read",
    "untestable": "no windows that this scorer could set against each other",
    "refused": "the LLM declined",
    "bad_request": "the server would not take the request",
    "no_evidence": "nothing is known to explain them by",
    "no_windows": "explained without windows, so there is nothing to test on",
}
"""What a status that ends a feature's way means, or a reason for it."""

_SPOKEN: Final = {"ablated": "lost where ablated (above 0: the explanation names it)"}


def spoken(name: object) -> str:
    """`balanced_accuracy` in words, and which sign is good where a name doesn't say."""
    return _SPOKEN.get(str(name), str(name).replace("_", " "))


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
    per_token: list[ControlSummary]
    """The same of the gain a token, for scorers that sum over an explanation's tokens."""
    floors: list[Row]
    """What the run's control runs score, where there are any."""
    n_no_candidates: int = 0
    """Of those that are dead: what calibration left no way to fire."""
    dense: str | None = None
    """What a dense dictionary is (`fits.density`)."""
    is_imported: bool = False
    """Whether another program made it all, so that what is not there will never be."""
    caveats: tuple[str, ...] = ()
    """How its codes were made, where that is not as it was trained; none of a run whose cache is elsewhere."""

    @property
    def n_alive(self) -> int:
        return self.n_sampled - self.by_status.get("dead", 0)

    @property
    def dead(self) -> dict[str, int]:
        """By reason."""
        n_silent = self.n_sampled - self.n_alive - self.n_no_candidates
        return {"dead": n_silent, "no_candidates": self.n_no_candidates}

    @property
    def n_explainable(self) -> int:
        return sum(self.by_status.get(status, 0) for status in EXPLAINABLE)


def summarise(run: Run, dictionary: str, *, jobs: int = 1) -> Summary:
    """Reads the journals, in so many processes. Raises RunError. Memory: one unit's records, and a few numbers a
    score."""
    asked = [(unit, frozenset(map(str, features))) for unit, features in by_unit(run.asked(dictionary))]
    n_asked = sum(len(features) for _, features in asked)
    units = list(bundles(asked, [len(features) for _, features in asked]))
    tally = Tally()
    for of_units in spread(partial(Tallying, run, dictionary), units, worth(jobs, n_asked)):
        tally.extend(of_units)
    statuses = tally.statuses
    n_explainable = sum(statuses[status] for status in EXPLAINABLE)
    beside = Beside(n_explainable, statuses.total() - statuses["dead"], statuses.total())
    nothing = Explained()
    scores = [
        score_summary(*pair, sums, tally.explained.get(pair[0], nothing), beside, run.recipe.seed)
        for pair, sums in tally.scored.items()
    ]
    pairs = [
        pair
        for (first, second, scorer), against in tally.pairs.items()
        if (pair := pair_summary(first, second, scorer, against, run.recipe.seed)) is not None
    ]
    controls = list(control_summaries(run, dictionary))
    check = run.existing("cache", dictionary).read(CHECK).get(CHECK)
    return Summary(
        path=run.path,
        dictionary=dictionary,
        n_asked=n_asked,
        n_sampled=statuses.total(),
        by_status=dict(statuses),
        explainers=[_explainer(name, one, beside) for name, one in tally.explained.items()],
        scores=scores,
        pairs=pairs,
        controls=[one for one in controls if not one.is_per_token],
        per_token=[one for one in controls if one.is_per_token],
        floors=[row for row in load(run) if row.instance.dictionary == dictionary],
        n_no_candidates=tally.n_no_candidates,
        dense=None if check is None else density(check["l0"], run.identities.widths[dictionary]),
        is_imported="published" in (run.existing("sample", dictionary).made_from or {}),
        caveats=tuple(run.existing("cache", dictionary).read(CHECK).get(CHECK, {}).get(CAVEATS, ())),
    )


def beside_all(summaries: Sequence[Summary]) -> Iterator[tuple[Instance, BesideControl]]:
    """Every score beside each of its controls."""
    for summary in summaries:
        for score in summary.scores:
            controls = [*summary.controls, *summary.per_token]
            for one in beside_controls(score.explainer, score.scorer, controls, summary.floors):
                yield Instance(summary.dictionary, score.explainer, score.scorer), one


def _explainer(name: str, found: Explained, beside: Beside) -> ExplainerSummary:
    n_able = beside.n_sampled if found.explains_all else beside.n_explainable
    n_open = n_able - found.statuses.total()
    ends = dict(found.statuses)
    n_explained = ends.pop("ok", 0)
    return ExplainerSummary(name, n_explained, ends, n_open, found.n_refused)
