"""Randomness that depends on nothing but what is drawn: keyed hashes.

A key is blake2b of (seed, purpose, ...); an item's number is splitmix64 of key and item (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators"). The n smallest win. So a draw is the same
whatever else is drawn, in any order, in any process, and a larger n contains the smaller. blake2b alone
would cost a microsecond an item: hours for 1e5 features and 1e5 places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def key(seed: int, *purpose: str | int) -> int:
    """64-bit key of a seed and what is drawn for whom, e.g. `key(0, "silent", "layers.2/17")`."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def keys(seed: int, purpose: str, names: Iterable[str]) -> Hashes:
    """[P]: `key(seed, purpose, name)` of each name."""
    return np.array([key(seed, purpose, name) for name in names], np.uint64)


def mix(with_key: int | Hashes, items: NDArray[np.uint64]) -> Hashes:
    """One well-mixed 64-bit number an item; `with_key` may be a key an item."""
    with np.errstate(over="ignore"):
        x = np.add(items, np.asarray(with_key, np.uint64))
        # In place: at a million items a new array costs more than the arithmetic.
        shifted = x >> np.uint64(30)
        x ^= shifted
        x *= np.uint64(0xBF58476D1CE4E5B9)
        np.right_shift(x, np.uint64(27), out=shifted)
        x ^= shifted
        x *= np.uint64(0x94D049BB133111EB)
        np.right_shift(x, np.uint64(31), out=shifted)
        x ^= shifted
        return x


_STEP: Final = np.uint64(0x9E3779B97F4A7C15)


def pair(first: NDArray[np.uint64], second: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One item of two: (document, position) names a token for ever, a row number does not."""
    return along(mix(0x9E3779B97F4A7C15, first), second)


def along(items: NDArray[np.uint64], steps: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Of items `pair(a, b)` those of `pair(a, b + steps)`."""
    with np.errstate(over="ignore"):
        return items + steps.astype(np.uint64) * _STEP


def unit_interval(hashes: Hashes) -> NDArray[np.float64]:
    """Uniform in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(hashes: Hashes, n: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Uniform among 0 to n - 1, for n below 2**32: the upper half of a product, which divides nothing
    (Lemire 2019, "Fast random integer generation in an interval"). 0 where n is 0."""
    high = hashes >> np.uint64(32)
    high *= np.asarray(n, np.uint64)
    high >>= np.uint64(32)
    return high.astype(np.int64)


def smallest(hashes: Hashes, n: int) -> NDArray[np.int64]:
    """Indices of the n smallest, smallest first (stable)."""
    return np.argsort(hashes, kind="stable")[:n].astype(np.int64)


_INDEX_BITS: Final = 20


def by_cell(cell: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices in order of cell, then key, then index.

    The cell, as much of the key as there is room for, and the index stand in one number, and numbers are
    sorted: a quarter of the time of `lexsort`. The few that tie in the upper part are sorted again.
    """
    if len(cell) >= 1 << _INDEX_BITS:
        return np.lexsort((keys, cell))
    if not len(cell):
        return np.zeros(0, np.int64)
    n_cell_bits = max(1, int(cell.max()).bit_length())
    n_key_bits = 64 - _INDEX_BITS - n_cell_bits
    assert n_key_bits > 0
    packed = keys >> np.uint64(64 - n_key_bits)
    packed |= cell.astype(np.uint64) << np.uint64(n_key_bits)
    packed <<= np.uint64(_INDEX_BITS)
    packed |= np.arange(len(cell), dtype=np.uint64)
    packed.sort()
    order = (packed & np.uint64((1 << _INDEX_BITS) - 1)).astype(np.int64)
    packed >>= np.uint64(_INDEX_BITS)
    same = packed[1:] == packed[:-1]
    if same.any():
        tied = np.zeros(len(order), bool)
        tied[1:] |= same
        tied[:-1] |= same
        at = np.flatnonzero(tied)
        among = order[at]
        order[at] = among[np.lexsort((among, keys[among], packed[at]))]
    return order


def stable(cell: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices in order of cell, then index."""
    if len(cell) >= 1 << _INDEX_BITS or int(cell.max(initial=0)) >> (63 - _INDEX_BITS):
        return np.argsort(cell, kind="stable")
    packed = (cell << _INDEX_BITS) | np.arange(len(cell))
    packed.sort()
    return packed & ((1 << _INDEX_BITS) - 1)
