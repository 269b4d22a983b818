"""What stands in front of an LLM and passes for it."""

from __future__ import annotations

from autointerp.llm.protocol import LLM, Capabilities, LLMIdentity


class InFront:
    """Stands in front of an LLM and passes for it."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    @property
    def identity(self) -> LLMIdentity:
        return self._llm.identity

    @property
    def capabilities(self) -> Capabilities:
        return self._llm.capabilities

    async def close(self) -> None:
        await self._llm.close()
