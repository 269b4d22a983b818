"""The firings of one hook of delphi's cache, a range of rows at a time.

delphi's files are cut by latent, ours by row. So each file is gone through once, in pieces, to note which
rows each piece speaks of; then a range of rows is read from the pieces that touch it. Files in order of
row, as delphi writes them, are so read once more in all; in any other order they are read right, only
slower. Memory: one piece, and what fires in the rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.delphi import DelphiCache, Hook, Split
from autointerp.activations.shards import Sorted, sort_by_feature
from autointerp.activations.stored import float32
from autointerp.errors import ActivationsError

PIECE: Final = 2**18
"""Firings looked at at once: 4 MB."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of one file's firings."""

    split: Split
    first: int
    stop: int
    low_row: int
    high_row: int
    """Counted in."""


class DelphiFirings:
    """What fires in any range of rows."""

    def __init__(self, cache: DelphiCache, hook: Hook, first_position: int, piece: int = PIECE) -> None:
        """Goes through all files once. `first_position`: what lies before it in a row is passed over.

        Raises ActivationsError where a place or a latent can't be, or an activation is not finite (delphi
        keeps float16, which ends at 65,504).
        """
        self._cache = cache
        self._hook = hook
        self._first_position = first_position
        self._pieces: list[_Piece] = []
        self._latents: dict[Split, tuple[int, int]] = {}
        self.n_firings = 0
        """Positive ones at positions that are looked at."""
        self.n_negative = 0
        """Negative ones there, which count as silent: a feature's other pole is not what is explained."""
        for split in hook.splits:
            for first in range(0, split.n_firings, piece):
                self._note(split, first, min(first + piece, split.n_firings))
        self._is_absolute = self._latents_are_absolute()

    def _note(self, split: Split, first: int, stop: int) -> None:
        location_M3 = split.locations.flat(3)[first:stop]
        row_M, position_M, _ = location_M3.T
        low, high = location_M3.min(axis=0).tolist(), location_M3.max(axis=0).tolist()
        if min(low) < 0 or high[0] >= self._cache.n_rows or high[1] >= self._cache.context_length:
            raise ActivationsError(
                f"{split.locations} names row {high[0]:,} and position {high[1]:,}, but its tokens have "
                f"{self._cache.n_rows:,} rows of {self._cache.context_length:,}. Is it of another run?"
            )
        value_M = float32(split.activations.flat()[first:stop], split.activations.dtype)
        looked_at_M = position_M >= self._first_position
        n_bad = int((~np.isfinite(value_M) & looked_at_M).sum())
        if n_bad:
            where = int(np.argmax(~np.isfinite(value_M) & looked_at_M))
            raise ActivationsError(
                f"{split.activations} holds {n_bad:,} values that are NaN or infinite, one in row "
                f"{int(row_M[where]):,} at position {int(position_M[where]):,}: delphi keeps float16, which "
                f"ends at 65,504. Cache again with a scaled dictionary."
            )
        self.n_firings += int(((value_M > 0) & looked_at_M).sum())
        self.n_negative += int(((value_M < 0) & looked_at_M).sum())
        known_low, known_high = self._latents.get(split, (low[2], high[2]))
        self._latents[split] = (min(known_low, low[2]), max(known_high, high[2]))
        self._pieces.append(_Piece(split, first, stop, low[0], high[0]))

    def _latents_are_absolute(self) -> bool:
        """Whether files count latents from 0 instead of from their first: all of a cache alike."""
        relative = all(high <= split.last - split.first for split, (_, high) in self._latents.items())
        if relative:
            return False
        for split, (low, high) in self._latents.items():
            if low < split.first or high > split.last:
                raise ActivationsError(
                    f"{split.locations} names latents {low:,} to {high:,}, which are those of "
                    f"{split.path.name} neither counted from its first nor from 0. Is the file renamed?"
                )
        return True

    def read(self, first_row: int, stop_row: int) -> Sorted:
        """What fires in rows [first_row, stop_row), of which it counts tokens from the first on.

        Raises ActivationsError where one place has two activations of a latent.
        """
        length = self._cache.context_length
        found = [
            self._read(piece, first_row, stop_row)
            for piece in self._pieces
            if piece.low_row < stop_row and piece.high_row >= first_row
        ]
        none = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
        feature, token, value = (np.concatenate(column) for column in zip(none, *found, strict=True))
        n_tokens = (stop_row - first_row) * length
        by_feature = sort_by_feature(feature, token, value, n_tokens, self._hook.width)
        if len(by_feature.values) < len(value):
            raise ActivationsError(
                f"{self._hook.splits[0].path.parent} has two activations of a latent at one place, in rows "
                f"{first_row:,} to {stop_row - 1:,}. It was written twice into; cache again."
            )
        return by_feature

    def _read(
        self, piece: _Piece, first_row: int, stop_row: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        these = slice(piece.first, piece.stop)
        row_M, position_M, latent_M = piece.split.locations.flat(3)[these].T
        value_M = float32(piece.split.activations.flat()[these], piece.split.activations.dtype)
        wanted_M = (row_M >= first_row) & (row_M < stop_row) & (position_M >= self._first_position)
        wanted_M &= value_M > 0
        row_M = row_M[wanted_M].astype(np.int64) - first_row
        token_M = row_M * self._cache.context_length + position_M[wanted_M].astype(np.int64)
        feature_M = latent_M[wanted_M].astype(np.int64) + (0 if self._is_absolute else piece.split.first)
        return feature_M.astype(np.int32), token_M.astype(np.int32), value_M[wanted_M]
