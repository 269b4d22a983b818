"""Statistics of many features from their firings. Pure.

What is counted over all firings (n_fired, n_rows, total, histogram) comes with them and is exact, and so is
the number of documents, for which rows are fired in is always known. What depends on the single token is
counted over the kept rows, each as often as it has weight.

Shape letters: P features, M firings, R rows of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from autointerp.activations.firings import Firings, group_of

N_TOP_TOKENS: Final = 10
POSITION_EDGES: Final = (2, 4, 8, 16, 32, 64, 128)
"""Ranges of positions in a row: 0 to 1, 2 to 3, 4 to 7, ..., 128 and above."""
N_RANGES: Final = len(POSITION_EDGES) + 1

MOST_FEATURES: Final = 2**12
"""Features that can be looked at at once."""
_COUNT_BITS: Final = 28
_ID_BITS: Final = 24


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Tokens on which each of P features fires most often."""

    ids: NDArray[np.int64]
    """[P, 10], the most frequent first, ties to the smaller id; -1 where there are fewer."""
    counts: NDArray[np.int64]
    """[P, 10], firings, rounded; 0 behind the last."""


def top_tokens(firings: Firings, token_ids: NDArray[np.uint32]) -> TopTokens:
    """`token_ids` [M]: the token that each firing stands on, below 2**24. At most `MOST_FEATURES` features;
    counts saturate at 2**28."""
    n = len(firings.features)
    assert n <= MOST_FEATURES
    shape = (n, int(token_ids.max(initial=0)) + 1)
    table: Any = scipy.sparse.csr_array(
        # Copies: duplicates are added up in place.
        (firings.weights.astype(np.float64), token_ids.astype(np.int64), firings.offsets.copy()),
        shape=shape,
    )
    table.sum_duplicates()
    group = group_of(table.indptr.astype(np.int64))
    most = 2**_COUNT_BITS - 1
    rarity = most - np.minimum(np.rint(table.data), most).astype(np.int64)
    # Feature, rarity and id in one number: the fastest sort there is gives the order by all three.
    keys = (((group << _COUNT_BITS) | rarity) << _ID_BITS) | table.indices
    keys = np.sort(keys.view(np.uint64)).view(np.int64)
    rank = np.arange(len(keys)) - table.indptr[:-1].astype(np.int64)[group]
    best = np.flatnonzero(rank < N_TOP_TOKENS)
    found = TopTokens(np.full((n, N_TOP_TOKENS), -1), np.zeros((n, N_TOP_TOKENS), np.int64))
    found.ids[group[best], rank[best]] = keys[best] & (2**_ID_BITS - 1)
    found.counts[group[best], rank[best]] = most - ((keys[best] >> _ID_BITS) & most)
    return found


def range_of(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the range of `POSITION_EDGES` that each position of a row lies in."""
    return np.searchsorted(POSITION_EDGES, positions, side="right")


def firings_by_position(firings: Firings, context_length: int) -> NDArray[np.float64]:
    """[P, N_RANGES]: firings in each range of positions, by weight."""
    n = len(firings.features)
    of_position = range_of(np.arange(context_length))
    at = group_of(firings.offsets) * N_RANGES + of_position[firings.tokens % context_length]
    return np.bincount(at, firings.weights, minlength=n * N_RANGES).reshape(n, N_RANGES).astype(np.float64)


def tokens_by_position(
    length: NDArray[np.int64], first: int, masked: NDArray[np.int64], context_length: int
) -> NDArray[np.int64]:
    """[N_RANGES]: tokens looked at in each range of positions, over rows of `length` [R]. `first`: the first
    position looked at; `masked`: further tokens that were not."""
    of_position = range_of(np.arange(context_length))
    longer = len(length) - np.cumsum(np.bincount(length, minlength=context_length + 1))[:context_length]
    longer[:first] = 0
    n_looked_at = np.bincount(of_position, longer, minlength=N_RANGES)
    n_masked = np.bincount(of_position[masked % context_length], minlength=N_RANGES)
    return n_looked_at.astype(np.int64) - n_masked


def n_documents(
    firings: Firings, document: NDArray[np.int64], n_documents: int, context_length: int
) -> NDArray[np.int64]:
    """[P]: documents in which each feature fires, dropped rows included. `document` [R]: their numbers, below
    `n_documents`."""
    kept = group_of(firings.offsets) * n_documents + document[firings.tokens // context_length]
    is_new = np.ones(len(kept), bool)
    np.not_equal(kept[1:], kept[:-1], out=is_new[1:])
    dropped = group_of(firings.dropped_offsets) * n_documents + document[firings.dropped_rows]
    pairs = np.sort(np.concatenate([kept[is_new], dropped]))
    is_new = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=is_new[1:])
    return np.bincount(pairs[is_new] // max(1, n_documents), minlength=len(firings.features))


def maxima(firings: Firings) -> NDArray[np.float32]:
    """[P]: largest activation of each feature, 0 where it never fires. Exact: the strongest rows are kept."""
    found = np.zeros(len(firings.features), np.float32)
    fires = np.flatnonzero(np.diff(firings.offsets))
    if len(fires):
        # Features without firings take no room, so these edges are those of their neighbours too.
        found[fires] = np.maximum.reduceat(firings.values, firings.offsets[fires])
    return found
