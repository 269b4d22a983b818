"""`p_adjusted` of published scores: what single features may be claimed, among all that were scored alike.

It is of no record: whatever is scored later may change it, and with it the table `scores` of every shard.
"""

from __future__ import annotations

from collections.abc import Mapping

from autointerp.metrics.claims import levels
from autointerp.run import Run
from autointerp.types import Json, digest

Levels = Mapping[tuple[str, str], Mapping[float, float]]
"""By explainer and scorer: p-value -> `p_adjusted`."""


def levels_of(run: Run, dictionary: str) -> Levels:
    """Of everything scored, as `Run.scores()` has it. Memory: the numbers."""
    return {
        pair: levels([_claim(one) for one in run.existing("score", dictionary, *pair).records()])
        for pair in run.scored()
    }


def p_adjusted(record: Json, of_pair: Mapping[float, float] | None) -> float | None:
    """Of a score; None where nothing may be claimed, and for what was scored since `levels_of`, while the run goes
    on: the next time it is published its table is made anew."""
    claim = _claim(record)
    return None if claim is None or of_pair is None else of_pair.get(claim)


def _claim(record: Json) -> float | None:
    """The p-value of a score that stands."""
    return record["metrics"]["p_value"] if record["metrics"] and record["status"] == "ok" else None


def digest_of(source: str, of_dictionary: Levels) -> str:
    """What a table of scores was made from; `source`: what the other tables of its shard were."""
    return digest(
        source, [[pair, sorted(of_pair.items())] for pair, of_pair in sorted(of_dictionary.items())]
    )
