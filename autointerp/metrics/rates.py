"""Two rates of a judge and what follows from both, each with a 95% interval (or another: `tail`).

The rates of a feature, true positive rate (tpr) and true negative rate (tnr), come from separate trials, so
their errors are independent. The intervals are conservative: they are meant to cover at least 95% of the time
at any n and at any true rate, also where all answers are right.

1. One rate, k hits in n trials. What k says about the rate is two Beta distributions: the pessimistic
   Beta(k, n-k+1), whose 2.5% quantile is the low end, and the optimistic Beta(k+1, n-k), whose 97.5%
   quantile is the high end (Clopper and Pearson 1934, Biometrika 26). A first parameter of 0 stands for
   the point 0, a second of 0 for the point 1.
2. A statistic that rises with both rates. The low end is the 2.5% quantile of the statistic of two
   independent pessimistic rates, the high end the 97.5% quantile of that of two optimistic ones. This is
   melding: Fay, Proschan and Brittain 2015, Biometrics 71, "Combining one-sample confidence procedures
   for inference in the two-sample case". That step 1 covers is a theorem; that melding does is not one for
   these statistics, so `tests/test_metrics.py` computes its coverage exactly on a grid of true rates.

The quantiles of step 2 are found by quadrature, to better than 1e-4 and with no random draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.results import Interval

TAIL = 0.025
"""Probability left out at each end of an interval."""

_N_NODES = 128
"""Quadrature nodes. The worst error of an end is 3e-5 for n from 1 to 5000; with 64 nodes it is 1.4e-4."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Beta:
    """A Beta distribution with whole parameters; the point 0 if a is 0, the point 1 if b is 0."""

    a: int
    b: int

    @property
    def is_point(self) -> bool:
        return self.a == 0 or self.b == 0

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        n = self.a + self.b
        return math.sqrt(self.a * self.b / (n + 1)) / n

    def quantile(self, p: float) -> float:
        if self.is_point:
            return 0.0 if self.a == 0 else 1.0
        return float(_beta_quantile(self.a, self.b, np.float64(p)))


@dataclass(frozen=True, slots=True)
class Rate:
    """Right answers among the n readable trials of one truth."""

    hits: int
    n: int

    @property
    def pessimistic(self) -> _Beta:
        return _Beta(self.hits, self.n - self.hits + 1)

    @property
    def optimistic(self) -> _Beta:
        return _Beta(self.hits + 1, self.n - self.hits)


class _Statistic(Protocol):
    """A number that rises (weakly) with both rates."""

    def value(self, tpr: float, tnr: float) -> float: ...

    def half_plane(self, x: float) -> tuple[float, float, float]:
        """(u, v, w) such that value(tpr, tnr) <= x exactly where u tpr + v tnr <= w; u, v > 0 for x > 0."""
        ...


@dataclass(frozen=True, slots=True)
class _BalancedAccuracy:
    def value(self, tpr: float, tnr: float) -> float:
        return (tpr + tnr) / 2

    def half_plane(self, x: float) -> tuple[float, float, float]:
        return 1.0, 1.0, 2 * x


@dataclass(frozen=True, slots=True)
class _F1:
    """F1 at n_positive and n_negative trials: 2 tpr n+ / (tpr n+ + fpr n- + n+), where fpr = 1 - tnr."""

    n_positive: int
    n_negative: int

    def value(self, tpr: float, tnr: float) -> float:
        said_yes = tpr * self.n_positive + (1 - tnr) * self.n_negative
        return 2 * tpr * self.n_positive / (said_yes + self.n_positive)

    def half_plane(self, x: float) -> tuple[float, float, float]:
        # F1 <= x, times its denominator, sorted by rate
        return self.n_positive * (2 - x), self.n_negative * x, (self.n_positive + self.n_negative) * x


@dataclass(frozen=True, slots=True)
class _EvenPrecision:
    """Precision where active windows are as frequent as silent ones: tpr / (tpr + fpr); 0 where tpr is 0."""

    def value(self, tpr: float, tnr: float) -> float:
        return tpr / (tpr + 1 - tnr) if tpr > 0 else 0.0

    def half_plane(self, x: float) -> tuple[float, float, float]:
        return 1 - x, x, x


# Counts repeat over features: 50 + 50 trials have 2601 outcomes.
@lru_cache(maxsize=1 << 14)
def balanced_accuracy(tpr: Rate, tnr: Rate, tail: float = TAIL) -> Interval:
    return _melded((tpr.hits / tpr.n + tnr.hits / tnr.n) / 2, _BalancedAccuracy(), tpr, tnr, tail)


@lru_cache(maxsize=1 << 14)
def f1(tpr: Rate, tnr: Rate, tail: float = TAIL) -> Interval:
    said_yes = tpr.hits + tnr.n - tnr.hits
    return _melded(2 * tpr.hits / (said_yes + tpr.n), _F1(tpr.n, tnr.n), tpr, tnr, tail)


