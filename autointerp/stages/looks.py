"""At which look a sequential scorer will stop, before anybody has answered.

That depends on how good explanations are. Their accuracies are taken to be those of arXiv 2410.13928 (detection and
fuzzing, a large judge): mean .76, standard deviation .14. Of each accuracy the probability of ending at each look is
worked out exactly.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.sequential import Look, Sequential

MEAN, DEVIATION = 0.76, 0.14
N_ACCURACIES: Final = 200
"""At even steps from 0 to 1; what lies beyond counts as 0 and 1."""
NEVER: Final = 1e-300
"""An error so small that nothing is decided before the last look."""

_Floats = NDArray[np.float64]


@cache
def shares_by_look(rule: Sequential) -> list[float]:
    """Of features outside the panel, the share whose test ends at each look; sums to 1."""
    accuracies_A = (np.arange(N_ACCURACIES) + 0.5) / N_ACCURACIES
    weights_A = _weights()
    shares: list[float] = []
    going_AR, before = np.ones((N_ACCURACIES, 1)), 0  # R right answers until then
    for block in rule.blocks:
        going_AR = _after(going_AR, block - before, accuracies_A)
        looks = (
            Look(block // 2, min(n, block // 2), block // 2, n - min(n, block // 2)) for n in range(block + 1)
        )
        is_end_R = np.array([block == rule.blocks[-1] or rule.has_decided(look) for look in looks])
        shares.append(float(weights_A @ going_AR[:, is_end_R].sum(1)))
        going_AR, before = np.where(is_end_R, 0.0, going_AR), block
    return shares


def by_look(rule: Sequential) -> list[tuple[Sequential, float]]:
    """Tests that end where their blocks do, whatever is answered, and how many of all features each stands for; the
    last is the panel's."""
    found = [
        (dataclasses.replace(rule, blocks=rule.blocks[:n], error=NEVER, panel=0.0), share * (1 - rule.panel))
        for n, share in enumerate(shares_by_look(rule), 1)
    ]
    return [*found, (dataclasses.replace(rule, panel=1.0), rule.panel)]


def _weights() -> _Floats:
    """[A], of the accuracies; they sum to 1."""
    ends: _Floats = cast(Any, stats).norm(MEAN, DEVIATION).cdf(np.linspace(0, 1, N_ACCURACIES + 1))
    ends[0], ends[-1] = 0.0, 1.0
    return np.diff(ends)


def _after(going_AR: _Floats, n_more: int, accuracies_A: _Floats) -> _Floats:
    """[A, R + n_more]: probabilities of so many right answers after more trials."""
    more_AN: _Floats = cast(Any, stats).binom.pmf(np.arange(n_more + 1), n_more, accuracies_A[:, None])
    n_before = going_AR.shape[1]
    after_AR = np.zeros((N_ACCURACIES, n_before + n_more))
    for n in range(n_more + 1):
        after_AR[:, n : n + n_before] += going_AR * more_AN[:, n : n + 1]
    return after_AR
