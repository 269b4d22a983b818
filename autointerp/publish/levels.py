"""`p_adjusted` of published scores: what single features may be claimed, among all that were scored alike.

It is of no record: whatever is scored later may change it, and with it the table `scores` of every shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from autointerp.metrics.claims import levels
from autointerp.progress import Stop
from autointerp.run import Run
from autointerp.spread import spread, worth
from autointerp.types import Json, digest

Pair = tuple[str, str]
"""Explainer and scorer."""
Levels = Mapping[Pair, Mapping[float, float]]
"""p-value -> `p_adjusted`."""


class _Claims:
    """The p-values of a unit's scores."""

    def __init__(self, run: Run, dictionary: str) -> None:
        self._journals = {pair: run.existing("score", dictionary, *pair) for pair in run.scored()}

    @property
    def units(self) -> list[str]:
        """With a score."""
        return sorted({unit for journal in self._journals.values() for unit in journal.units()})

    def __call__(self, unit: str) -> dict[Pair, list[float]]:
        return {
            pair: [claim for one in journal.read(unit).values() if (claim := _claim(one)) is not None]
            for pair, journal in self._journals.items()
        }


def levels_of(run: Run, dictionary: str, *, jobs: int, stop: Stop) -> Levels:
    """Of everything scored, as `Run.scores()` has it, in so many processes. Raises Interrupted. Memory: the
    numbers."""
    claims: dict[Pair, list[float]] = {pair: [] for pair in run.scored()}
    jobs = worth(jobs, len(run.asked(dictionary)))
    for of_unit in spread(partial(_Claims, run, dictionary), _Claims(run, dictionary).units, jobs):
        stop.check()
        for pair, found in of_unit.items():
            claims[pair] += found
    return {pair: levels(found) for pair, found in claims.items()}


def p_adjusted(record: Json, of_pair: Mapping[float, float] | None) -> float | None:
    """Of a score; None where nothing may be claimed, and for what was scored since `levels_of`, while the run goes
    on: the next time it is published its table is made anew."""
    claim = _claim(record)
    return None if claim is None or of_pair is None else of_pair.get(claim)


def _claim(record: Json) -> float | None:
    """The p-value of a score that stands."""
    return record["metrics"]["p_value"] if record["metrics"] and record["status"] == "ok" else None


def digest_of(of_dictionary: Levels) -> str:
    """What they are, for what is made from them."""
    return digest([[pair, sorted(of_pair.items())] for pair, of_pair in sorted(of_dictionary.items())])
