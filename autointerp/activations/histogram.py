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

_EDGES_32: Final = EDGES.astype(np.float32)


def histograms(group: NDArray[np.int64], values: NDArray[np.float32], n_groups: int) -> NDArray[np.int64]:
    """Counts [n_groups, N_BINS]. `group` [M]: which histogram each value [M] goes to."""
    # A value is compared as it is stored, in float32, so that equal values never part.
    of_bin = np.searchsorted(_EDGES_32, values, side="right")
    counts: NDArray[Any] = np.bincount(group * N_BINS + of_bin, minlength=n_groups * N_BINS)
    return counts.reshape(n_groups, N_BINS)