@lru_cache(maxsize=1 << 14)
def clopper_pearson(rate: Rate, tail: float = TAIL) -> Interval:
    """Step 1 of the module's docstring."""
    return Interval(rate.hits / rate.n, rate.pessimistic.quantile(tail), rate.optimistic.quantile(1 - tail))


def precision(tpr: Rate, tnr: Rate, prevalence: float, tail: float = TAIL) -> Interval:
    """Of windows called active, where this share of all windows is: p tpr / (p tpr + (1-p) fpr). Needs a yes.

    It rises with tpr / fpr whatever the prevalence, so what is worked out once for even odds does for all.
    """
    odds = prevalence / (1 - prevalence) if prevalence < 1 else math.inf
    even = _even_precision(tpr, tnr, tail)

    def at_prevalence(x: float) -> float:
        return 1.0 if x >= 1 else odds * x / (odds * x + 1 - x) if odds < math.inf else float(x > 0)

    return Interval(at_prevalence(even.value), at_prevalence(even.low), at_prevalence(even.high))


@lru_cache(maxsize=1 << 14)
def _even_precision(tpr: Rate, tnr: Rate, tail: float) -> Interval:
    value = _EvenPrecision().value(tpr.hits / tpr.n, tnr.hits / tnr.n)
    return _melded(value, _EvenPrecision(), tpr, tnr, tail)


def _melded(value: float, statistic: _Statistic, tpr: Rate, tnr: Rate, tail: float) -> Interval:
    """Step 2 of the module's docstring."""
    low = _quantile_of_statistic(statistic, tpr.pessimistic, tnr.pessimistic, tail)
    high = _quantile_of_statistic(statistic, tpr.optimistic, tnr.optimistic, 1 - tail)
    return Interval(value, min(low, value), max(high, value))


# -------------------------------------------------------------------- a statistic of two Beta variables


def _quantile_of_statistic(statistic: _Statistic, tpr: _Beta, tnr: _Beta, p: float) -> float:
    """The p quantile of statistic(tpr, tnr), tpr and tnr independent."""
    if tpr.is_point or tnr.is_point:  # then it is a rising function of one variable
        return statistic.value(tpr.quantile(p), tnr.quantile(p))
    # P(tpr <= s and tnr <= t) <= P(statistic <= value(s, t)) <= 1 - P(tpr > s and tnr > t). With s and t the
    # q quantiles that is q^2 and 1 - (1-q)^2, so the root lies between the q that set these to p.
    below, above = (statistic.value(tpr.quantile(q), tnr.quantile(q)) for q in (1 - (1 - p) ** 0.5, p**0.5))
    # on the probit scale the distribution function is nearly a straight line: a third fewer steps
    aim = _probit(p)
    return _root(lambda x: _probit(_probability(*statistic.half_plane(x), tpr, tnr)) - aim, below, above)


def _probability(u: float, v: float, w: float, first: _Beta, second: _Beta) -> float:
    """P(u first + v second <= w): the mean over `second` of first's distribution function."""
    if u * first.deviation < v * second.deviation:
        # the nodes go to the narrower term: the other's distribution function is smooth on their scale
        u, v, first, second = v, u, second, first
    nodes, weights = _nodes(second)
    return float(weights @ _beta_cdf(first.a, first.b, np.clip((w - v * nodes) / u, 0.0, 1.0)))


@lru_cache(maxsize=1 << 11)
def _nodes(beta: _Beta) -> tuple[_Floats, _Floats]:
    """Values [_N_NODES] and weights [_N_NODES], which sum to 1, of a quadrature over a Beta distribution.

    The quantile function is steep at its ends, where the midpoint rule is poor. The substitution
    p = t - sin(2 pi t) / (2 pi) crowds the nodes there (Sidi 1993, "A new variable transformation for
    numerical integration").
    """
    t = (np.arange(_N_NODES) + 0.5) / _N_NODES
    p = t - np.sin(2 * np.pi * t) / (2 * np.pi)
    return _beta_quantile(beta.a, beta.b, p), (1 - np.cos(2 * np.pi * t)) / _N_NODES


# scipy has no types, so these four say what its functions take and give.


def _beta_cdf(a: int, b: int, x: _Floats) -> _Floats:
    """Distribution function of Beta(a, b), a, b > 0, at x in [0, 1]."""
    return cast(_Floats, special.betainc(a, b, x))


def _beta_quantile(a: int, b: int, p: _Floats | np.float64) -> _Floats:
    """Inverse of `_beta_cdf`."""
    return cast(_Floats, special.betaincinv(a, b, p))


def _probit(p: float) -> float:
    """Inverse of the standard normal distribution function, p in (0, 1)."""
    return float(cast(np.float64, special.ndtri(p)))


def _root(function: Callable[[float], float], below: float, above: float) -> float:
    """Where a rising function crosses zero between the two, to 1e-7: a precision near 1 is a ratio of large odds."""
    return cast(float, cast(Any, optimize).brentq(function, below, above, xtol=1e-7))
