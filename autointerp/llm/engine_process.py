"""An LLM engine in a child process: JSON lines over a socket, any number of requests at once.

    parent                                    child (`python -m autointerp.llm.vllm_engine`), under a guard
    Engine(setup, ...)   --socket-->          one line: setup; then {id, ...} a request, {cancel: id}
                         <--socket--          {ready: ...}; then {id, answer | refused | failed} a request

The other side is `engine_child.py`. The child starts with the first request. It ends when the socket does;
`process_guard` sees to it that nothing it has started outlives it, or us.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from autointerp.children import end_of, import_path
from autointerp.errors import LLMBadRequest, LLMError, LLMStopped, LLMUnavailable
from autointerp.llm import engine_pids
from autointerp.llm.process_guard import GRACE_S
from autointerp.types import Json

ENDING_S: Final = GRACE_S + 4.0
"""An engine whose parent was killed is gone by then."""
MAX_LINE: Final = 2**28
"""Bytes of a message, far above any prompt."""


class Engine:
    """One engine. `ask` may be called concurrently from one event loop."""

    def __init__(self, module: str, setup: Json, log: Path, environment: Mapping[str, str]) -> None:
        """`module` is run as the child and gets `setup`, in which `model` is the name for messages."""
        self._module = module
        self._setup = setup
        self._log = log
        self._environment = dict(environment)
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._start: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._dead: LLMError | None = None

    @property
    def n_waiting(self) -> int:
        """Requests without an answer yet."""
        return len(self._waiting)

    @property
    def is_down(self) -> bool:
        return self._dead is not None

    async def ask(self, request: Json) -> Json:
        """The answer to a request.

        Raises LLMBadRequest where the engine refuses it, LLMUnavailable where the engine or the request
        failed, LLMStopped where the engine does not start.
        """
        number = next(self._numbers)
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future  # before it has started, so that whoever chooses among engines sees it
        try:
            await self._started()
            await self._send({"id": number, **request})
            said = await future
        except asyncio.CancelledError:
            if self._writer is not None and self._dead is None:
                self._writer.write(orjson.dumps({"cancel": number}) + b"\n")
            raise
        finally:
            self._waiting.pop(number, None)
        if "refused" in said:
            raise LLMBadRequest(f"{self._setup['model']} refuses this request: {said['refused']}")
        if "failed" in said:
            raise LLMUnavailable(f"{self._setup['model']} failed at a request: {said['failed']}")
        return said["answer"]

    async def close(self) -> None:
        """Ends the engine and waits until nothing of it is left."""
        if self._start is not None:
            self._start.cancel()
            # Why it did not start, if so, was told to whoever asked.
            await asyncio.gather(self._start, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
        if self._reading is not None:
            await self._reading
        else:
            await self._bury()

    # --- start -------------------------------------------------------------------------------------------

    async def _started(self) -> None:
        if self._dead is not None:
            raise self._death()
        if self._start is None:
            self._start = asyncio.create_task(self._begin())
        await asyncio.shield(self._start)  # one request that is given up must not end it for the others

    async def _begin(self) -> None:
        await _no_orphans()
        ours, theirs = socket.socketpair()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log.open("ab") as output:
            fd = str(theirs.fileno())
            python = (sys.executable, "-m")
            self._guard = subprocess.Popen(
                [*python, "autointerp.llm.process_guard", fd, *python, self._module, fd],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # its own group, which can be killed whole
                env=os.environ | {"PYTHONPATH": import_path()} | self._environment,
            )
        record = engine_pids.record(self._guard.pid, self._setup["model"])
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader, ready, record))
        await self._send(self._setup)
        await ready
        engine_pids.record(self._guard.pid, self._setup["model"])  # by now with all it has started

    async def _send(self, message: Json) -> None:
        assert self._writer is not None
        try:
            self._writer.write(orjson.dumps(message) + b"\n")
            await self._writer.drain()
        except ConnectionError:
            return  # it has ended: whoever reads learns of it, and tells all who wait

    # --- answers -----------------------------------------------------------------------------------------

    async def _read(self, reader: asyncio.StreamReader, ready: asyncio.Future[None], record: Path) -> None:
        reason = ""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                said: Json = orjson.loads(line)
                if "id" in said:
                    future = self._waiting.get(said["id"])
                    if future is not None and not future.done():
                        future.set_result(said)
                elif "fatal" in said:
                    reason = said["fatal"]
                elif not ready.done():
                    ready.set_result(None)
        await self._bury()
        record.unlink(missing_ok=True)
        model, tail = self._setup["model"], f"The end of {self._log}:\n{end_of(self._log)}"
        if ready.done():
            self._dead = LLMUnavailable(f"the engine of {model} died. Start the run again. {tail}")
        else:
            self._dead = LLMStopped(f"{model} can't start: {reason or 'it ended'}. {tail}")
            if not ready.cancelled():
                ready.set_exception(self._death())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._death())
                future.exception()  # those who still wait for the start learn of it there

    def _death(self) -> LLMError:
        """A new one for each who is told: raising one twice would mix up their tracebacks."""
        assert self._dead is not None
        return type(self._dead)(str(self._dead))

    async def _bury(self) -> None:
        """Waits for the guard, which takes all others down; kills the group where the guard was killed."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        until = time.monotonic() + ENDING_S
        # Its number stays taken until `wait`, so that group and session below are surely ours.
        while time.monotonic() < until and not os.waitid(
            os.P_PID, guard.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG
        ):
            await asyncio.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        while time.monotonic() < until and engine_pids.of_session(guard.pid):
            await asyncio.sleep(0.02)  # the cards' memory is free when they are gone, not when they are told
        guard.wait()
        assert guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.close()


async def _no_orphans() -> None:
    """Raises LLMStopped where an engine outlived its parent; a guard gets the time to end it first."""
    until = time.monotonic() + ENDING_S
    while left := engine_pids.orphans():
        if time.monotonic() > until:
            pids = " ".join(str(process.pid) for orphan in left for process in orphan.processes)
            models = ", ".join(sorted({orphan.model for orphan in left}))
            raise LLMStopped(
                f"an engine that an earlier run left behind still runs ({models}; processes {pids}), and may "
                f"hold the cards' memory. End it: kill -9 {pids}"
            )
        await asyncio.sleep(0.2)
