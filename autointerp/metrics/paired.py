"""Two scores of the same features and windows: is one larger?

For a run, the mean difference over features with its interval over features and documents (`Population`, to
which differences are added), and Wilcoxon's signed-rank test, which asks the same of ranks: a few features with
a large difference don't decide it. For one feature, McNemar's exact test on the windows of which the one
answers right and the other wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.influence import Influences, influences
from autointerp.metrics.judged import HEADLINE_STRATA
from autointerp.trials import AnyTrials, Trials


def influences_of_difference(first: AnyTrials, second: AnyTrials, headline: str = "") -> Influences:
    """What each document adds to the headline of the first less that of the second."""
    yield from influences(first, headline)
    yield from ((document, -part) for document, part in influences(second, headline))


def p_signed_rank(differences: Sequence[float]) -> float | None:
    """Two-sided; None where no feature differs."""
    if not np.any(differences):
        return None
    return float(cast(Any, stats).wilcoxon(differences).pvalue)


def p_mcnemar(first: Trials, second: Trials) -> float:
    """Two-sided and exact, over windows of the headline that both answered readably. 1.0 where none differs."""
    n_first = n_second = 0
    right = _right(second)
    for window, is_right in _right(first).items():
        if window in right and is_right != right[window]:
            n_first += is_right
            n_second += not is_right
    if n_first + n_second == 0:
        return 1.0
    return float(stats.binomtest(n_first, n_first + n_second).pvalue)


def _right(trials: Trials) -> dict[tuple[int, bool], bool]:
    """By window and truth: a window may be asked about with right and with wrong marks."""
    columns = zip(trials.window, trials.truth, trials.answer, trials.stratum, strict=True)
    return {
        (window, truth): answer == truth
        for window, truth, answer, stratum in columns
        if answer is not None and (truth or stratum in HEADLINE_STRATA)
    }
