"""One server's address: one POST, what its answer is, and how fast it may be asked.

A POST goes over the SDK's HTTP client on its aiohttp transport, with the address and the headers that the SDK
makes of its settings. These are constant, so they are made once: the SDK's `post` makes options, headers and
address anew, which is half of what a request through it costs, and the typed `chat.completions.create` costs
twice as much again. An answer is read by orjson. What is retried is said once, in `server_errors.py`, and how, in
`retries.py`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

import orjson

from autointerp.errors import LLMUnavailable
from autointerp.llm import chat_format
from autointerp.llm.exchange import Usage
from autointerp.llm.metering import UNCOUNTED, current
from autointerp.llm.pacing import Pace, Turn
from autointerp.llm.retries import Passing
from autointerp.llm.server_errors import (
    Server,
    causes_of,
    error_in,
    is_missing,
    is_this_machine,
    said,
    status_of,
)
from autointerp.types import Json

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

MAX_CONNECT_S: Final = 10.0
TOKENS_A_CHARACTER: Final = 0.3
"""Of English with some markup, until the server's own counts are known."""
DOWN_AFTER: Final = 3
"""Failures in a row after which an address is taken to be down; one at which nothing listens is at once."""
DOWN_S: Final = 5.0
"""One that is down gets no requests for so long, while others do; then one at a time, until it answers."""


class LeftQueue(Exception):
    """(signal) The server went down while a request waited for its turn, and another one is up."""


