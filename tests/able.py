"""An LLM that can do whatever a backend may: it writes what a function says, gives log-probabilities, and embeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.llm.protocol import ANYWHERE, Capabilities, LLMIdentity, Place
from autointerp.llm.scripted import Answer, Scripted, ScriptedLLM, find_function
from autointerp.prompting import Prompt

EMBEDDED: list[str] = []
"""Every text that was embedded, in this process."""


@dataclass(frozen=True, slots=True)
class Able(Scripted):
    """As a section: `{use: able:Able, function: judge:answer}`."""

    def connect(self, place: Place = ANYWHERE) -> AbleLLM:
        return AbleLLM(self.identity(), find_function(self.function))


class AbleLLM(ScriptedLLM):
    """Vowels stand for everything: vectors count them, ratings and probabilities go by them."""

    def __init__(self, identity: LLMIdentity, function: Answer) -> None:
        super().__init__(identity, function)
        self.capabilities = Capabilities(logprobs=True, embed=True)

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        text = prompt.messages[-1].content
        return [-1.0 if word in text else -2.0 for word in continuation.split()]

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        likely = (labels[-1] if "a" in piece else labels[0] for piece in pieces)
        return [{label: math.log(0.9)} for label in likely]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        EMBEDDED.extend(texts)
        return [[1.0, *(float(text.count(vowel)) for vowel in "aeiou")] for text in texts]
