"""The map over journals: resumable, bounded, concurrent. It runs what has no record yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autointerp.errors import Interrupted, LLMError, LLMUnavailable, Pending
from autointerp.journal import Journal, Part
from autointerp.types import Json


def _nothing(_: Json) -> Iterable[Item]:
    return ()


@dataclass(frozen=True, slots=True)
class Item:
    """One key's work: `work()` gives the record (without its key)."""

    journal: Journal
    key: str
    work: Callable[[], Awaitable[Json]]
    then: Callable[[Json], Iterable[Item]] = _nothing
    """What begins when the record is written, of the same unit: what is made of an explanation."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Items that share what is opened for them, and whose records go to parts of this name."""

    name: str
    items: Iterable[Item]
    close: Callable[[], None] = lambda: None
    """Called once: behind the last item, or when the call ends."""


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
"""So many unanswered items of one journal in a row mean that the server is gone, not that it stumbles."""
UNITS_AT_ONCE: Final = 32
"""Units open at once. A handful, unless few features of each are asked for; an open one costs its windows, its
LLM replies and three files an explainer and scorer."""


async def fill(
    units: Iterable[Unit],
    *,
    n_in_flight: int,
    n_units: int = UNITS_AT_ONCE,
    stop: asyncio.Event | None = None,
    grace_s: float = 20.0,
    on_done: Callable[[Item, Json], None] = lambda item, record: None,
    on_open: Callable[[Item, str], None] = lambda item, reason: None,
) -> Filled:
    """Runs the units' items and writes each record as it comes.

    At most `n_in_flight` items that units gave are in flight at once, each with those that follow from it.
    `units` and their items are read lazily, a unit not before there is room for it. An item that raises
    LLMUnavailable or Pending stays open, and nothing follows from it. Any other error ends the call, and
    everything finished is written. When it is an LLMError, or `stop` is set, no item is begun any more, and those
    in flight, whose answers are mostly paid for, get `grace_s` seconds before that error, or Interrupted, is
    raised; another error cancels them at once.
    """
    flow = _Flow(n_in_flight, n_units, stop, on_done, on_open)
    try:
        if not await flow.run(units):
            await flow.finish_within(grace_s)
            raise Interrupted
        return flow.filled
    except LLMError:
        await flow.finish_within(grace_s)
        raise
    finally:
        await flow.abandon()


