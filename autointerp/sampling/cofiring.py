"""Which features fire together: from the codes of a sample of tokens, never by a table of all pairs.

Shape letters: S sampled tokens, F features of the dictionary, P features asked about.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.firing_store import FiringStore
from autointerp.sampling.text import Ints, Text

FEWEST_TOKENS: Final = 100_000
SAMPLED_FIRINGS: Final = 1_000_000
"""So many firings are kept in memory, 40 bytes each, or those on `FEWEST_TOKENS` where that is more."""
SLICEABLE_TOKENS: Final = 200_000
"""Sampled of a dictionary that is cached as far as it is asked for: how many firings there are depends on what
else was asked for, and a feature's windows must not. 200,000 tokens * 100 firings * 40 bytes = 0.8 GB at most
where all of it is asked for."""
FEWEST_TOGETHER: Final = 2
"""Two features that fired together once may have done so by chance."""
_PRODUCTS_AT_ONCE: Final = 4_000_000
"""Pairs of firings multiplied out at once, 16 bytes each."""
_JACCARD_PARTS: Final = 2**24


class Codes:
    """What fires on a keyed-hash sample of tokens. Rows in which a capped feature's firings were dropped
    count as if it did not fire there, so such features look a little less alike than they are."""

    def __init__(self, firings: FiringStore, text: Text, *, is_whole: bool = True) -> None:
        """Reads the places of all firings once. `is_whole`: the dictionary is always cached whole."""
        n_tokens = SLICEABLE_TOKENS
        if is_whole:
            a_token = firings.n_kept() / max(1, text.n_tokens)
            n_tokens = max(FEWEST_TOKENS, int(SAMPLED_FIRINGS / max(a_token, 1e-9)))
        tokens = _sampled_tokens(text, n_tokens)
        is_wanted = np.zeros(text.rows.n_rows * text.context_length, bool)
        is_wanted[tokens] = True
        feature, token = firings.codes_at(is_wanted)
        self.width = int(feature.max(initial=-1)) + 1
        self.tokens = tokens
        """[S], row * context_length + position, ascending."""
        sampled = np.searchsorted(tokens, token)
        ones = np.ones(len(feature), np.int32)
        shape = (len(tokens), self.width)
        self.by_token: Any = scipy.sparse.csr_array((ones, (sampled, feature)), shape=shape)
        self.by_feature: Any = self.by_token.tocsc()
        self.n_fired: Ints = np.diff(self.by_feature.indptr).astype(np.int64)
        """[F], sampled tokens on which each fires."""

    def alike(self, features: Ints, n: int) -> NDArray[np.int64]:
        """[P, n]: the features that most often fire together with each, by the Jaccard index of the tokens
        they fire on, the most alike first, ties to the smaller index; -1 where there are no more."""
        alike = np.full((len(features), n), -1, np.int64)
        inside = np.flatnonzero(features < self.width)
        for piece in self._chunks(features[inside]):
            at = inside[piece]
            product = (self.by_feature[:, features[at]].T @ self.by_token).tocoo()
            alike[at] = _most_alike(product, features[at], self.n_fired, n)
        return alike

    def _chunks(self, features: Ints) -> Iterator[slice]:
        """Slices of the features whose products fit."""
        a_token = max(1.0, len(self.by_token.data) / max(1, len(self.tokens)))
        cost = np.cumsum(self.n_fired[features] * a_token)
        begin = 0
        while begin < len(features):
            spent = cost[begin - 1] if begin else 0.0
            end = max(begin + 1, int(np.searchsorted(cost, spent + _PRODUCTS_AT_ONCE)))
            yield slice(begin, end)
            begin = end


def _sampled_tokens(text: Text, n: int) -> Ints:
    """About n of the tokens of the cache, ascending: every so many-th of a row, from a hashed one on."""
    length = text.context_length
    step = max(1, text.n_tokens // max(n, 1))
    row = np.arange(text.rows.n_rows)
    begin = draw.below(draw.mix(draw.key(text.seed, "codes"), text.items(row, np.zeros_like(row))), step)
    position = begin[:, None] + np.arange(0, length, step)
    inside = (position >= text.first) & (position < text.length[:, None])
    return ((row * length)[:, None] + position)[inside]


def _most_alike(product: Any, features: Ints, n_fired: Ints, n: int) -> NDArray[np.int64]:
    """[P, n]. `product`: tokens together, [P, F] sparse."""
    row, other = product.row.astype(np.int64), product.col.astype(np.int64)
    together = product.data.astype(np.int64)
    keep = (together >= FEWEST_TOGETHER) & (other != features[row])
    row, other, together = row[keep], other[keep], together[keep]
    either = n_fired[features[row]] + n_fired[other] - together
    unlike = _JACCARD_PARTS - together * _JACCARD_PARTS // either
    order = np.lexsort((other, unlike, row))
    row, other = row[order], other[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    best = rank < n
    alike = np.full((len(features), n), -1, np.int64)
    alike[row[best], rank[best]] = other[best]
    return alike
