"""The map over journals: resumable, bounded, concurrent. It runs what has no record yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from autointerp.errors import DiskFull, Interrupted, LLMUnavailable, Pending
from autointerp.journal import Journal, Part
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Item:
    """One key's work: `work()` gives the record (without its key)."""

    unit: str
    key: str
    work: Callable[[], Awaitable[Json]]


@dataclass(slots=True)
class Filled:
    """What a call of `fill` did."""

    n_done: int = 0
    n_open: int = 0
    """Keys that stay open for the next run."""
    n_pending: int = 0
    """Keys whose answers come by other means."""
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    """Why keys stayed open, counted by message."""


_GIVE_UP_AFTER: Final = 25
"""So many unanswered items in a row mean that the server is gone, not that it stumbles."""


async def fill(
    journal: Journal,
    items: Iterable[Item],
    *,
    n_in_flight: int,
    stop: asyncio.Event | None = None,
    grace_s: float = 20.0,
    on_done: Callable[[str], None] = lambda key: None,
    on_open: Callable[[str, str], None] = lambda key, reason: None,
    on_unit_done: Callable[[str], None] = lambda unit: None,
) -> Filled:
    """Runs the items, at most `n_in_flight` at once, and writes each record as it comes.

    `items` is read lazily and must be grouped by unit: a unit's file closes behind its last item. An item
    that raises LLMUnavailable or Pending stays open. Any other error ends the call: items in flight are
    cancelled, everything finished is written. When `stop` is set no item is begun any more, those in
    flight get `grace_s` seconds, and Interrupted is raised.
    """
    flow = _Flow(journal, n_in_flight, on_done, on_open, on_unit_done)
    try:
        source = iter(items)
        while not (stop and stop.is_set()):
            item = next(source, None)
            if item is None:
                break
            await flow.begin(item, stop)
        if stop and stop.is_set():
            await flow.finish(grace_s)
            raise Interrupted
        await flow.finish(None, stop)
        if stop and stop.is_set():
            await flow.finish(grace_s)
            raise Interrupted
        return flow.filled
    finally:
        await flow.abandon()


class _Flow:
    """The moving parts of one `fill`: tasks in flight, open files, what came of it."""

    def __init__(
        self,
        journal: Journal,
        n_in_flight: int,
        on_done: Callable[[str], None],
        on_open: Callable[[str, str], None],
        on_unit_done: Callable[[str], None],
    ) -> None:
        self.filled = Filled()
        self._journal = journal
        self._n_in_flight = n_in_flight
        self._on_done = on_done
        self._on_open = on_open
        self._on_unit_done = on_unit_done
        self._tasks: dict[asyncio.Task[Json], Item] = {}
        self._parts: dict[str, Part] = {}
        self._left: dict[str, int] = {}
        self._newest_unit = ""
        self._unanswered_in_a_row = 0

    async def begin(self, item: Item, stop: asyncio.Event | None) -> None:
        while len(self._tasks) >= self._n_in_flight:
            await self._collect(stop)
            if stop and stop.is_set():
                return
        if item.unit != self._newest_unit:
            previous, self._newest_unit = self._newest_unit, item.unit
            self._close_if_over(previous)
        self._left[item.unit] = self._left.get(item.unit, 0) + 1
        self._tasks[asyncio.ensure_future(item.work())] = item

    async def finish(self, within_s: float | None, stop: asyncio.Event | None = None) -> None:
        """Waits for what is in flight: all of it, or what comes within some seconds."""
        if within_s is None:
            self._newest_unit, newest = "", self._newest_unit
            while self._tasks and not (stop and stop.is_set()):
                await self._collect(stop)
            if not self._tasks:
                self._close_if_over(newest)
            return
        until = time.monotonic() + within_s
        while self._tasks and (left := until - time.monotonic()) > 0:
            await self._collect(None, left)

    async def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for part in self._parts.values():
            part.abandon()

    async def _collect(self, stop: asyncio.Event | None, timeout_s: float | None = None) -> None:
        stopping = [asyncio.ensure_future(stop.wait())] if stop else []
        waiting: list[asyncio.Task[Any]] = [*self._tasks, *stopping]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        finally:
            for task in stopping:
                task.cancel()
        finished = [(task, item) for task, item in self._tasks.items() if task.done()]
        for task, _ in finished:
            del self._tasks[task]
        # All are taken before any is raised, so that one's error doesn't lose another's finished record.
        errors = [error for task, item in finished if (error := self._take(task, item))]
        if errors:
            raise errors[0]
        if self._unanswered_in_a_row >= _GIVE_UP_AFTER:
            raise LLMUnavailable(
                f"{self._unanswered_in_a_row} items in a row got no answer; the last said: "
                f"{next(reversed(self.filled.reasons))}. What is done is written; resume when it is back."
            )

    def _take(self, task: asyncio.Task[Json], item: Item) -> BaseException | None:
        error = task.exception()
        try:
            if error is None:
                part = self._parts.get(item.unit) or Part(self._journal, item.unit)
                self._parts[item.unit] = part
                part.append(item.key, task.result())
                self.filled.n_done += 1
                self._unanswered_in_a_row = 0
                self._on_done(item.key)
            elif isinstance(error, LLMUnavailable):
                self.filled.n_open += 1
                reason = self.filled.reasons.pop(str(error), 0)
                self.filled.reasons[str(error)] = reason + 1
                self._unanswered_in_a_row += 1
                self._on_open(item.key, str(error))
            elif isinstance(error, Pending):
                self.filled.n_pending += 1
            else:
                return error
        except DiskFull as full:
            return full
        self._left[item.unit] -= 1
        self._close_if_over(item.unit)
        return None

    def _close_if_over(self, unit: str) -> None:
        if self._left.get(unit) == 0 and unit != self._newest_unit:
            del self._left[unit]
            if part := self._parts.pop(unit, None):
                part.close()
            self._on_unit_done(unit)
