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

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from autointerp.activations.histogram import N_BINS, histograms
from autointerp.errors import RunError
from autointerp.files import write_sealed
from autointerp.journal import Journal
from autointerp.types import Json

MOST_TOKENS: Final = 2**24
"""Tokens a shard may have: what three bytes can count."""


@dataclass(frozen=True, slots=True)
class Firings:
    """What fired, sorted by feature, then token, and what is known of what was not kept."""

    features: NDArray[np.uint32]
    """[P], ascending, only those that fire."""
    offsets: NDArray[np.int64]
    """[P+1], where each feature's firings begin."""
    tokens: NDArray[np.int64]
    """[M], row * context_length + position."""
    values: NDArray[np.float32]
    """[M], raw, positive."""
    weights: NDArray[np.float32]
    """[M], how many of its feature's firing rows the firing's row stands for: 1 where nothing was dropped
    and for the strongest rows."""
    dropped_offsets: NDArray[np.int64]
    """[P+1], where each feature's dropped rows begin."""
    dropped_rows: NDArray[np.int64]
    """[K], rows in which a feature fires though none of its firings there are kept, ascending."""
    n_fired: NDArray[np.int64]
    """[P], tokens on which each fires, dropped ones included."""
    n_rows: NDArray[np.int64]
    """[P], rows in which each fires, dropped ones included."""
    total: NDArray[np.float64]
    """[P], sum of each feature's values, dropped ones included."""
    histogram: NDArray[np.int64]
    """[P, N_BINS], of the same values (`histogram.py`)."""

    def at(self, feature: int) -> int | None:
        """Index of a feature among `features`; None where it never fires."""
        at = int(np.searchsorted(self.features, feature))
        return at if at < len(self.features) and self.features[at] == feature else None


