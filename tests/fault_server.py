"""A scripted adversary: a real OpenAI-compatible HTTP server on 127.0.0.1 that fails on demand.

    with FaultServer(in_turn(rate_limited(retry_after="0.3"), ok("yes"))) as server:
        ...  # talk to server.url
    assert len(server.requests) == 2

A script is called with the number of the request (0 the first, over all POSTs) and its body, and says how
to behave; None means well, with the endpoint's default answer. Being a server and no mock, it tests every
client alike, whatever HTTP library is underneath.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

Json = dict[str, Any]
Behaviour = Callable[[web.Request, Json], Awaitable[web.StreamResponse]]
Script = Callable[[int, Json], Behaviour | None]


@dataclass(frozen=True, slots=True)
class Received:
    """One POST as it came in."""

    path: str
    body: Json
    headers: Mapping[str, str]
    time_s: float
    """time.monotonic() when its body had been read."""


@dataclass(slots=True)
class Limits:
    """Limits that the server counts against and does not enforce: what a client has passed them by, at most."""

    requests_per_s: int
    tokens_per_minute: float
    excess_requests: int = 0
    """In any second."""
    excess_tokens: float = 0.0
    """Beyond a twentieth of a minute's tokens at once, and the rest evenly over the minute."""
    largest: int = 0
    """Tokens of the largest request."""
    _last_second: deque[float] = field(default_factory=deque)
    _used: float = 0.0
    _at_s: float | None = None

    def count(self, n_tokens: int, now_s: float) -> None:
        """A request of so many tokens comes in."""
        self._last_second.append(now_s)
        while self._last_second[0] <= now_s - 1.0:
            self._last_second.popleft()
        self.excess_requests = max(self.excess_requests, len(self._last_second) - self.requests_per_s)
        self.largest = max(self.largest, n_tokens)
        passed_s = now_s - (now_s if self._at_s is None else self._at_s)
        refilled = passed_s * self.tokens_per_minute * 19 / 20 / 60
        self._used, self._at_s = max(0.0, self._used - refilled) + n_tokens, now_s
        self.excess_tokens = max(self.excess_tokens, self._used - self.tokens_per_minute / 20)


