"""What stands in front of an LLM and passes for it."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.llm.exchange import Reply, Request
from autointerp.llm.protocol import LLM, ByRequest, Capabilities, LLMIdentity
from autointerp.prompting import Prompt


class InFront(ByRequest):
    """Stands in front of an LLM and passes for it: hands everything on, but for what is overridden."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    @property
    def identity(self) -> LLMIdentity:
        return self._llm.identity

    @property
    def capabilities(self) -> Capabilities:
        return self._llm.capabilities

    async def answer(self, request: Request) -> Reply:
        return await request.to(self._llm)

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        return await self._llm.logprobs(prompt, continuation)

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        return await self._llm.fill(prompt, pieces, filler, labels)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return await self._llm.embed(texts)

    async def close(self) -> None:
        await self._llm.close()
