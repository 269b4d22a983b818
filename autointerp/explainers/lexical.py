"""Lexical: what sets active windows apart from silent ones, by counting.

No LLM: the baseline for all who use one. The counting is in `llm/lexical.py`, which also answers where
`plain` asks an LLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.evidence import Evidence
from autointerp.explainers.protocol import Explained
from autointerp.llm import lexical


@dataclass(frozen=True, slots=True)
class Lexical:
    """Names the tokens, preceding tokens and words that tell active windows from silent ones."""

    version: ClassVar[str] = lexical.VERSION
    needs_llm: ClassVar[bool] = False

    def templates(self) -> tuple[str, ...]:
        return ()

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        return Explained(*lexical.explain_lexically(evidence.shown))
