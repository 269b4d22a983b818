"""What a judge's probabilities are worth: Platt's scaling, fitted on the stored trials of many features (Platt 1999,
"Probabilistic outputs for support vector machines").

    calibrated P(yes) = 1 / (1 + exp(-(slope * logit(p) + intercept)))

One fit a judge, pooled over features, on the windows that scores are made of: those chosen to be hard are left out,
or the same judge would be worth less the more of them a recipe asks for. Probabilities in records stay raw; this is
a pure function of them, and no score is made from its result unless somebody asks for that. `before` and `after` say
what it changes; `after` is by cross-validation over features, for a fit looks better on what it was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.judged import HEADLINE_STRATA
from autointerp.trials import Trials

N_BINS: Final = 10
"""Of the expected calibration error: equally wide, as is usual."""
N_FOLDS: Final = 5
"""A feature's trials are all in one."""
EDGE: Final = 1e-6
"""Probabilities nearer to 0 or 1 than this are taken to be so far away: their logit must be finite."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Platt:
    """A fitted scaling."""

    slope: float
    intercept: float

    def __call__(self, p_N: _Floats) -> _Floats:
        return cast(_Floats, special.expit(self.slope * _logit(p_N) + self.intercept))


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far probabilities are from frequencies."""

    ece: float
    """Expected calibration error: mean over N_BINS of |mean probability - share of yes|, weighted by trials."""
    brier: float
    """Mean squared difference of probability and truth."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of one judge."""

    platt: Platt
    """Fitted on all trials."""
    n: int
    """Trials with a probability."""
    n_features: int
    before: Reliability
    after: Reliability | None
    """Of each feature by a fit on others; None for fewer than N_FOLDS features."""


def calibrate(features: Sequence[Trials]) -> Calibration | None:
    """One judge's trials of several features. None unless there are both right and wrong windows with a
    probability."""
    pairs = [pair for trials in features if len((pair := _pairs(trials))[0])]
    if not pairs:
        return None
    p_N, y_N = (np.concatenate([pair[at] for pair in pairs]) for at in (0, 1))
    if len(np.unique(y_N)) < 2:
        return None
    return Calibration(
        platt=fit(p_N, y_N),
        n=len(p_N),
        n_features=len(pairs),
        before=reliability(p_N, y_N),
        after=_held_out(pairs) if len(pairs) >= N_FOLDS else None,
    )


def fit(p_N: _Floats, y_N: _Floats) -> Platt:
    """The scaling of largest likelihood. Targets are smoothed as Platt does, (n+ + 1) / (n+ + 2) and 1 / (n- + 2), so
    that trials which a threshold parts without a mistake don't ask for an infinite slope."""
    n_yes = float(y_N.sum())
    high, low = (n_yes + 1) / (n_yes + 2), 1 / (len(y_N) - n_yes + 2)
    target_N = np.where(y_N > 0, high, low)
    x_N = _logit(p_N)

    def loss(at: _Floats) -> tuple[float, list[float]]:
        """Mean negative log-likelihood, and its gradient by slope and intercept."""
        z_N = at[0] * x_N + at[1]
        value = float(np.mean(np.logaddexp(0.0, z_N) - target_N * z_N))
        residual_N = cast(_Floats, special.expit(z_N)) - target_N
        return value, [float(np.mean(residual_N * x_N)), float(np.mean(residual_N))]

    found = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    slope, intercept = cast(list[float], found.x.tolist())
    return Platt(slope, intercept)


def reliability(p_N: _Floats, y_N: _Floats) -> Reliability:
    """There must be at least one trial."""
    bin_N = np.minimum((p_N * N_BINS).astype(np.int64), N_BINS - 1)
    gap_B = np.bincount(bin_N, p_N - y_N, minlength=N_BINS)
    return Reliability(float(np.abs(gap_B).sum() / len(p_N)), float(np.mean((p_N - y_N) ** 2)))


def _held_out(pairs: Sequence[tuple[_Floats, _Floats]]) -> Reliability | None:
    """None where some fold's fit lacks yes or no."""
    scaled: list[_Floats] = []
    truths: list[_Floats] = []
    for fold in range(N_FOLDS):
        p_N, y_N = (
            np.concatenate([pair[at] for n, pair in enumerate(pairs) if n % N_FOLDS != fold]) for at in (0, 1)
        )
        if len(np.unique(y_N)) < 2:
            return None
        platt = fit(p_N, y_N)
        for p_K, y_K in pairs[fold::N_FOLDS]:
            scaled.append(platt(p_K))
            truths.append(y_K)
    return reliability(np.concatenate(scaled), np.concatenate(truths))


def _pairs(trials: Trials) -> tuple[_Floats, _Floats]:
    """Probabilities and truths, of the trials of the headline that have one."""
    columns = zip(trials.probability, trials.truth, trials.stratum, strict=True)
    known = [
        (p, truth) for p, truth, stratum in columns if p is not None and (truth or stratum in HEADLINE_STRATA)
    ]
    return np.array([p for p, _ in known]), np.array([float(truth) for _, truth in known])


def _logit(p_N: _Floats) -> _Floats:
    clipped = np.clip(p_N, EDGE, 1 - EDGE)
    return cast(_Floats, special.logit(clipped))
