"""The windows of a feature by who may see them."""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.effects import SceneTexts
from autointerp.types import Window


@dataclass(frozen=True, slots=True)
class WindowSet:
    """Windows of one split."""

    active: tuple[Window, ...]
    silent: tuple[Window, ...]
    """What the active ones are set against, by stratum; where the contrast is graded they fire too, weakly."""


@dataclass(frozen=True, slots=True)
class Shown(WindowSet):
    """What an explainer may see."""


@dataclass(frozen=True, slots=True)
class Select(WindowSet):
    """What choosing between explanations may see."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Texts written for an explanation, and what the subject does on them."""

    texts: tuple[str, ...]
    maxima: tuple[float | None, ...]
    """Largest activation of the feature on each, to 4 digits; None where the text has no token that is looked at."""
    smallest: float
    """Smallest maximum of any active window that was sampled of the feature."""


@dataclass(frozen=True, slots=True)
class Heldout(WindowSet):
    """What only a scorer may see."""

    pushed: SceneTexts | None = None
    """What the model writes on held-out prompts while the feature is pushed; None unless the scorer declares that it
    needs effects, and where the feature has too few prompts."""
    ablated: SceneTexts | None = None
    """The same with the feature's own contribution taken away, where the recipe asks for it."""
    probed: Probed | None = None
    """None unless the scorer declares that it needs the probe stage, and where no text could be written."""
