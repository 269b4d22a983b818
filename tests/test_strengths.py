"""The search for strengths, against a slow reference: every strength of a fine grid tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.subject.strengths import TOLERANCE, Found, Search, grid

GRID = grid(0.001, 100, 11)
TARGETS = (0.1, 0.33, 1.0, 3.0)


def run(kl: Callable[[float], float], targets: tuple[float, ...] = TARGETS) -> tuple[Search, int]:
    search, n_asked = Search(targets, GRID), 0
    while wanted := search.wanted():
        n_asked += len(wanted)
        search.note(wanted, [kl(strength) for strength in wanted])
    return search, n_asked


def found(search: Search, target: float) -> Found:
    one = search.found(target)
    assert one is not None
    return one


def test_the_grid_is_half_decades() -> None:
    assert GRID[::2] == pytest.approx([0.001, 0.01, 0.1, 1, 10, 100])


def test_a_square_law_is_hit_at_once() -> None:
    """KL = s^2 / 2 is a straight line in logarithms: one step each, and the exact strength is known."""
    search, n_asked = run(lambda s: s * s / 2)
    for target in TARGETS:
        one = found(search, target)
        assert one.status == "ok"
        assert one.strength == pytest.approx(math.sqrt(2 * target), rel=0.06)
        assert one.kl == pytest.approx(one.strength**2 / 2)
    assert n_asked <= len(GRID) + len(TARGETS)


@given(
    scale=st.floats(0.05, 20),
    power=st.floats(0.5, 6),
    top=st.floats(0.05, 12),
    fall=st.one_of(st.none(), st.floats(0.5, 50)),
)
def test_what_can_be_bracketed_is_hit_within_the_tolerance(
    scale: float, power: float, top: float, fall: float | None
) -> None:
    """KL rises as a power, saturates at `top` and, from a strength `fall` on, falls again. The reference looks
    at the same grid: a target that lies under a peak between two grid points may be missed, one above the grid's
    last rise must not be found."""

    def kl(strength: float) -> float:
        rising = top * (1 - math.exp(-((strength / scale) ** power)))
        return rising if fall is None else rising * math.exp(-((strength / fall) ** 2))

    search, n_asked = run(kl)
    values = [kl(strength) for strength in GRID]
    for target in TARGETS:
        one = found(search, target)
        crossed = any(a < target <= b for a, b in itertools.pairwise(values))
        hit = abs(one.kl - target) <= TOLERANCE * target
        assert (one.status == "ok") == hit
        assert hit or not crossed
        assert one.kl == kl(one.strength)
        if crossed:  # found at the first place: on the grid everything below is weaker still
            assert all(kl(s) < (1 - TOLERANCE) * target for s in GRID if s < one.strength)
    assert n_asked < len(GRID) + 4 * 25


def test_a_direction_that_never_reaches_the_target_says_so_and_gives_the_nearest() -> None:
    search, n_asked = run(lambda s: 0.2 * s / (1 + s), (0.1, 1.0))
    assert found(search, 0.1).status == "ok"
    far = found(search, 1.0)
    assert far.status == "no_bracket" and far.strength == GRID[-1] and far.kl == pytest.approx(0.2, rel=0.02)
    assert n_asked <= len(GRID) + 12  # the other target's steps alone


def test_a_target_that_the_weakest_push_is_above_has_no_bracket() -> None:
    one = found(run(lambda s: 5.0 + s, (0.1,))[0], 0.1)
    assert (one.status, one.strength) == ("no_bracket", GRID[0])


def test_a_cliff_is_not_reached_and_ends() -> None:
    one = found(run(lambda s: 0.0 if s < 0.5 else 9.0, (1.0,))[0], 1.0)
    assert one.status == "not_reached"
    assert one.strength == pytest.approx(0.5, rel=0.01)


def test_strengths_that_overflow_are_left_out() -> None:
    search, _ = run(lambda s: math.nan if s > 5 else s * s)
    assert all(found(search, target).status == "ok" for target in TARGETS)
    assert run(lambda s: math.inf)[0].found(1.0) is None


def test_of_two_crossings_the_weaker_push_wins() -> None:
    """KL peaks at strength 1, falls to nothing at 10 and rises again."""

    def kl(strength: float) -> float:
        return 2 * math.exp(-((math.log10(strength)) ** 2) * 8) + (strength / 40) ** 4

    one = found(run(kl, (1.0,))[0], 1.0)
    assert one.status == "ok" and one.strength < 1
