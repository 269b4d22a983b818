"""Two sets of scores -> how much higher the first is, with a 95% interval over features and documents.

Documents are drawn as well as features (`features.py`), for one may suit one side and not the other: `status` says
the same of two explainers of a run. `paired` where both are of the same features: what makes a feature easy or hard
drops out. `unpaired` where they are not; its interval is wider, and it is all that can be said then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.features import Population
from autointerp.metrics.paired import p_signed_rank
from autointerp.metrics.records import Against


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


def paired(found: Against, *, seed: int, purpose: str) -> Difference | None:
    """None where they have no feature in common."""
    mean = found.pooled.mean(seed=seed, purpose=purpose)
    if mean is None:
        return None
    second = math.fsum(found.second) / mean.n
    return Difference(
        value=mean.value,
        low=mean.low,
        high=mean.high,
        first=second + mean.value,
        second=second,
        n=(mean.n, mean.n),
        p_value=p_signed_rank(found.pooled.values),
    )


def unpaired(first: Population, second: Population, *, seed: int, purpose: str) -> Difference | None:
    """None where one of them is empty."""
    if not first.values or not second.values:
        return None
    value, low, high = first.less(second, seed=seed, purpose=purpose)
    alike = len({*first.values, *second.values}) == 1
    return Difference(
        value=value,
        low=low,
        high=high,
        first=math.fsum(first.values) / len(first.values),
        second=math.fsum(second.values) / len(second.values),
        n=(len(first.values), len(second.values)),
        p_value=None if alike else float(stats.mannwhitneyu(first.values, second.values).pvalue),
    )