class _Open:
    """A unit whose items are in flight, and the files they are written to."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.n_left = 1
        """Items in flight, and one while more of them may be read."""
        self._parts: dict[Path, Part] = {}

    def part(self, journal: Journal) -> Part:
        known = self._parts.get(journal.folder)
        if known is None:
            known = self._parts[journal.folder] = Part(journal, self.unit.name)
        return known

    def close(self) -> None:
        for part in self._parts.values():
            part.close()
        self.unit.close()

    def abandon(self) -> None:
        for part in self._parts.values():
            part.abandon()
        self.unit.close()


@dataclass(slots=True)
class _Chain:
    """An item that a unit gave, and those that follow from it."""

    open: _Open
    n_running: int = 0


class _Flow:
    """The moving parts of one `fill`: tasks in flight, open units, what came of it."""

    def __init__(
        self,
        n_in_flight: int,
        n_units: int,
        stop: asyncio.Event | None,
        on_done: Callable[[Item, Json], None],
        on_open: Callable[[Item, str], None],
    ) -> None:
        self.filled = Filled()
        self._n_in_flight = n_in_flight
        self._n_units = n_units
        self._on_done = on_done
        self._on_open = on_open
        self._open: set[_Open] = set()
        self._n_chains = 0
        self._tasks: dict[asyncio.Task[Json], tuple[Item, _Chain]] = {}
        # Waiting on all tasks each time would cost as many callbacks as there are tasks, for each that ends.
        self._finished: deque[asyncio.Task[Json]] = deque()
        self._woken = asyncio.Event()
        self._unanswered: dict[Path, int] = {}
        """Items of each journal in a row."""
        self._is_ending = False
        self._stop = stop
        self._stopping = asyncio.ensure_future(stop.wait()) if stop else None
        if self._stopping:
            self._stopping.add_done_callback(lambda _: self._woken.set())

    async def run(self, units: Iterable[Unit]) -> bool:
        """False if it was stopped before everything was done."""
        source = iter(units)
        while await self._until(lambda: len(self._open) < self._n_units):
            unit = next(source, None)
            if unit is None:
                return await self._until(lambda: not self._tasks)
            opened = _Open(unit)
            self._open.add(opened)
            items = iter(unit.items)
            while await self._until(lambda: self._n_chains < self._n_in_flight):
                item = next(items, None)
                if item is None:
                    break
                self._n_chains += 1
                self._begin(item, _Chain(opened))
            self._leave(opened)
        return False

    async def finish_within(self, seconds: float) -> None:
        """Begins nothing more, and waits for what is in flight, so long."""
        self._is_ending = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    # Why it ends is known; an LLM that has failed for one fails for others too.
                    with contextlib.suppress(LLMError):
                        await self._collect()

    async def abandon(self) -> None:
        tasks: list[asyncio.Future[Any]] = [*self._tasks, *([self._stopping] if self._stopping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for opened in self._open:
            opened.abandon()

    @property
    def _is_stopped(self) -> bool:
        return self._is_ending or (self._stop is not None and self._stop.is_set())

    async def _until(self, fits: Callable[[], bool]) -> bool:
        """Takes what ends until it `fits`; False if all is to stop."""
        while not self._is_stopped and not fits():
            await self._collect()
        return not self._is_stopped

    def _begin(self, item: Item, chain: _Chain) -> None:
        chain.n_running += 1
        chain.open.n_left += 1
        task = asyncio.ensure_future(item.work())
        self._tasks[task] = item, chain
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Json]) -> None:
        self._finished.append(task)
        self._woken.set()

    async def _collect(self) -> None:
        """Waits until something has ended, or all is to stop, and takes what there is."""
        if not self._finished:
            self._woken.clear()
            await self._woken.wait()
        # All are taken before any error is raised, so that it doesn't lose another's finished record.
        errors: list[BaseException] = []
        while self._finished:
            task = self._finished.popleft()
            item, chain = self._tasks.pop(task)
            try:
                self._take(task, item, chain)
            except BaseException as error:  # noqa: BLE001  raised below
                errors.append(error)
        if errors:
            raise next((error for error in errors if not isinstance(error, LLMError)), errors[0])
        for n in self._unanswered.values():
            if n >= _GIVE_UP_AFTER:
                raise LLMUnavailable(
                    f"{n} items in a row got no answer; the last said: {next(reversed(self.filled.reasons))}. "
                    f"What is done is written; resume when it is back."
                )

    def _take(self, task: asyncio.Task[Json], item: Item, chain: _Chain) -> None:
        try:
            record = task.result()
        except LLMUnavailable as error:
            self.filled.n_open += 1
            reason = self.filled.reasons.pop(str(error), 0)
            self.filled.reasons[str(error)] = reason + 1
            self._unanswered[item.journal.folder] = self._unanswered.get(item.journal.folder, 0) + 1
            self._on_open(item, str(error))
        except Pending:
            self.filled.n_pending += 1
        else:
            chain.open.part(item.journal).append(item.key, record)
            self.filled.n_done += 1
            self._unanswered.pop(item.journal.folder, None)
            self._on_done(item, record)
            if not self._is_stopped:
                for following in item.then(record):
                    self._begin(following, chain)
        chain.n_running -= 1
        if not chain.n_running:
            self._n_chains -= 1
        self._leave(chain.open)

    def _leave(self, opened: _Open) -> None:
        opened.n_left -= 1
        if not opened.n_left:
            self._open.discard(opened)
            opened.close()
