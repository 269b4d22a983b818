"""The stratum `embedding`: silent windows whose text is nearest to that of a feature's active ones.

    window -> mean of its tokens' embeddings, the frequent ones little -> common direction out -> unit length
    feature -> mean over its active windows of the split -> unit length

Smooth inverse frequency (Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for sentence
embeddings"): a token that makes up p of the text counts a / (a + p), and the first principal component goes.
Frequencies, component and candidates are those of one pool of windows that all features share.

A float product rounds in its own way for every number of features, so close windows would change places with
the features that stand in a block. Unit vectors are therefore rounded to whole steps, few enough that every
sum of their products is a whole number that float32 holds exactly: cosines are the same in every shape.

Shape letters: P features, N windows, W windows of the pool, R ranks, V tokens, K dimensions, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.sampling.contrast import Placed, Slots
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.strata import Around
from autointerp.sampling.text import SPLITS, Text
from autointerp.sampling.windows import Places

POOL: Final = 20_000
"""Windows to choose from, of all held-out text."""
NEAREST: Final = 256
"""So many of them are tried for a feature: of 20,000 the nearest hundredth. Those behind are not near."""
FREQUENT: Final = 1e-3
"""The paper's a: a token of this share of the text counts half."""
STEPS: Final = 4_000
"""To a unit vector. Rounding to steps makes one of 64 dimensions longer by at most sqrt(64) / 2 = 4 steps, and
4_004 ** 2 < 2 ** 24: no sum of products, in whatever order, leaves what float32 counts exactly."""
_MOST_SCORES: Final = 2**22
"""Features of a block times windows of the pool: 16 MiB of scores, 32 MiB of keys."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """From windows to vectors."""

    weighted_VK: NDArray[np.float32]
    """[V + 1, K], each token's embedding times its weight; zeros last, where -1 (no token) leads."""
    common_K: NDArray[np.float64]
    """Unit vector, or zeros."""

    @classmethod
    def of(cls, ids_WT: NDArray[np.int32], table_VK: NDArray[np.float16]) -> Embedder:
        """From the token ids of a sample of windows, -1 behind their ends."""
        counts = np.bincount(ids_WT[ids_WT >= 0], minlength=len(table_VK))[: len(table_VK)]
        weight = FREQUENT / (FREQUENT + counts / max(1, counts.sum()))
        weighted_VK = np.zeros((len(table_VK) + 1, table_VK.shape[1]), np.float32)
        weighted_VK[:-1] = table_VK * weight[:, None]
        means_WK = _means(ids_WT, weighted_VK)
        _, axes_KK = np.linalg.eigh(means_WK.T @ means_WK)
        return cls(weighted_VK, axes_KK[:, -1])

    def vectors(self, ids_NT: NDArray[np.int32]) -> NDArray[np.float32]:
        """[N, K], in whole steps. A window's vector does not depend on the others."""
        means_NK = _means(ids_NT, self.weighted_VK)
        along_N = (means_NK * self.common_K).sum(1)
        return in_steps(means_NK - along_N[:, None] * self.common_K)


