"""The one retry policy of everything that talks to an LLM over a network."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import tenacity

from autointerp.llm.exchange import Usage

T = TypeVar("T")

MAX_WAIT_S = 20.0
"""Longest wait of our own choosing between two tries."""


class Passing(Exception):
    """A failure that may be over at the next try: a signal, which no user sees."""

    def __init__(
        self,
        reason: str,
        *,
        wait_s: float | None = None,
        unconnected: bool = False,
        billed: Usage | None = None,
    ) -> None:
        """`wait_s`: what the server asks for. `unconnected`: there was nothing to talk to at all. `billed`: what the
        try may have cost all the same; None where it costs nothing."""
        super().__init__(reason)
        self.billed = billed
        self.wait_s = wait_s
        self.unconnected = unconnected


async def try_again(
    once: Callable[[], Awaitable[T]], failed: Passing, *, max_tries: int, first_wait_s: float
) -> T:
    """Goes on after the first of `max_tries` ended in `failed`. Raises the last try's Passing.

    Before the second try it waits `first_wait_s`, then twice that, ... up to MAX_WAIT_S, or exactly what
    the server asks for; and up to `first_wait_s` more by chance, so that those who were refused together
    don't come back together.
    """
    first: list[Passing] = [failed]

    async def replayed() -> T:
        # tenacity costs 65 us a call, so it only comes in after a first failure, which it then sees here.
        if first:
            raise first.pop()
        return await once()

    tries = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Passing),
        stop=tenacity.stop_after_attempt(max_tries),
        wait=partial(_wait_s, first_wait_s),
        reraise=True,
    )
    return await tries(replayed)


def _wait_s(first_wait_s: float, state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, Passing) else None
    wait_s = asked if asked is not None else min(first_wait_s * 2 ** (state.attempt_number - 1), MAX_WAIT_S)
    return wait_s + random.uniform(0.0, first_wait_s)
