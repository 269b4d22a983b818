"""Activation shards: every firing of one dictionary on one shard of rows, sorted by feature.

One safetensors file. P features fire, M firings, R rows, C of the features are capped:

    features [P] u32      ascending           values  [M] f32   feature by feature, in each by token
    offsets  [P+1] u32    where each begins   low [M] u16, high [M] u8   token = low + high * 2**16
    masked   [K] u32      tokens nobody looked at
    capped   [C] u32      features of which only some rows are kept, ascending, and for each of these
    fired, strongest [C, R/8] u8              bits: rows in which it fires; kept for their strength
    weight   [C] f32      firing rows that each other kept row stands for
    n_fired  [C] u32, total [C] f64, histogram [C, N_BINS] u32   over all firings, dropped ones included

A token is row_in_shard * context_length + position, so a firing takes 7 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from autointerp.activations.firings import INTS, NOTHING, START, Firings, group_of
from autointerp.activations.histogram import histograms
from autointerp.files import write_sealed
from autointerp.types import Json

MOST_TOKENS: Final = 2**24
"""Tokens a shard may have: what three bytes can count."""


# --- making a shard ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sorted:
    """All firings of one shard, sorted by feature, then token; nothing dropped yet."""

    features: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    values: NDArray[np.float32]


def sort_by_feature(
    feature: NDArray[np.int32],
    token: NDArray[np.int32],
    value: NDArray[np.float32],
    n_tokens: int,
    width: int,
) -> Sorted:
    """Firings [M] in any order -> sorted. `n_tokens`, `width`: above every token and feature.

    A counting sort in scipy's compiled code: 1.3 us a token of 32 firings, where a comparison sort takes
    10.
    """
    by_feature: Any = scipy.sparse.coo_array((value, (token, feature)), shape=(n_tokens, width)).tocsc()
    counts = np.diff(by_feature.indptr)
    features = np.flatnonzero(counts)
    offsets = np.concatenate([[0], np.cumsum(counts[features], dtype=np.int64)])
    return Sorted(features.astype(np.uint32), offsets, by_feature.indices, by_feature.data)


def save_shard(path: Path, arrays: dict[str, NDArray[Any]]) -> Json:
    """Writes the arrays of a shard's file (`cap.py` makes them); its seal. Raises DiskFull."""
    return write_sealed(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


# --- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FiringShard:
    """One shard's file, and where its rows begin in the whole cache."""

    path: Path
    first_row: int

    def read(self, first: int, stop: int, context_length: int) -> Firings:
        """Firings of the features in [first, stop); rows and tokens count over the whole cache. Reads
        only those features' bytes."""
        with safe_open(self.path, "np") as file:
            features: NDArray[np.uint32] = file.get_tensor("features")
            low, high = (int(at) for at in np.searchsorted(features, [first, stop]))
            return self._read(file, features, np.arange(low, high), context_length)

    def read_these(self, wanted: NDArray[np.int64], context_length: int) -> Firings:
        """Firings of these features (ascending), of those of them that fire here. Reads only their bytes."""
        with safe_open(self.path, "np") as file:
            features: NDArray[np.uint32] = file.get_tensor("features")
            at = np.minimum(np.searchsorted(features, wanted), max(0, len(features) - 1))
            at = at[features[at] == wanted] if len(features) else at[:0]
            return self._read(file, features, at, context_length)

    def _read(
        self, file: Any, features: NDArray[np.uint32], at: NDArray[np.int64], context_length: int
    ) -> Firings:
        """Firings of features[at], `at` ascending."""
        if not len(at):
            return NOTHING
        offsets: NDArray[np.int64] = file.get_slice("offsets")[int(at[0]) : int(at[-1]) + 2].astype(np.int64)
        begin, end = offsets[at - at[0]], offsets[at - at[0] + 1]
        # Neighbours in the file are one slice.
        is_first = np.append(True, begin[1:] != end[:-1])
        is_last = np.append(is_first[1:], True)
        pieces = list(zip(begin[is_first].tolist(), end[is_last].tolist(), strict=True))
        token = _slices(file, "low", pieces).astype(np.int64)
        token += _slices(file, "high", pieces).astype(np.int64) << 16
        token += self.first_row * context_length
        values = _slices(file, "values", pieces).astype(np.float32, copy=False)
        counts = np.concatenate([START, np.cumsum(end - begin)])
        whole = _uncapped(features[at], counts, token, values, context_length)
        capped: NDArray[np.uint32] = file.get_tensor("capped")
        chosen = np.flatnonzero(np.isin(capped, features[at])).tolist() if len(capped) else []
        if not chosen:
            return whole
        pairs = [(number, number + 1) for number in chosen]
        cap = {name: _slices(file, name, pairs) for name in _OF_CAPPED}
        return _with_capped(whole, capped[chosen], cap, self.first_row, context_length)

    def codes_at(self, is_wanted: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(feature, token in the shard) of every kept firing on a wanted token, sorted by feature, then
        token. `is_wanted`: one entry a token of the shard."""
        with safe_open(self.path, "np") as file:
            token = file.get_tensor("low").astype(np.int64)
            token += file.get_tensor("high").astype(np.int64) << 16
            features, offsets = file.get_tensor("features"), file.get_tensor("offsets")
        at = np.flatnonzero(is_wanted[token])
        return features[np.searchsorted(offsets, at, side="right") - 1], token[at]

    def counts(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The features that fire, and how many firings of each are kept."""
        with safe_open(self.path, "np") as file:
            return file.get_tensor("features"), np.diff(file.get_tensor("offsets").astype(np.int64))

    def rows_fired(self, context_length: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The features that fire, and in how many rows each, dropped ones included. Memory: some 20 bytes a
        firing of the shard."""
        with safe_open(self.path, "np") as file:
            features, offsets = file.get_tensor("features"), file.get_tensor("offsets").astype(np.int64)
            row = file.get_tensor("low").astype(np.int32)
            row += file.get_tensor("high").astype(np.int32) << 16
            capped, fired = file.get_tensor("capped"), file.get_tensor("fired")
        row //= context_length
        is_new = np.append(True, row[1:] != row[:-1])[: len(row)]
        is_new[offsets[:-1]] = True
        before = np.concatenate([START, np.cumsum(is_new)])
        n_rows = before[offsets[1:]] - before[offsets[:-1]]
        n_rows[np.searchsorted(features, capped)] = np.unpackbits(fired, axis=1).sum(1)
        return features, n_rows

    def n_kept(self) -> int:
        """Firings that are kept, of all features."""
        with safe_open(self.path, "np") as file:
            return int(file.get_slice("values").get_shape()[0])

    def masked(self, context_length: int) -> NDArray[np.int64]:
        """Tokens nobody looked at, counted over the whole cache, ascending."""
        with safe_open(self.path, "np") as file:
            return file.get_tensor("masked").astype(np.int64) + self.first_row * context_length


def _slices(file: Any, name: str, pieces: list[tuple[int, int]]) -> NDArray[Any]:
    """Rows [begin, end) of a tensor, all pieces behind one another."""
    tensor = file.get_slice(name)
    found = [tensor[begin:end] for begin, end in pieces]
    return found[0] if len(found) == 1 else np.concatenate(found)


_OF_CAPPED: Final = ("fired", "strongest", "weight", "n_fired", "total", "histogram")


def _uncapped(
    features: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    tokens: NDArray[np.int64],
    values: NDArray[np.float32],
    context_length: int,
) -> Firings:
    group, n = group_of(offsets), len(features)
    row = tokens // context_length
    is_new_row = np.ones(len(tokens), bool)
    is_new_row[1:] = (row[1:] != row[:-1]) | (group[1:] != group[:-1])
    return Firings(
        features=features,
        offsets=offsets,
        tokens=tokens,
        values=values,
        weights=np.ones(len(values), np.float32),
        dropped_offsets=np.zeros(n + 1, np.int64),
        dropped_rows=INTS,
        n_fired=np.diff(offsets),
        n_rows=np.bincount(group[is_new_row], minlength=n),
        total=np.bincount(group, values, minlength=n).astype(np.float64),  # of no values at all: integers
        histogram=histograms(group, values, n),
    )


def _with_capped(
    kept: Firings,
    capped: NDArray[np.uint32],
    cap: dict[str, NDArray[Any]],
    first_row: int,
    context_length: int,
) -> Firings:
    """What is kept of features, as if it were all -> with weights, dropped rows and exact counts of those
    of them that are capped."""
    weights, n_fired, n_rows = kept.weights, kept.n_fired.copy(), kept.n_rows.copy()
    total, histogram = kept.total.copy(), kept.histogram.copy()
    n_dropped = np.zeros(len(kept.features), np.int64)
    dropped: list[NDArray[np.int64]] = []
    for number, at in enumerate(np.searchsorted(kept.features, capped).tolist()):
        piece = slice(int(kept.offsets[at]), int(kept.offsets[at + 1]))
        row = kept.tokens[piece] // context_length - first_row
        fired = np.flatnonzero(np.unpackbits(cap["fired"][number]))
        is_strongest = np.unpackbits(cap["strongest"][number])[row] == 1
        weights[piece] = np.where(is_strongest, np.float32(1), cap["weight"][number])
        missing = np.setdiff1d(fired, row, assume_unique=False)
        dropped.append(missing + first_row)
        n_dropped[at], n_rows[at] = len(missing), len(fired)
        n_fired[at], total[at] = cap["n_fired"][number], cap["total"][number]
        histogram[at] = cap["histogram"][number]
    return Firings(
        features=kept.features,
        offsets=kept.offsets,
        tokens=kept.tokens,
        values=kept.values,
        weights=weights,
        dropped_offsets=np.concatenate([START, np.cumsum(n_dropped)]),
        dropped_rows=np.concatenate(dropped),
        n_fired=n_fired,
        n_rows=n_rows,
        total=total,
        histogram=histogram,
    )
