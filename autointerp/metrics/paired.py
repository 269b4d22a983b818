"""Two scores of the same features and windows: is one larger?

For a run, the mean difference over features with its interval over features and documents (`Population`, to
which differences are added), and Wilcoxon's signed-rank test, which asks the same of ranks: a few features with
a large difference don't decide it. McNemar's exact test is about questions, of one feature or of many: of those
that one alone answers right, is it more often the first? It takes questions for independent, which those about one
feature, or one document, are not; the interval of the mean difference doesn't.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.judged import HEADLINE_STRATA
from autointerp.trials import AnyTrials, Trials

Place = TypeVar("Place", str, int)


def less(
    first: Iterable[tuple[Place, float]], second: Iterable[tuple[Place, float]]
) -> list[tuple[Place, float]]:
    """What each document, or bundle of them, adds to the first headline less the second, of what it adds to each."""
    return [*first, *((place, -part) for place, part in second)]


def p_signed_rank(differences: Sequence[float]) -> float | None:
    """Two-sided; None where no feature differs."""
    if not np.any(differences):
        return None
    return float(cast(Any, stats).wilcoxon(differences).pvalue)


@dataclass(slots=True)
class Discordant:
    """Questions about the same windows that one of two answers right and the other wrong."""

    first: int = 0
    """That the first one alone has right."""
    second: int = 0
    n: int = 0
    """Questions that both were asked and answered readably."""

    def add(self, first: AnyTrials, second: AnyTrials) -> None:
        """A feature's, over questions of the headline; other kinds of trials than yes or no hold none."""
        if not isinstance(first, Trials) or not isinstance(second, Trials):
            return
        right = _right(second)
        for question, is_right in _right(first).items():
            is_other_right = right.get(question)
            if is_other_right is not None:
                self.n += 1
                if is_right is not is_other_right:
                    self.first += is_right
                    self.second += is_other_right

    def extend(self, other: Discordant) -> None:
        """By what others were given."""
        self.first += other.first
        self.second += other.second
        self.n += other.n

    @property
    def p_value(self) -> float | None:
        """McNemar's test, two-sided and exact; 1.0 where none differs, None where nothing was asked of both."""
        if not self.n:
            return None
        n = self.first + self.second
        return float(stats.binomtest(self.first, n).pvalue) if n else 1.0


def _right(trials: Trials) -> dict[tuple[int, str, bool], bool]:
    """By window and truth: a window may be asked about with right and with wrong marks."""
    columns = zip(trials.window, trials.document, trials.truth, trials.answer, trials.stratum, strict=True)
    return {
        (window, document, truth): answer == truth
        for window, document, truth, answer, stratum in columns
        if answer is not None and (truth or stratum in HEADLINE_STRATA)
    }
