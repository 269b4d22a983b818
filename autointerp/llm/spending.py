"""A run spends no more than it may: what a request can cost at most is set aside before it is sent.

Where what is set aside does not fit any more, requests wait for those in flight, which mostly cost less than they
might; where nothing is in flight, the budget is used up. So no paid answer is lost when a run stops for it.

A try that gave no answer and may be billed all the same counts as what it can have cost at most; so does an answer
of which the server doesn't say what it used, and what a kill or an interrupt cuts off (`in_flight.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from autointerp.errors import BudgetReached, Pending
from autointerp.llm.exchange import Usage
from autointerp.llm.in_flight import Slots
from autointerp.llm.metering import UNCOUNTED, metered_by
from autointerp.llm.set_aside import Share


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
    """US dollars, as far as they are known."""
    n_unpriced: int = 0
    """Requests whose cost is not known, or not all of it."""
    latency_s: float = 0.0
    """Of all requests together; many were in flight at once."""
    n_reused: int = 0
    """Answers that another run had paid for; none of the requests above."""
    aside_tokens: int = 0
    """What tries may have used beside, at most, of which the server didn't say: known where there was a budget."""
    aside_cost: float = 0.0
    """As `aside_tokens`; US dollars."""

    @property
    def n_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def is_known(self) -> bool:
        """Whether there is more to tell than what may have been used at most."""
        return bool(self.n_requests or self.n_reused or self.n_tokens)

    def add(self, usage: Usage | Spent, *, is_answer: bool = True) -> None:
        """`is_answer`: else it is what tries took that gave none."""
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.written_tokens += usage.written_tokens
        self.completion_tokens += usage.completion_tokens
        self.reasoning_tokens += usage.reasoning_tokens
        self.cost += usage.cost or 0.0
        self.latency_s += usage.latency_s
        self.aside_tokens += usage.aside_tokens
        self.aside_cost += usage.aside_cost
        if isinstance(usage, Spent):
            self.n_requests += usage.n_requests
            self.n_unpriced += usage.n_unpriced
            self.n_reused += usage.n_reused
        elif is_answer:
            self.n_requests += 1
            self.n_unpriced += usage.cost is None or not usage.counted


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a request can cost."""

    cost: float
    n_tokens: float

    def times(self, factor: float) -> Bound:
        return Bound(self.cost * factor, self.n_tokens * factor)


class Budget:
    """What a run may spend, all its processes before this one included."""

    def __init__(
        self, max_cost: float | None, max_tokens: int | None, spent: Spent, slots: Slots | None = None
    ) -> None:
        """`spent`: before. None: no limit. `slots`: of what is in flight; None: a kill hides that."""
        self._slots = slots
        self._max_cost, self._max_tokens = max_cost, max_tokens
        self._cost = spent.cost + spent.aside_cost
        self._n_tokens = float(spent.n_tokens + spent.aside_tokens)
        self._uncounted_cost, self._uncounted_tokens = spent.aside_cost, float(spent.aside_tokens)
        """Of these: what answers whose use is not known can have cost at most."""
        self._aside_cost = self._aside_tokens = 0.0
        self._n_aside = 0
        self._is_reached = False
        self._pending: dict[str, tuple[Bound, int | None]] = {}
        """What is set aside for requests whose answers are to come, by name, each with its slot."""
        self._may_be_asked_for = False
        """Whether what an earlier process was promised may still be asked for in this one."""
        for _, one in slots.awaited.values() if slots else ():
            self._count_uncounted(Bound(one.cost, one.n_tokens), 1)
        self._worse = 1.0
        """By how much a request cost more than could be thought, at most."""
        self._door = asyncio.Lock()  # wakes those who wait in the order of their coming
        self._settled = asyncio.Event()

    def begin_passes(self) -> None:
        """From here on everything is asked for that waits for an answer."""
        self._may_be_asked_for = True

    def end_pass(self) -> None:
        """What was not asked for by now is nobody's."""
        self._may_be_asked_for = False

    @asynccontextmanager
    async def aside(
        self, bound: Bound, name: str, *, tells_when_sent: bool = False, is_delayed: bool = False
    ) -> AsyncGenerator[Share]:
        """Sets so much aside while a request is made; what its tries use is told to the share. A try that ends
        otherwise costs nothing, but for one that is cut off, and one whose answer is to come: its share stays aside
        until it is asked for again by this `name`. `tells_when_sent`: what is not sent yet costs nothing either.
        `is_delayed`: such an answer may be this request's; else it is made anew, whatever was made before.

        Raises BudgetReached; Pending where answers that are to come may make room for this request."""
        share = Share(self, bound, name, self._slots, tells_when_sent=tells_when_sent)
        if not (is_delayed and self._resume(share)):
            await share.may_try()
        try:
            with metered_by(share):
                yield share
        except Pending:
            if share.held is not None:
                share.wait()
                self._pending[name], share.held, share.slot = (share.held, share.slot), None, None
                self._n_aside -= 1
            raise
        except asyncio.CancelledError:
            if share.is_sent:
                share.use(UNCOUNTED)
            raise
        finally:
            share.unsent()
            self.release(share)
            self._settled.set()

    def _resume(self, share: Share) -> bool:
        """Whether this request was made already, and its answer is to come."""
        if (booked := self._pending.pop(share.name, None)) is not None:
            share.held, share.slot = booked
        elif self._slots and (found := self._slots.awaited.pop(share.name, None)) is not None:
            share.slot, share.held = found[0], Bound(found[1].cost, found[1].n_tokens)
            self._count_uncounted(share.held, -1)
            self._aside_cost += share.held.cost
            self._aside_tokens += share.held.n_tokens
        else:
            return False
        share.is_sent = True
        self._n_aside += 1
        return True

    def _count_uncounted(self, bound: Bound, sign: int) -> None:
        """An earlier process's requests count as spent until they are asked for again, which may never be."""
        self._cost += sign * bound.cost
        self._uncounted_cost += sign * bound.cost
        self._n_tokens += sign * bound.n_tokens
        self._uncounted_tokens += sign * bound.n_tokens

    async def reserve(self, bound: Bound) -> Bound:
        """Waits until so much fits; what is set aside. Raises as `aside`."""
        async with self._door:
            while self._is_reached or not self._fits(bound):
                if not self._is_reached and not self._n_aside and self._is_awaiting():
                    raise Pending  # what these answers leave over is known when they are there
                if self._is_reached or not self._n_aside:
                    # From here on nothing is sent, however small: whoever hears of it may cancel the others.
                    self._is_reached = True
                    raise BudgetReached(self._said(bound))
                self._settled.clear()
                await self._settled.wait()
            held = bound.times(self._worse)
            self._aside_cost += held.cost
            self._aside_tokens += held.n_tokens
            self._n_aside += 1
            return held

    def _is_awaiting(self) -> bool:
        is_promised = self._may_be_asked_for and self._slots is not None and self._slots.awaited
        return bool(self._pending or is_promised)

    def release(self, share: Share) -> None:
        """What is aside for a request is so no longer."""
        if share.held is not None:
            self._aside_cost -= share.held.cost
            self._aside_tokens -= share.held.n_tokens
            self._n_aside -= 1
            share.held = None
            self._settled.set()

    def take(self, usage: Usage, bound: Bound) -> Usage:
        """Counts a try as spent; with the most that it can have used where that is not known."""
        most = bound.times(self._worse)
        if not usage.counted:
            aside_tokens = math.ceil(most.n_tokens)
            usage = replace(
                usage, aside_tokens=aside_tokens, aside_cost=most.cost if usage.cost is None else 0.0
            )
            self._uncounted_tokens += usage.aside_tokens
            self._uncounted_cost += usage.aside_cost
        n_tokens = usage.prompt_tokens + usage.completion_tokens
        cost = usage.cost or 0.0
        if usage.counted and usage.cost is None:
            cost = bound.cost
        if usage.counted and bound.cost and bound.n_tokens:
            self._worse = max(self._worse, cost / bound.cost, n_tokens / bound.n_tokens)
        self._cost += cost + usage.aside_cost
        self._n_tokens += n_tokens + usage.aside_tokens
        return usage

    def _fits(self, bound: Bound) -> bool:
        next_one = bound.times(self._worse)
        cost = self._cost + self._aside_cost + next_one.cost
        n_tokens = self._n_tokens + self._aside_tokens + next_one.n_tokens
        return (self._max_cost is None or cost <= self._max_cost) and (
            self._max_tokens is None or n_tokens <= self._max_tokens
        )

    def _said(self, bound: Bound) -> str:
        next_one = bound.times(self._worse)
        promised = [one for _, one in self._slots.awaited.values()] if self._slots else []
        if self._max_cost is not None and self._cost + next_one.cost > self._max_cost:
            way, spent = "--max-cost", f"${self._cost - self._uncounted_cost:,.4f} of ${self._max_cost:,.4f}"
            batches = sum(one.cost for one in promised)
            lost, more = self._uncounted_cost - batches, f"${next_one.cost:,.4f}"
            shown = "${:,.4f}"
        else:
            way = "--max-tokens"
            spent = f"{self._n_tokens - self._uncounted_tokens:,.0f} tokens of {self._max_tokens or 0:,}"
            batches = sum(one.n_tokens for one in promised)
            lost, more = self._uncounted_tokens - batches, f"{next_one.n_tokens:,.0f} tokens"
            shown = "{:,.0f} tokens"
        whose = {
            "for tries that were cut off, or of which the server didn't say what they took": lost,
            "for batches that were sent and nobody asks for any more": batches,
        }
        # Sums of floats: what is left of nothing is not quite nothing.
        kept = [
            f", up to {shown.format(most)} are set aside {who}" for who, most in whose.items() if most > 1e-9
        ]
        return (
            f"the budget is used up: {spent} are spent{''.join(kept)}, and the next request may take {more}. "
            f"What was answered is kept; go on with a larger {way}."
        )
