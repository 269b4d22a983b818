"""What a plug-in may see, and what it declares that it needs.

    select       windows to choose between explanations by
    directions   tokens that the feature's decoder row promotes and suppresses
    effects      what the intervene stage recorded
    hard         silent windows among those shown that look like active ones
    logprobs     log-probabilities of given texts, from the LLM that is asked

An explainer gets an `Evidence` with what is shown and, beside it, only what it declares; held-out windows have no
place in it. Scorers declare what they ask of the judge's LLM and of the stages before them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from autointerp.effects import EffectTexts
from autointerp.metrics import HEADLINE_STRATA
from autointerp.splits import Select, Shown

Need = Literal["select", "directions", "effects", "hard", "logprobs"]
ScorerNeed = Literal["logprobs", "embed", "effects", "probe"]
"""`logprobs`, `embed`: what the LLM that judges must be able to do. `effects`, `probe`: what the stages of these
names recorded."""

NEEDS: Final[dict[Literal["explainers", "scorers"], tuple[str, ...]]] = {
    "explainers": get_args(Need),
    "scorers": get_args(ScorerNeed),
}


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a feature's decoder row does to the vocabulary: texts of tokens, the strongest first. Empty for a row
    of zeros."""

    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an explainer may see of one feature."""

    shown: Shown
    """Without windows for a feature that has too few, which only explainers that need none are asked about."""
    select: Select | None = None
    directions: Promoted | None = None
    effects: EffectTexts | None = None
    """All None unless declared; effects also where the feature has too few prompts to be pushed on."""

    def only(self, uses: frozenset[str]) -> Evidence:
        """What a plug-in that declares these is given of it."""
        return Evidence(
            shown=self.shown if "hard" in uses else _without_hard(self.shown),
            select=self.select if "select" in uses else None,
            directions=self.directions if "directions" in uses else None,
            effects=self.effects if "effects" in uses else None,
        )


def _without_hard(shown: Shown) -> Shown:
    """So that others see the same with and without them."""
    return Shown(shown.active, tuple(window for window in shown.silent if window.stratum in HEADLINE_STRATA))


def needs_of(plugin: object) -> frozenset[str]:
    """What the plug-in can't do without: its attribute `needs`, which may be left out."""
    return _declared(plugin, "needs")


def uses_of(plugin: object) -> frozenset[str]:
    """What the plug-in is given where it is there: what it needs, and its attribute `uses`, which may be left out."""
    return needs_of(plugin) | _declared(plugin, "uses")


def needs_explanation(scorer: object) -> bool:
    """Whether it scores an explanation, not the feature itself: its attribute `needs_explanation`, True where it is
    left out."""
    return bool(getattr(scorer, "needs_explanation", True))


def needs_windows(plugin: object) -> bool:
    """Whether a feature must have windows for the plug-in to work on it: its attribute `needs_windows`, True where
    it is left out."""
    return bool(getattr(plugin, "needs_windows", True))


def _declared(plugin: object, attribute: str) -> frozenset[str]:
    return frozenset(cast(Iterable[str], getattr(plugin, attribute, ())))
