"""Stands for an LLM and counts what one would have been sent.

Answers are the lexical backend's, which have the form that is asked for. Tokens are estimated from the texts (no
tokenizer of an LLM on a server is known here), and are meant to be right within a fifth for English.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from copy import copy
from typing import Final

from autointerp.errors import LLMBadRequest
from autointerp.llm.exchange import Reply, Request, Usage
from autointerp.llm.lexical import LexicalLLM
from autointerp.llm.protocol import ByRequest, Capabilities, LLMIdentity
from autointerp.prompting import Prompt

BLOCK: Final = 256
"""Characters that a prompt cache takes or leaves, some 64 tokens (servers: 16 to 128)."""
OWN_BLOCK: Final = 64
"""Of an engine on one's own cards: 16 tokens."""
EXPLANATION_TOKENS: Final = 60
"""A sentence and a label of an LLM: the lexical backend's are shorter."""


class Metered(ByRequest):
    """Stands for an LLM: answers lexically, counts what an LLM would have been sent."""

    identity = LLMIdentity("metered")
    capabilities = Capabilities()

    def __init__(self, cached_from: int | None, count: Callable[[str], int] | None = None) -> None:
        """`cached_from`: tokens from which on a beginning that was sent before is cached; None: none is. `count`:
        tokens of a text; None: the estimate."""
        self.usages: list[tuple[Usage, float]] = []
        """Of each request, and what share of a request it stands for."""
        self._share = 1.0
        self._count = n_tokens if count is None else count
        self._cached_from = cached_from
        self._lexical = LexicalLLM()
        self._seen: set[int] = set()
        self._answered: set[str] = set()

    def forget(self) -> None:
        """What is asked from here on is kept elsewhere: nothing of it was asked before."""
        self._answered.clear()

    def standing_for(self, share: float) -> Metered:
        """One whose requests are counted among those of this one, each as a share of a request; both have one
        cache."""
        other = copy(self)
        other._share = self._share * share
        return other

    def _use(self, usage: Usage) -> None:
        self.usages.append((usage, self._share))

    async def answer(self, request: Request) -> Reply:
        *turns, last = (f"\n{turn.role}\n{turn.content}" for turn in request.prompt.messages)
        beginning = "".join(turns)
        self._seen_before(beginning)  # it is the same in all prompts, and a run has many
        text = beginning + last
        n_prompt = self._count(text)
        cached = self._count(text[: self._seen_before(text)])
        if self._cached_from is None or cached < self._cached_from:
            cached = 0
        is_explanation = request.prompt.template.name.startswith("explain/")
        try:
            reply = await request.to(self._lexical)
        except LLMBadRequest:  # of what pushing a feature does, which the lexical backend knows nothing about
            if not is_explanation:
                raise
            reply = Reply("EXPLANATION: something that happens\nLABEL: something")
        if request.temperature and request.index:  # an LLM would draw another text
            reply = dataclasses.replace(reply, text=reply.text.replace(": ", f": {request.index} ", 1))
        n_answer = EXPLANATION_TOKENS if is_explanation else min(request.max_tokens, self._count(reply.text))
        self._use(Usage(prompt_tokens=n_prompt, cached_tokens=cached, completion_tokens=n_answer))
        return reply

    def _seen_before(self, text: str) -> int:
        """Characters at its beginning that are cached, which all of it is from now on."""
        size = OWN_BLOCK if self._cached_from == 0 else BLOCK
        ends = range(size, len(text) + 1, size)
        blocks = [hash(text[:end]) for end in ends]
        n_known = next((n for n, block in enumerate(blocks) if block not in self._seen), len(blocks))
        self._seen.update(blocks)
        return n_known * size

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        """What was asked already is not sent again: often a weak push changes no word."""
        text = "".join(f"\n{turn.role}\n{turn.content}" for turn in prompt.messages) + continuation
        if text not in self._answered:
            self._answered.add(text)
            self._use(Usage(prompt_tokens=self._count(text), completion_tokens=1))
        return [-1.0] * max(1, self._count(continuation))

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        text = "".join(turn.content for turn in prompt.messages) + "".join(piece + filler for piece in pieces)
        self._use(Usage(prompt_tokens=self._count(text), completion_tokens=1))
        return [dict.fromkeys(labels, -1.0)] * len(pieces)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self._use(Usage(prompt_tokens=sum(map(self._count, texts))))
        return [[1.0, 0.0]] * len(texts)

    async def close(self) -> None:
        """Nothing to free."""


_PIECE: Final = re.compile(r"[A-Za-z]+|[0-9]{1,3}|\n+| {2,}|[^\s\w]|[^\sA-Za-z0-9]")


def n_tokens(text: str) -> int:
    """About how many tokens an LLM with a vocabulary of 100,000 and more makes of it: a word of up to seven
    letters, three digits, a sign, or a character of another script is one, a longer word one more every six."""
    return sum(1 + max(0, len(piece) - 2) // 6 for piece in _PIECE.findall(text))
