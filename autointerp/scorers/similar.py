"""Embeddings of windows, and trials of a number a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.asking import Asking
from autointerp.prompting import inert
from autointerp.splits import Heldout
from autointerp.trials import Ranked, bands, documents, maxima, offsets, strata
from autointerp.types import Window

Vectors = NDArray[np.float64]
"""[N, K], each of unit length; a vector of zeros stays one."""


async def unit_vectors(texts: Sequence[str], asking: Asking) -> Vectors:
    """Raises the LLM's own errors."""
    x_NK = np.array(await asking.llm.embed(texts), np.float64).reshape(len(texts), -1)
    norm_N1 = np.linalg.norm(x_NK, axis=1, keepdims=True)
    return x_NK / np.where(norm_N1 > 0, norm_N1, 1.0)


def texts_of(windows: Sequence[Window]) -> list[str]:
    """As a judge would see them, without marks."""
    return [inert(window.text) for window in windows]


def ranked(heldout: Heldout, values: Sequence[float], tested: Sequence[int] | None = None) -> Ranked:
    """One trial a value. `tested`: the held-out window of each, ascending; None: all, the active ones first."""
    numbers = list(range(len(values))) if tested is None else list(tested)
    every, n_active = heldout.active + heldout.silent, len(heldout.active)
    windows = [every[n] for n in numbers]
    return Ranked(
        window=numbers,
        truth=[n < n_active for n in numbers],
        value=[round(value, 6) for value in values],
        band=bands(windows),
        stratum=strata(windows),
        document=documents(windows),
        maximum=maxima(windows),
        offset=offsets(windows),
    )
