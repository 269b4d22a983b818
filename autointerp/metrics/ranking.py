"""Areas under the ROC and the precision-recall curve, with intervals that hold at the extremes.

**AUROC** is the probability that a positive has a larger number than a negative, ties counting half. DeLong's
variance (1988, Biometrics 44) is that of two means of placements: for each positive the share of negatives
below it, for each negative the share of positives above it. It is right for any two distributions, but it is 0
where the classes are separated, and wild close to that. Hanley and McNeil's model variance (1982, Radiology
143) is wrong where the judge is sure of some wrong answers. So the interval is that of a proportion with an
effective number of trials (Korn and Graubard 1998, Survey Methodology 24): n = A (1-A) / v, and Clopper and
Pearson's ends for n A hits. v is DeLong's variance after one positive at the bottom and one negative at the
top were added, each with a weight of one half: so v is never 0. n is at least the smaller of the two counts: for
no two distributions is the variance larger than A (1-A) / min(n+, n-) (Birnbaum and Klose 1957). Below one half the
interval is the mirror image of that of 1 - A, with the classes the other way round.

**AUPRC** is average precision, at the ratio of positives and negatives that the trials have. Its interval is
the binomial one of Boyd, Eng and Page 2013 ("Area under the precision-recall curve"), with the number of
positives, or of negatives if there are fewer, as the number of trials, and Clopper and Pearson's ends in place
of the normal ones, which fail at 1. The low end is that of the average precision with half a negative more above
all others: a few wrong answers a judge is sure of cost much of it, and may be missing by luck.

How often these intervals cover is simulated in `tests/test_planted_truth.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.rates import TAIL
from autointerp.results import Interval

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Placements:
    """Where the numbers of each class stand among those of the other, ties counting half."""

    positive: _Floats
    """[P], share of negatives below each positive; its mean is the AUROC."""
    negative: _Floats
    """[N], share of positives above each negative; the same mean."""

    @classmethod
    def of(cls, positives: _Floats, negatives: _Floats) -> Placements:
        """Values [P] and [N], neither empty."""
        n_pos, n_neg = len(positives), len(negatives)
        of_all = _ranks(np.concatenate([positives, negatives]))
        below = of_all[:n_pos] - _ranks(positives)
        above = n_pos - (of_all[n_pos:] - _ranks(negatives))
        return cls(below / n_neg, above / n_pos)

    @property
    def auroc(self) -> float:
        return float(self.positive.mean())


def _ranks(values: _Floats) -> _Floats:
    """Of each value, from 1; equal ones share their mean rank."""
    return cast(_Floats, stats.rankdata(values))


_DOUBT = 0.5
"""Weight of the positive at the bottom and of the negative at the top."""


def auroc(positives: _Floats, negatives: _Floats, tail: float = TAIL) -> Interval:
    """Values [P] and [N], neither empty."""
    value = Placements.of(positives, negatives).auroc
    if value >= 0.5:
        return _above_half(positives, negatives, tail)
    mirrored = _above_half(negatives, positives, tail)
    return Interval(value, min(1 - mirrored.high, value), max(1 - mirrored.low, value))


def _above_half(positives: _Floats, negatives: _Floats, tail: float) -> Interval:
    placements = Placements.of(positives, negatives)
    value = placements.auroc
    n_pos, n_neg = len(positives), len(negatives)
    fewer = min(n_pos, n_neg)
    doubted = (value * n_pos * n_neg) / ((n_pos + _DOUBT) * (n_neg + _DOUBT))
    variance = _variance(placements.positive, n_neg) + _variance(placements.negative, n_pos)
    n = np.clip(doubted * (1 - doubted) / variance, fewer, n_pos + n_neg)
    return proportion(value, float(n), tail)


def _variance(placements: _Floats, n_other: int) -> float:
    """Of the mean of placements, one of 0 added with weight `_DOUBT`, as one of the other class beyond all is."""
    values = placements * n_other / (n_other + _DOUBT)
    total = len(values) + _DOUBT
    mean = values.sum() / total
    squares = ((values - mean) ** 2).sum() + _DOUBT * mean**2
    return float(squares / total / (total - 1 if total > 2 else 1))


def proportion(value: float, n: float, tail: float = TAIL) -> Interval:
    """Clopper and Pearson's interval of `value * n` hits in n trials, which need not be whole numbers."""
    hits, misses = value * n, (1 - value) * n
    low = float(special.betaincinv(hits, misses + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, misses, 1 - tail)) if misses > 0 else 1.0
    return Interval(value, min(low, value), max(high, value))


def average_precision(positives: _Floats, negatives: _Floats, tail: float = TAIL) -> Interval:
    """Mean over positives of the precision at their value: all of a value are taken together."""
    values = np.concatenate([positives, negatives])
    order = np.argsort(-values, kind="stable")
    is_positive = order < len(positives)
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)  # of each run of equal values
    hits = np.cumsum(is_positive)[last]
    value, doubted = (
        min(1.0, float((np.diff(hits, prepend=0) * hits / (last + 1 + doubt)).sum() / len(positives)))
        for doubt in (0.0, _DOUBT)
    )
    n = min(len(positives), len(negatives))
    return Interval(value, min(proportion(doubted, n, tail).low, value), proportion(value, n, tail).high)


def p_above_chance(positives: _Floats, negatives: _Floats) -> float:
    """One-sided Mann and Whitney: how likely an AUROC this large is where both classes are alike."""
    return float(stats.mannwhitneyu(positives, negatives, alternative="greater").pvalue)
