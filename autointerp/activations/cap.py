"""A bound on what is kept of a feature that fires nearly everywhere.

Of such a feature whole rows are kept or dropped, so that what it does in a kept row is fully known: half of
them the rows in which it is strongest, half a keyed-hash sample of the others, each of which stands for
several. Which rows it fired in, how often, how strongly in sum and its histogram stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.firings import group_of
from autointerp.activations.histogram import N_BINS, histograms
from autointerp.activations.rows import Rows
from autointerp.activations.shards import Sorted

FEWEST_ROWS: Final = 2
"""A shard keeps so many rows of a feature, however many shards share the cap: one of the strongest, and one of the
others, which stands for them all."""

_SEED: Final = 0
"""Not the recipe's: another seed draws other windows, which shall not cost a new pass of the model."""


def share(max_rows: int, n_shards: int) -> int:
    """Rows of a feature that one shard of `n_shards` may keep. It depends on nothing another shard holds,
    so that shards can be made in any order and by any process; all together keep `max_rows`, rounded up in
    each, however many tokens there are."""
    return max(FEWEST_ROWS, -(-max_rows // n_shards))


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of one feature."""

    keep: NDArray[np.bool_]
    """Which of its firings."""
    fired: NDArray[np.bool_]
    strongest: NDArray[np.bool_]
    """By row of the shard."""
    weight: float


def shard_arrays(
    shard: Sorted, masked: NDArray[np.int64], rows: Rows, max_rows: int
) -> dict[str, NDArray[Any]]:
    """The arrays of a shard's file (`shards.py`), with at most `max_rows` rows a feature.

    `masked`: tokens nobody looked at. `rows`: the shard's rows, whose document and position name them in
    the draw.
    """
    context_length = int(rows.dtype["tokens"].shape[0])
    row = shard.tokens // context_length
    group = group_of(shard.offsets)
    is_new_row = np.ones(len(row), bool)
    is_new_row[1:] = (row[1:] != row[:-1]) | (group[1:] != group[:-1])
    n_rows = np.bincount(group[is_new_row], minlength=len(shard.features))
    over = np.flatnonzero(n_rows > max_rows)
    keep = np.ones(len(row), bool)
    pieces = [slice(int(shard.offsets[at]), int(shard.offsets[at + 1])) for at in over]
    kept: list[_Kept] = []
    for at, piece in zip(over.tolist(), pieces, strict=True):
        key = draw.key(_SEED, "cap", int(shard.features[at]))
        kept.append(_capped(row[piece], shard.values[piece], rows, max_rows, key))
        keep[piece] = kept[-1].keep
    counts = np.bincount(group[keep], minlength=len(shard.features))
    tokens = shard.tokens[keep]
    return {
        "features": shard.features,
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        "low": (tokens & 0xFFFF).astype(np.uint16),
        "high": (tokens >> 16).astype(np.uint8),
        "values": shard.values[keep],
        "masked": masked.astype(np.uint32),
        "capped": shard.features[over],
        **_of_capped(shard, kept, pieces, len(rows)),
    }


def _capped(
    row: NDArray[np.int32], values: NDArray[np.float32], rows: Rows, max_rows: int, key: int
) -> _Kept:
    """`row`, `values`: one feature's firings."""
    fired, first = np.unique(row, return_index=True)
    strength = np.maximum.reduceat(values, first)
    hashes = draw.mix(key, draw.pair(rows["document"][fired], rows["position"][fired].astype(np.int64)))
    n_strongest = max_rows // 2
    order = np.lexsort((hashes, -strength))
    strongest, others = order[:n_strongest], order[n_strongest:]
    drawn = others[draw.smallest(hashes[others], max_rows - n_strongest)]
    chosen = np.zeros(len(rows), bool)
    chosen[fired[strongest]] = chosen[fired[drawn]] = True
    return _Kept(
        keep=chosen[row],
        fired=_bits(fired, len(rows)),
        strongest=_bits(fired[strongest], len(rows)),
        weight=len(others) / len(drawn),
    )


def _bits(rows: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    bits = np.zeros(n, bool)
    bits[rows] = True
    return bits


def _of_capped(shard: Sorted, kept: list[_Kept], pieces: list[slice], n_rows: int) -> dict[str, NDArray[Any]]:
    values = [shard.values[piece] for piece in pieces]
    counts = np.array([len(of_one) for of_one in values], np.int64)
    group = np.repeat(np.arange(len(values)), counts)
    together = np.concatenate(values) if values else np.zeros(0, np.float32)

    def bits(of_each: list[NDArray[np.bool_]]) -> NDArray[np.uint8]:
        return np.packbits(np.array(of_each, bool).reshape(len(kept), n_rows), axis=1)

    return {
        "fired": bits([one.fired for one in kept]),
        "strongest": bits([one.strongest for one in kept]),
        "weight": np.array([one.weight for one in kept], np.float32),
        "n_fired": counts.astype(np.uint32),
        "total": np.bincount(group, together, minlength=len(values)).astype(np.float64),
        "histogram": histograms(group, together, len(values)).astype(np.uint32).reshape(-1, N_BINS),
    }
