"""Active windows of one feature: where they are cut, their bands, and which are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.rows import RowStore
from autointerp.sampling.settings import SamplingSettings

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Places:
    """N places in the rows: columns."""

    row: Ints
    start: Ints
    """First position of the window in its row."""
    length: Ints

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: Ints | NDArray[np.bool_] | slice) -> Places:
        return Places(self.row[chosen], self.start[chosen], self.length[chosen])

    def items(self, rows: RowStore) -> NDArray[np.uint64]:
        """What names each place for ever: its document and its position in it."""
        return draw.pair(rows.document[self.row], rows.in_document(self.row, self.start))


NO_PLACES: Final = Places(*(np.zeros(0, np.int64) for _ in range(3)))


def active_places(tokens: Ints, rows: RowStore, settings: SamplingSettings, first: int, key: int) -> Places:
    """Non-overlapping windows that hold a firing, at most one a block of `width` tokens.

    `tokens`: where the feature fires, ascending, row * context_length + position. `first`: the first
    position of a row that windows may use. `key`: of the hashed offsets.
    """
    row, position = np.divmod(tokens, rows.context_length)
    block = (position - first) // settings.width
    if settings.window == "aligned":
        return _aligned(row, block, rows, settings.width, first)
    anchor = _one_a_block(
        row, block, draw.mix(key, draw.pair(rows.document[row], rows.in_document(row, position)))
    )
    row, position, block = row[anchor], position[anchor], block[anchor]
    where = draw.pair(rows.document[row], rows.in_document(row, position))
    span = settings.width - settings.context_before
    offset = settings.context_before + (draw.mix(key + 1, where) % np.uint64(span)).astype(np.int64)
    length = np.minimum(settings.width, rows.length[row] - first)
    start = np.clip(position - offset, first, np.maximum(first, rows.length[row] - length))
    return _without_overlap(Places(row, start, length), block)


def _aligned(row: Ints, block: Ints, rows: RowStore, width: int, first: int) -> Places:
    """Whole blocks only, and a row's single short block where the row has no whole one."""
    pairs = np.unique(np.stack([row, block], 1), axis=0)
    row, start = pairs[:, 0], first + pairs[:, 1] * width
    length = np.minimum(width, rows.length[row] - start)
    keep = (length == width) | (start == first)
    return Places(row[keep], start[keep], length[keep])


def _one_a_block(row: Ints, block: Ints, hashes: draw.Hashes) -> Ints:
    """Index of the firing with the smallest hash in each (row, block), in their order."""
    order = np.lexsort((hashes, block, row))
    row, block = row[order], block[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (row[1:] != row[:-1]) | (block[1:] != block[:-1])
    return order[is_first]


def _without_overlap(places: Places, block: Ints) -> Places:
    """Of two that overlap the earlier stays. `places` in order of row and block, one a block."""
    keep = np.zeros(len(places), bool)
    rows, of_row = np.unique(places.row, return_inverse=True)
    end = np.zeros(len(rows), np.int64)
    for number in range(int(block.max(initial=-1)) + 1):
        at = np.flatnonzero(block == number)
        at = at[places.start[at] >= end[of_row[at]]]
        keep[at] = True
        end[of_row[at]] = places.start[at] + places.length[at]
    return places[keep]


def maxima(
    places: Places, tokens: Ints, values: NDArray[np.float32], context_length: int
) -> NDArray[np.float32]:
    """Largest activation in each window [N]; each must hold a firing. `tokens` ascending [M]."""
    begin = places.row * context_length + places.start
    low = np.searchsorted(tokens, begin)
    high = np.searchsorted(tokens, begin + places.length)
    edges = np.stack([low, high], 1).ravel()
    # reduceat needs every edge inside; a last edge behind the end would be out of range.
    padded = np.append(values, np.float32(-np.inf))
    return np.maximum.reduceat(padded, edges)[::2]


def bands(maximum: NDArray[np.float32], hashes: draw.Hashes, n_bands: int) -> Ints:
    """Band of each window by rank of its maximum, 0 strongest; ties go by hash."""
    order = np.lexsort((hashes, -maximum))
    band = np.empty(len(order), np.int64)
    band[order] = np.arange(len(order)) * n_bands // max(len(order), 1)
    return band


def spread_over_bands(band: Ints, hashes: draw.Hashes, n: int, n_bands: int) -> Ints:
    """Indices of n windows, as many from each band as it has, the rest filled from all by hash.

    In order of band, then hash. A larger n contains the smaller.
    """
    order = np.lexsort((hashes, band))
    sorted_band = band[order]
    first_of_band = np.searchsorted(sorted_band, sorted_band)
    rank = np.arange(len(order)) - first_of_band
    # Quotas differ by one where n is no multiple: the strongest bands get the odd ones.
    quota = n // n_bands + (sorted_band < n % n_bands)
    chosen = rank < quota
    missing = min(n, len(order)) - int(chosen.sum())
    if missing > 0:
        rest = np.flatnonzero(~chosen)
        chosen[rest[draw.smallest(hashes[order[rest]], missing)]] = True
    return order[chosen]


_POWERS_BASE: Final = np.uint64(0x100000001B3)


def runs(token_ids: Ints, n: int) -> NDArray[np.uint64]:
    """Hashes [N, width - n + 1] of all runs of n tokens; 0 for a run that reaches behind the window's end
    (id -1). Equal runs have equal hashes; unequal ones collide with probability about 2**-64."""
    if token_ids.shape[1] < n:
        return np.zeros((len(token_ids), 0), np.uint64)
    with np.errstate(over="ignore"):
        powers = _POWERS_BASE ** np.arange(1, n + 1, dtype=np.uint64)
        mixed = draw.mix(0, token_ids.astype(np.uint64))
        hashes = (sliding_window_view(mixed, n, axis=1) * powers).sum(2, dtype=np.uint64)
    hashes[(sliding_window_view(token_ids, n, axis=1) < 0).any(2)] = 0
    return hashes


def shares_run(hashes: NDArray[np.uint64], seen: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which windows [N] hold a run that is in `seen` (sorted, unique, without 0)."""
    if not len(seen) or not hashes.size:
        return np.zeros(len(hashes), bool)
    # `seen` is sorted once; np.isin would sort both sides at every call.
    nearest = np.minimum(np.searchsorted(seen, hashes), len(seen) - 1)
    return np.logical_or.reduce(seen[nearest] == hashes, axis=1)