def n_tokens_of(body: Json, text: str | None) -> tuple[int, int]:
    """Of a prompt and its answer, as this server counts."""
    return sum(len(turn["content"]) // 4 + 4 for turn in body["messages"]), len(text or "") // 4 + 1


class FaultServer:
    """Runs in a thread with an event loop of its own, from `with` to the end of the block."""

    def __init__(self, script: Script | None = None, *, models: tuple[str, ...] = ("tiny",)) -> None:
        self.well: Counter[str] = Counter()
        """How often a chat completion was made for each body: what a client pays for, also where it did not wait."""
        self.script: Script = script or (lambda _number, _body: None)
        self.models = models
        self.requests: list[Received] = []
        self.url = ""
        """Base URL for a client, with /v1."""
        self._cut: set[object] = set()
        """Connections that this server ended itself: what was being made for them never arrived."""
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("the fault server did not start within 10 s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Goes away before the end of the block; from then on connections are refused."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        application = web.Application(client_max_size=64 << 20)
        application.router.add_get("/v1/models", self._list_models)
        application.router.add_post("/v1/chat/completions", self._answer)
        application.router.add_post("/v1/embeddings", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        self._runner = runner
        self._site = web.TCPSite(runner, "127.0.0.1", 0)
        await self._site.start()
        self._port: int = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _list_models(self, _request: web.Request) -> web.StreamResponse:
        return _json({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body: Json = orjson.loads(await request.read())
        number = len(self.requests)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Received(request.path, body, headers, time.monotonic()))
        behaviour = self.script(number, body)
        if behaviour is None:
            behaviour = embedded() if request.path.endswith("/embeddings") else ok()
        response = await behaviour(request, body)
        if request.get(_WELL) and request.protocol not in self._cut:
            content = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
            self.well[hashlib.blake2b(content, digest_size=16).hexdigest()] += 1
        return response

    def dies_for(self, seconds: float) -> Behaviour:
        """All connections end and new ones are refused, for so long; then it is back at the same address."""

        async def answer(request: web.Request, _body: Json) -> web.StreamResponse:
            await self._site.stop()
            assert self._runner.server is not None
            for connection in list(self._runner.server.connections):
                self._cut.add(connection)
                if connection.transport is not None:
                    connection.transport.close()  # what is written is still sent
            self._reviving = asyncio.ensure_future(self._revive(seconds))
            return web.Response()

        return answer

    async def _revive(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await self._site.start()


_WELL = web.RequestKey("answered well", bool)


def refused_url() -> str:
    """A base URL at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


# --- scripts -------------------------------------------------------------------------------------------


def in_turn(*behaviours: Behaviour | None) -> Script:
    """The first request gets the first behaviour, and so on; the last one stays."""
    return lambda number, _body: behaviours[min(number, len(behaviours) - 1)]


# --- good answers --------------------------------------------------------------------------------------


def ok(
    text: str | None = "ok",
    *,
    finish_reason: str = "stop",
    logprobs: list[Json] | None = None,
    usage: Json | None = None,
    message: Json | None = None,
) -> Behaviour:
    """A chat completion. `logprobs` is one entry an answer token, see `token`; `message` adds fields."""

    async def answer(request: web.Request, body: Json) -> web.StreamResponse:
        request[_WELL] = True
        choice: Json = {
            "index": 0,
            "message": {"role": "assistant", "content": text, **(message or {})},
            "finish_reason": finish_reason,
            "logprobs": None if logprobs is None else {"content": logprobs},
        }
        counts = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8} if usage is None else usage
        return _json(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body.get("model"),
                "choices": [choice],
                "usage": counts,
            }
        )

    return answer


def token(text: str, logprob: float, top: Mapping[str, float] | None = None) -> Json:
    """An entry of a reply's logprobs: the sampled token and the most likely ones at its place."""
    return {
        "token": text,
        "logprob": logprob,
        "bytes": None,
        "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in (top or {}).items()],
    }


def echo() -> Behaviour:
    """Answers with the last turn's text, so that a client can tell its answers apart."""

    async def answer(request: web.Request, body: Json) -> web.StreamResponse:
        return await ok(f"echo {body['messages'][-1]['content']}")(request, body)

    return answer


def embedded(*, missing: int = 0) -> Behaviour:
    """A vector (length of the text, 1.0) a text, in reverse order as a server may; the last `missing` not."""

    async def answer(_request: web.Request, body: Json) -> web.StreamResponse:
        texts = body["input"][: len(body["input"]) - missing]
        data = [
            {"object": "embedding", "index": i, "embedding": [float(len(text)), 1.0]}
            for i, text in enumerate(texts)
        ]
        return _json({"object": "list", "data": data[::-1], "model": body.get("model")})

    return answer


# --- bad ones ------------------------------------------------------------------------------------------


def status(code: int, error: object = None, *, headers: Mapping[str, str] | None = None) -> Behaviour:
    """An HTTP error; `error` is what stands under "error" in its body."""

    async def answer(_request: web.Request, _body: Json) -> web.StreamResponse:
        return _json({"error": error or {"message": f"status {code}"}}, code, headers)

    return answer


def rate_limited(*, retry_after: str | None = None, retry_after_ms: str | None = None) -> Behaviour:
    named = {"retry-after": retry_after, "retry-after-ms": retry_after_ms}
    error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
    return status(429, error, headers={name: value for name, value in named.items() if value is not None})


def quota_used_up() -> Behaviour:
    error = {
        "message": "You exceeded your current quota",
        "type": "insufficient_quota",
        "code": "insufficient_quota",
    }
    return status(429, error)


def error_in_200(error: object) -> Behaviour:
    """As gateways do once a model has begun: status 200 and an `error` where the choices should be."""

    async def answer(_request: web.Request, _body: Json) -> web.StreamResponse:
        return _json({"error": error})

    return answer


def no_choices() -> Behaviour:
    async def answer(_request: web.Request, _body: Json) -> web.StreamResponse:
        return _json({"object": "chat.completion", "choices": []})

    return answer


def body_of(text: str) -> Behaviour:
    """Status 200 and a body that may be anything: half a JSON, a web page."""

    async def answer(_request: web.Request, _body: Json) -> web.StreamResponse:
        return web.Response(body=text.encode(), content_type="application/json")

    return answer


def slow(seconds: float, then: Behaviour) -> Behaviour:
    async def answer(request: web.Request, body: Json) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await then(request, body)

    return answer


def dripping(n_bytes: int, every_s: float) -> Behaviour:
    """Sends a space now and then, so that no single read ever takes long, and no answer."""

    async def answer(request: web.Request, _body: Json) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for _ in range(n_bytes):
            await response.write(b" ")
            await asyncio.sleep(every_s)
        return response

    return answer


def cut_before_body() -> Behaviour:
    """The connection ends with no response at all."""

    async def answer(request: web.Request, _body: Json) -> web.StreamResponse:
        _cut(request)
        return web.Response()

    return answer


def cut_in_body() -> Behaviour:
    """The connection ends after half of the promised body."""

    async def answer(request: web.Request, _body: Json) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": ')
        _cut(request)
        return response

    return answer


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()  # what is already written is still sent


def _json(value: object, code: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=code, headers=headers, content_type="application/json"
    )