class Endpoint:
    """A server at one address."""

    def __init__(self, server: Server, key: str, timeout_s: float, pace: Pace) -> None:
        import openai

        self.server = server
        self.pace = pace
        self.has_answered = False
        # Shorter than the whole: who runs into it has sent nothing, and owes nothing.
        self._timeout_s, self._connect_s = timeout_s, min(timeout_s / 2, MAX_CONNECT_S)
        self._tokens_a_character = TOKENS_A_CHARACTER
        self._n_failed, self._down_until = 0, 0.0
        local = is_this_machine(server.url)
        # Loading certificates takes 50 ms, and http needs none. (A redirect to https would fail, safely.)
        tls = True if server.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # A proxy from the environment can't reach this machine's own servers.
        self._http = openai.DefaultAioHttpClient(trust_env=not local, verify=tls)
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",  # the SDK insists on one
            base_url=server.url,
            max_retries=0,
            http_client=self._http,
        )
        self._prepared: dict[str, Callable[[bytes], httpx2.Request]] = {}

    @property
    def is_down(self) -> bool:
        return self._n_failed >= DOWN_AFTER and (time.monotonic() < self._down_until or self.n_waiting > 0)

    @property
    def n_waiting(self) -> int:
        return self.pace.n_waiting

    async def ask(
        self,
        path: str,
        body: Json,
        n_characters: int,
        read: Callable[[Json, float], T],
        elsewhere: Callable[[], bool] = lambda: False,
    ) -> T:
        """`read(answer, seconds)` of the answer to one POST, when it is its turn. `n_characters`: of the prompt.
        `elsewhere`: whether another address would take it.

        Raises Passing, LeftQueue, or what `server_errors` makes of the answer."""
        was_down = self._n_failed >= DOWN_AFTER
        answers = sum(body.get(name, 0) for name in ("max_tokens", "max_completion_tokens"))
        async with self.pace.turn(n_characters * self._tokens_a_character + answers) as turn:
            if self._n_failed >= DOWN_AFTER and not was_down and elsewhere():
                turn.used(0)
                raise LeftQueue
            try:
                answer, seconds = await self._post(path, body, turn)
            except (Passing, LLMUnavailable) as failure:
                if not turn.is_refused:
                    at_once = isinstance(failure, LLMUnavailable) or failure.unconnected
                    self._failed(DOWN_AFTER if at_once else 1)
                raise
            self._count(answer, n_characters, turn)
        try:
            value = read(answer, seconds)
        except chat_format.NotAnAnswer as fault:
            self._failed(1)
            billed = chat_format.usage_of(answer)
            raise Passing(f"its answer can't be read: {fault}", billed=billed) from None
        self.has_answered, self._n_failed = True, 0
        return value

    def _failed(self, n: int) -> None:
        """Counts as `n` failures in a row."""
        self._n_failed += n
        if self._n_failed >= DOWN_AFTER:
            self._down_until = time.monotonic() + DOWN_S

    async def _post(self, path: str, body: Json, turn: Turn) -> tuple[Json, float]:
        import aiohttp
        import httpx2

        content = orjson.dumps(body)
        start = time.monotonic()
        current().sends()
        try:
            # For the whole of it: a limit on a single read would let a server that drips hold us forever.
            async with asyncio.timeout(self._timeout_s):
                response = await self._http.send(self._request_to(path)(content))
        except TimeoutError:
            raise Passing(f"no answer within {self._timeout_s:g} s", billed=UNCOUNTED) from None
        except (httpx2.RequestError, aiohttp.ClientError) as error:
            # The transport calls every lost connection a timeout; the causes tell them apart.
            causes = causes_of(error)
            unconnected = any(isinstance(cause, aiohttp.ClientConnectorError) for cause in causes)
            is_sent = not unconnected and not any(
                isinstance(cause, aiohttp.ConnectionTimeoutError) for cause in causes
            )
            raise Passing(
                self.server.shown(said(causes[-1])),
                unconnected=unconnected,
                billed=UNCOUNTED if is_sent else None,
            ) from None
        seconds = time.monotonic() - start
        if not response.is_success:
            await self._fail(response.status_code, _error_of(response), response.headers, turn)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            excerpt = self.server.shown(response.text, 80)
            raise Passing(
                f"its answer is not JSON, or not all of it: '{excerpt}'", billed=UNCOUNTED
            ) from None
        if not isinstance(answer, dict):
            raise Passing(f"its answer is no JSON object but {type(answer).__name__}", billed=UNCOUNTED)
        answer = cast(Json, answer)
        error = error_in(answer)
        if error is not None:  # gateways say 200 before the model behind them has begun
            used = chat_format.usage_of(answer)
            await self._fail(
                status_of(error), error, response.headers, turn, billed=used if used.counted else None
            )
        return answer, seconds

    def _request_to(self, path: str) -> Callable[[bytes], httpx2.Request]:
        """A POST of so many bytes to a path, all but these made already."""
        known = self._prepared.get(path)
        if known is None:
            known = self._prepared[path] = self._prepare(path)
        return known

    def _prepare(self, path: str) -> Callable[[bytes], httpx2.Request]:
        import httpx2

        # The settings of the SDK's that stand in the environment (organization, project) are among these.
        made = {**self._http.headers, **self._client.auth_headers, **self._client.default_headers}
        # What the SDK tells of this machine answers nothing, and each header costs.
        headers = httpx2.Headers(
            [
                (name, value)
                for name, value in {name.lower(): value for name, value in made.items()}.items()
                if isinstance(value, str) and not name.startswith("x-stainless-")
            ]
        )
        url = self._client.base_url.join(path.lstrip("/"))
        # How long an answer may take is watched over by `_post`; a timer a read would cost, too.
        extensions = {"timeout": httpx2.Timeout(None, connect=self._connect_s).as_dict()}

        def request(content: bytes) -> httpx2.Request:
            # As a stream: `content` would have the headers searched for what aiohttp writes by itself.
            made = httpx2.Request(
                "POST", url, headers=headers, stream=httpx2.ByteStream(content), extensions=extensions
            )
            made.read()
            return made

        return request

    def _count(self, answer: Json, n_characters: int, turn: Turn) -> None:
        """Tokens as the server counts them, for the limit and for what the next requests are thought to be."""
        usage = cast(Any, answer.get("usage"))
        if not isinstance(usage, dict):
            return
        prompt, all_of_it = (cast(Json, usage).get(name) for name in ("prompt_tokens", "total_tokens"))
        if isinstance(prompt, int) and prompt > 0 and n_characters:
            self._tokens_a_character += 0.1 * (prompt / n_characters - self._tokens_a_character)
        if isinstance(all_of_it, int):
            turn.used(all_of_it)

    async def _fail(
        self,
        status: int,
        error: object,
        headers: Mapping[str, str],
        turn: Turn,
        *,
        billed: Usage | None = None,
    ) -> NoReturn:
        models = await self.models() if is_missing(status, error) else []
        verdict = self.server.verdict(status, error, headers, models)
        if isinstance(verdict, Passing):
            verdict.billed = billed
        if isinstance(verdict, Passing):
            if status == 429:
                turn.refused(verdict.wait_s)
            elif verdict.wait_s is not None:
                turn.waits(verdict.wait_s)
        raise verdict from None  # the SDK's may quote the key

    async def models(self) -> list[str]:
        """The names of what the server has: a wrong one is a user's most frequent fault. Empty if unknown."""
        import aiohttp
        import httpx2
        import openai

        try:
            response = await self._client.get("/models", cast_to=httpx2.Response, options={"timeout": 5.0})
            return chat_format.read_model_names(orjson.loads(response.content))
        except (openai.OpenAIError, aiohttp.ClientError, ValueError):
            return []

    async def close(self) -> None:
        await self._client.close()


def _error_of(response: httpx2.Response) -> object:
    """What a body says of the failure: what stands under `error`, or all of it."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return response.text.strip()
    return cast(Json, body).get("error", body) if isinstance(body, dict) else body
