"""Active windows as prompts show them: marked, with a list of strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.llm.clauses import start_of
from autointerp.prompting import View
from autointerp.types import Window

THRESHOLD: Final = 0.3
"""Tokens above this share of their window's maximum are marked (EleutherAI/delphi's default)."""
N_STRENGTHS: Final = 10
"""Most tokens a window lists, the strongest."""


def check_threshold(explainer: str, threshold: float) -> None:
    """Raises RecipeError outside of [0, 1)."""
    if not 0 <= threshold < 1:
        raise RecipeError(f"{explainer}: threshold is {threshold}; it must be at least 0 and below 1.")


@dataclass(frozen=True, slots=True)
class Example:
    """An active window as the prompt shows it."""

    view: View
    strengths: list[tuple[str, int]]
    """Marked tokens, in their order in the window, with strength from 1 to 10."""


def example(window: Window, threshold: float, strongest: float) -> Example:
    """`strongest`: the largest activation of all windows shown, which gets strength 10."""
    floor = threshold * window.maximum
    marks = tuple(n for n, activation in enumerate(window.activations) if activation > floor)
    listed: dict[int, float] = {}
    for mark in marks:
        start = start_of(window.texts, mark)
        listed[start] = max(window.activations[mark], listed.get(start, 0.0))
    kept = sorted(listed, key=lambda n: (-listed[n], n))[:N_STRENGTHS]
    strengths = [(window.texts[n], _strength(listed[n] / strongest)) for n in sorted(kept)]
    return Example(View(window, marks), strengths)


def _strength(share: float) -> int:
    """A share of the largest activation, in (0, 1], as 1 to 10."""
    return max(1, math.ceil(10 * share - 1e-9))  # 10 * 0.3 is a hair above 3


def shuffled(
    windows: Sequence[Window], threshold: float, asking: Asking, *purpose: str | int
) -> list[Example]:
    """Active windows in a drawn order, so that rank is no cue. Strengths are shares of the largest activation of
    them all. `purpose` keys the draw."""
    strongest = max(window.maximum for window in windows)
    order = asking.order(len(windows), *purpose)
    return [example(windows[n], threshold, strongest) for n in order]
