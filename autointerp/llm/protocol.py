"""What an LLM backend is: one async method, an identity, and what it can do.

A backend is a frozen dataclass in a file of its own name (`llm/openai.py` holds `Openai`); its fields are
its options in the recipe. `connect()` gives the living thing, which holds sockets and limiters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, Protocol, runtime_checkable

from autointerp.errors import LLMBadRequest, LLMStopped
from autointerp.llm.exchange import Prices, Reply, Request
from autointerp.progress import Progress
from autointerp.prompting import Prompt
from autointerp.types import Json

Role = Literal["explainer", "judge", "embedder"]
"""What an LLM does in a run. Where no embedder is named the judge is asked, who may be able to."""


@dataclass(frozen=True, slots=True)
class LLMIdentity:
    """Which LLM answers: what is digested and what a reader needs to know."""

    model: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do beyond answering in text."""

    label_logprobs: bool = False
    """`generate` fills `Reply.label_logprobs`."""
    logprobs: bool = False
    """`logprobs` works."""
    embed: bool = False
    all_windows_at_once: bool = False
    """Any number of windows in one prompt costs nothing in quality (no language model is behind it)."""
    prices: Prices | None = None
    """None: nobody knows."""
    left_out: tuple[str, ...] = ()
    """Settings that the server refused, and that are not sent any more."""
    tells_when_sent: bool = False
    """Each request tells `metering.current()` when it is sent, which may be long after it was made; else it may be
    charged for from the beginning."""


class LLM(Protocol):
    """A connected LLM. Methods may be called concurrently from one event loop. What they use and no Reply tells of
    goes to `metering.current()`.

    All raise LLMUnavailable (no answer after all tries), LLMBadRequest (never this request), LLMStopped
    (never any request) or Pending (the answer comes by other means).
    """

    @property
    def identity(self) -> LLMIdentity: ...

    @property
    def capabilities(self) -> Capabilities: ...

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
        """One answer to `prompt`.

        `choices` constrains the answer to one of these strings and `schema` to JSON that fits a JSON
        schema, where the server can (callers must still parse); `label_tokens` asks for the
        log-probabilities of these as the first answer token; `index` tells apart several answers to one
        and the same request (0 the first, 1 one more try).
        """
        ...

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        """Natural-log probability of each token of `continuation` behind `prompt`.

        Raises LLMBadRequest where `capabilities.logprobs` is False.
        """
        ...

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        """For each piece the natural-log probability of each label as what comes next, behind `prompt`, the pieces
        up to it, and `filler` behind every earlier one: in one pass over them all. A label that is unlikely may be
        absent.

        Raises LLMBadRequest where `capabilities.logprobs` is False.
        """
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector a text. Raises LLMBadRequest where `capabilities.embed` is False."""
        ...

    async def close(self) -> None:
        """Frees sockets and processes. No other method may be called afterwards."""
        ...


class ByRequest(ABC):
    """An LLM that is written as one method of a Request, and fills nothing in unless it says how."""

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        raise LLMBadRequest(
            "this backend can't rate the tokens of a given text; use the vllm or transformers backend."
        )

    @abstractmethod
    async def answer(self, request: Request) -> Reply:
        """See `LLM.generate`."""

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
        return await self.answer(
            Request(prompt, max_tokens, temperature, choices, schema, label_tokens, seed, index)
        )


@dataclass(frozen=True, slots=True)
class EngineResources:
    """What an LLM that runs on this machine may take of its cards. Changes no answer, is never digested."""

    tensor_parallel: int = 1
    """Cards that one copy of the model is spread over."""
    data_parallel: int | None = None
    """Copies of the model. None: as many as the visible cards hold."""
    memory: float = 0.9
    """Share of each card's memory, for weights and cache. Several LLMs on the same cards divide it evenly."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend connects from: used by those that run a model on this machine."""

    engine: EngineResources = EngineResources()
    n_sharing: int = 1
    """LLMs on the same cards, this one included."""
    n_servers: int = 1
    """Addresses of all LLMs together: they divide the sockets that this process may have open."""
    n_in_flight: int | None = None
    """Requests at once to a server. None: as many as make it faster."""
    folder: Path | None = None
    """For logs: the run's. None: a folder of the user's own, see `engine_pids`."""


ANYWHERE: Final = Place()


class Backend(Protocol):
    """The plug-in: options from the recipe. Plain data, cheap to make, no connection."""

    version: ClassVar[str]
    paid: ClassVar[bool]
    """Answers cost money or time, so each is kept in the request journal and never asked for twice."""
    local: ClassVar[bool]
    """The model runs on this machine's cards, which several such LLMs share."""
    queues: ClassVar[bool]
    """Requests wait inside until it is their turn; those to other backends are limited from outside."""

    def identity(self) -> LLMIdentity:
        """Which LLM will answer; digested. No connection is made."""
        ...

    def connect(self, place: Place = ANYWHERE) -> LLM:
        """The living LLM. Called inside the event loop that will use it.

        Raises LLMStopped where it can't work at all (a missing key or package)."""
        ...


@dataclass(frozen=True, slots=True)
class Awaited:
    """A file of requests that somebody else is to answer."""

    requests: Path
    answers: Path
    """Where the next run looks for the answers."""
    n_requests: int
    model: str
    batch: str
    """The server's name for it, where it was sent to one after all; else empty."""


@runtime_checkable
class Delayed(Protocol):
    """An LLM that gives its answers between two passes over the features: its `generate` raises Pending.

    `open` comes before the first pass; behind a pass with pending items come `send` and `fetch`. All raise
    LLMErrors; each may be cancelled at any moment and loses nothing.
    """

    async def check(self) -> None:
        """Whether it can work at all; no request is made that costs anything."""
        ...

    async def open(self, progress: Progress) -> None:
        """Reads which requests wait, and which were answered since. Raises RunError too."""
        ...

    async def send(self, progress: Progress) -> None:
        """Hands over what was asked since the last time, to whoever answers."""
        ...

    async def fetch(self, progress: Progress) -> list[Awaited]:
        """Waits for the answers, where waiting helps; what else somebody must see to."""
        ...


class NoLLM(ByRequest):
    """Stands where a plug-in that declares `needs_llm = False` gets its LLM: it can't be asked."""

    identity = LLMIdentity("none")
    capabilities = Capabilities()

    async def answer(self, request: Request) -> Reply:
        raise LLMStopped(_UNDECLARED)

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise LLMStopped(_UNDECLARED)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMStopped(_UNDECLARED)

    async def close(self) -> None:
        return None


_UNDECLARED = "a plug-in that declares needs_llm = False asked an LLM; it must declare True."
