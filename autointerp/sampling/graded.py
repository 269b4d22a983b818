"""Graded contrast, for features that fire nearly everywhere: the windows of the top decile against those of
the lower half, of all blocks of the corpus, silent ones included.

Shape letters: P features, N windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.choose import ONE
from autointerp.sampling.contrast import Slots
from autointerp.sampling.silence import Known
from autointerp.sampling.text import Ints, Text
from autointerp.sampling.windows import Active, Places, token_span

TOP_SHARE = 10
"""The active windows are this fraction of all: a tenth."""


def n_blocks(text: Text, width: int) -> int:
    """Blocks of the whole corpus that count: whole ones and single short ones, nothing in them masked."""
    room = np.maximum(text.length - text.first, 0)
    of_row = np.maximum(room // width, (room > 0).astype(np.int64))
    row, position = np.divmod(text.masked, text.context_length)
    block = (position - text.first) // width
    is_inside = (position >= text.first) & (block < of_row[row])
    return int(of_row.sum()) - len(np.unique((row * text.context_length + block)[is_inside]))


def in_top_decile(before: Ints, n_all: int) -> NDArray[np.bool_]:
    """`before` [N]: weight of all stronger windows (`choose.places_in_line`); `n_all`: all blocks."""
    return before * TOP_SHARE < n_all * ONE


@dataclass(frozen=True, slots=True)
class LowerHalf:
    """Which places lie in the lower half. Windows without a firing all tie at the bottom."""

    known: Known
    text: Text
    width: int
    block_keys: Ints
    """[N], ascending, of all blocks with a firing."""
    is_weak: NDArray[np.bool_]
    """[N], which of them lie in the lower half."""

    @classmethod
    def of(
        cls,
        known: Known,
        text: Text,
        width: int,
        blocks: Active,
        before: Ints,
        n_all: int,
    ) -> LowerHalf:
        """`before` [N]: the weight of all stronger blocks of the feature; `n_all`: blocks of the corpus."""
        keys = _keys(blocks.group, blocks.places, text)
        return cls(known, text, width, keys, before * 2 >= n_all * ONE)

    def __call__(self, slots: Slots, places: Places) -> NDArray[np.bool_]:
        good = self.known.is_known(slots.group, places)
        good &= np.minimum(self.width, self.text.length[places.row] - places.start) == places.length
        at = np.flatnonzero(good)
        if not len(self.block_keys):
            return good
        key = _keys(slots.group[at], places[at], self.text)
        found = np.minimum(np.searchsorted(self.block_keys, key), len(self.block_keys) - 1)
        good[at] = np.where(self.block_keys[found] == key, self.is_weak[found], True)
        return good


def _keys(group: Ints, places: Places, text: Text) -> Ints:
    return group * token_span(text) + places.row * text.context_length + places.start
