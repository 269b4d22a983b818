"""All shards of a dictionary as one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.firings import INTS, Firings, joined
from autointerp.activations.shards import MOST_TOKENS, FiringShard
from autointerp.errors import RunError
from autointerp.journal import Journal


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
        self.masked: NDArray[np.int64] = np.concatenate([*masked.values(), INTS])
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
            return INTS, INTS
        return np.concatenate(features).astype(np.int64), np.concatenate(tokens)

    def shards(self) -> Iterator[Firings]:
        """Every feature's firings, a shard at a time, in order of rows. Memory: one shard's."""
        for shard in self._shards:
            yield shard.read(0, 2**32, self.context_length)
