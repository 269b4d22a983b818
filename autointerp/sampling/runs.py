"""Runs of tokens that stand in two windows: hashed, so that millions are compared in a second."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.sampling.text import Ints

Runs = NDArray[np.uint64]
"""[N, width - n + 1], a hash of each run of n tokens; 0 for a run that reaches behind its window's end."""

_BASE: Final = 0x100000001B3
_MULTIPLIER: Final = np.uint64(0xBF58476D1CE4E5B9)


def runs(token_ids: NDArray[np.int32], length: Ints, n: int) -> Runs:
    """Runs of windows of `length` [N] tokens, `token_ids` [N, width]. Equal runs have equal hashes; unequal
    ones collide with probability about 2**-64."""
    n_windows, width = token_ids.shape
    if width < n:
        return np.zeros((n_windows, 0), np.uint64)
    # A polynomial over mixed ids: a run's is a difference of two sums, divided by the power it begins at.
    powers, inverse = _powers(width)
    sums = np.zeros((n_windows, width + 1), np.uint64)
    with np.errstate(over="ignore"):
        mixed = (token_ids.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
        mixed *= _MULTIPLIER
        mixed *= powers
        np.cumsum(mixed, axis=1, out=sums[:, 1:])
        hashes = sums[:, n:] - sums[:, :-n]
        hashes *= inverse[: width - n + 1]
    short = np.flatnonzero(length < width)
    if len(short):
        inside = np.arange(width - n + 1) + n <= length[short, None]
        hashes[short] = np.where(inside, hashes[short], np.uint64(0))
    return hashes


@lru_cache(maxsize=8)
def _powers(n: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The base to the powers 0 to n - 1, and what undoes them, modulo 2**64."""
    powers = [pow(_BASE, at, 2**64) for at in range(n)]
    return np.array(powers, np.uint64), np.array([pow(power, -1, 2**64) for power in powers], np.uint64)
