"""Requests in files, answers in files: OpenAI's batches at half the price, `vllm run-batch`, or any other means.

A request that has no answer yet is put into a file and raises Pending; so one pass over the features collects
all that can be asked now. Behind it the files are sent and waited for, or left to the user; the next pass
takes the answers. They go through the request journal as any LLM's do, under the names that the openai
backend gives them: what one of the two has paid for, the other one knows.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from autointerp.errors import (
    LLMBadRequest,
    LLMFiltered,
    LLMStopped,
    LLMUnavailable,
    Pending,
    RecipeError,
)
from autointerp.llm import chat_format, chat_request
from autointerp.llm.batch_answers import Answers, imported
from autointerp.llm.batch_api import BatchServer
from autointerp.llm.batch_jobs import Jobs, said_of
from autointerp.llm.batch_refusals import Refusals
from autointerp.llm.batch_requests import RequestFile, Requests
from autointerp.llm.chat_request import chat_body
from autointerp.llm.dialects import OPENAI, Constrain, Dialect, MaxTokensField, dialect_of, with_cost
from autointerp.llm.exchange import Prices, Reply, Request
from autointerp.llm.left_out import Learned
from autointerp.llm.protocol import ANYWHERE, Awaited, ByRequest, Capabilities, LLMIdentity, Place
from autointerp.llm.replay import request_key
from autointerp.llm.server_errors import RefusedSetting, Server, address_fault, is_this_machine
from autointerp.llm.server_key import key_of
from autointerp.progress import Progress
from autointerp.prompting import Prompt

FOLDER: Final = "batch"
"""Inside the run's."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Writes requests to files in OpenAI's batch format; sends them and waits, or says how to run them."""

    model: str
    """As the server calls it."""
    revision: str = ""
    """Anything that tells two versions of one model name apart, for the record."""
    submit: bool = True
    """False: files are only written; the run ends and says how to answer them (`vllm run-batch`, ...)."""
    base_url: str | None = None
    """Up to and with `/v1`. None: OPENAI_BASE_URL, or else OpenAI itself."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; may be unset for a server on this machine. Empty: no key."""
    endpoint: str = "/v1/chat/completions"
    """What each request is sent to."""
    completion_window: str = "24h"
    """Within which the server answers or gives up."""
    max_rows: int = 50_000
    """Requests a file at most: OpenAI's limit."""
    max_bytes: int = 200_000_000
    """Bytes a file at most: OpenAI's limit."""
    first_poll_s: float = 2.0
    """Between the first two looks at a batch; half as much again each time, up to a minute."""
    timeout_s: float = 120.0
    """Of silence in a transfer."""
    max_tries: int = 6
    """Of each transfer."""
    max_batches: int = 3
    """That a request goes into before it is given up for this run, where its failures may pass."""
    first_wait_s: float = 0.5
    """Before a transfer's second try; doubles from try to try up to 20 s."""
    system_role: bool | None = None
    """This and what follows: as the openai backend's."""
    max_tokens_field: MaxTokensField | None = None
    constrain: Constrain | None = None
    logprobs: bool | None = None
    extra_body: dict[str, Any] | None = None
    prices: Prices | None = None

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = True
    local: ClassVar[bool] = False
    queues: ClassVar[bool] = True
    answers_as: ClassVar[str] = "openai"
    """The same requests, the same answers: a run may change from one to the other."""

    def __post_init__(self) -> None:
        limits = (
            *("max_rows", "max_bytes", "first_poll_s", "timeout_s", "max_tries", "max_batches"),
            "first_wait_s",
        )
        found = {name: getattr(self, name) for name in limits}
        faults = [
            f"{name}: above 0 (found {value})" for name, value in found.items() if not 0 < value < math.inf
        ]
        if not self.endpoint.startswith("/"):
            faults.append(
                f"endpoint: begins with a slash, as /v1/chat/completions does (found {self.endpoint!r})"
            )
        if self.base_url is not None and (fault := address_fault(self.base_url)):
            faults.append(f"base_url: {fault}")
        if faults:
            raise RecipeError("\n".join(faults))

    def identity(self) -> LLMIdentity:
        """As the openai backend's: the options that make up the requests are the same."""
        return chat_request.identity(self, self.revision)

    def addresses(self) -> list[str]:
        return [self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI]

    def dialect(self) -> Dialect:
        """With the prices of requests in batch files."""
        plain = dialect_of(self, self.addresses()[0])
        prices = None if plain.prices is None else plain.prices.in_batch_files()
        return dataclasses.replace(plain, prices=prices)

    def connect(self, place: Place = ANYWHERE) -> BatchLLM:
        """Raises LLMStopped for a missing key, an address that is none, or where there is no run."""
        if place.folder is None:
            raise LLMStopped("the batch backend keeps its files in a run's folder, and here is no run.")
        folder = place.folder / FOLDER
        address = self.addresses()[0]
        learned = Learned(self.dialect(), place.folder, str(self.identity()))
        if not self.submit:
            server = Server(self.base_url or "the batch", self.model, "", "")
            return BatchLLM(self, learned, folder, server, None)
        if fault := address_fault(address):
            raise LLMStopped(f"OPENAI_BASE_URL: {fault}")
        try:
            key = key_of(self.api_key_env, self.model, required=not is_this_machine(address))
        except LLMStopped as error:
            raise LLMStopped(
                f"{error}\n  submit: false            only writes files, and needs no key."
            ) from None
        server = Server(address, self.model, self.api_key_env, key)
        waits = {"timeout_s": self.timeout_s, "first_wait_s": self.first_wait_s}
        api = BatchServer(address, key, server, max_tries=self.max_tries, **waits)
        return BatchLLM(self, learned, folder, server, api)


