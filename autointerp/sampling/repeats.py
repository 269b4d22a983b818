"""Where the corpus repeats itself: places whose windows share a run of tokens with any other place.

Two windows can share a run only if it stands twice in the corpus. Few runs do, so nearly all windows are
never compared with one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.runs import runs
from autointerp.sampling.text import Ints, Text
from autointerp.sampling.windows import Places

MOST_TOKENS: Final = 2**27
"""Places of a larger corpus, a byte each, all count as repeated: that costs time, and changes nothing."""
_RUNS_AT_ONCE: Final = 2**24
"""Runs sorted at once, 8 bytes each; those of a larger corpus by parts of their hashes."""
_ROWS_AT_ONCE: Final = 1024
_UPPER: Final = np.uint64(2**64 - 2**32)


class Repeats:
    """Which windows may share a run of n tokens with another place."""

    def __init__(self, text: Text, width: int, n: int) -> None:
        """`width`: of the longest window."""
        self._text = text
        n_places = text.rows.n_rows * text.context_length
        self._may: NDArray[np.bool_] | None = None
        if n_places <= MOST_TOKENS:
            self._may = _within_reach(_repeated(text, n), max(1, width - n + 1))

    def may_share(self, places: Places) -> NDArray[np.bool_]:
        """[N]: False where a window surely shares no run with any other place."""
        if self._may is None:
            return np.ones(len(places), bool)
        return self._may[places.row, places.start]


def _all_runs(text: Text, n: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """(first place, hash of the run at each place) of pieces of the corpus; 0 where no window can begin."""
    length = text.context_length
    for begin in range(0, text.rows.n_rows, _ROWS_AT_ONCE):
        rows: Ints = np.arange(begin, min(begin + _ROWS_AT_ONCE, text.rows.n_rows))
        ids = text.rows.tokens(rows, np.zeros_like(rows), length)
        hashes = np.zeros((len(rows), length), np.uint64)
        found = runs(ids, text.length[rows], n)
        hashes[:, text.first : found.shape[1]] = found[:, text.first :]
        yield begin * length, hashes.reshape(-1)


def _repeated(text: Text, n: int) -> NDArray[np.bool_]:
    """[R, C]: whether the run that begins there stands elsewhere too."""
    found = np.zeros((text.rows.n_rows, text.context_length), bool)
    n_places = found.size
    n_parts = -(-n_places // _RUNS_AT_ONCE)
    for part in range(n_parts):
        packed: list[NDArray[np.uint64]] = []
        for first_place, hashes in _all_runs(text, n):
            if n_parts > 1:
                hashes[hashes % np.uint64(n_parts) != part] = 0
            at = np.flatnonzero(hashes)
            # The upper half of a hash is enough: a false repeat is compared for nothing.
            upper = hashes[at] & _UPPER
            packed.append(upper | (at + first_place).astype(np.uint64))
        together = np.concatenate(packed)
        together.sort()
        at = np.flatnonzero((together[1:] ^ together[:-1]) < 2**32)
        for repeated in (together[at], together[at + 1]):
            found.reshape(-1)[(repeated & np.uint64(2**32 - 1)).astype(np.int64)] = True
    return found


def _within_reach(repeated: NDArray[np.bool_], n_starts: int) -> NDArray[np.bool_]:
    """[R, C]: whether any of the `n_starts` runs from there on is repeated."""
    reach = repeated.copy()
    done = 1
    while done < n_starts:  # doubling: in place of n_starts passes, their logarithm
        step = min(done, n_starts - done)
        reach[:, :-step] |= reach[:, step:].copy()
        done += step
    return reach
