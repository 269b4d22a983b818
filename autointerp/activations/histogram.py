"""Histograms of activations over fixed logarithmic edges, so that those of two shards add up."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

N_BINS: Final = 64
_BINS_PER_OCTAVE: Final = 2
_FIRST_OCTAVE: Final = -16

EDGES: Final[NDArray[np.float64]] = 2.0 ** (_FIRST_OCTAVE + np.arange(1, N_BINS) / _BINS_PER_OCTAVE)
"""[63], ascending: bin i holds EDGES[i-1] <= value < EDGES[i]; the first and last are open. Two bins an
octave, from 2**-15.5 to 2**15.5."""

_MANTISSA_BITS: Final = 23
_ROOT_2: Final = 0x3504F3
"""Mantissa of the square root of 2 in float32: the edge inside an octave."""


def bins(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """[M]: the bin of each value, which is compared as it is stored, in float32, so that equal values never
    part. Read off the bits: a binary search of the edges takes ten times as long."""
    bits = values.view(np.int32)
    octave = (bits >> _MANTISSA_BITS) - (127 + _FIRST_OCTAVE)
    upper = (bits & ((1 << _MANTISSA_BITS) - 1)) >= _ROOT_2
    return np.clip(octave * _BINS_PER_OCTAVE + upper, 0, N_BINS - 1).astype(np.int64)


def histograms(group: NDArray[np.int64], values: NDArray[np.float32], n_groups: int) -> NDArray[np.int64]:
    """Counts [n_groups, N_BINS]. `group` [M]: which histogram each value [M] goes to."""
    counts: NDArray[Any] = np.bincount(group * N_BINS + bins(values), minlength=n_groups * N_BINS)
    return counts.reshape(n_groups, N_BINS)
