"""Work spread over processes: the order stays, and what goes wrong in one is told here."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.errors import JournalCorrupt, RunError
from autointerp.spread import FEATURES_A_BUNDLE, MOST_JOBS, WORTH_A_PROCESS, bundles, n_cores, spread, worth


def squaring(fails_at: int | None = None, dies_at: int | None = None) -> Callable[[int], tuple[int, int]]:
    def work(number: int) -> tuple[int, int]:
        if number == fails_at:
            raise JournalCorrupt(f"line {number}")
        if number == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number, os.getpid()

    return work


def test_results_come_in_the_order_of_the_pieces_from_other_processes() -> None:
    found = list(spread(squaring, range(20), 2))
    assert [square for square, _ in found] == [number * number for number in range(20)]
    pids = {pid for _, pid in found}
    assert os.getpid() not in pids and 1 <= len(pids) <= 2


def test_one_job_and_one_piece_stay_in_this_process() -> None:
    assert list(spread(squaring, range(3), 1)) == [(n * n, os.getpid()) for n in range(3)]
    assert list(spread(squaring, [7], 8)) == [(49, os.getpid())]
    assert list(spread(squaring, [], 8)) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_piece_is_raised_where_its_turn_comes(jobs: int) -> None:
    results = spread(partial(squaring, fails_at=3), range(9), jobs)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 4]
    with pytest.raises(JournalCorrupt, match="line 3"):
        next(results)


def test_a_process_that_is_killed_is_told_with_a_way_on() -> None:
    with pytest.raises(RunError, match=r"ended from outside.*--jobs 1"):
        list(spread(partial(squaring, dies_at=2), range(9), 2))


def test_processes_that_are_not_worth_it_are_not_used() -> None:
    assert worth(8, 0) == worth(8, 2 * WORTH_A_PROCESS - 1) == worth(1, 10**6) == 1
    assert worth(8, 3 * WORTH_A_PROCESS) == 3
    assert worth(8, 10**6) == 8
    assert 1 <= n_cores() <= MOST_JOBS


@given(sizes=st.lists(st.integers(0, 256), max_size=40))
def test_bundles_are_all_pieces_in_order_and_large_enough(sizes: list[int]) -> None:
    found = list(bundles(list(enumerate(sizes)), sizes))
    assert [piece for bundle in found for piece in bundle] == list(enumerate(sizes))
    for bundle in found[:-1]:
        total = sum(size for _, size in bundle)
        assert total >= FEATURES_A_BUNDLE > total - bundle[-1][1]
