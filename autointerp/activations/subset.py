"""Firings of fewer or more features: one that never fires stands among the others, with nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.firings import Firings


def with_silent(firings: Firings, features: NDArray[np.int64]) -> Firings:
    """The same with all of `features` (ascending, those of `firings` among them)."""
    if len(firings.features) == len(features):
        return firings
    at, n = np.searchsorted(features, firings.features), len(features)

    def spread(column: NDArray[Any]) -> NDArray[Any]:
        return _placed_among(n, at, column)

    return dataclasses.replace(
        firings,
        features=features.astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(spread(np.diff(firings.offsets)))]),
        dropped_offsets=np.concatenate([[0], np.cumsum(spread(np.diff(firings.dropped_offsets)))]),
        n_fired=spread(firings.n_fired),
        n_rows=spread(firings.n_rows),
        total=spread(firings.total),
        histogram=spread(firings.histogram),
    )


def chosen(firings: Firings, which: NDArray[np.int64]) -> Firings:
    """Of some of its features alone: `which` are ascending indices among them."""
    kept, kept_offsets = _of_groups(firings.offsets, which)
    dropped, dropped_offsets = _of_groups(firings.dropped_offsets, which)
    return Firings(
        features=firings.features[which],
        offsets=kept_offsets,
        tokens=firings.tokens[kept],
        values=firings.values[kept],
        weights=firings.weights[kept],
        dropped_offsets=dropped_offsets,
        dropped_rows=firings.dropped_rows[dropped],
        n_fired=firings.n_fired[which],
        n_rows=firings.n_rows[which],
        total=firings.total[which],
        histogram=firings.histogram[which],
    )


def _of_groups(
    offsets: NDArray[np.int64], which: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the entries of some groups, and their offsets."""
    counts = np.diff(offsets)[which]
    chosen_offsets = np.concatenate([[0], np.cumsum(counts)])
    shift = np.repeat(offsets[which] - chosen_offsets[:-1], counts)
    return np.arange(chosen_offsets[-1]) + shift, chosen_offsets


def _placed_among(n: int, at: NDArray[np.int64], column: NDArray[Any]) -> NDArray[Any]:
    together = np.zeros((n, *column.shape[1:]), column.dtype)
    together[at] = column
    return together
