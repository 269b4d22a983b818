"""Rates of some of the trials: those of one decile, of one offset, of one stratum."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, TypeVar

from autointerp.metrics.rates import TAIL, Rate, clopper_pearson
from autointerp.results import GroupMetrics

OFFSET_WIDTH: Final = 8
"""Tokens of a bin of offsets: a window of 32 has four."""

_Name = TypeVar("_Name", bound=Hashable)


def offset_bin(offset: int) -> str:
    """Which bin the strongest token lies in, e.g. `8-15`."""
    low = offset // OFFSET_WIDTH * OFFSET_WIDTH
    return f"{low}-{low + OFFSET_WIDTH - 1}"


def rates_by(trials: Iterable[tuple[_Name, bool | None]], tail: float = TAIL) -> dict[_Name, GroupMetrics]:
    """(group, whether it is a hit; None where unreadable) -> the rate of hits of each group."""
    counts: dict[_Name, list[int]] = {}
    for name, hit in trials:
        n = counts.setdefault(name, [0, 0, 0])
        n[2 if hit is None else hit] += 1
    return {
        name: GroupMetrics(
            clopper_pearson(Rate(hits, misses + hits), tail) if misses + hits else None,
            misses + hits + lost,
            lost,
        )
        for name, (misses, hits, lost) in counts.items()
    }
