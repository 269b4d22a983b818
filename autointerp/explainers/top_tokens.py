"""Top tokens: the list of tokens a feature fires on most strongly, taken for an explanation.

No LLM: a control. What an explanation scores beyond this list is what looking at the contexts was worth (methods
that don't beat it have found a token, not a meaning). Unlike `lexical` it never looks at silent windows, so a
token that stands everywhere is named as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.evidence import Evidence
from autointerp.explainers.logits import top_and_following
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import in_six_words
from autointerp.llm.clauses import quoted


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Lists the strongest token of each window, the strongest windows first; no LLM."""

    n_tokens: int = 10
    """Most tokens of the list, none twice."""

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise RecipeError(f"top_tokens: n_tokens is {self.n_tokens}; it must be 1 or more.")

    def templates(self) -> tuple[str, ...]:
        return ()

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        windows = sorted(evidence.shown.active, key=lambda window: -window.maximum)
        listed = quoted(top_and_following(windows)[0][: self.n_tokens])
        return Explained(f"The tokens {listed}.", in_six_words(listed))
