"""A causal language model of this machine through transformers, in a child process that dies with this one.

For what a server doesn't give: the log-probability of a given continuation, of any model, with or without a chat
template, on a CPU too. For many long answers `vllm` is the faster one. This process imports no torch.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from autointerp.errors import LLMBadRequest, RecipeError
from autointerp.identity import fingerprint
from autointerp.llm import engine_pids
from autointerp.llm.chat_format import encodable, messages
from autointerp.llm.engine_process import Engine
from autointerp.llm.protocol import ANYWHERE, Capabilities, LLMIdentity, Place, Reply, Usage
from autointerp.prompting import Prompt
from autointerp.types import Json, digest

MODULE: Final = "autointerp.llm.transformers_engine"
_KINDS: Final = (".json", ".jinja", ".model", ".txt", ".safetensors")


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

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = True
    local: ClassVar[bool] = True
    queues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if re.match(r"[./~]", self.model) and not Path(self.model).expanduser().is_dir():
            raise RecipeError(f"model: there is no folder '{self.model}'")
        if self.batch_size < 1:
            raise RecipeError(f"batch_size: at least 1 (found {self.batch_size})")

    def identity(self) -> LLMIdentity:
        """Model and revision; of a folder its name and a fingerprint of its files. Behind a `+` the digest of those
        options that change answers, if any is set."""
        path = Path(self.model).expanduser()
        model, revision = self.model, self.revision
        if path.is_dir():
            model, revision = path.resolve().name, _fingerprint(path.resolve())
        asked = [self.dtype, self.chat]
        plain = asked == ["auto", None]
        return LLMIdentity(model, revision if plain else f"{revision}+{digest(asked)[:8]}")

    def connect(self, place: Place = ANYWHERE) -> TransformersLLM:
        """The model is loaded with the first request."""
        setup: Json = {
            "model": str(Path(self.model).expanduser()),
            "revision": self.revision,
            "dtype": self.dtype,
            "chat": self.chat,
            "device": self.device,
            "batch_size": self.batch_size,
        }
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.model).strip("-.")
        folder = place.folder or engine_pids.folder()
        environment = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return TransformersLLM(
            self.identity(), Engine(MODULE, setup, folder / f"transformers-{name[-80:]}.log", environment)
        )


@functools.lru_cache(maxsize=8)
def _fingerprint(path: Path) -> str:
    return fingerprint([file for file in path.iterdir() if file.suffix in _KINDS])[:12]


class TransformersLLM:
    """A connected model."""

    def __init__(self, identity: LLMIdentity, engine: Engine) -> None:
        self.identity = identity
        self.capabilities = Capabilities(logprobs=True)
        self._engine = engine

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
        """See `LLM`. Answers are not constrained: `choices` and `schema` do nothing, callers parse anyway. Where
        the temperature is above 0, seed and index choose the answer: the same ones give the same."""
        start = time.monotonic()
        answer = await self._engine.ask(
            {
                "kind": "generate",
                "messages": messages(prompt),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "label_tokens": label_tokens,
                "seed": [seed or 0, index],
            }
        )
        counts = {name: answer[name] for name in ("prompt_tokens", "completion_tokens")}
        usage = Usage(**counts, latency_s=time.monotonic() - start)
        return Reply(answer["text"], answer["finish_reason"], answer["label_logprobs"], usage)

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        answer = await self._engine.ask(
            {"kind": "logprobs", "messages": messages(prompt), "continuation": encodable(continuation)}
        )
        return answer["logprobs"]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMBadRequest(
            "the transformers backend has no embeddings; use openai with an embedding server."
        )

    async def close(self) -> None:
        await self._engine.close()
