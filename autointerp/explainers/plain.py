"""Plain: one look at active windows, one sentence (arXiv 2410.13928, section 3; EleutherAI/delphi,
explainers/default).

As there, tokens above 0.3 of their window's maximum are marked and listed with their strength from 1 to 10,
and the temperature is 0. Differs: windows are shuffled, so that rank is no cue, the prompt is ours, and a
reply that can't be read is asked for once more and then is a failure, not a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.evidence import Evidence
from autointerp.explainers.examples import THRESHOLD, check_threshold, shuffled
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import ask


@dataclass(frozen=True, slots=True)
class Plain:
    """Shows an LLM active windows with the firing tokens marked and asks for one sentence and a label."""

    threshold: float = THRESHOLD
    """Tokens above this share of their window's maximum are marked."""
    max_tokens: int = 300
    temperature: float = 0.0
    prompt: str = "explain/plain"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_threshold(type(self).__name__.lower(), self.threshold)

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        return await ask(
            asking,
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            examples=shuffled(evidence.shown.active, self.threshold, asking, "explain"),
            shown=evidence.shown,  # not for the template: a backend without a language model answers from it
        )
