"""Where a feature is known not to fire, and how strongly it fires elsewhere.

Shape letters: P features, N places. `group` [N] says which of the P features a place is asked about for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.firings import Firings, group_of
from autointerp.sampling.text import Ints, Text
from autointerp.sampling.windows import Places, token_span

_FAR = np.iinfo(np.int64).max


class Known:
    """What is known of P features at any place."""

    def __init__(self, firings: Firings, keys: Ints, text: Text) -> None:
        """`keys`: of `windows.firing_keys`."""
        self._keys = np.append(keys, _FAR)
        self._text = text
        self._span = token_span(text)
        dropped_of = group_of(firings.dropped_offsets)
        self._dropped = np.append(dropped_of * text.rows.n_rows + firings.dropped_rows, _FAR)

    def is_known(self, group: Ints, places: Places) -> NDArray[np.bool_]:
        """[N]: inside a row, every token looked at, and every firing of the feature in the row kept.

        A place whose row is negative is nowhere.
        """
        text = self._text
        row = np.maximum(places.row, 0)
        known = (places.row >= 0) & (places.length > 0) & (places.start >= text.first)
        known &= text.length[row] >= places.start + places.length
        if len(text.masked):
            known &= ~text.touches_masked(row, places.start, places.length)
        if len(self._dropped) > 1:
            key = group * text.rows.n_rows + row
            known &= self._dropped[np.searchsorted(self._dropped, key)] != key
        return known

    def is_silent(self, group: Ints, places: Places) -> NDArray[np.bool_]:
        """[N]: known, and without any firing."""
        known = self.is_known(group, places)
        at = np.flatnonzero(known)
        begin = self._begin(group[at], places[at])
        known[at] = self._keys[np.searchsorted(self._keys, begin)] >= begin + places.length[at]
        return known

    def firings_in(self, group: Ints, places: Places) -> tuple[Ints, Ints]:
        """[N] first and one behind the last firing of the feature in each place."""
        begin = self._begin(group, places)
        return np.searchsorted(self._keys, begin), np.searchsorted(self._keys, begin + places.length)

    def _begin(self, group: Ints, places: Places) -> Ints:
        return group * self._span + places.row * self._text.context_length + places.start


def overlaps_earlier(row_key: Ints, start: Ints, stop: Ints) -> NDArray[np.bool_]:
    """[N]: which places share a token with one of smaller index. Places of equal `row_key` lie in one row."""
    order = draw.stable(row_key)
    key, start, stop = row_key[order], start[order], stop[order]
    lost = np.zeros(len(order), bool)
    for lag in range(1, len(order)):
        earlier = np.flatnonzero(key[lag:] == key[:-lag])
        if not len(earlier):
            break
        later = earlier + lag
        hit = (start[earlier] < stop[later]) & (start[later] < stop[earlier])
        lost[order[later[hit]]] = True
    return lost
