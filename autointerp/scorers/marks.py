"""Which tokens a window is shown with as marked: where it fires, or where another one does.

A judge must not get by on how many tokens are marked or where. So a wrong mark is always another window's right
one: wrong and right marks have the same patterns, each as often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.asking import Asking
from autointerp.types import Window


@dataclass(frozen=True, slots=True)
class Pattern:
    """Where an active window is marked."""

    marks: tuple[int, ...]
    """Positions of the marked tokens, ascending, at least one."""
    length: int
    """Tokens of the window."""


def pattern_of(window: Window, threshold: float) -> Pattern:
    """The tokens of an active window above that share of its maximum."""
    floor = threshold * window.maximum
    marks = tuple(n for n, activation in enumerate(window.activations) if activation > floor)
    return Pattern(marks, len(window.texts))


def is_wrong_on(window: Window, marks: Sequence[int]) -> bool:
    """Whether the window has tokens in these places, and the feature fires on none of them."""
    return marks[-1] < len(window.texts) and not any(window.activations[mark] for mark in marks)


def lent_to_silent(
    patterns: Sequence[Pattern], silent: Sequence[Window], asking: Asking
) -> list[tuple[int, ...]]:
    """Marks for each silent window: one of the patterns, or none where no pattern that is left fits. Where the
    contrast is graded "silent" windows fire as well, and a pattern that marks such a token does not fit.

    Each pattern is lent equally often, give or take one, by a keyed permutation. Where windows are of several
    lengths, a silent one gets the pattern of an active one of the same length if there is one left, else of
    the nearest that fits. The shortest choose first: if any assignment serves all windows, this one does.
    """
    n_rounds = -(-len(silent) // len(patterns)) if patterns else 0
    left = [patterns[n] for turn in range(n_rounds) for n in asking.order(len(patterns), "marks", turn)]
    left = left[: len(silent)]
    marks: list[tuple[int, ...]] = [()] * len(silent)
    for n in sorted(range(len(silent)), key=lambda n: len(silent[n].texts)):
        place = _nearest(left, silent[n])
        if place is not None:
            marks[n] = left.pop(place).marks
    return marks


def _nearest(patterns: Sequence[Pattern], window: Window) -> int | None:
    """The place of the first that fits the window and whose length is nearest to its own; None if none fits."""
    found, least = None, math.inf
    for place, pattern in enumerate(patterns):
        distance = abs(pattern.length - len(window.texts))
        if distance < least and is_wrong_on(window, pattern.marks):
            found, least = place, distance
            if not distance:
                break
    return found


_FORBIDDEN: Final = 1e9
_LEFT_OUT: Final = 1e3


def lent_to_active(
    patterns: Sequence[Pattern], windows: Sequence[Window], asking: Asking
) -> list[tuple[int, ...]]:
    """For each active window the pattern of another one of its length, which marks none of the tokens it fires
    on; none where there is no such way.

    The windows that get one are those whose pattern is lent: to any judge who looks at the window alone, or at
    the marks and the length alone, right and wrong ones are the same. As few windows as can be are left out,
    and a keyed draw decides among the ways to do so. `patterns` [N] are those of `windows` [N].
    """
    n = len(windows)
    if n < 2:
        return [()] * n
    cost_NN = _costs(patterns, windows)  # lender, borrower
    ranks: NDArray[np.float64] = np.asarray(asking.order(n * n, "wrong marks"), np.float64)
    cost_NN += ranks.reshape(n, n) / (n * n)  # the draw: their sum is less than what leaving one out costs
    lender, borrower = optimize.linear_sum_assignment(cost_NN)  # type: ignore[no-untyped-call]  # no stubs
    marks: list[tuple[int, ...]] = [()] * n
    for one, other in zip(lender.tolist(), borrower.tolist(), strict=True):
        if one != other:
            marks[other] = patterns[one].marks
    return marks


def _costs(patterns: Sequence[Pattern], windows: Sequence[Window]) -> NDArray[np.float64]:
    """[N, N]: of lending each pattern to each window. Keeping it is what leaves a window out."""
    lengths = np.array([pattern.length for pattern in patterns])
    cost_NN = np.where(lengths[:, None] == lengths[None, :], 0.0, _FORBIDDEN)
    for borrower, window in enumerate(windows):
        fires = {place for place, activation in enumerate(window.activations) if activation > 0}
        for lender, pattern in enumerate(patterns):
            if not fires.isdisjoint(pattern.marks):
                cost_NN[lender, borrower] = _FORBIDDEN
    np.fill_diagonal(cost_NN, _LEFT_OUT)
    return cost_NN
