"""Predicted activations -> how they go with the true ones (Bills et al. 2023, "Language models can explain
neurons in language models").

    correlation  the headline: Pearson's, over the tokens of all windows one behind the other, the hard strata
                 left out. 0 where the prediction doesn't vary, which says nothing of any token (flag `constant`): to
                 leave such features out would raise a run's mean. None where the activations don't.

    groups       band  the same over windows of one decile and the silent ones of the headline

Tokens of a window are not independent, so the interval is from the windows: a jackknife that leaves out one at a
time, on Fisher's z scale, with Student's quantile. It is an approximation that needs ten windows or more, and it
has no width where every token is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.judged import HEADLINE_STRATA
from autointerp.metrics.rates import TAIL
from autointerp.metrics.unreadable import flags
from autointerp.results import GroupMetrics, Interval, Metrics
from autointerp.trials import Predictions

_Floats = NDArray[np.float64]

CONSTANT: Final = "constant"
"""Flag: the same was predicted of every token."""

_TINY: Final = 1e-12
"""Of a variance: what rounding leaves of none."""


def measure_predicted(trials: Predictions) -> Metrics:
    """A window counts as unreadable where no token of it could be read."""
    counted = _counted(trials)
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
        flags=flags(len(counted), n_unreadable) + ([CONSTANT] if _is_constant(trials, counted) else []),
    )


def _counted(trials: Predictions) -> list[int]:
    return [n for n, stratum in enumerate(trials.stratum) if stratum in HEADLINE_STRATA]


def by_document(trials: Predictions) -> Iterator[tuple[str, float]]:
    """What each window adds to the headline, with its document."""
    counted = _counted(trials)
    found = influence(trials, counted)
    if found is not None:
        yield from zip((trials.document[n] for n in counted), found[1].tolist(), strict=True)


def _of_band(trials: Predictions, band: int, silent: Sequence[int]) -> GroupMetrics:
    own = [n for n, its_band in enumerate(trials.band) if its_band == band]
    return GroupMetrics(correlation(trials, [*own, *silent])[0], len(own), _n_unreadable(trials, own))


def _n_unreadable(trials: Predictions, these: Sequence[int]) -> int:
    return sum(all(value is None for value in trials.predicted[n]) for n in these)


def _is_constant(trials: Predictions, these: Sequence[int]) -> bool:
    """Whether the readable tokens were all predicted alike, though they are not."""
    x, y, _ = _tokens(trials, these)
    return len(x) > 0 and not _varies(x) and _varies(y)


def _varies(x: _Floats) -> bool:
    return float(np.var(x)) > _TINY * (1 + float(np.abs(x).max()) ** 2)


def correlation(trials: Predictions, these: Sequence[int]) -> tuple[Interval | None, float | None]:
    """Over the readable tokens of these windows, and how likely so large a one is where there is none."""
    if _is_constant(trials, these):
        return Interval(0.0, 0.0, 0.0), 1.0
    found = influence(trials, these)
    if found is None:
        return None, None
    value = found[0]
    without = _without_each(trials, these)
    n = len(without)
    if n < 3 or not np.isfinite(without).all():
        return None, None
    if 1 - abs(value) < 1e-12:
        return Interval(value, value, value), None
    z = math.atanh(value)
    spread = np.arctanh(without.clip(-1 + 1e-12, 1 - 1e-12)) - z
    error = math.sqrt(float((spread**2).sum()) * (n - 1) / n)
    half = cast(float, stats.t.ppf(1 - TAIL, n - 1)) * error
    p_value = float(stats.t.sf(z / error, n - 1)) if error > 0 else None
    return Interval(value, math.tanh(z - half), math.tanh(z + half)), p_value


def _without_each(trials: Predictions, these: Sequence[int]) -> _Floats:
    """[W] correlations of all windows but one, of each with a readable token; 0 where nothing predicted varies then,
    nan where no activation does."""
    sums: list[tuple[float, ...]] = []
    for n in these:
        x, y, _ = _tokens(trials, [n])
        if len(x):
            sums.append((len(x), *map(float, (x.sum(), y.sum(), x @ x, y @ y, x @ y))))
    of_each = np.array(sums).reshape(-1, 6)
    n, x, y, xx, yy, xy = (of_each.sum(0) - of_each).T
    with np.errstate(divide="ignore", invalid="ignore"):
        varies = n * xx - x * x > _TINY * n * xx
        found = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
        return np.where(varies | ~(n * yy - y * y > 0), found, 0.0)


def influence(trials: Predictions, these: Sequence[int]) -> tuple[float, _Floats] | None:
    """Pearson's correlation, and what each of these windows [W] adds to its first-order change: the sum over its
    readable tokens of (x y - r (x^2 + y^2) / 2) / n, x and y standardised. They sum to 0. None without
    variance."""
    x, y, window = _tokens(trials, these)
    if not len(x) or not _varies(x) or not _varies(y):
        return None
    x, y = x - x.mean(), y - y.mean()
    x, y = x / math.sqrt(float((x**2).mean())), y / math.sqrt(float((y**2).mean()))
    value = float(np.clip((x * y).mean(), -1, 1))
    parts = (x * y - value * (x**2 + y**2) / 2) / len(x)
    return value, np.bincount(window, parts, minlength=len(these)).astype(np.float64)


def _tokens(trials: Predictions, these: Sequence[int]) -> tuple[_Floats, _Floats, NDArray[np.int64]]:
    """Of the readable tokens of these windows, each [N]: what was predicted, what is true, number of the window."""
    rows = [
        (guess, truth, number)
        for number, n in enumerate(these)
        for guess, truth in zip(trials.predicted[n], trials.actual[n], strict=True)
        if guess is not None
    ]
    x, y, window = np.array(rows, np.float64).reshape(-1, 3).T
    return x, y, window.astype(np.int64)
