"""A causal language model of this machine through transformers, in a child process that dies with this one.

For what a server doesn't give: the log-probability of a given continuation, of any model, with or without a chat
template, on a CPU too. For many long answers `vllm` is the faster one. This process imports no torch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from autointerp.errors import LLMBadRequest, RecipeError
from autointerp.llm import local_model, metering
from autointerp.llm.chat_format import encodable, messages
from autointerp.llm.engine_process import Engine
from autointerp.llm.exchange import Reply, Request, Usage
from autointerp.llm.protocol import ANYWHERE, ByRequest, Capabilities, LLMIdentity, Place
from autointerp.llm.seeds import seed_of
from autointerp.prompting import Prompt
from autointerp.types import Json

MODULE: Final = "autointerp.llm.transformers_engine"


@dataclass(frozen=True, slots=True)
class Transformers:
    """A local model by transformers: log-probabilities of any text, on a CPU or a GPU."""

    model: str
    """Folder or hub id of a causal language model; its weights must be safetensors."""
    revision: str = ""
    """Of a hub model: branch, tag or commit. Empty: main."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on a CPU, bfloat16 elsewhere."""
    chat: bool | None = None
    """Whether turns go through the model's chat template. False: as plain text, one below the other, as base models
    read few-shot examples. None: where there is a template."""
    device: str = "auto"
    """`cpu`, `cuda`; `auto` takes a GPU where there is one. Not digested."""
    batch_size: int = 16
    """Requests read at once. Not digested."""

    version: ClassVar[str] = "2"
    paid: ClassVar[bool] = True
    local: ClassVar[bool] = True
    queues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        local_model.check(self.model)
        if self.batch_size < 1:
            raise RecipeError(f"batch_size: at least 1 (found {self.batch_size})")

    def identity(self) -> LLMIdentity:
        return local_model.identity(self.model, self.revision, [self.dtype, self.chat], ["auto", None])

    def connect(self, place: Place = ANYWHERE) -> TransformersLLM:
        """The model is loaded with the first request."""
        setup: Json = {
            "model": str(local_model.located(self.model)),
            "revision": self.revision,
            "dtype": self.dtype,
            "chat": self.chat,
            "device": self.device,
            "batch_size": self.batch_size,
        }
        log = local_model.log_of(self.model, place, beginning="transformers")
        return TransformersLLM(
            self.identity(), Engine(MODULE, setup, log, {"HF_HUB_DISABLE_PROGRESS_BARS": "1"})
        )


class TransformersLLM(ByRequest):
    """A connected model."""

    def __init__(self, identity: LLMIdentity, engine: Engine) -> None:
        self.identity = identity
        self.capabilities = Capabilities(logprobs=True)
        self._engine = engine

    async def answer(self, request: Request) -> Reply:
        """See `LLM`. Answers are not constrained: `choices` and `schema` do nothing, callers parse anyway. Where
        the temperature is above 0, seed and index choose the answer: the same ones give the same."""
        start = time.monotonic()
        seeded = request if request.seed is not None else dataclasses.replace(request, seed=0)
        answer = await self._engine.ask(
            {
                "kind": "generate",
                "messages": messages(request.prompt),
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "label_tokens": request.label_tokens,
                "seed": seed_of(seeded),
            }
        )
        counts = {name: answer[name] for name in ("prompt_tokens", "completion_tokens")}
        usage = Usage(**counts, latency_s=time.monotonic() - start)
        return Reply(answer["text"], answer["finish_reason"], answer["label_logprobs"], usage)

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        answer = await self._rated(
            {"kind": "logprobs", "messages": messages(prompt), "continuation": encodable(continuation)}
        )
        return answer["logprobs"]

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        answer = await self._rated(
            {
                "kind": "fill",
                "messages": messages(prompt),
                "pieces": [encodable(piece) for piece in pieces],
                "filler": filler,
                "label_tokens": list(labels),
            }
        )
        return answer["filled"]

    async def _rated(self, request: Json) -> Json:
        """An answer without text, whose use is told to the meter."""
        start = time.monotonic()
        answer = await self._engine.ask(request)
        metering.current().use(
            Usage(prompt_tokens=answer["prompt_tokens"], latency_s=time.monotonic() - start)
        )
        return answer

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMBadRequest(
            "the transformers backend has no embeddings; use openai with an embedding server."
        )

    async def close(self) -> None:
        await self._engine.close()
