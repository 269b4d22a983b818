"""What fired, sorted by feature, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.histogram import N_BINS


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


INTS: Final = np.zeros(0, np.int64)


FLOATS: Final = np.zeros(0, np.float32)


START: Final = np.zeros(1, np.int64)


NOTHING: Final = Firings(
    features=np.zeros(0, np.uint32),
    offsets=START,
    tokens=INTS,
    values=FLOATS,
    weights=FLOATS,
    dropped_offsets=START,
    dropped_rows=INTS,
    n_fired=INTS,
    n_rows=INTS,
    total=np.zeros(0, np.float64),
    histogram=np.zeros((0, N_BINS), np.int64),
)


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
    offsets = np.concatenate([START, np.cumsum(_added(n, at, counts))])
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
