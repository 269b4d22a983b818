"""Predicted activations -> how they go with the true ones (Bills et al. 2023, "Language models can explain
neurons in language models").

    correlation  the headline: Pearson's, over the tokens of all windows one behind the other, the hard strata
                 left out. None where either side doesn't vary.

    groups       band  the same over windows of one decile and the silent ones of the headline

Tokens of a window are not independent, so the interval is from the windows: each window's part in the
correlation's first-order change (its influence) has a variance, which is taken to Fisher's z scale, with
Student's quantile. It is an approximation that needs ten windows or more, and it has no width where every
token is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.judged import HEADLINE_STRATA
from autointerp.metrics.rates import TAIL
from autointerp.metrics.unreadable import flags
from autointerp.trials import Predictions
from autointerp.types import GroupMetrics, Interval, Metrics

_Floats = NDArray[np.float64]


def measure_predicted(trials: Predictions) -> Metrics:
    """A window counts as unreadable where no token of it could be read."""
    counted = [n for n, stratum in enumerate(trials.stratum) if stratum in HEADLINE_STRATA]
    silent = [n for n in counted if trials.band[n] is None]
    bands = sorted({band for n in counted if (band := trials.band[n]) is not None})
    value, p_value = correlation(trials, counted)
    n_unreadable = _n_unreadable(trials, counted)
    return Metrics(
        headline="correlation",
        values={"correlation": value},
        groups={"band": {str(band): _of_band(trials, band, silent) for band in bands}},
        n=len(counted),
        n_positive=len(counted) - len(silent),
        n_negative=len(silent),
        n_unreadable=n_unreadable,
        chance=0.0,
        p_value=p_value,
        flags=flags(len(counted), n_unreadable),
    )


def _of_band(trials: Predictions, band: int, silent: Sequence[int]) -> GroupMetrics:
    own = [n for n, its_band in enumerate(trials.band) if its_band == band]
    return GroupMetrics(correlation(trials, [*own, *silent])[0], len(own), _n_unreadable(trials, own))


def _n_unreadable(trials: Predictions, these: Sequence[int]) -> int:
    return sum(all(value is None for value in trials.predicted[n]) for n in these)


def correlation(trials: Predictions, these: Sequence[int]) -> tuple[Interval | None, float | None]:
    """Over the readable tokens of these windows, and how likely so large a one is where there is none."""
    influences = influence(trials, these)
    if influences is None:
        return None, None
    value, parts = influences
    n = len(parts)
    if n < 3:
        return None, None
    if 1 - abs(value) < 1e-12:
        return Interval(value, value, value), None
    z = math.atanh(value)
    error = math.sqrt(float(((parts - parts.mean()) ** 2).sum()) * n / (n - 1)) / (1 - value**2)
    half = cast(float, stats.t.ppf(1 - TAIL, n - 1)) * error
    p_value = float(stats.t.sf(z / error, n - 1)) if error > 0 else None
    return Interval(value, math.tanh(z - half), math.tanh(z + half)), p_value


def influence(trials: Predictions, these: Sequence[int]) -> tuple[float, _Floats] | None:
    """Pearson's correlation, and what each window [W] with a readable token adds to its first-order change:
    the sum over its tokens of (x y - r (x^2 + y^2) / 2) / n, x and y standardised. None without variance."""
    predicted: list[float] = []
    actual: list[float] = []
    window: list[int] = []
    for number, n in enumerate(these):
        for guess, truth in zip(trials.predicted[n], trials.actual[n], strict=True):
            if guess is not None:
                predicted.append(guess)
                actual.append(truth)
                window.append(number)
    if not predicted:
        return None
    x, y = np.array(predicted), np.array(actual)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x**2).mean()) * float((y**2).mean()))
    if not scale > 1e-12 * (1 + float(np.abs(predicted).max()) * float(np.abs(actual).max())):
        return None
    value = float(np.clip((x * y).mean() / scale, -1, 1))
    x, y = x / math.sqrt(float((x**2).mean())), y / math.sqrt(float((y**2).mean()))
    parts = (x * y - value * (x**2 + y**2) / 2) / len(x)
    _, number = np.unique(window, return_inverse=True)
    return value, np.bincount(number, parts).astype(np.float64)
