"""Contrastive: active windows against silent ones that look alike; what separates them? (EleutherAI/delphi,
explainers/contrastive_explainer, with 15 active and 5 silent windows there.)

The silent windows are those of the hard strata: with one of the feature's top tokens, or where a feature alike fires.
They come from the documents of what is shown, never from those that scorers test on (delphi's are scored again).
Where a feature has none of them (its contrast is graded, or nothing like it was found) random ones stand in their
place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.evidence import Evidence, Need
from autointerp.explainers.examples import THRESHOLD, check_threshold, shuffled
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import ask
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import View
from autointerp.types import Window


@dataclass(frozen=True, slots=True)
class Contrastive:
    """Shows an LLM active windows and silent look-alikes and asks what separates them."""

    n_silent: int = 15
    """Silent windows shown, at most."""
    threshold: float = THRESHOLD
    """Tokens above this share of their window's maximum are marked."""
    max_tokens: int = 300
    temperature: float = 0.0
    prompt: str = "explain/contrastive"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"hard"})

    def __post_init__(self) -> None:
        check_threshold("contrastive", self.threshold)
        if self.n_silent < 1:
            raise RecipeError(f"contrastive: n_silent is {self.n_silent}; it must be 1 or more.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        return await ask(
            asking,
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            examples=shuffled(evidence.shown.active, self.threshold, asking, "explain"),
            silent=[View(window) for window in self._silent(evidence.shown.silent, asking)],
            shown=evidence.shown,
        )

    def _silent(self, silent: tuple[Window, ...], asking: Asking) -> list[Window]:
        """Hard ones before others, and each kind in a drawn order."""
        drawn = [silent[n] for n in asking.order(len(silent), "silent")]
        return sorted(drawn, key=lambda window: window.stratum in HEADLINE_STRATA)[: self.n_silent]
