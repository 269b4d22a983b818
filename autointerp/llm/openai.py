"""Any server that speaks OpenAI's chat completions: OpenAI, OpenRouter, vLLM, SGLang, llama.cpp, ...

One request is one POST through the SDK's `AsyncOpenAI.post` on its aiohttp transport. The response is asked
for raw and read by orjson: the typed `chat.completions.create` costs half as much again. The SDK's own
retries are off: what is retried is said once, in `server_errors.py`, and how, in `retries.py`.
"""

from __future__ import annotations

import asyncio
import math
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeVar, cast

import orjson

from autointerp.errors import LLMBadRequest, LLMStopped, LLMUnavailable, RecipeError
from autointerp.llm import chat_format, chat_request
from autointerp.llm.chat_request import chat_body
from autointerp.llm.protocol import ANYWHERE, Capabilities, LLMIdentity, Place, Reply
from autointerp.llm.retries import Passing, try_again
from autointerp.llm.server_errors import (
    Server,
    address_fault,
    causes_of,
    error_in,
    is_missing,
    is_this_machine,
    said,
    status_of,
)
from autointerp.llm.server_key import key_of
from autointerp.prompting import Prompt
from autointerp.types import Json

if TYPE_CHECKING:  # importing them takes a second, so it waits until somebody connects
    from asyncio_throttle.throttler import Throttler
    from openai import AsyncOpenAI

T = TypeVar("T")

MAX_CONNECT_S = 10.0
N_EMBED = 256
"""Texts a request for embeddings; OpenAI takes 2,048, small servers fewer."""


