"""A run spends no more than it may: what a request can cost at most is set aside before it is sent.

Between an LLM and the request journal stands `Budgeted`: an answer that is known already costs nothing. Where
what is set aside does not fit any more, requests wait for those in flight, which mostly cost less than they
might; where nothing is in flight, the budget is used up. So no paid answer is lost when a run stops for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from autointerp.errors import BudgetReached, LLMStopped, Pending
from autointerp.llm.front import InFront
from autointerp.llm.protocol import LLM, Prices, Reply, Request, Usage
from autointerp.llm.replay import request_key
from autointerp.prompting import Prompt
from autointerp.types import digest

TOKENS_A_REQUEST: Final = 256
TOKENS_A_TURN: Final = 16
"""What a chat template may add."""


@dataclass(slots=True)
class Spent:
    """Of a run, or of a part of it."""

    n_requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    """US dollars, of those requests whose cost is known."""
    n_unpriced: int = 0
    """Requests whose cost is not known."""
    latency_s: float = 0.0
    """Of all requests together; many were in flight at once."""
    n_reused: int = 0
    """Answers that another run had paid for; none of the requests above."""

    @property
    def n_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, usage: Usage | Spent) -> None:
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.written_tokens += usage.written_tokens
        self.completion_tokens += usage.completion_tokens
        self.reasoning_tokens += usage.reasoning_tokens
        self.cost += usage.cost or 0.0
        self.latency_s += usage.latency_s
        if isinstance(usage, Spent):
            self.n_requests += usage.n_requests
            self.n_unpriced += usage.n_unpriced
            self.n_reused += usage.n_reused
        else:
            self.n_requests += 1
            self.n_unpriced += usage.cost is None


@dataclass(frozen=True, slots=True)
class _Bound:
    """The most that a request can cost."""

    cost: float
    n_tokens: float


class Budget:
    """What a run may spend, all its processes before this one included."""

    def __init__(self, max_cost: float | None, max_tokens: int | None, spent: Spent) -> None:
        """`spent`: before. None: no limit."""
        self._max_cost, self._max_tokens = max_cost, max_tokens
        self._cost, self._n_tokens = spent.cost, float(spent.n_tokens)
        self._aside_cost = self._aside_tokens = 0.0
        self._n_aside = 0
        self._is_reached = False
        self._pending: dict[str, tuple[float, float]] = {}
        self._worse = 1.0
        """By how much a request cost more than could be thought, at most."""
        self._door = asyncio.Lock()  # wakes those who wait in the order of their coming
        self._settled = asyncio.Event()

    @asynccontextmanager
    async def aside(self, bound: _Bound, name: str) -> AsyncGenerator[list[Usage]]:
        """Sets so much aside while a request is made; what it used is put into the list. Of one that ends
        otherwise nothing is known to have been billed, but for one whose answer is to come: that stays aside
        until it is asked for again by this `name`. Raises BudgetReached."""
        async with self._door:
            if (cost := self._pending.pop(name, None)) is not None:
                self._cost -= cost[0]
                self._n_tokens -= cost[1]
            while self._is_reached or not self._fits(bound):
                if self._is_reached or not self._n_aside:
                    # From here on nothing is sent, however small: whoever hears of it may cancel the others.
                    self._is_reached = True
                    raise BudgetReached(self._said(bound))
                self._settled.clear()
                await self._settled.wait()
            cost, n_tokens = bound.cost * self._worse, bound.n_tokens * self._worse
            self._aside_cost += cost
            self._aside_tokens += n_tokens
            self._n_aside += 1
        used: list[Usage] = []
        try:
            yield used
        except Pending:
            self._cost += cost
            self._n_tokens += n_tokens
            self._pending[name] = cost, n_tokens
            raise
        finally:
            self._aside_cost -= cost
            self._aside_tokens -= n_tokens
            self._n_aside -= 1
            for usage in used:
                self._take(usage, bound)
            self._settled.set()

    def _take(self, usage: Usage, bound: _Bound) -> None:
        n_tokens = usage.prompt_tokens + usage.completion_tokens
        cost = bound.cost if usage.cost is None else usage.cost
        self._cost += cost
        self._n_tokens += n_tokens
        if bound.cost and bound.n_tokens:
            self._worse = max(self._worse, cost / bound.cost, n_tokens / bound.n_tokens)

    def _fits(self, bound: _Bound) -> bool:
        cost = self._cost + self._aside_cost + bound.cost * self._worse
        n_tokens = self._n_tokens + self._aside_tokens + bound.n_tokens * self._worse
        return (self._max_cost is None or cost <= self._max_cost) and (
            self._max_tokens is None or n_tokens <= self._max_tokens
        )

    def _said(self, bound: _Bound) -> str:
        spent, way = f"{self._n_tokens:,.0f} tokens of {self._max_tokens or 0:,} are", "--max-tokens"
        next_one = f"{bound.n_tokens:,.0f} tokens"
        if self._max_cost is not None and self._cost + bound.cost * self._worse > self._max_cost:
            spent, way = f"${self._cost:,.4f} of ${self._max_cost:,.4f} are", "--max-cost"
            next_one = f"${bound.cost:,.4f}"
        return (
            f"the budget is used up: {spent} spent, and the next request may take {next_one}. What was answered "
            f"is kept; go on with a larger {way}."
        )


class Budgeted(InFront):
    """An LLM that is only asked what the budget allows."""

    def __init__(self, llm: LLM, budget: Budget, prices: Prices | None) -> None:
        super().__init__(llm)
        self._budget = budget
        self._prices = prices

    async def answer(self, request: Request) -> Reply:
        bound = self._bound([turn.content for turn in request.prompt.messages], request.max_tokens)
        async with self._budget.aside(bound, request_key(self.identity, request)) as used:
            reply = await request.to(self._llm)
            used.append(reply.usage)
            return reply

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        texts = [*(turn.content for turn in prompt.messages), continuation]
        async with self._budget.aside(bound := self._bound(texts, 1), digest(texts)) as used:
            found = await self._llm.logprobs(prompt, continuation)
            used.append(Usage(prompt_tokens=round(bound.n_tokens), cost=bound.cost))
            return found

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        texts = [*(turn.content for turn in prompt.messages), *(piece + filler for piece in pieces)]
        async with self._budget.aside(bound := self._bound(texts, 1), digest(texts)) as used:
            found = await self._llm.fill(prompt, pieces, filler, labels)
            used.append(Usage(prompt_tokens=round(bound.n_tokens), cost=bound.cost))
            return found

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        async with self._budget.aside(bound := self._bound(texts, 0), digest(texts)) as used:
            found = await self._llm.embed(texts)
            used.append(Usage(prompt_tokens=round(bound.n_tokens), cost=bound.cost))
            return found

    def _bound(self, texts: Sequence[str], max_tokens: int) -> _Bound:
        """No token has less than a byte."""
        n_prompt = (
            sum(len(text.encode(errors="replace")) + TOKENS_A_TURN for text in texts) + TOKENS_A_REQUEST
        )
        worst = Usage(prompt_tokens=n_prompt, completion_tokens=max_tokens)
        written = Usage(prompt_tokens=n_prompt, written_tokens=n_prompt, completion_tokens=max_tokens)
        cost = max(self._prices.of(worst), self._prices.of(written)) if self._prices else 0.0
        return _Bound(cost, n_prompt + max_tokens)


def check_is_priced(name: str, prices: Prices | None) -> None:
    """Raises LLMStopped where a limit on cost would limit nothing."""
    if prices is None:
        raise LLMStopped(
            f"--max-cost: nobody knows what {name} costs. Say it, in US dollars for a million tokens:\n"
            "  --set llms.judge.prices='{input: 0.15, output: 0.6}'   and llms.explainer.prices, or limit tokens:\n"
            "  --max-tokens 10000000"
        )
