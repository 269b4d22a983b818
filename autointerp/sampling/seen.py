"""What a feature has been shown or selected on: runs of tokens that must not stand in what is held out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.repeats import Repeats
from autointerp.sampling.runs import runs
from autointerp.sampling.text import Ints, Text
from autointerp.sampling.windows import Places


class Seen:
    """Runs of what each of P features was shown or selected on."""

    def __init__(self, n_groups: int, text: Text, repeats: Repeats, width: int, n: int) -> None:
        """Runs of n tokens; `width`: of the longest window."""
        self._text, self._repeats, self._width, self._n = text, repeats, width, n
        # A look into a table answers nearly all questions, a binary search the rest.
        self._bits = max(4, min(15, 25 - n_groups.bit_length()))
        self._table = np.zeros(n_groups << self._bits, bool)
        self._sorted: list[Ints] = []

    def add(self, group: Ints, places: Places) -> None:
        """Windows [N] of the features `group` [N]."""
        at = np.flatnonzero(self._repeats.may_share(places))
        if not len(at):
            return
        keys = self._keys(group[at], places[at])
        keys = keys[keys >= 0]
        if not len(keys):  # windows too short to hold a run
            return
        self._table[self._slot(keys)] = True
        keys.sort()
        self._sorted.append(keys)

    def holds(self, group: Ints, places: Places) -> NDArray[np.bool_]:
        """[N]: which windows hold a run that their feature has seen."""
        found = np.zeros(len(group), bool)
        at = np.flatnonzero(self._repeats.may_share(places))
        if not len(at) or not self._sorted:
            return found
        keys = self._keys(group[at], places[at])
        maybe = self._table[self._slot(keys)]
        maybe &= keys >= 0
        window = at[np.nonzero(maybe)[0]]
        asked = keys[maybe]
        for known in self._sorted:
            nearest = np.minimum(np.searchsorted(known, asked), len(known) - 1)
            found[window[known[nearest] == asked]] = True
        return found

    def _keys(self, group: Ints, places: Places) -> Ints:
        """[N, runs]: the feature in the upper bits, 48 of the hash below: a feature's few thousand runs
        collide with probability 1e-8, and then a window is passed over for nothing. Below 0 where a run
        reaches behind its window's end."""
        ids = self._text.rows.tokens(places.row, places.start, self._width)
        hashes = runs(ids, places.length, self._n)
        keys = (hashes >> np.uint64(16)).view(np.int64)
        keys |= group[:, None] << 48
        keys[hashes == 0] = -1
        return keys

    def _slot(self, keys: Ints) -> Ints:
        return keys >> (48 - self._bits)