def group_of(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """[M]: to which of the P groups that `offsets` [P+1] bound each entry belongs."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


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
        counts = np.concatenate([_START, np.cumsum(end - begin)])
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
        before = np.concatenate([_START, np.cumsum(is_new)])
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

_INTS: Final = np.zeros(0, np.int64)
_FLOATS: Final = np.zeros(0, np.float32)
_START: Final = np.zeros(1, np.int64)
NOTHING: Final = Firings(
    features=np.zeros(0, np.uint32),
    offsets=_START,
    tokens=_INTS,
    values=_FLOATS,
    weights=_FLOATS,
    dropped_offsets=_START,
    dropped_rows=_INTS,
    n_fired=_INTS,
    n_rows=_INTS,
    total=np.zeros(0, np.float64),
    histogram=np.zeros((0, N_BINS), np.int64),
)


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
        dropped_rows=_INTS,
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
        dropped_offsets=np.concatenate([_START, np.cumsum(n_dropped)]),
        dropped_rows=np.concatenate(dropped),
        n_fired=n_fired,
        n_rows=n_rows,
        total=total,
        histogram=histogram,
    )


def firing_shards(journal: Journal) -> Iterator[FiringShard]:
    """The done shards of a dictionary, in order of rows. Raises RunError where a file is missing."""
    for unit in filter(str.isdigit, journal.units()):
        for key, (_, part) in journal.located(unit).items():
            path = part.with_suffix(".safetensors")
            if not path.is_file():
                raise RunError(f"{path} is missing, though {part.name} calls it done. Delete {part} too.")
            yield FiringShard(path, int(key.partition(":")[0]))  # behind it the pass, see passes.py


class FiringStore:
    """All firings of one dictionary, read a block of features at a time."""

    def __init__(self, shards: list[FiringShard], context_length: int) -> None:
        self._shards = shards
        self.context_length = context_length
        # Every pass over a shard's rows says the same of its tokens.
        masked = {shard.first_row: shard.masked(context_length) for shard in shards}
        self.masked: NDArray[np.int64] = np.concatenate([*masked.values(), _INTS])
        """Tokens nobody looked at, ascending."""

    def counts(self, width: int) -> NDArray[np.int64]:
        """[width]: how many firings of each feature are kept: what `read` will hold."""
        counts = np.zeros(width, np.int64)
        for shard in self._shards:
            features, of_each = shard.counts()
            counts[features] += of_each
        return counts

    def n_kept(self) -> int:
        """Firings that are kept, of all features."""
        return sum(shard.n_kept() for shard in self._shards)

    def read(self, first: int, stop: int) -> Firings:
        """Firings of the features in [first, stop) over all shards. Memory: some 60 bytes a firing."""
        return joined([shard.read(first, stop, self.context_length) for shard in self._shards])

    def read_these(self, features: NDArray[np.int64]) -> Firings:
        """Firings of these features (ascending) over all shards. Memory: some 60 bytes a firing."""
        return joined([shard.read_these(features, self.context_length) for shard in self._shards])

    def codes_at(self, is_wanted: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(feature, token) of every kept firing on a wanted token. `is_wanted`: one entry a token of the
        whole cache. Memory: one shard's tokens and what is found."""
        features: list[NDArray[np.uint32]] = []
        tokens: list[NDArray[np.int64]] = []
        for shard in self._shards:
            first = shard.first_row * self.context_length
            feature, token = shard.codes_at(is_wanted[first : first + MOST_TOKENS])
            features.append(feature)
            tokens.append(token + first)
        if not features:
            return _INTS, _INTS
        return np.concatenate(features).astype(np.int64), np.concatenate(tokens)

    def shards(self) -> Iterator[Firings]:
        """Every feature's firings, a shard at a time, in order of rows. Memory: one shard's."""
        for shard in self._shards:
            yield shard.read(0, 2**32, self.context_length)


def joined(pieces: list[Firings]) -> Firings:
    """Firings of several shards, given in order of rows, as of one."""
    pieces = [piece for piece in pieces if len(piece.features)]
    if not pieces:
        return NOTHING
    if len(pieces) == 1:
        return pieces[0]
    features = np.unique(np.concatenate([piece.features for piece in pieces]))
    at = [np.searchsorted(features, piece.features) for piece in pieces]
    firing_counts = [np.diff(piece.offsets) for piece in pieces]
    offsets, places = _interleaved(len(features), at, firing_counts)
    dropped_counts = [np.diff(piece.dropped_offsets) for piece in pieces]
    dropped_offsets, dropped_places = _interleaved(len(features), at, dropped_counts)
    return Firings(
        features=features,
        offsets=offsets,
        tokens=_placed([piece.tokens for piece in pieces], places),
        values=_placed([piece.values for piece in pieces], places),
        weights=_placed([piece.weights for piece in pieces], places),
        dropped_offsets=dropped_offsets,
        dropped_rows=_placed([piece.dropped_rows for piece in pieces], dropped_places),
        n_fired=_added(len(features), at, [piece.n_fired for piece in pieces]),
        n_rows=_added(len(features), at, [piece.n_rows for piece in pieces]),
        total=_added(len(features), at, [piece.total for piece in pieces]),
        histogram=_added(len(features), at, [piece.histogram for piece in pieces]),
    )


def _interleaved(
    n: int, at: list[NDArray[np.int64]], counts: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Offsets [n+1] of the n joined groups, and where each piece's entries go: groups one by one, in each
    the pieces in their order."""
    offsets = np.concatenate([_START, np.cumsum(_added(n, at, counts))])
    free = offsets[:-1].copy()
    places: list[NDArray[np.int64]] = []
    for groups, of_each in zip(at, counts, strict=True):
        before = np.cumsum(of_each) - of_each
        places.append(np.repeat(free[groups] - before, of_each) + np.arange(int(of_each.sum())))
        free[groups] += of_each
    return offsets, places


def _placed(columns: list[NDArray[Any]], places: list[NDArray[np.int64]]) -> NDArray[Any]:
    together = np.empty(sum(map(len, columns)), columns[0].dtype)
    for column, to in zip(columns, places, strict=True):
        together[to] = column
    return together


def _added(n: int, at: list[NDArray[np.int64]], columns: list[NDArray[Any]]) -> NDArray[Any]:
    together = np.zeros((n, *columns[0].shape[1:]), columns[0].dtype)
    for groups, column in zip(at, columns, strict=True):
        together[groups] += column  # a piece names each group once
    return together
