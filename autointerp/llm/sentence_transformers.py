"""Embeddings of texts by sentence-transformers, in a child process that dies with this one: for the role
`embedder`. It writes no text. This process imports neither the package nor torch.

Vectors are cheap and come out the same, so none is kept in the request journal.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from autointerp.errors import LLMBadRequest, LLMStopped, RecipeError
from autointerp.llm import local_model
from autointerp.llm.chat_format import encodable
from autointerp.llm.engine_process import Engine
from autointerp.llm.exchange import Reply, Request
from autointerp.llm.protocol import ANYWHERE, ByRequest, Capabilities, LLMIdentity, Place
from autointerp.prompting import Prompt
from autointerp.types import Json

DEFAULT_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
"""22 million parameters: a hundred windows take a CPU core less than a second."""
MODULE: Final = "autointerp.llm.embedding_engine"


@dataclass(frozen=True, slots=True)
class SentenceTransformers:
    """Embeddings by a local model, on a CPU or a GPU (pip install '.[embed]'). It embeds and writes no text."""

    model: str = DEFAULT_MODEL
    """Folder or hub id."""
    revision: str = ""
    """Of a hub model: branch, tag or commit. Empty: main."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`. Not digested."""
    batch_size: int = 64
    """Texts read at once. Not digested."""

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = False
    local: ClassVar[bool] = False
    """False: it takes next to nothing of a card."""
    queues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        local_model.check(self.model)
        if self.batch_size < 1:
            raise RecipeError(f"batch_size: at least 1 (found {self.batch_size})")

    def identity(self) -> LLMIdentity:
        return local_model.identity(self.model, self.revision)

    def connect(self, place: Place = ANYWHERE) -> SentenceTransformersLLM:
        """The model is loaded with the first texts. Raises LLMStopped where the package is missing."""
        if not is_installed():
            raise LLMStopped(
                f"the embedder {self.model} needs the package sentence-transformers, which is not installed here.\n"
                "  pip install '.[embed]', or name a server's:\n"
                "  --set llms.embedder='{use: openai, model: text-embedding-3-small}'"
            )
        setup: Json = {
            "model": str(local_model.located(self.model)),
            "revision": self.revision,
            "device": self.device,
            "batch_size": self.batch_size,
        }
        log = local_model.log_of(self.model, place, beginning="embedder")
        environment = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return SentenceTransformersLLM(self.identity(), Engine(MODULE, setup, log, environment))


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("sentence_transformers") is not None


class SentenceTransformersLLM(ByRequest):
    """A connected embedder."""

    def __init__(self, identity: LLMIdentity, engine: Engine) -> None:
        self.identity = identity
        self.capabilities = Capabilities(embed=True)
        self._engine = engine

    async def answer(self, request: Request) -> Reply:
        raise LLMBadRequest(
            "the sentence_transformers backend writes no text; it can be the embedder, not explainer or judge."
        )

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise LLMBadRequest("the sentence_transformers backend knows no probabilities.")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Of unit length."""
        if not texts:
            return []
        return (await self._engine.ask({"texts": [encodable(text) for text in texts]}))["vectors"]

    async def close(self) -> None:
        await self._engine.close()
