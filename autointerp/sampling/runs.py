"""Runs of tokens that stand in two windows: hashed, so that millions are compared in a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.text import Ints, Text
from autointerp.sampling.windows import Places

Runs = NDArray[np.uint64]
"""[N, width - n + 1], a hash of each run of n tokens; 0 for a run that reaches behind its window's end."""

_BASE: Final = 0x100000001B3
_MULTIPLIER: Final = np.uint64(0xBF58476D1CE4E5B9)
_AT_ONCE: Final = 8192
"""Windows hashed at once: what fits a core's cache."""


def runs_at(places: Places, text: Text, width: int, n: int) -> Runs:
    """Of the windows at N places. `width`: of the longest window."""
    found = np.empty((len(places), max(width - n + 1, 0)), np.uint64)
    for begin in range(0, len(places), _AT_ONCE):
        piece = places[begin : begin + _AT_ONCE]
        ids = text.rows.tokens(piece.row, piece.start, width)
        found[begin : begin + _AT_ONCE] = runs(ids, piece.length, n)
    return found


def runs(token_ids: NDArray[np.int32], length: Ints, n: int) -> Runs:
    """Runs of windows of `length` [N] tokens, `token_ids` [N, width]. Equal runs have equal hashes; unequal
    ones collide with probability about 2**-64."""
    n_windows, width = token_ids.shape
    if width < n:
        return np.zeros((n_windows, 0), np.uint64)
    # A polynomial over mixed ids: a run's is a difference of two sums, divided by the power it begins at.
    powers = np.array([pow(_BASE, at, 2**64) for at in range(width)], np.uint64)
    inverse = np.array([pow(_BASE, -at, 2**64) for at in range(width - n + 1)], np.uint64)
    sums = np.zeros((n_windows, width + 1), np.uint64)
    with np.errstate(over="ignore"):
        mixed = (token_ids.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
        mixed *= _MULTIPLIER
        mixed *= powers
        np.cumsum(mixed, axis=1, out=sums[:, 1:])
        hashes = sums[:, n:] - sums[:, :-n]
        hashes *= inverse
    short = np.flatnonzero(length < width)
    if len(short):
        inside = np.arange(width - n + 1) + n <= length[short, None]
        hashes[short] = np.where(inside, hashes[short], np.uint64(0))
    return hashes


class Seen:
    """Runs of what each of P features was shown or selected on."""

    def __init__(self, n_groups: int) -> None:
        # A look into a table answers nearly all questions, a binary search the rest.
        self._bits = max(4, min(15, 25 - n_groups.bit_length()))
        self._table = np.zeros(n_groups << self._bits, bool)
        self._sorted: list[NDArray[np.uint64]] = []

    def add(self, group: Ints, hashes: Runs) -> None:
        """`hashes` [N, ...] of N windows of the features `group` [N]."""
        keys = _keys(group, hashes).ravel()
        if not hashes.all():
            keys = keys[hashes.ravel() != 0]
        self._table[self._slot(keys)] = True
        keys.sort()
        self._sorted.append(keys)

    def holds(self, group: Ints, hashes: Runs) -> NDArray[np.bool_]:
        """[N]: which windows hold a run that their feature has seen."""
        found = np.zeros(len(group), bool)
        keys = _keys(group, hashes)
        maybe = self._table[self._slot(keys)]
        maybe &= hashes != 0
        window = np.nonzero(maybe)[0]
        asked = keys[maybe]
        for known in self._known():
            at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
            found[window[known[at] == asked]] = True
        return found

    def _known(self) -> Iterator[NDArray[np.uint64]]:
        return (known for known in self._sorted if len(known))

    def _slot(self, keys: NDArray[np.uint64]) -> Ints:
        # Unsigned numbers would be converted, slowly, to index an array.
        return (keys >> np.uint64(48 - self._bits)).view(np.int64)


def _keys(group: Ints, hashes: Runs) -> NDArray[np.uint64]:
    """Feature in the upper 16 bits, 48 bits of the hash below: a feature's few thousand runs collide with
    probability 1e-8, and then a window is passed over for nothing."""
    keys = hashes >> np.uint64(16)
    keys |= group.astype(np.uint64)[:, None] << np.uint64(48)
    return keys
