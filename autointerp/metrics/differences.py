"""Two sets of scores -> how much higher the first is, with a 95% interval over features.

`paired` where both are of the same features: what makes a feature easy or hard drops out. `unpaired` where they
are not; its interval is wider, and it is all that can be said then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.features import mean_over_features, resampled_means
from autointerp.metrics.rates import TAIL
from autointerp.types import digest


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of the first minus the mean of the second."""

    value: float
    low: float | None
    high: float | None
    """Ends of the 95% bootstrap interval; None where a single feature has no spread to resample."""
    first: float
    second: float
    """The two means."""
    n: tuple[int, int]
    """Features of each; where they are paired both are the number of pairs."""
    p_value: float | None
    """That two alike give so large a difference: Wilcoxon's signed-rank test for pairs, Mann-Whitney's without.
    None where there is nothing to rank."""


def paired(
    first: Mapping[str, float], second: Mapping[str, float], *, seed: int, purpose: str
) -> Difference | None:
    """Over the features that both have; None where they have none in common."""
    keys = sorted(first.keys() & second.keys())
    differences = [first[key] - second[key] for key in keys]
    mean = mean_over_features(differences, seed=seed, purpose=purpose)
    if mean is None:
        return None
    n = len(keys)
    return Difference(
        value=mean.value,
        low=mean.low,
        high=mean.high,
        first=math.fsum(first[key] for key in keys) / n,
        second=math.fsum(second[key] for key in keys) / n,
        n=(n, n),
        p_value=_wilcoxon(differences) if any(differences) else None,
    )


def _wilcoxon(differences: Sequence[float]) -> float:
    """Differences of nothing are left out. Two-sided."""
    found: Any = stats.wilcoxon(differences)  # typed as a tuple without names
    return float(found.pvalue)


def unpaired(
    first: Sequence[float], second: Sequence[float], *, seed: int, purpose: str
) -> Difference | None:
    """None where one of them is empty. Each is resampled by itself."""
    if not first or not second:
        return None
    means = math.fsum(first) / len(first), math.fsum(second) / len(second)
    value, low, high = means[0] - means[1], None, None
    if len(first) > 1 and len(second) > 1:
        of_each = [
            resampled_means(values, np.random.Generator(np.random.PCG64(int(digest(seed, purpose, n), 16))))
            for n, values in enumerate((first, second))
        ]
        ends = np.quantile(of_each[0] - of_each[1], [TAIL, 1 - TAIL]).tolist()
        low, high = min(ends[0], value), max(ends[1], value)
    alike = len({*first, *second}) == 1
    return Difference(
        value=value,
        low=low,
        high=high,
        first=means[0],
        second=means[1],
        n=(len(first), len(second)),
        p_value=None if alike else float(stats.mannwhitneyu(first, second).pvalue),
    )
