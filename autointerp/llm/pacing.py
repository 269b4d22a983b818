"""How fast a server is asked: in the order of asking, within the limits that are set, at the level it takes.

Every try of a request waits for its `turn`. There is one door, and whoever is first at it goes first: a large
prompt that waits for tokens is not passed by small ones.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio_throttle.throttler import Throttler

FIRST_LEVEL: Final = 16
HIGHEST_LEVEL: Final = 1_024
FEWEST_ANSWERS: Final = 16
"""Answers after which a level is judged, at least."""
PAYS: Final = 0.15
"""Asking for twice as many at once must bring so much more a second; else latency has grown instead."""
RESTS: Final = 30
RESTS_REFUSED: Final = 4
"""Judgements for which a level stays where a higher one brought nothing, or was refused."""


class Level:
    """How many requests are in flight. It doubles while that brings more answers a second, goes back where it
    doesn't, and halves when the server refuses. Pure: it is told the time."""

    def __init__(self, fixed: int | None = None, highest: int = HIGHEST_LEVEL) -> None:
        """`fixed`: so many, fewer only while the server refuses. `highest`: never more."""
        self.limit = min(fixed or FIRST_LEVEL, highest)
        self._highest = min(fixed or HIGHEST_LEVEL, highest)
        self._factor = 2.0
        self._before: tuple[int, float] | None = None
        """The level that this one has grown from, and its answers a second."""
        self._rests = 0
        self._n_sent = self._n_stale = 0
        self._began, self._n_answered, self._was_full = 0.0, 0, False

    def sent(self, n_in_flight: int, now: float) -> int:
        """A request goes out as one of `n_in_flight`; its number."""
        if n_in_flight == 1:  # nothing was in flight: idle time is not the server's
            self._begin(now)
        self._was_full |= n_in_flight >= self.limit
        self._n_sent += 1
        return self._n_sent

    def answered(self, now: float) -> None:
        self._n_answered += 1
        if self._n_answered < max(FEWEST_ANSWERS, 2 * self.limit):
            return
        if self._was_full:  # else it is not the level that holds us back
            self._judge(self._n_answered / max(now - self._began, 1e-9))
        self._begin(now)

    def refused(self, number: int, now: float) -> None:
        """The server said to this request that it is asked too much. Those that went out before the level was
        last halved say nothing new."""
        if number <= self._n_stale:
            return
        self.limit = max(1, self.limit // 2)
        self._n_stale, self._factor = self._n_sent, 1.25
        self._before, self._rests = None, RESTS_REFUSED
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._began, self._n_answered, self._was_full = now, 0, False

    def _judge(self, rate: float) -> None:
        if self._rests:
            self._rests -= 1
            return
        if self._before is not None:
            level, rate_before = self._before
            if rate < rate_before * (1 + PAYS * (self.limit / level - 1)):
                self.limit, self._before, self._rests = level, None, RESTS
                return
        if self.limit < self._highest:
            self._before = self.limit, rate
            self.limit = min(self._highest, math.ceil(self.limit * self._factor))


class Bucket:
    """Tokens a minute. Holds a twentieth of them and is refilled with the rest over the minute, so that no
    minute sees more than the limit; a request that is larger than the bucket waits until it is full.

    Pure: it is told the time.
    """

    def __init__(self, tokens_per_minute: float, now: float) -> None:
        self._capacity = tokens_per_minute / 20
        self._per_s = tokens_per_minute * 19 / 20 / 60
        self._level, self._at = self._capacity, now

    def wait_s(self, n_tokens: float, now: float) -> float:
        """Until so many may be taken."""
        self._refill(now)
        return max(0.0, (min(n_tokens, self._capacity) - self._level) / self._per_s)

    def take(self, n_tokens: float, now: float) -> None:
        """Below nothing where the request is larger than the bucket, or cost more than was thought."""
        self._refill(now)
        self._level -= n_tokens

    def give_back(self, n_tokens: float) -> None:
        """What was taken and not used; negative where it was more."""
        self._level = min(self._capacity, self._level + n_tokens)

    def _refill(self, now: float) -> None:
        self._level = min(self._capacity, self._level + (now - self._at) * self._per_s)
        self._at = now


class Turn:
    """One try of a request, from its going out to its end."""

    def __init__(self, pace: Pace, n_tokens: float) -> None:
        self._pace = pace
        self._n_tokens = n_tokens
        self.number = 0
        self.is_refused = False
        """The server said that it is asked too much: it is at work."""

    def used(self, n_tokens: int) -> None:
        """What the server counted, prompt and answer."""
        self._pace.used(self._n_tokens, n_tokens)

    def refused(self, wait_s: float | None) -> None:
        """The server is asked too much; nobody asks it before `wait_s` have passed."""
        self.is_refused = True
        self._pace.refused(self.number, wait_s)


class Pace:
    """The door to one server."""

    def __init__(
        self,
        *,
        n_in_flight: int | None = None,
        requests_per_second: float | None = None,
        tokens_per_minute: float | None = None,
        highest: int = HIGHEST_LEVEL,
    ) -> None:
        """None: no limit of ours; of requests in flight as many as make the server faster, and never more than
        `highest`."""
        self.n_waiting = 0
        """Requests at the door or in flight."""
        self._level = Level(n_in_flight, highest)
        self._throttler = _throttler(requests_per_second)
        self._bucket = Bucket(tokens_per_minute, time.monotonic()) if tokens_per_minute else None
        self._n_in_flight = 0
        self._door = asyncio.Lock()  # wakes those who wait in the order of their coming
        self._freed = asyncio.Event()
        self._not_before = 0.0

    @property
    def level(self) -> int:
        return self._level.limit

    @asynccontextmanager
    async def turn(self, n_tokens: float) -> AsyncGenerator[Turn]:
        """`n_tokens`: what the request may cost, prompt and answer. An answer ends it without an error."""
        self.n_waiting += 1
        try:
            async with self._door:
                await self._wait(n_tokens)
                self._n_in_flight += 1
            turn = Turn(self, n_tokens)
            turn.number = self._level.sent(self._n_in_flight, time.monotonic())
            try:
                yield turn
                self._level.answered(time.monotonic())
            finally:
                self._n_in_flight -= 1
                self._freed.set()
        finally:
            self.n_waiting -= 1

    async def _wait(self, n_tokens: float) -> None:
        while self._n_in_flight >= self._level.limit:
            self._freed.clear()
            await self._freed.wait()
        while (wait_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if self._bucket is not None:
            while (wait_s := self._bucket.wait_s(n_tokens, time.monotonic())) > 0:
                await asyncio.sleep(wait_s)
            self._bucket.take(n_tokens, time.monotonic())
        if self._throttler is not None:
            # It polls each of those who wait for it; behind the door there is one.
            await self._throttler.acquire()

    def used(self, thought: float, counted: int) -> None:
        if self._bucket is not None:
            self._bucket.give_back(thought - counted)

    def refused(self, number: int, wait_s: float | None) -> None:
        now = time.monotonic()
        self._level.refused(number, now)
        self._not_before = max(self._not_before, now + (wait_s or 0.0))


def _throttler(requests_per_second: float | None) -> Throttler | None:
    if requests_per_second is None:
        return None
    from asyncio_throttle.throttler import Throttler

    # One at a time, evenly: were a second's requests let go together, some that are late and the next second's
    # would reach the server as twice the limit.
    every_s = 1.0 / requests_per_second
    return Throttler(rate_limit=1, period=every_s, retry_interval=min(0.01, every_s / 10))
