"""Chain of thought: as `plain`, but the LLM first writes down what it sees (arXiv 2410.13928, section 3;
EleutherAI/delphi, explainers/default with `cot`).

Three steps are asked for, a line each: the marked tokens, what surrounds them, and what holds for nearly all. The
answer's two lines follow. The paper found no higher scores than without, at more output tokens: use it with LLMs
that don't think by themselves. As in `plain`, the prompt is ours and reading is strict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.explainers.plain import Plain


@dataclass(frozen=True, slots=True)
class Cot(Plain):
    """As `plain`, with three steps of analysis before the answer."""

    max_tokens: int = 800
    """Of the steps and the answer."""
    prompt: str = "explain/cot"

    version: ClassVar[str] = "1"
