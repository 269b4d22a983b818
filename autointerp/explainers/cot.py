"""Chain of thought: as `plain`, but the LLM first writes down what it sees (arXiv 2410.13928, section 3;
EleutherAI/delphi, explainers/default with `cot`).

Three steps are asked for, a line each: the marked tokens, what surrounds them, and what holds for nearly all. The
answer's two lines follow. The paper found no higher scores than without, at more output tokens: use it with LLMs
that don't think by themselves. As in `plain`, the prompt is ours and reading is strict.
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
class Cot:
    """As `plain`, with three steps of analysis before the answer."""

    threshold: float = THRESHOLD
    """Tokens above this share of their window's maximum are marked."""
    max_tokens: int = 800
    """Of the steps and the answer."""
    temperature: float = 0.0
    prompt: str = "explain/cot"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_threshold("cot", self.threshold)

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        return await ask(
            asking,
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            examples=shuffled(evidence.shown.active, self.threshold, asking, "explain"),
            shown=evidence.shown,
        )
