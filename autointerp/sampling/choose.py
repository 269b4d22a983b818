"""Which active windows of many features are taken: bands by strength, and draws that spread over them.

Shape letters: P features, N windows, K candidates of one split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.sampling.settings import Rule
from autointerp.sampling.text import Ints
from autointerp.sampling.windows import Active

Check = Callable[[Ints], NDArray[np.bool_]]
"""Which of these windows (indices among all active ones) may be taken."""

MOST_CANDIDATES: Final = 200
"""So many windows a band and split are compared with what was shown, or `TIMES_THE_QUOTA` where that is more."""
TIMES_THE_QUOTA: Final = 4
ONE: Final = 2**16
"""Weights are counted in these parts. Sums of whole numbers are exact: they don't depend on what other
features were added up before."""


def strongest_first(active: Active, hashes: draw.Hashes) -> Ints:
    """Indices by feature, then maximum, the largest first; ties go by hash."""
    # The bits of positive floats are in the order of the floats.
    keys = (np.uint32(0xFFFFFFFF) - active.maximum.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    return draw.by_cell(active.group, keys | (hashes >> np.uint64(32)))


def places_in_line(active: Active, order: Ints, n_groups: int) -> tuple[Ints, Ints]:
    """[N]: the weight of all stronger windows of the same feature, in parts of `ONE`; [P]: of all."""
    weight = np.rint(active.weight[order].astype(np.float64) * ONE).astype(np.int64)
    total = np.zeros(n_groups, np.int64)
    ends = np.cumsum(weight)
    last = np.cumsum(np.bincount(active.group, minlength=n_groups))
    up_to = np.concatenate([[0], ends])[np.concatenate([[0], last])]
    total = np.diff(up_to)
    before = np.empty(len(order), np.int64)
    before[order] = ends - weight - up_to[:-1][active.group]  # groups stay where they are in this order
    return before, total


def bands(before: Ints, total: Ints, group: Ints, n_bands: int) -> Ints:
    """[N]: band of each window by its place in line, 0 strongest."""
    return before * n_bands // total[group]


def draw_keys(hashes: draw.Hashes, weight: NDArray[np.float32], group: Ints, n_groups: int) -> draw.Hashes:
    """[N] the smallest win: uniform over the windows that each stands for."""
    weighted = np.zeros(n_groups, bool)
    weighted[group[weight != 1]] = True
    if not weighted.any():
        return hashes
    keys = hashes.copy()
    at = np.flatnonzero(weighted[group])
    keys[at] = weighted_keys(hashes[at], weight[at])
    return keys


def weighted_keys(hashes: draw.Hashes, weight: NDArray[np.float32]) -> draw.Hashes:
    """The n smallest are a draw without replacement with probability proportional to weight (Efraimidis and
    Spirakis 2006, "Weighted random sampling with a reservoir")."""
    waiting = -np.log1p(-draw.unit_interval(hashes)) / weight.astype(np.float64)
    return waiting.view(np.uint64)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Windows of one split, by feature, band and key."""

    at: Ints
    """[K], indices among all active windows."""
    group: Ints
    band: Ints
    keys: draw.Hashes


def candidates_by_split(
    split: NDArray[np.int8], group: Ints, band: Ints, keys: draw.Hashes, n_groups: int, n_splits: int
) -> list[Candidates]:
    """All arguments of all N active windows."""
    n_bands = int(band.max(initial=0)) + 1
    order = draw.by_cell((split.astype(np.int64) * n_groups + group) * n_bands + band, keys)
    ends = np.cumsum(np.bincount(split, minlength=n_splits))
    pieces = np.split(order, ends[:-1])
    return [Candidates(at, group[at], band[at], keys[at]) for at in pieces]


