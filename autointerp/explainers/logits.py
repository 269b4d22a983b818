"""Logits: four lists instead of one: the tokens it fires on most, those that follow, those it promotes, and texts
(hijohnnylin/neuronpedia, its explainer `np_max-act-logits`; the prompt here is ours).

Features that fire *on* something and features that fire *before* something they promote both are explained, the
latter as "say X" features. As there, few texts (10, the strongest) of some 48 tokens; windows here are as wide as the
recipe cuts them. A label of 1 to 6 words and a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.evidence import Evidence, Need
from autointerp.explainers.examples import THRESHOLD, check_threshold, example
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import ask
from autointerp.types import Window


@dataclass(frozen=True, slots=True)
class Logits:
    """Shows an LLM its top tokens, the tokens that follow, those it promotes, and texts."""

    n_texts: int = 10
    """Windows shown, the strongest."""
    n_tokens: int = 10
    """Most tokens of each list."""
    threshold: float = THRESHOLD
    """Tokens above this share of their window's maximum are marked."""
    max_tokens: int = 300
    temperature: float = 0.0
    prompt: str = "explain/logits"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"directions"})

    def __post_init__(self) -> None:
        check_threshold("logits", self.threshold)
        for name in ("n_texts", "n_tokens"):
            if getattr(self, name) < 1:
                raise RecipeError(f"logits: {name} is {getattr(self, name)}; it must be 1 or more.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        assert evidence.directions is not None  # declared
        windows = sorted(evidence.shown.active, key=lambda window: -window.maximum)
        top, following = top_and_following(windows)
        texts = windows[: self.n_texts]
        return await ask(
            asking,
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top=top[: self.n_tokens],
            following=following[: self.n_tokens],
            promoted=distinct(evidence.directions.promoted)[: self.n_tokens],
            examples=[example(window, self.threshold, texts[0].maximum) for window in texts],
            shown=evidence.shown,
        )


def top_and_following(windows: Sequence[Window]) -> tuple[list[str], list[str]]:
    """Of each window its strongest token and the one behind it, without repeats, in the order of the windows. What
    ends its window has none behind it."""
    top: list[str] = []
    following: list[str] = []
    for window in windows:
        at = window.activations.index(window.maximum)
        while at > 0 and not window.texts[at]:  # inside a character, which its first token has
            at -= 1
        top.append(window.texts[at])
        following.append(next((text for text in window.texts[at + 1 :] if text), ""))
    return distinct(top), distinct(following)


def distinct(tokens: Iterable[str]) -> list[str]:
    """Without repeats and empty ones, in their order."""
    return [token for token in dict.fromkeys(tokens) if token]
