"""Embeddings of windows, and trials of a number a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.asking import Asking
from autointerp.prompting import inert
from autointerp.trials import Ranked, bands, documents, maxima, offsets, strata
from autointerp.types import Heldout, Window

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


def ranked(heldout: Heldout, values: Sequence[float]) -> Ranked:
    """One trial a held-out window, the active ones first."""
    windows = heldout.active + heldout.silent
    n_active = len(heldout.active)
    return Ranked(
        window=list(range(len(windows))),
        truth=[n < n_active for n in range(len(windows))],
        value=[round(value, 6) for value in values],
        band=bands(windows),
        stratum=strata(windows),
        document=documents(windows),
        maximum=maxima(windows),
        offset=offsets(windows),
    )