def over_bands(found: Candidates, n: int, n_bands: int, n_groups: int, check: Check | None) -> Ints:
    """Of each feature n windows, as many from each band as it has, the rest filled from all by key.

    [.] indices among the candidates, ascending. A larger n contains the smaller.
    """
    checked = _Checked(found.at, check)
    rank = ranks_in(found.group * n_bands + found.band)
    # Quotas differ by one where n is no multiple: the strongest bands get the odd ones.
    quota = n // n_bands + (found.band < n % n_bands)
    chosen = np.zeros(len(found.at), bool)
    able = np.flatnonzero(rank < np.maximum(MOST_CANDIDATES, TIMES_THE_QUOTA * quota))
    cell = found.group[able] * n_bands + found.band[able]
    chosen[able[_first_good(able, cell, quota[able], checked)]] = True
    missing = n - np.bincount(found.group[chosen], minlength=n_groups)
    rest = able[~chosen[able] & (missing[found.group[able]] > 0)]
    rest = rest[draw.by_cell(found.group[rest], found.keys[rest])]
    more = _first_good(rest, found.group[rest], missing[found.group[rest]], checked)
    chosen[rest[more]] = True
    return np.flatnonzero(chosen)


def drawn(
    found: Candidates,
    rule: Rule,
    place_in_line: Ints,
    weight: NDArray[np.float32],
    n_bands: int,
    n_groups: int,
    check: Check | None,
) -> Ints:
    """The windows that a split takes; indices among the candidates, ascending.

    `place_in_line` [K]: 0 strongest. `weight` [K]: what it is drawn by (`importance_power`).
    """
    by_strength = draw.by_cell(found.group, place_in_line.astype(np.uint64) << np.uint64(32))
    first = _first_of(found, by_strength, rule.n_top, check)
    n = rule.n - rule.n_top
    if n == 0:
        return np.sort(first)
    others = np.ones(len(found.at), bool)
    others[first] = False
    rest = np.flatnonzero(others)
    left = Candidates(found.at[rest], found.group[rest], found.band[rest], found.keys[rest])
    if rule.others == "quantiles":
        more = over_bands(left, n, n_bands, n_groups, check)
    else:
        keys = weighted_keys(left.keys, weight[rest]) if rule.others == "importance" else left.keys
        more = _first_of(left, draw.by_cell(left.group, keys), n, check)
    return np.sort(np.concatenate([first, rest[more]]))


def _first_of(found: Candidates, order: Ints, n: int, check: Check | None) -> Ints:
    """Of each feature the first n in this order that may be taken."""
    quota = np.full(len(order), n, np.int64)
    return order[_first_good(order, found.group[order], quota, _Checked(found.at, check))] if n else order[:0]


def ranks_in(cell: Ints) -> Ints:
    """[K]: how many entries of the same cell stand before each; equal cells are neighbours."""
    is_first = np.ones(len(cell), bool)
    is_first[1:] = cell[1:] != cell[:-1]
    starts = np.flatnonzero(is_first)
    return np.arange(len(cell)) - np.repeat(starts, np.diff(starts, append=len(cell)))


class _Checked:
    """Which candidates may be taken, looked at once each and only where it matters."""

    def __init__(self, at: Ints, check: Check | None) -> None:
        self._at, self._check = at, check
        self._known = np.zeros(len(at), bool)
        self._good = np.ones(len(at), bool)

    def good(self, candidates: Ints) -> NDArray[np.bool_]:
        if self._check is not None:
            new = candidates[~self._known[candidates]]
            self._good[new] = self._check(self._at[new])
            self._known[new] = True
        return self._good[candidates]


def _first_good(candidates: Ints, cell: Ints, quota: Ints, checked: _Checked) -> Ints:
    """Indices into `candidates` of each cell's first `quota` good ones. Equal cells are neighbours, and
    have one quota."""
    if not len(candidates):
        return np.zeros(0, np.int64)
    rank = ranks_in(cell)
    number = np.cumsum(rank == 0) - 1
    size, quota_of = np.bincount(number), quota[rank == 0]
    limit = quota_of.copy()
    while True:
        looked_at = np.flatnonzero(rank < limit[number])
        good = checked.good(candidates[looked_at])
        lacking = quota_of - np.bincount(number[looked_at], good, minlength=len(size)).astype(np.int64)
        short = (lacking > 0) & (limit < size)
        if not short.any():
            break
        limit[short] += 2 * lacking[short]
    taken = looked_at[good]
    return taken[ranks_in(number[taken]) < quota_of[number[taken]]]