@dataclass(frozen=True, slots=True)
class Openai:
    """Any OpenAI-compatible server: OpenAI, OpenRouter, vLLM, SGLang, llama.cpp, ...

    The key is read from the environment when the run connects and is kept nowhere else.
    """

    model: str
    """As the server calls it."""
    revision: str = ""
    """Anything that tells two versions of one model name apart, for the record."""
    base_url: str | None = None
    """Up to and with `/v1`. None: OPENAI_BASE_URL, or else OpenAI itself."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; may be unset for a server on this machine. Empty: no key."""
    timeout_s: float = 120.0
    """For a whole answer, connecting and waiting in the server's queue included."""
    max_tries: int = 6
    """Requests in all before an item is given up for this run: with the waits below 15 s and more."""
    first_wait_s: float = 0.5
    """Before the second try; doubles from try to try up to 20 s. A server's Retry-After goes first."""
    requests_per_second: float | None = None
    """Limit on requests, tries included. None: no limit, the server's 429 slow us down."""
    system_role: bool = True
    """False: the system turn goes into the first user turn, for models whose template has none."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """OpenAI's reasoning models want max_completion_tokens, and count their thinking in it."""
    constrain: Literal["none", "structured_outputs"] = "none"
    """How allowed answers (choices, a schema) are sent: not at all, or as vLLM's structured_outputs."""
    extra_body: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields added to each chat request; null takes one out. E.g. `{reasoning_effort: low,
    temperature: null}`, `{chat_template_kwargs: {enable_thinking: false}}`."""

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = True
    local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        faults = [
            f"{name}: above 0 (found {value})"
            for name, value in (
                *(("timeout_s", self.timeout_s), ("max_tries", self.max_tries)),
                *(("first_wait_s", self.first_wait_s), ("requests_per_second", self.requests_per_second)),
            )
            if value is not None and not 0 < value < math.inf
        ]
        if self.base_url is not None and (fault := address_fault(self.base_url)):
            faults.append(f"base_url: {fault}")
        if faults:
            raise RecipeError("\n".join(faults))

    def identity(self) -> LLMIdentity:
        """Model and revision; behind a `+` the digest of those options that change answers, if any is set."""
        return chat_request.identity(self)

    def connect(self, place: Place = ANYWHERE) -> OpenaiLLM:
        """Raises LLMStopped for a missing key or an address that is none."""
        import openai

        address = self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        if fault := address_fault(address):
            raise LLMStopped(f"OPENAI_BASE_URL: {fault}")
        local = is_this_machine(address)
        key = key_of(self.api_key_env, self.model, required=not local)
        # Loading certificates takes 50 ms, and http needs none. (A redirect to https would fail, safely.)
        tls = True if address.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client = openai.AsyncOpenAI(
            api_key=key or "none",  # the SDK insists on one
            base_url=address,
            max_retries=0,
            timeout=openai.Timeout(self.timeout_s, connect=min(self.timeout_s, MAX_CONNECT_S)),
            # A proxy from the environment can't reach this machine's own servers.
            http_client=openai.DefaultAioHttpClient(trust_env=not local, verify=tls),
        )
        return OpenaiLLM(self, client, Server(address, self.model, self.api_key_env, key))


class OpenaiLLM:
    """A connected server."""

    def __init__(self, options: Openai, client: AsyncOpenAI, server: Server) -> None:
        self._options = options
        self._client = client
        self._server = server
        self._throttler = _throttler(options.requests_per_second)
        self._has_answered = False

    @property
    def identity(self) -> LLMIdentity:
        return self._options.identity()

    @property
    def capabilities(self) -> Capabilities:
        """`logprobs` is False although `label_tokens` are answered: a continuation can't be scored here."""
        return Capabilities(embed=True)

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        choices: Sequence[str] | None = None,
        schema: Json | None = None,
        label_tokens: Sequence[str] | None = None,
        seed: int | None = None,
        index: int = 0,
    ) -> Reply:
        """See `LLM` and `chat_body`. `index` is not sent: where the temperature is 0, one more try needs
        another prompt. `latency_s` is that of the try that succeeded."""
        body = chat_body(
            self._options,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            choices=choices,
            schema=schema,
            label_tokens=label_tokens,
            seed=seed,
        )
        return await self._ask(
            "/chat/completions", body, lambda answer, s: chat_format.read_reply(answer, s, label_tokens)
        )

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        """Raises LLMBadRequest: chat servers don't score a given continuation."""
        raise LLMBadRequest("the openai backend can't score a given text; use the vllm backend for that.")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), N_EMBED):
            batch = [chat_format.encodable(text) for text in texts[start : start + N_EMBED]]
            body: Json = {"model": self._options.model, "input": batch, "encoding_format": "float"}
            read = partial(chat_format.read_vectors, n=len(batch))
            vectors += await self._ask("/embeddings", body, lambda answer, _, read=read: read(answer))
        return vectors

    async def close(self) -> None:
        await self._client.close()

    # --- one request ---------------------------------------------------------------------------------

    async def _ask(self, path: str, body: Json, read: Callable[[Json, float], T]) -> T:
        """`read(answer, seconds)` of the answer to `body`, tried again while the failure may pass."""
        once = partial(self._once, path, body, read)
        options, address = self._options, self._server.address
        try:
            return await once()
        except Passing as error:
            failed = error
        if failed.unconnected and not self._has_answered:
            # Waiting helps a server that was there before, not a wrong address.
            raise LLMUnavailable(
                f"no server answers at {address} ({failed}). Is it running, and is base_url right?"
            )
        try:
            return await try_again(
                once, failed, max_tries=options.max_tries, first_wait_s=options.first_wait_s
            )
        except Passing as error:
            raise LLMUnavailable(
                f"{address}{path}: no answer after {options.max_tries} tries; at last: {error}."
            ) from None

    async def _once(self, path: str, body: Json, read: Callable[[Json, float], T]) -> T:
        import aiohttp
        import httpx2
        import openai

        if self._throttler is not None:
            await self._throttler.acquire()
        start = time.monotonic()
        timeout_s = self._options.timeout_s
        try:
            # The SDK's limit is for a single read; a server that drips would hold us forever.
            async with asyncio.timeout(timeout_s):
                response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            await self._fail(error.status_code, error.body, error.response.headers)
        except TimeoutError:
            raise Passing(f"no answer within {timeout_s:g} s") from None
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            # The SDK calls every lost connection on this transport a timeout; the causes tell them apart.
            causes = causes_of(error)
            unconnected = any(isinstance(cause, aiohttp.ClientConnectorError) for cause in causes)
            raise Passing(self._server.shown(said(causes[-1])), unconnected=unconnected) from None
        seconds = time.monotonic() - start
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            excerpt = self._server.shown(response.text, 80)
            raise Passing(f"its answer is not JSON, or not all of it: '{excerpt}'") from None
        if not isinstance(answer, dict):
            raise Passing(f"its answer is no JSON object but {type(answer).__name__}")
        answer = cast(Json, answer)
        error = error_in(answer)
        if error is not None:  # gateways say 200 before the model behind them has begun
            await self._fail(status_of(error), error, response.headers)
        try:
            value = read(answer, seconds)
        except chat_format.NotAnAnswer as fault:
            raise Passing(f"its answer can't be read: {fault}") from None
        self._has_answered = True
        return value

    async def _fail(self, status: int, error: object, headers: Mapping[str, str]) -> NoReturn:
        models = await self._models() if is_missing(status, error) else []
        raise self._server.verdict(status, error, headers, models) from None  # the SDK's may quote the key

    async def _models(self) -> list[str]:
        """The names of what the server has: a wrong one is a user's most frequent fault. Empty if unknown."""
        import aiohttp
        import httpx2
        import openai

        try:
            response = await self._client.get("/models", cast_to=httpx2.Response, options={"timeout": 5.0})
            return chat_format.read_model_names(orjson.loads(response.content))
        except (openai.OpenAIError, aiohttp.ClientError, ValueError):
            return []


def _throttler(requests_per_second: float | None) -> Throttler | None:
    if requests_per_second is None:
        return None
    from asyncio_throttle.throttler import Throttler

    # It counts whole requests: 2.5 a second are 2 in 0.8 s, a half is 1 in 2 s.
    n = max(1, int(requests_per_second))
    return Throttler(rate_limit=n, period=n / requests_per_second)
