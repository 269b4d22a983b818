"""How work reports itself: to a terminal, to a log, to nobody. And how it is asked to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from autointerp.errors import Interrupted

T = TypeVar("T")


class Progress(Protocol):
    """Whoever wants to know. Calls come from one thread."""

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """A stage starts: `total` units (`features`, `tokens`) of work, `done` of them from before. Several may
        be under way at once."""
        ...

    def advance(self, n: int = 1, stage: str = "") -> None:
        """`stage`: which of those under way; the last one that began where it is left out."""
        ...

    def note(self, text: str) -> None:
        """Something the user should read, in one line."""
        ...

    def end(self) -> None:
        """All stages under way are over, however they ended. Doing it twice does no harm."""
        ...


class Silent:
    """Reports to nobody: the default of the library."""

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None: ...
    def advance(self, n: int = 1, stage: str = "") -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


class Stop:
    """A wish to stop, set from a signal handler or another thread, seen by loops and by event loops."""

    def __init__(self) -> None:
        self._wished = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def set(self) -> None:
        self._wished.set()
        for callback in list(self._callbacks):
            callback()

    def is_set(self) -> bool:
        return self._wished.is_set()

    def check(self) -> None:
        """Raises Interrupted if stopping is wished for."""
        if self._wished.is_set():
            raise Interrupted

    def on_set(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when it is set; at once if it is."""
        self._callbacks.append(callback)
        if self._wished.is_set():
            callback()

    def event(self) -> asyncio.Event:
        """An asyncio event of the running loop that is set together with this."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

        self.on_set(wake)
        if self.is_set():
            event.set()  # now, not with the loop's next turn: nothing more is begun
        return event


async def until_stopped(work: Coroutine[Any, Any, T], stop: Stop) -> T:
    """What `work` gives; a wish to stop need not wait for a server that hangs, or takes a day. Raises
    Interrupted."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.event().wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stop.check()
        return await working
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
