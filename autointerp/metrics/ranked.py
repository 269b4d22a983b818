"""One number a window -> how well it tells active windows from silent ones.

auroc   the headline: how often an active window has the larger number, ties counting half
auprc   average precision, at the ratio that the trials have

groups  stratum  auroc of all active windows against each kind of silent ones
        band     auroc of each decile against the silent windows of the headline
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from autointerp.metrics.judged import CHANCE, HEADLINE_STRATA
from autointerp.metrics.ranking import Placements, auroc, average_precision, p_above_chance
from autointerp.metrics.unreadable import flags
from autointerp.results import GroupMetrics, Metrics
from autointerp.trials import Ranked

_Values = list[float | None]


def measure_ranked(trials: Ranked) -> Metrics:
    positives: _Values = []
    negatives: _Values = []
    by_band: dict[int, _Values] = {}
    by_stratum: dict[str, _Values] = {}
    for truth, value, band, stratum in zip(
        trials.truth, trials.value, trials.band, trials.stratum, strict=True
    ):
        if truth:
            positives.append(value)
            if band is not None:
                by_band.setdefault(band, []).append(value)
        else:
            if stratum in HEADLINE_STRATA:
                negatives.append(value)
            if stratum is not None:
                by_stratum.setdefault(stratum, []).append(value)
    above, below = _readable(positives), _readable(negatives)
    both = len(above) > 0 and len(below) > 0
    n, n_read = len(positives) + len(negatives), len(above) + len(below)
    return Metrics(
        headline="auroc",
        values={
            "auroc": auroc(above, below) if both else None,
            "auprc": average_precision(above, below) if both else None,
        },
        groups={
            "stratum": {
                name: _group(positives, by_stratum[name], by_stratum[name]) for name in sorted(by_stratum)
            },
            "band": {str(band): _group(by_band[band], negatives, by_band[band]) for band in sorted(by_band)},
        },
        n=n,
        n_positive=len(positives),
        n_negative=len(negatives),
        n_unreadable=n - n_read,
        bounds=_bounds(positives, negatives),
        chance=CHANCE,
        p_value=p_above_chance(above, below) if both else None,
        flags=flags(n, n - n_read),
    )


def _readable(values: Iterable[float | None]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([value for value in values if value is not None], np.float64)


def _group(positives: _Values, negatives: _Values, counted: _Values) -> GroupMetrics:
    above, below = _readable(positives), _readable(negatives)
    value = auroc(above, below) if len(above) and len(below) else None
    return GroupMetrics(value, len(counted), sum(one is None for one in counted))


def _bounds(positives: _Values, negatives: _Values) -> tuple[float, float] | None:
    """Every window without a number below all others if active and above if silent, and the other way round."""
    if not positives or not negatives:
        return None
    low, high = (
        Placements.of(
            np.array([worst if value is None else value for value in positives], np.float64),
            np.array([-worst if value is None else value for value in negatives], np.float64),
        ).auroc
        for worst in (-np.inf, np.inf)
    )
    return low, high
