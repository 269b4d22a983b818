"""Activation shards: every firing of one dictionary on one shard of rows, sorted by feature.

One safetensors file: `features` [P] the features that fire, ascending; `offsets` [P+1]; `tokens` [M] and
`values` [M], feature by feature, in each by token; `masked` [K] the tokens nobody looked at. A token is
row_in_shard * context_length + position, so a firing takes 8 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from autointerp.errors import RunError
from autointerp.journal import Journal, write_atomically


@dataclass(frozen=True, slots=True)
class Firings:
    """What fired, sorted by feature, then token."""

    features: NDArray[np.uint32]
    """[P], ascending, only those that fire."""
    offsets: NDArray[np.int64]
    """[P+1], where each feature's firings begin."""
    tokens: NDArray[np.int64]
    """[M], row * context_length + position."""
    values: NDArray[np.float32]
    """[M], raw, positive."""

    def of(self, feature: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens and values of one feature; empty where it never fires."""
        at = int(np.searchsorted(self.features, feature))
        if at == len(self.features) or self.features[at] != feature:
            return self.tokens[:0], self.values[:0]
        piece = slice(int(self.offsets[at]), int(self.offsets[at + 1]))
        return self.tokens[piece], self.values[piece]


NOTHING: Final = Firings(
    np.zeros(0, np.uint32), np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
)


def sort_by_feature(
    feature: NDArray[np.int64], token: NDArray[np.int64], value: NDArray[np.float32]
) -> Firings:
    """Firings in any order -> sorted. All arguments [M]."""
    order = np.lexsort((token, feature))
    feature = feature[order]
    features, first = np.unique(feature, return_index=True)
    offsets = np.append(first, len(feature)).astype(np.int64)
    return Firings(features.astype(np.uint32), offsets, token[order], value[order])


def save_firings(path: Path, firings: Firings, masked: NDArray[np.int64]) -> None:
    """Raises DiskFull."""
    arrays = {
        "features": firings.features,
        "offsets": firings.offsets,
        "tokens": firings.tokens.astype(np.uint32),
        "values": firings.values,
        "masked": masked.astype(np.uint32),
    }
    write_atomically(path, save(arrays))


@dataclass(frozen=True, slots=True)
class FiringShard:
    """One shard's file, and where its rows begin in the whole cache."""

    path: Path
    first_row: int

    def read(self, first: int, stop: int, context_length: int) -> Firings:
        """Firings of the features in [first, stop); tokens count over the whole cache. Reads only
        those features' bytes."""
        with safe_open(self.path, "np") as file:
            features: NDArray[np.uint32] = file.get_tensor("features")
            low, high = (int(at) for at in np.searchsorted(features, [first, stop]))
            if low == high:
                return NOTHING
            offsets: NDArray[np.int64] = file.get_slice("offsets")[low : high + 1]
            begin, end = int(offsets[0]), int(offsets[-1])
            tokens = file.get_slice("tokens")[begin:end].astype(np.int64)
            values: NDArray[np.float32] = file.get_slice("values")[begin:end]
        tokens += self.first_row * context_length
        return Firings(features[low:high], offsets - begin, tokens, values)

    def masked(self, context_length: int) -> NDArray[np.int64]:
        """Tokens nobody looked at, counted over the whole cache, ascending."""
        with safe_open(self.path, "np") as file:
            return file.get_tensor("masked").astype(np.int64) + self.first_row * context_length


def firing_shards(journal: Journal) -> Iterator[FiringShard]:
    """The done shards of a dictionary, in order of rows. Raises RunError where a file is missing."""
    for unit in filter(str.isdigit, journal.units()):
        for key, (_, part) in journal.located(unit).items():
            path = part.with_suffix(".safetensors")
            if not path.is_file():
                raise RunError(f"{path} is missing, though {part.name} calls it done. Delete {part} too.")
            yield FiringShard(path, int(key))


class FiringStore:
    """All firings of one dictionary, read a block of features at a time."""

    def __init__(self, shards: list[FiringShard], context_length: int) -> None:
        self._shards = shards
        self._context_length = context_length
        masked = [shard.masked(context_length) for shard in shards]
        self.masked: NDArray[np.int64] = np.concatenate(masked) if masked else np.zeros(0, np.int64)
        """Tokens nobody looked at, ascending."""

    def read(self, first: int, stop: int) -> Firings:
        """Firings of the features in [first, stop) over all shards. Memory: those firings."""
        pieces = [shard.read(first, stop, self._context_length) for shard in self._shards]
        counts = [np.diff(piece.offsets) for piece in pieces]
        features = [np.repeat(piece.features, count) for piece, count in zip(pieces, counts, strict=True)]
        if not pieces:
            return NOTHING
        return sort_by_feature(
            np.concatenate(features).astype(np.int64),
            np.concatenate([piece.tokens for piece in pieces]),
            np.concatenate([piece.values for piece in pieces]),
        )
