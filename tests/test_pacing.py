"""Pace: the level that is found, the bucket's promise for every minute, and the order at the door."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.llm.pacing import HIGHEST_LEVEL, Bucket, Level, Pace


def served(level: Level, *, lanes: int, n: int, refuses_above: int | None = None) -> list[int]:
    """The level's limits over `n` answers of a made-up server that works on `lanes` requests at once, each for
    a second and a bit by chance, queues the others, and refuses what is beyond `refuses_above` at once."""
    draws = random.Random(0)
    now, in_flight = 0.0, 0
    free = [0.0] * lanes
    events: list[tuple[float, int, bool]] = []
    limits: list[int] = []
    while len(limits) < n:
        while in_flight < level.limit:
            in_flight += 1
            number = level.sent(in_flight, now)
            if refuses_above and in_flight > refuses_above:
                heapq.heappush(events, (now + 0.01, number, True))
                break
            ends = max(now, heapq.heappop(free)) + draws.uniform(0.9, 1.1)
            heapq.heappush(free, ends)
            heapq.heappush(events, (ends, number, False))
        now, number, is_refused = heapq.heappop(events)
        in_flight -= 1
        if is_refused:
            level.refused(number, now)
        else:
            level.answered(now)
            limits.append(level.limit)
    return limits


@pytest.mark.parametrize("lanes", [1, 8, 64, 300])
def test_the_level_finds_what_the_server_can_take(lanes: int) -> None:
    """Most of the time no less than its lanes, and not much more than it needs."""
    limits = served(Level(), lanes=lanes, n=20_000)
    settled = sorted(limits[5_000:])
    middle = settled[len(settled) // 2]
    assert max(16, lanes * 0.85) <= middle <= max(16, lanes * 2)


def test_a_server_without_bounds_gets_the_highest_level_and_no_more() -> None:
    limits = served(Level(), lanes=5_000, n=40_000)
    assert max(limits) == HIGHEST_LEVEL == limits[-1]


def test_a_fixed_level_stays() -> None:
    assert set(served(Level(7), lanes=100, n=2_000)) == {7}


def test_refusals_halve_the_level_once_a_flight() -> None:
    level = Level(64)
    numbers = [level.sent(n, 0.0) for n in range(1, 65)]
    for number in numbers:
        level.refused(number, 1.0)
    assert level.limit == 32
    level.refused(level.sent(1, 2.0), 3.0)
    assert level.limit == 16
    for _ in range(10):
        level.refused(level.sent(1, 4.0), 5.0)
    assert level.limit == 1


def test_below_a_refusing_limit_the_level_stays_mostly() -> None:
    limits = served(Level(), lanes=200, n=20_000, refuses_above=100)
    settled = limits[5_000:]
    assert 25 <= sum(settled) / len(settled) <= 110
    assert sum(limit > 100 for limit in settled) < len(settled) / 4


@given(
    st.integers(1_000, 100_000),
    st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 2_000), st.floats(0.2, 1.0)), max_size=300),
)
def test_no_minute_sees_more_than_the_limit_and_one_request(
    limit: int, requests: list[tuple[float, int, float]]
) -> None:
    """Requests that come in bursts, cost what was thought or less, and are told how much when they end."""
    bucket, now = Bucket(limit, 0.0), 0.0
    sent: deque[tuple[float, float]] = deque()
    for pause, n, share in requests:
        now += pause
        waited = bucket.wait_s(n, now)
        now += waited
        bucket.take(n, now)
        sent.append((now, n * share))
        bucket.give_back(n - n * share)
        while sent[0][0] <= now - 60.0:
            sent.popleft()
        assert sum(cost for _, cost in sent) <= limit + n + 1e-6


def test_what_costs_more_than_was_thought_is_waited_for_by_the_next() -> None:
    bucket = Bucket(60_000, 0.0)  # 3,000 at once, 950 a second
    assert bucket.wait_s(1_000, 0.0) == 0
    bucket.take(1_000, 0.0)
    bucket.give_back(1_000 - 5_800)  # it cost 5,800: 2,800 below nothing
    assert bucket.wait_s(1_000, 0.0) == pytest.approx(3_800 / 950)
    assert bucket.wait_s(1_000, 4.0) == 0


def test_who_comes_first_goes_first_and_no_more_than_the_level_at_once() -> None:
    async def main() -> tuple[list[int], int]:
        pacing, order, at_once = Pace(n_in_flight=3), list[int](), 0

        async def ask(number: int) -> None:
            nonlocal at_once
            async with pacing.turn(10):
                order.append(number)
                inside.add(number)
                at_once = max(at_once, len(inside))
                await asyncio.sleep(0.001 * (number % 4))
                inside.remove(number)

        inside: set[int] = set()
        await asyncio.gather(*(ask(number) for number in range(60)))
        assert pacing.n_waiting == 0
        return order, at_once

    order, at_once = asyncio.run(main())
    assert order == list(range(60)) and at_once == 3


def test_a_large_request_is_not_passed_by_small_ones() -> None:
    async def main() -> list[str]:
        pacing, order = Pace(tokens_per_minute=60_000), list[str]()  # 3,000 at once, 950 a second

        async def ask(name: str, n_tokens: int) -> None:
            async with pacing.turn(n_tokens):
                order.append(name)

        small = [ask(f"small {n}", 10) for n in range(3)]
        await asyncio.gather(ask("first", 3_000), ask("large", 300), *small)
        return order

    assert asyncio.run(main()) == ["first", "large", "small 0", "small 1", "small 2"]


def test_a_server_that_asks_to_wait_is_asked_by_nobody() -> None:
    async def main() -> list[float]:
        pacing, began = Pace(), time.monotonic()

        async def ask() -> float:
            async with pacing.turn(1):
                return time.monotonic() - began

        async with pacing.turn(1) as turn:
            turn.refused(0.2)
        return await asyncio.gather(*(ask() for _ in range(5)))

    assert min(asyncio.run(main())) >= 0.2


def test_who_gives_up_waiting_holds_nobody_up() -> None:
    async def main() -> None:
        pacing = Pace(n_in_flight=1)

        async def hold(seconds: float) -> None:
            async with pacing.turn(1):
                await asyncio.sleep(seconds)

        first = asyncio.ensure_future(hold(0.05))
        second = asyncio.ensure_future(hold(9.0))
        third = asyncio.ensure_future(hold(0.0))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.wait_for(asyncio.gather(first, third), 2.0)
        assert pacing.n_waiting == 0

    asyncio.run(main())


def test_requests_a_second_are_kept() -> None:
    async def main() -> list[float]:
        pacing, times = Pace(requests_per_second=20), list[float]()

        async def ask() -> None:
            async with pacing.turn(1):
                times.append(time.monotonic())

        await asyncio.gather(*(ask() for _ in range(45)))
        return times

    times = asyncio.run(main())
    assert all(times[n + 21] - times[n] >= 0.95 for n in range(len(times) - 21))