class BatchLLM(ByRequest):
    """The files of one LLM in a run, and the server they go to, if any."""

    def __init__(
        self, options: Batch, learned: Learned, folder: Path, server: Server, api: BatchServer | None
    ) -> None:
        self.identity = options.identity()
        self._options = options
        self._learned = learned
        self._folder = folder
        self._server = server
        self._requests = Requests(
            folder, self.identity, max_rows=options.max_rows, max_bytes=options.max_bytes
        )
        self._answers = Answers(server)
        self._refusals = Refusals(learned, self._requests, server)
        self._api = api
        self._jobs = api and Jobs(
            api,
            self._requests,
            self._answers,
            self._refusals,
            url=options.endpoint,
            window=options.completion_window,
            first_pause_s=options.first_poll_s,
        )

    @property
    def capabilities(self) -> Capabilities:
        dialect = self._learned.dialect
        return Capabilities(
            label_logprobs=dialect.logprobs, prices=dialect.prices, left_out=self._learned.names
        )

    async def answer(self, request: Request) -> Reply:
        """See `LLM` and `chat_body`. Raises Pending where the answer is not there yet."""
        key = request_key(self.identity, request)
        if (answer := self._answers.find(key)) is not None:
            if isinstance(answer.refusal, LLMFiltered):
                return chat_format.FILTERED
            if answer.refusal is not None:
                raise answer.refusal
            reply = chat_format.read_reply(answer.body or {}, 0.0, request.label_tokens)
            return with_cost(reply, self._learned.dialect.prices)
        if self._requests.is_open(key):
            raise Pending
        n_asked = self._requests.n_asked(key)
        if self._jobs is not None and n_asked >= self._options.max_batches:
            raise LLMUnavailable(f"no answer in {n_asked} batches; at last: {self._jobs.last_failure}.")
        body = chat_body(self._options.model, self._learned.dialect, request)
        self._requests.add(key, self._options.endpoint, body)
        raise Pending

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise LLMBadRequest("the batch backend can't score a given text; use the vllm backend for that.")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMBadRequest("the batch backend has no embeddings; use openai with an embedding server.")

    async def close(self) -> None:
        self._requests.abandon()
        if self._api is not None:
            await self._api.close()

    # --- between the passes --------------------------------------------------------------------------

    async def check(self) -> None:
        if self._api is None:
            return
        models = await self._api.models()
        if models and self._options.model not in models:
            raise self._server.verdict(404, {"message": "it is not in /models."}, {}, models)

    async def open(self, progress: Progress) -> None:
        requests = self._requests
        refusing: list[tuple[RequestFile, Mapping[str, RefusedSetting]]] = []
        requests.load()
        waiting = {path: file for file in requests.open_files() for path in (file.answers, file.errors)}
        for path, taken in self._answers.load(
            self._folder, self.identity, requests.asked, requests.note_answer
        ):
            if path in waiting or taken.n_unknown < taken.n_rows:
                progress.note(said_of(path, taken))
            if path in waiting and taken.settings:
                refusing.append((waiting[path], taken.settings))
        # Not before all is known that the server took.
        elsewhere = imported(self._folder, self._server) if refusing else set[str]()
        stopped = [
            one
            for file, settings in refusing
            for one in self._refusals.of_rows(file, settings, elsewhere).stopped
        ]
        requests.end_answered()
        if stopped:
            raise stopped[0]

    async def send(self, progress: Progress) -> None:
        self._requests.end_round()
        if self._jobs is not None:
            for file in self._requests.open_files():
                await self._jobs.send(file, progress)

    async def fetch(self, progress: Progress) -> list[Awaited]:
        files = self._requests.open_files()
        if self._jobs is None:
            return [file.awaited(self._options.model) for file in files]
        progress.begin(f"batch · {self._options.model}", sum(file.n_requests for file in files), "requests")
        try:
            await self._jobs.wait(progress)
        finally:
            progress.end()
        return []