def _means(ids_NT: NDArray[np.int32], weighted_VK: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N, K]. Position by position: no [N, T, K] in memory, and one order of sums for every N."""
    total_NK = np.zeros((len(ids_NT), weighted_VK.shape[1]))
    for ids_N in ids_NT.T:
        total_NK += weighted_VK[ids_N]
    return total_NK / np.maximum((ids_NT >= 0).sum(1), 1)[:, None]


def in_steps(vectors_NK: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scaled to `STEPS` and rounded; zeros stay zeros."""
    length_N = np.sqrt((vectors_NK**2).sum(1))
    scale_N = STEPS / np.where(length_N > 0, length_N, 1.0)
    return np.rint(vectors_NK * scale_N[:, None]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of all features."""

    places: Places
    """[W], in an order drawn by hash, which decides between equally near ones."""
    vectors_WK: NDArray[np.float32]
    embedder: Embedder
    width: int

    @classmethod
    def of(
        cls, text: Text, settings: SamplingSettings, table_VK: NDArray[np.float16], most: int = POOL
    ) -> Pool:
        """From held-out rows, cut as active windows are cut. `table_VK`: of token embeddings."""
        places = _drawn(text, settings, most)
        ids_WT = text.rows.tokens(places.row, places.start, settings.width)
        embedder = Embedder.of(ids_WT, table_VK)
        return cls(places, embedder.vectors(ids_WT), embedder, settings.width)

    def ranked(self, text: Text, active: Placed, n_groups: int) -> NDArray[np.int32]:
        """[P, R]: of each feature the windows nearest to its active ones, the nearest first."""
        ids_NT = text.rows.tokens(active.places.row, active.places.start, self.width)
        sums_PK = np.zeros((n_groups, self.vectors_WK.shape[1]))
        np.add.at(sums_PK, active.group, self.embedder.vectors(ids_NT))  # of whole numbers: exact
        queries_PK = in_steps(sums_PK)
        n_windows = len(self.places)
        ranked = np.zeros((n_groups, min(NEAREST, n_windows)), np.int32)
        if not n_windows:
            return ranked
        step = max(1, _MOST_SCORES // n_windows)
        for begin in range(0, n_groups, step):
            scores_pW = queries_PK[begin : begin + step] @ self.vectors_WK.T
            # Score and index in one number: no two are equal, so the smallest are always the same.
            keys_pW = scores_pW.astype(np.int64) * -n_windows + np.arange(n_windows)
            nearest_pR = np.partition(keys_pW, ranked.shape[1] - 1, axis=1)[:, : ranked.shape[1]]
            ranked[begin : begin + step] = np.sort(nearest_pR, axis=1) % n_windows
        return ranked


def _drawn(text: Text, settings: SamplingSettings, most: int) -> Places:
    """Windows around a hashed token of blocks that hashes choose; the rows first, lest all blocks of a large
    corpus be hashed."""
    key = draw.key(text.seed, "pool")
    rows = text.rows_of[SPLITS.index("heldout")]
    rows = rows[draw.smallest(draw.mix(key, text.items(rows, np.zeros_like(rows))), most)]
    n_blocks = -(-np.maximum(text.length[rows] - text.first, 0) // settings.width)
    row = np.repeat(rows, n_blocks)
    number = np.arange(len(row)) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
    start = text.first + number * settings.width
    hashes = draw.mix(key, text.items(row, start))
    chosen = draw.smallest(hashes, most)
    row, start, hashes = row[chosen], start[chosen], hashes[chosen]
    position = start + draw.below(draw.mix(1, hashes), np.minimum(settings.width, text.length[row] - start))
    around = Around(text, settings, settings.window)
    places = around.places(row * text.context_length + position, draw.mix(2, hashes))
    return places[places.row >= 0]


@dataclass(frozen=True, slots=True)
class Nearest:
    """`embedding`: the windows of the pool by their rank. Those that are good go to the slots in order."""

    pool: Places
    ranked: NDArray[np.int32]
    """[P, R], windows of the pool."""

    tries: ClassVar[int] = NEAREST

    @classmethod
    def of(cls, pool: Pool, text: Text, active: Placed, n_groups: int) -> Nearest:
        return cls(pool.places, pool.ranked(text, active, n_groups))

    def can(self, n_groups: int) -> NDArray[np.bool_]:
        return np.full(n_groups, self.ranked.shape[1] > 0)

    def __call__(self, slots: Slots, attempt: int) -> Places:
        """Each attempt is a rank. The window goes to a feature's first slot that is still empty; for the
        others of the feature there is none. So slot k gets the k-th good one, whatever n is."""
        row = np.full(len(slots), -1, np.int64)
        start, length = slots.twin.start.copy(), slots.twin.length.copy()
        if attempt < self.ranked.shape[1]:
            first = np.flatnonzero(np.diff(slots.group, prepend=-1))
            place = self.pool[self.ranked[slots.group[first], attempt].astype(np.int64)]
            row[first], start[first], length[first] = place.row, place.start, place.length
        return Places(row, start, length)
