"""Randomness that depends on nothing but what is drawn: keyed hashes.

A key is blake2b of (seed, purpose, ...); an item's number is splitmix64 of key and item (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators"). The n smallest win. So a draw is the same
whatever else is drawn, in any order, in any process, and a larger n contains the smaller. blake2b alone
would cost a microsecond an item: hours for 1e5 features and 1e5 places.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def key(seed: int, *purpose: str | int) -> int:
    """64-bit key of a seed and what is drawn for whom, e.g. `key(0, "silent", "layers.2/17")`."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(with_key: int, items: NDArray[np.uint64]) -> Hashes:
    """One well-mixed 64-bit number an item."""
    with np.errstate(over="ignore"):
        x = items + np.uint64(with_key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def pair(first: NDArray[np.uint64], second: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One item of two: (document, position) names a token for ever, a row number does not."""
    with np.errstate(over="ignore"):
        return mix(0x9E3779B97F4A7C15, first) + second.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def unit_interval(hashes: Hashes) -> NDArray[np.float64]:
    """Uniform in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def smallest(hashes: Hashes, n: int) -> NDArray[np.int64]:
    """Indices of the n smallest, smallest first (stable)."""
    return np.argsort(hashes, kind="stable")[:n].astype(np.int64)
