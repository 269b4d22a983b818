"""Above what a token counts as active. Shape letters: P features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.firings import Firings, group_of
from autointerp.sampling import choose
from autointerp.sampling.described import Described
from autointerp.sampling.settings import SamplingSettings, read_active_above


def thresholds(firings: Firings, described: Described, settings: SamplingSettings) -> NDArray[np.float32]:
    """[P]: above what a token counts as active."""
    above = read_active_above(settings.active_above)
    assert above is not None  # checked with the recipe
    if not above.quantile:
        return (described.maximum * np.float32(above.of_maximum)).astype(np.float32)
    group = group_of(firings.offsets)
    order = np.argsort((group << 32) | firings.values.view(np.uint32).astype(np.int64), kind="stable")
    weight = np.rint(firings.weights[order].astype(np.float64) * choose.ONE).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(weight)])
    begin, end = ends[firings.offsets[:-1]], ends[firings.offsets[1:]]
    # The first value by which that share of all firings is reached.
    aim = begin + np.ceil((end - begin) * above.quantile).astype(np.int64)
    at = np.minimum(np.searchsorted(ends, aim) - 1, max(0, len(order) - 1))
    threshold = np.zeros(len(firings.features), np.float32)
    fires = np.flatnonzero(np.diff(firings.offsets))
    threshold[fires] = firings.values[order[np.maximum(at[fires], firings.offsets[fires])]]
    return threshold
