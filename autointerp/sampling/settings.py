"""The recipe's `sampling` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Which windows are cut and how many of each kind a feature gets."""

    window: Literal["anchored", "aligned"] = "anchored"
    """`anchored`: a firing token stands at a hashed place in its window, with at least `context_before`
    tokens before it wherever its row has them. `aligned`: fixed blocks (arXiv 2410.13928)."""
    width: int = 32
    """Tokens a window."""
    context_before: int = 12
    n_bands: int = 10
    """Bands of equal size by window maximum; with 10, deciles."""
    n_shown: int = 40
    """Active windows for the explainer, n_shown / n_bands from each band."""
    n_shown_silent: int = 40
    n_select: int = 20
    """Active windows for choosing between explanations, and as many silent ones."""
    n_heldout: int = 50
    """Active windows for scorers, n_heldout / n_bands from each band."""
    n_heldout_silent: int = 50
    shares: tuple[float, float, float] = (0.4, 0.2, 0.4)
    """Shares of documents that go to shown, select and heldout."""
    minimum_full: int = 200
    """From so many active windows on a feature's status is `full` (the paper's threshold)."""
    minimum: int = 40
    """With fewer active windows the status is `too_few`, and the feature is not explained."""
    minimum_documents: int = 6
    minimum_split: int = 5
    """A split with fewer active windows than this is no test: the status is `too_few`; with fewer silent
    ones it is `dense`."""
    overlap: int = 13
    """No run of so many tokens stands both in what is shown or selected on and in what is held out."""
