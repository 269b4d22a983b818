"""Any server that speaks OpenAI's chat completions: OpenAI, OpenRouter, vLLM, SGLang, llama.cpp, ..."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

from autointerp.errors import LLMBadRequest, LLMFiltered, LLMStopped, LLMUnavailable, RecipeError
from autointerp.llm import chat_format, chat_request, metering
from autointerp.llm.dialects import (
    OPENAI,
    Constrain,
    Dialect,
    MaxTokensField,
    dialect_of,
    priced,
    with_cost,
)
from autointerp.llm.endpoints import Endpoint, LeftQueue
from autointerp.llm.exchange import Prices, Reply, Request, Usage
from autointerp.llm.left_out import Learned
from autointerp.llm.pacing import Pace
from autointerp.llm.protocol import ANYWHERE, ByRequest, Capabilities, LLMIdentity, Place
from autointerp.llm.retries import Passing, try_again
from autointerp.llm.routing import place_of
from autointerp.llm.server_errors import RefusedSetting, Server, address_fault, is_this_machine
from autointerp.llm.server_key import key_of
from autointerp.llm.sockets import room
from autointerp.prompting import Prompt
from autointerp.types import Json

T = TypeVar("T")

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
    base_url: str | list[str] | None = None
    """Up to and with `/v1`. None: OPENAI_BASE_URL, or else OpenAI itself. Several (a list; in the environment
    with commas between) are servers of the same model: prompts that begin alike go to one of them, and what is
    limited is limited for each."""
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
    tokens_per_minute: float | None = None
    """Limit on tokens, of prompts and answers. None: no limit."""
    system_role: bool | None = None
    """False: the system turn goes into the first user turn, for models whose template has none. Here and below
    None is what `dialects.yaml` says of the model."""
    max_tokens_field: MaxTokensField | None = None
    """OpenAI's reasoning models want max_completion_tokens, and count their thinking in it."""
    constrain: Constrain | None = None
    """How allowed answers are sent: not at all, as vLLM's structured_outputs (choices and schemas), or as
    OpenAI's response_format (schemas)."""
    logprobs: bool | None = None
    """False: the server gives no log-probabilities of answers; they are not asked for."""
    extra_body: dict[str, Any] | None = None
    """Fields added to each chat request; null takes one out. E.g. `{reasoning_effort: low,
    temperature: null}`, `{chat_template_kwargs: {enable_thinking: false}}`."""
    prices: Prices | None = None
    """US dollars for a million tokens: `{input: 0.4, cached: 0.1, output: 1.6}`. Changes no answer."""

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = True
    local: ClassVar[bool] = False
    queues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        faults = [
            f"{name}: above 0 (found {value})"
            for name, value in (
                *(("timeout_s", self.timeout_s), ("max_tries", self.max_tries)),
                *(("first_wait_s", self.first_wait_s), ("requests_per_second", self.requests_per_second)),
                ("tokens_per_minute", self.tokens_per_minute),
            )
            if value is not None and not 0 < value < math.inf
        ]
        given = [self.base_url] if isinstance(self.base_url, str) else self.base_url or []
        faults += [f"base_url: {fault}" for address in given if (fault := address_fault(address))]
        if faults:
            raise RecipeError("\n".join(faults))

    def identity(self) -> LLMIdentity:
        return chat_request.identity(self, self.revision)

    def addresses(self) -> list[str]:
        """Raises LLMStopped for one in the environment that is none."""
        if self.base_url:
            return [self.base_url] if isinstance(self.base_url, str) else self.base_url
        found = [part.strip() for part in os.environ.get("OPENAI_BASE_URL", "").split(",") if part.strip()]
        for address in found:
            if fault := address_fault(address):
                raise LLMStopped(f"OPENAI_BASE_URL: {fault}")
        return found or [OPENAI]

    def dialect(self) -> Dialect:
        return dialect_of(self, self.addresses()[0])

    def connect(self, place: Place = ANYWHERE) -> OpenaiLLM:
        """Raises LLMStopped for a missing key, an address that is none, or a faulty table of dialects."""
        addresses = self.addresses()
        key = key_of(self.api_key_env, self.model, required=not all(map(is_this_machine, addresses)))
        highest = room(max(place.n_servers, len(addresses)))
        endpoints = [
            Endpoint(
                Server(address, self.model, self.api_key_env, key),
                key,
                self.timeout_s,
                Pace(
                    n_in_flight=place.n_in_flight,
                    requests_per_second=self.requests_per_second,
                    tokens_per_minute=self.tokens_per_minute,
                    highest=highest,
                ),
            )
            for address in addresses
        ]
        return OpenaiLLM(self, Learned(self.dialect(), place.folder, str(self.identity())), endpoints)


