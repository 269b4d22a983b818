"""An LLM that is only asked what the budget allows.

It stands between an LLM and the request journal: an answer that is known already costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from autointerp.errors import LLMStopped
from autointerp.llm.exchange import Prices, Reply, Request, Usage
from autointerp.llm.front import InFront
from autointerp.llm.metering import UNCOUNTED
from autointerp.llm.protocol import LLM, Awaited, Delayed
from autointerp.llm.replay import request_key
from autointerp.llm.spending import Bound, Budget
from autointerp.progress import Progress
from autointerp.prompting import Prompt
from autointerp.types import digest

TOKENS_A_REQUEST: Final = 256
TOKENS_A_TURN: Final = 16
"""What a chat template may add."""


class Budgeted(InFront):
    """An LLM that is only asked what the budget allows."""

    def __init__(self, llm: LLM, budget: Budget, prices: Prices | None) -> None:
        super().__init__(llm)
        self._budget = budget
        self._prices = prices
        self._ways = {
            "tells_when_sent": llm.capabilities.tells_when_sent,
            "is_delayed": isinstance(llm, Delayed),
        }

    async def answer(self, request: Request) -> Reply:
        bound = self._bound([turn.content for turn in request.prompt.messages], request.max_tokens)
        name = request_key(self.identity, request)
        async with self._budget.aside(bound, name, **self._ways) as share:
            reply = await request.to(self._llm)
            return replace(reply, usage=share.settled(reply.usage))

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        texts = [*(turn.content for turn in prompt.messages), continuation]
        async with self._aside(texts, 1):
            return await self._llm.logprobs(prompt, continuation)

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        texts = [*(turn.content for turn in prompt.messages), *(piece + filler for piece in pieces)]
        async with self._aside(texts, 1):
            return await self._llm.fill(prompt, pieces, filler, labels)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        async with self._aside(texts, 0):
            return await self._llm.embed(texts)

    @asynccontextmanager
    async def _aside(self, texts: Sequence[str], max_tokens: int) -> AsyncGenerator[None]:
        """For a request whose use is told to the meter, or not at all."""
        bound, name = self._bound(texts, max_tokens), digest(texts)
        async with self._budget.aside(bound, name, **self._ways) as share:
            yield
            if share.held is not None:
                share.use(UNCOUNTED)

    def _bound(self, texts: Sequence[str], max_tokens: int) -> Bound:
        """No token has less than a byte."""
        n_prompt = (
            sum(len(text.encode(errors="replace")) + TOKENS_A_TURN for text in texts) + TOKENS_A_REQUEST
        )
        worst = Usage(prompt_tokens=n_prompt, completion_tokens=max_tokens)
        written = Usage(prompt_tokens=n_prompt, written_tokens=n_prompt, completion_tokens=max_tokens)
        cost = max(self._prices.of(worst), self._prices.of(written)) if self._prices else 0.0
        return Bound(cost, n_prompt + max_tokens)


class DelayedWithinBudget:
    """An LLM whose answers come between two passes: tells the budget which pass it is."""

    def __init__(self, llm: Delayed, budget: Budget) -> None:
        self._llm, self._budget = llm, budget

    async def check(self) -> None:
        await self._llm.check()

    async def open(self, progress: Progress) -> None:
        await self._llm.open(progress)
        self._budget.begin_passes()

    async def send(self, progress: Progress) -> None:
        self._budget.end_pass()
        await self._llm.send(progress)

    async def fetch(self, progress: Progress) -> list[Awaited]:
        return await self._llm.fetch(progress)


def check_is_priced(name: str, prices: Prices | None) -> None:
    """Raises LLMStopped where a limit on cost would limit nothing."""
    if prices is None:
        raise LLMStopped(
            f"--max-cost: nobody knows what {name} costs. Say it, in US dollars for a million tokens:\n"
            "  --set llms.judge.prices='{input: 0.15, output: 0.6}'   and llms.explainer.prices, or limit tokens:\n"
            "  --max-tokens 10000000"
        )
