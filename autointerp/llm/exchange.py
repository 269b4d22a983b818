"""What an LLM is asked and what comes back: a request, its reply, what it used and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autointerp.prompting import Prompt
from autointerp.types import Json

if TYPE_CHECKING:
    from autointerp.llm.protocol import LLM

FinishReason = Literal["stop", "length", "content_filter", "other"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request cost. Kept apart from records, which hold only what is deterministic."""

    prompt_tokens: int = 0
    """All of the prompt, from a cache or not."""
    cached_tokens: int = 0
    """Of these: read from the prompt cache."""
    written_tokens: int = 0
    """Of these: written to it, where that has a price."""
    completion_tokens: int = 0
    """All of the answer, its thought included."""
    reasoning_tokens: int = 0
    """Of these: thought."""
    cost: float | None = None
    """US dollars: as the server says, else by the prices known; None where neither is."""
    latency_s: float = 0.0
    counted: bool = True
    """False: of some or all of it the server didn't say what it used, and that is in none of these counts."""
    aside_tokens: int = 0
    """What was not counted can have used so many at most: known where a budget stands in between."""
    aside_cost: float = 0.0
    """As `aside_tokens`; US dollars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars for a million tokens."""

    input: float
    output: float
    """Thought included."""
    cached: float | None = None
    """Read from the prompt cache. None: as `input`."""
    written: float | None = None
    """Written to the prompt cache. None: as `input`."""
    batch: float = 1.0
    """Factor for requests in batch files."""

    def in_batch_files(self) -> Prices:
        """Those of requests in batch files, as prices of their own."""
        factor = self.batch
        return Prices(
            input=self.input * factor,
            output=self.output * factor,
            cached=None if self.cached is None else self.cached * factor,
            written=None if self.written is None else self.written * factor,
        )

    def of(self, usage: Usage) -> float:
        """US dollars for a request."""
        plain = usage.prompt_tokens - usage.cached_tokens - usage.written_tokens
        millions = (
            plain * self.input
            + usage.cached_tokens * (self.input if self.cached is None else self.cached)
            + usage.written_tokens * (self.input if self.written is None else self.written)
            + usage.completion_tokens * self.output
        )
        return millions / 1e6


@dataclass(frozen=True, slots=True)
class Reply:
    """An LLM's answer to one request."""

    text: str
    finish_reason: FinishReason = "stop"
    label_logprobs: dict[str, float] | None = None
    """Natural-log probability of each requested label token as the first answer token, raw."""
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `LLM.generate`, whose arguments these are."""

    prompt: Prompt
    max_tokens: int
    temperature: float = 0.0
    choices: Sequence[str] | None = None
    schema: Json | None = None
    label_tokens: Sequence[str] | None = None
    seed: int | None = None
    index: int = 0

    async def to(self, llm: LLM) -> Reply:
        """What `llm` says."""
        return await llm.generate(
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            choices=self.choices,
            schema=self.schema,
            label_tokens=self.label_tokens,
            seed=self.seed,
            index=self.index,
        )
