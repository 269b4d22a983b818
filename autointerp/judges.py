"""How far each judge's probabilities can be believed, as a table (`metrics/calibration.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from autointerp import draw
from autointerp import trials as trial_records
from autointerp.metrics.calibration import calibrate
from autointerp.sequential import counts_in_means
from autointerp.tables import Journals
from autointerp.trials import Trials
from autointerp.types import Json

if TYPE_CHECKING:
    from autointerp.tables import Table

MOST_SCORES: Final = 2_000
"""That a fit is made on, drawn by a keyed hash: more move it by less than they disagree."""

_SCHEMA: Final[Any] = pa.schema(
    [
        ("scorer", pa.string()),
        ("llm", pa.string()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("n_scores", pa.int64()),
        ("n_trials", pa.int64()),
        *((name, pa.float64()) for name in ("ece", "brier", "ece_calibrated", "brier_calibrated")),
    ]
)


def judges(run: Journals) -> Table:
    """A row a scorer and LLM that gave probabilities of both kinds of windows: P(yes) is 1 / (1 + exp(-(slope *
    logit(p) + intercept))), fitted over features, hard windows left out. `ece` and `brier` are of the probabilities
    as they are; `_calibrated` of each feature's by a fit on others, None for fewer than five. Memory: the trials of
    4,000 scores."""
    return pa.Table.from_pylist(list(_rows(run)), _SCHEMA)


def _rows(run: Journals) -> Iterator[Json]:
    for scorer in run.recipe.scorers:
        for llm, trials in sorted(_drawn(run, scorer).items()):
            found = calibrate(trials)
            if found is None:
                continue
            after = found.after
            yield {
                "scorer": scorer,
                "llm": llm,
                "slope": found.platt.slope,
                "intercept": found.platt.intercept,
                "n_scores": found.n_features,
                "n_trials": found.n,
                "ece": found.before.ece,
                "brier": found.before.brier,
                "ece_calibrated": after.ece if after else None,
                "brier_calibrated": after.brier if after else None,
            }


def _drawn(run: Journals, scorer: str) -> dict[str, list[Trials]]:
    """Trials of at most MOST_SCORES scores, by LLM."""
    by_llm: dict[str, list[tuple[int, Trials]]] = {}
    for dictionary in run.recipe.dictionaries:
        for explainer in (name for name, of in run.scored() if of == scorer):
            for record in run.existing("score", dictionary, explainer, scorer).records():
                trials = trial_records.of(record["trials"])
                if not isinstance(trials, Trials) or not counts_in_means(record):
                    continue
                scores = by_llm.setdefault(record["llm"], [])
                scores.append((draw.key(run.recipe.seed, "judges", explainer, record["key"]), trials))
                if len(scores) == 2 * MOST_SCORES:
                    by_llm[record["llm"]] = _first(scores)
    return {llm: [trials for _, trials in _first(scores)] for llm, scores in by_llm.items()}


def _first(scores: list[tuple[int, Trials]]) -> list[tuple[int, Trials]]:
    return sorted(scores, key=lambda score: score[0])[:MOST_SCORES]
