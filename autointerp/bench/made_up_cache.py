"""A cache of a given size, made up: rows and firing shards as the cache stage writes them, without a model.

A token id is drawn by a uniform number, and so is the first feature that fires on the token: features fire
on few token ids, each on as many tokens as any other. The second is half the time the first one's partner,
so features fire together, and half the time any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.cap import shard_arrays
from autointerp.activations.firing_store import FiringStore
from autointerp.activations.rows import Mark, Rows, RowShard, RowStore, make_rows, save_rows
from autointerp.activations.shards import FiringShard, save_shard, sort_by_feature

N_IDS: Final = 50_000
"""Size of the made-up vocabulary."""
_DOCUMENT_TOKENS: Final = 700
_SHARED_TOKENS: Final = 30
"""One document in twenty holds the same stretch of so many tokens."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    n_tokens: int = 10_000_000
    n_features: int = 10_000
    context_length: int = 256
    shard_tokens: int = 2**18


@dataclass(frozen=True, slots=True)
class MadeUpCache:
    rows: RowStore
    firings: FiringStore


def make_cache(folder: Path, size: CacheSize) -> None:
    """Writes it; two firings a token. Memory: one shard's."""

    def on_shard(rows: Rows, mark: Mark) -> None:
        first_row = mark.n_rows - len(rows)
        save_rows(folder / f"{first_row:09d}.npy", rows)
        save_shard(folder / f"{first_row:09d}.safetensors", _firings(rows, first_row, size))

    make_rows(
        _documents(size.n_tokens),
        context_length=size.context_length,
        bos=0,
        rows_per_shard=max(1, size.shard_tokens // size.context_length),
        n_tokens=size.n_tokens,
        on_shard=on_shard,
    )


def open_cache(folder: Path) -> MadeUpCache:
    """What `make_cache` wrote there."""
    shards: list[RowShard] = []
    fired: list[FiringShard] = []
    for path in sorted(folder.glob("*.npy")):
        first_row = int(path.stem)
        shards.append(RowShard(path.stem, first_row, len(np.load(path, mmap_mode="r")), path))
        fired.append(FiringShard(path.with_suffix(".safetensors"), first_row))
    rows = RowStore(shards, bos=True)
    return MadeUpCache(rows, FiringStore(fired, rows.context_length))


def _documents(n_tokens: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    rng = np.random.default_rng(0)
    shared = _ids(rng.random(_SHARED_TOKENS))
    made = number = 0
    while made < n_tokens:
        length = max(20, int(rng.exponential(_DOCUMENT_TOKENS)))
        ids = _ids(rng.random(length))
        if number % 20 == 0 and length > _SHARED_TOKENS:
            at = int(rng.integers(0, length - _SHARED_TOKENS))
            ids[at : at + _SHARED_TOKENS] = shared
        yield draw.key(0, "document", number), ids
        number += 1
        made += length


_CUMULATIVE: Final = np.cumsum(1.0 / np.arange(1, N_IDS + 1))
"""Of Zipf's law."""


def _ids(uniform: NDArray[np.float64]) -> NDArray[np.uint32]:
    return np.searchsorted(_CUMULATIVE / _CUMULATIVE[-1], uniform).astype(np.uint32) + np.uint32(1)


def _firings(rows: Rows, first_row: int, size: CacheSize) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng([1, first_row])
    context_length = size.context_length
    position = np.arange(context_length)
    token = np.flatnonzero((position >= 1) & (position < rows["length"][:, None]))
    ids = rows["tokens"].reshape(-1)[token].astype(np.int64)
    share = np.append(0.0, _CUMULATIVE / _CUMULATIVE[-1])
    low, high = share[ids - 1], share[ids]
    first = (size.n_features * (low + (high - low) * rng.random(len(ids)))).astype(np.int64)
    any_one = rng.integers(0, size.n_features, len(ids))
    second = np.where(rng.random(len(ids)) < 0.5, first ^ 1, any_one) % size.n_features
    both = second != first
    feature = np.concatenate([first, second[both]]).astype(np.int32)
    tokens = np.concatenate([token, token[both]]).astype(np.int32)
    values = rng.lognormal(0.0, 0.7, len(tokens)).astype(np.float32)
    found = sort_by_feature(feature, tokens, values, rows.size * context_length, size.n_features)
    return shard_arrays(found, np.zeros(0, np.int64), rows, len(rows))