class OpenaiLLM(ByRequest):
    """A connected server, or several of one model."""

    def __init__(self, options: Openai, learned: Learned, endpoints: Sequence[Endpoint]) -> None:
        self.identity = options.identity()
        self._options = options
        self._learned = learned
        self._endpoints = endpoints

    @property
    def capabilities(self) -> Capabilities:
        """`logprobs` is False although `label_tokens` are answered: a continuation can't be scored here."""
        return Capabilities(
            label_logprobs=self._learned.dialect.logprobs,
            embed=True,
            prices=self._learned.dialect.prices,
            left_out=self._learned.names,
            tells_when_sent=True,
        )

    async def answer(self, request: Request) -> Reply:
        """See `LLM`. `index` goes into the seed: where the temperature is 0, one more try needs another prompt.

        `latency_s` is that of the try that succeeded; what lost ones may have cost is told to the meter. A setting
        that the server refuses is left out from then on, and named in `capabilities.left_out`. A prompt that a
        content filter refuses is answered by nothing, as one is whose answer it stops.
        """

        def read(answer: Json, seconds: float) -> Reply:
            return chat_format.read_reply(answer, seconds, request.label_tokens)

        while True:
            dialect = self._learned.dialect
            body = chat_request.chat_body(self._options.model, dialect, request)
            try:
                reply = await self._ask("/chat/completions", body, prompt_of(body), read)
            except RefusedSetting as refused:
                self._learned.leave_out(refused, body)
                continue
            except LLMFiltered:
                return chat_format.FILTERED
            self._learned.took(body)
            return with_cost(reply, dialect.prices)

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        """Raises LLMBadRequest: chat servers don't score a given continuation."""
        raise LLMBadRequest("the openai backend can't score a given text; use the vllm backend for that.")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        used: list[Usage] = []

        def read(answer: Json, seconds: float, n: int) -> list[list[float]]:
            found = chat_format.read_vectors(answer, n)
            used.append(priced(chat_format.usage_of(answer, seconds), self._learned.dialect.prices))
            parts.answered()
            return found

        parts = metering.InParts()
        try:
            with metering.metered_by(parts):
                for start in range(0, len(texts), N_EMBED):
                    batch = [chat_format.encodable(text) for text in texts[start : start + N_EMBED]]
                    body: Json = {"model": self._options.model, "input": batch, "encoding_format": "float"}
                    vectors += await self._ask("/embeddings", body, batch, partial(read, n=len(batch)))
        except asyncio.CancelledError:
            if parts.is_sent:
                used.append(metering.UNCOUNTED)  # what is cut off
            raise
        finally:
            # Together, since what may be used was set aside for all of them.
            if used:
                metering.current().use(metering.total(used))
        return vectors

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()

    def _is_another_up(self, endpoint: Endpoint) -> bool:
        return any(not other.is_down for other in self._endpoints if other is not endpoint)

    # --- one request ---------------------------------------------------------------------------------

    async def _ask(
        self,
        path: str,
        body: Json,
        texts: list[str],
        read: Callable[[Json, float], T],
    ) -> T:
        """`read(answer, seconds)` of the answer to `body`, whose `texts` cost tokens; tried again while the
        failure may pass, elsewhere if another address is up."""
        n_characters = sum(map(len, texts))
        asked: list[Endpoint] = []

        async def once() -> T:
            await metering.current().may_try()
            while True:
                endpoint = place_of(texts, self._endpoints, asked[-1] if asked else None)
                asked.append(endpoint)
                elsewhere = partial(self._is_another_up, endpoint)
                try:
                    return await endpoint.ask(path, body, n_characters, read, elsewhere)
                except LeftQueue:
                    continue
                except RefusedSetting as refused:
                    metering.current().unsent()
                    self._learned.check(refused, body)
                    raise
                except LLMUnavailable as error:
                    metering.current().unsent()
                    if not elsewhere():
                        raise
                    raise Passing(str(error), wait_s=0.0) from None
                except Passing as error:
                    if error.billed is not None:
                        metering.current().use(priced(error.billed, self._learned.dialect.prices))
                    else:
                        metering.current().unsent()
                    raise

        options = self._options
        try:
            return await once()
        except Passing as error:
            failed = error
        if failed.unconnected and not any(endpoint.has_answered for endpoint in self._endpoints):
            down = [endpoint for endpoint in self._endpoints if endpoint.is_down]
            if len(down) == len(self._endpoints):
                # Waiting helps a server that was there before, not a wrong address.
                where = ", ".join(endpoint.server.address for endpoint in down)
                raise LLMUnavailable(
                    f"no server answers at {where} ({failed}). Is it running, and is base_url right?"
                )
        try:
            return await try_again(
                once, failed, max_tries=options.max_tries, first_wait_s=options.first_wait_s
            )
        except Passing as error:
            raise LLMUnavailable(
                f"{asked[-1].server.address}{path}: no answer after {options.max_tries} tries; at last: {error}."
            ) from None


def prompt_of(body: Json) -> list[str]:
    """The texts of a chat request's turns."""
    return [turn["content"] for turn in body["messages"]]
