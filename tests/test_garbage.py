"""Cycles are looked for rarely for a while, and as before behind it."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

from autointerp.garbage import RARELY, rarely_collected


@pytest.fixture(autouse=True)
def as_before() -> Generator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "inside"),
    [
        ((700, 10, 10), RARELY),
        ((0, 10, 10), (0, 10, 10)),  # turned off, and stays so
        ((100_000, 50, 1), (100_000, 50, RARELY[2])),  # rarer already
    ],
)
def test_rarer_inside_and_as_before_behind(
    before: tuple[int, int, int], inside: tuple[int, int, int]
) -> None:
    gc.set_threshold(*before)
    with pytest.raises(KeyError), rarely_collected():
        assert gc.get_threshold() == inside
        raise KeyError
    assert gc.get_threshold() == before
