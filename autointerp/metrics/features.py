"""One number a feature -> its mean over features, with a 95% bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.metrics.rates import TAIL
from autointerp.types import digest

N_RESAMPLES = 2000
"""Bootstrap resamples. Their noise moves an end by about 1/65 of the interval's width (one sd)."""

_N_CELLS = 1 << 20
"""Most cells of a chunk of resamples: 8 MiB of int64 counts."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeanOver:
    """The mean of a number over n features, and the ends of its 95% interval.

    The interval is about features (would others of this dictionary give the same mean?), so one feature
    has none: low and high are None for n = 1.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def mean_over_features(values: Sequence[float], *, seed: int, purpose: str) -> MeanOver | None:
    """Mean of one number a feature, with the 95% percentile bootstrap over features. None for no values.

    A feature whose number is None (see `Metrics`) is left out by the caller; `n` says how many are in.
    The resamples are a keyed function of (seed, purpose), and the order of the values changes nothing.
    """
    if not values:
        return None
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return MeanOver(mean, None, None, 1)
    rng = np.random.Generator(np.random.PCG64(int(digest(seed, purpose), 16)))
    low, high = np.quantile(resampled_means(values, rng), [TAIL, 1 - TAIL])
    return MeanOver(mean, min(float(low), mean), max(float(high), mean), n)


def resampled_means(values: Sequence[float], rng: np.random.Generator) -> _Floats:
    """[N_RESAMPLES] means of n values drawn with replacement.

    Drawn as counts of the distinct values, a multinomial: 50 + 50 trials know a few hundred balanced
    accuracies, so 1e6 features cost what 1e3 do.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    n = len(values)
    n_rows = max(1, _N_CELLS // len(distinct))
    sizes = [min(n_rows, N_RESAMPLES - start) for start in range(0, N_RESAMPLES, n_rows)]
    return np.concatenate([rng.multinomial(n, counts / n, size=size) @ distinct / n for size in sizes])
