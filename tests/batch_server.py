"""OpenAI's files and batches on 127.0.0.1, and what `vllm run-batch` does to a file: both answer by a script.

    with BatchServer(answer) as server:
        ...  # talk to server.url
    assert len(server.batches) == 2

`answer(body)` is the row of an output or error file for a request's body, see `ok_row` and `failed_row`; None
leaves it out, as servers do that were cut short.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

Json = dict[str, Any]
Answer = Callable[[Json], Json | None]


def ok_row(text: str) -> Json:
    """A row of an output file, without its custom_id."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}
    return {"response": {"status_code": 200, "request_id": "r", "body": body}, "error": None}


def failed_row(status: int, error: Json) -> Json:
    """A row of an error file, as OpenAI writes it."""
    return {"response": {"status_code": status, "request_id": "r", "body": {"error": error}}, "error": None}


def expired_row() -> Json:
    return {"response": None, "error": {"code": "batch_expired", "message": "it took too long"}}


def answered(requests: Path, answer: Answer) -> list[Json]:
    """The rows that answer a file of requests."""
    return rows_for(requests.read_bytes(), answer)


def rows_for(content: bytes, answer: Answer) -> list[Json]:
    lines = [orjson.loads(line) for line in content.splitlines()]
    rows = [(line["custom_id"], answer(line["body"])) for line in lines]
    return [{"id": f"b-{n}", "custom_id": key} | row for n, (key, row) in enumerate(rows) if row is not None]


def write_rows(path: Path, rows: list[Json]) -> None:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


class BatchServer:
    """Runs in a thread with an event loop of its own, from `with` to the end of the block."""

    def __init__(
        self, answer: Answer, *, n_looks: int = 1, shape: Callable[[list[Json]], list[Json]] = list
    ) -> None:
        self.answer = answer
        self.n_looks = n_looks
        """At a batch, before it has ended."""
        self.shape = shape
        """What is done to the rows of an output file: shuffled, cut, doubled."""
        self.files: dict[str, bytes] = {}
        self.batches: list[Json] = []
        self.uploads: list[bytes] = []
        self.models = ["tiny"]
        self.key = ""
        """Asked for, if set."""
        self.on: dict[str, Callable[[], web.Response | None]] = {}
        """By `upload`, `create`, `created`, `look`: what happens then; a response given is sent instead."""
        self.end: Callable[[Json], None] = lambda batch: None
        """Has the last word on a batch that has ended."""
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._started, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BatchServer:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        application = web.Application(client_max_size=64 << 20)
        application.router.add_get("/v1/models", self._list_models)
        application.router.add_post("/v1/files", self._upload)
        application.router.add_get("/v1/files/{id}/content", self._content)
        application.router.add_post("/v1/batches", self._create)
        application.router.add_get("/v1/batches", self._list)
        application.router.add_get("/v1/batches/{id}", self._look)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _now(self, what: str) -> web.Response | None:
        return self.on[what]() if what in self.on else None

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return reply({"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}, 401)
        return reply({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        assert form["purpose"] == "batch"
        field = form["file"]
        assert isinstance(field, web.FileField)
        content = field.file.read()
        name = f"file-{len(self.uploads)}"
        self.uploads.append(content)
        self.files[name] = content
        return self._now("upload") or reply({"id": name, "object": "file", "bytes": len(content)})

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        if (instead := self._now("create")) is not None:
            return instead
        batch = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "status": "validating",
            "looks": 0,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        } | body
        self.batches.append(batch)
        return self._now("created") or reply(batch)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        """Two a page, the newest first."""
        newest = self.batches[::-1]
        after = request.query.get("after")
        start = 1 + [batch["id"] for batch in newest].index(after) if after else 0
        page = newest[start : start + 2]
        return reply({"object": "list", "data": page, "has_more": start + 2 < len(newest)})

    async def _look(self, request: web.Request) -> web.StreamResponse:
        if (instead := self._now("look")) is not None:
            return instead
        batch = next((one for one in self.batches if one["id"] == request.match_info["id"]), None)
        if batch is None:
            return reply({"error": {"message": "No batch found"}}, 404)
        batch["looks"] += 1
        if batch["looks"] > self.n_looks and batch["status"] in ("validating", "in_progress"):
            self._finish(batch)
        elif batch["status"] == "validating":
            batch["status"] = "in_progress"
        return reply(batch)

    def _finish(self, batch: Json) -> None:
        rows = rows_for(self.files[batch["input_file_id"]], self.answer)
        good = [row for row in rows if (row["response"] or {}).get("status_code") == 200]
        bad = [row for row in rows if row not in good]
        batch["status"] = "completed"
        for field, its_rows in (("output_file_id", self.shape(good)), ("error_file_id", bad)):
            batch[field] = f"{batch['id']}-{field}" if its_rows else None
            self.files[str(batch[field])] = b"".join(orjson.dumps(row) + b"\n" for row in its_rows)
        self.end(batch)

    async def _content(self, request: web.Request) -> web.StreamResponse:
        content = self.files.get(request.match_info["id"])
        return (
            reply({"error": {"message": "No such file"}}, 404)
            if content is None
            else web.Response(body=content)
        )


def reply(value: object, code: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=code, content_type="application/json")
