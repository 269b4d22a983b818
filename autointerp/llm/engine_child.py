"""The child's side of an engine: what `engine_process.py` starts, and what it exchanges with it.

A module that is such a child says how its model is loaded and what answers a request, and calls `run`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, Protocol

import orjson

from autointerp.llm.engine_process import MAX_LINE
from autointerp.llm.process_guard import pass_over
from autointerp.types import Json


class Serving(Protocol):
    """A loaded model that answers requests as they come."""

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer. None: it reads whatever comes."""
        ...

    def add(self, request: Json) -> None:
        """Its answer, `{id, answer | refused | failed}`, is written when it is known."""
        ...

    def cancel(self, number: int) -> None:
        """Nobody waits for the answer to this request any more."""
        ...

    def end(self) -> None:
        """Nobody asks any more."""
        ...


class InTurn:
    """One thread works; requests that come meanwhile wait, and several that wait may be taken together."""

    def __init__(
        self,
        answer: Callable[[list[Json]], list[Json]],
        writer: asyncio.StreamWriter,
        *,
        context_length: int | None = None,
        take: Callable[[dict[int, Json]], list[int]] = lambda waiting: [next(iter(waiting))],
    ) -> None:
        """`answer` gives one answer a request, in any order. `take` chooses the next ones among those that wait,
        at least one; alone, and the one that came first, unless told otherwise."""
        self.context_length = context_length
        self._answer, self._take, self._writer = answer, take, writer
        self._waiting: dict[int, Json] = {}
        self._came = asyncio.Event()
        self._pool = ThreadPoolExecutor(1)
        self._working = asyncio.create_task(self._work())
        self._working.add_done_callback(end_on_fault)

    def add(self, request: Json) -> None:
        self._waiting[request["id"]] = request
        self._came.set()

    def cancel(self, number: int) -> None:
        self._waiting.pop(number, None)

    def end(self) -> None:
        self._working.cancel()

    async def _work(self) -> None:
        while True:
            await self._came.wait()
            await asyncio.sleep(0)  # whatever has come with it is taken with it
            while self._waiting:
                batch = [self._waiting.pop(number) for number in self._take(self._waiting)]
                for said in await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, batch):
                    self._writer.write(orjson.dumps(said) + b"\n")
                await self._writer.drain()
            self._came.clear()


def end_on_fault(task: asyncio.Task[None]) -> None:
    """A fault that nobody foresaw ends the process: else requests would wait forever."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        leave(1)


def leave(status: int) -> NoReturn:
    """At once: threads and processes of a model may hang, and the guard takes them all down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(load: Callable[[Json, asyncio.StreamWriter], Serving]) -> NoReturn:
    """The whole process. `load` gets the engine's setup and where answers are written, inside the event loop, and
    raises whatever there is to raise."""
    # Schedulers send it to all processes of a job; the parent says what it means. See `process_guard`.
    signal.signal(signal.SIGTERM, pass_over)
    status = 1
    try:
        asyncio.run(_serve(int(sys.argv[1]), load))
        status = 0
    finally:
        if status:
            traceback.print_exc()
        leave(status)


async def _serve(fd: int, load: Callable[[Json, asyncio.StreamWriter], Serving]) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=MAX_LINE)
    setup: Json = orjson.loads(await reader.readline())
    try:
        serving = load(setup, writer)
    except Exception as error:
        writer.write(orjson.dumps({"fatal": f"{type(error).__name__}: {error}"}) + b"\n")
        await writer.drain()
        raise
    writer.write(orjson.dumps({"ready": {"context_length": serving.context_length}}) + b"\n")
    while line := await reader.readline():
        request: Json = orjson.loads(line)
        if "cancel" in request:
            serving.cancel(request["cancel"])
        else:
            serving.add(request)
    serving.end()
