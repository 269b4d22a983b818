"""The tokens of a model that spell a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Spellings:
    """Which tokens say ` Yes`, `yes` or `YES`: those that are one word, whatever its case and the space before it."""

    def __init__(self, tokenizer: Any, n_tokens: int) -> None:
        """`tokenizer` is one of transformers', of whose tokens the model knows the first `n_tokens`."""
        self._tokenizer, self._n_tokens = tokenizer, n_tokens
        self._known: dict[str, list[int]] = {}

    def of(self, labels: Sequence[str]) -> dict[str, list[int]]:
        """Ascending; none for a label that is no single token. The whole vocabulary is read the first time."""
        if not self._known:
            for token in range(min(len(self._tokenizer), self._n_tokens)):
                self._known.setdefault(_spelling(self._tokenizer.decode([token])), []).append(token)
        return {label: self._known.get(_spelling(label), []) for label in labels}


def _spelling(text: str) -> str:
    return text.strip().casefold()
