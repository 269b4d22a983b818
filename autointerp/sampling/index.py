"""Where tokens stand: token id -> places, over the rows of one split."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from autointerp import draw
from autointerp.sampling.text import Ints, Text

MOST_TOKENS: Final = 20_000_000
"""Tokens that are indexed, 4 bytes each: beyond, a keyed-hash sample of rows."""


class TokenIndex:
    """Places of every token id in some rows."""

    def __init__(self, text: Text, rows: Ints, most_tokens: int = MOST_TOKENS) -> None:
        """Reads the rows once. Raises nothing of its own."""
        rows = np.sort(rows[_sampled(text, rows, most_tokens)])
        ids = text.rows.tokens(rows, np.full(len(rows), text.first), text.context_length - text.first)
        inside = ids >= 0
        places = (rows * text.context_length + text.first)[:, None] + np.arange(ids.shape[1])
        ids, places = ids[inside], places[inside]
        # A counting sort: column by column of a one-row matrix.
        by_row: Any = scipy.sparse.csr_array(
            (places, ids, np.array([0, len(ids)])), shape=(1, int(ids.max(initial=-1)) + 2)
        )
        by_id = by_row.tocsc()
        self._offsets: NDArray[np.int64] = by_id.indptr.astype(np.int64)
        self._places: Ints = by_id.data
        self._n_ids = len(self._offsets) - 1

    def count(self, ids: Ints) -> Ints:
        """[N]: places of each token id."""
        ids = np.minimum(ids, self._n_ids - 1)  # the last one has none
        return self._offsets[ids + 1] - self._offsets[ids]

    def place(self, ids: Ints, number: Ints) -> Ints:
        """[N]: the place, row * context_length + position, of that number among a token id's."""
        return self._places[self._offsets[ids] + number]


def _sampled(text: Text, rows: Ints, most_tokens: int) -> Ints:
    """Indices of the rows with the smallest hashes that together hold so many tokens."""
    hashes = draw.mix(draw.key(text.seed, "index"), text.items(rows, np.zeros_like(rows)))
    order = draw.smallest(hashes, len(rows))
    return order[np.cumsum(text.length[rows[order]]) <= most_tokens]
