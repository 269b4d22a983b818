"""Answers from a function: for tests, and for people who answer by means of their own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from autointerp.errors import LLMBadRequest, LLMStopped, RecipeError
from autointerp.llm.exchange import Reply, Request
from autointerp.llm.protocol import ANYWHERE, ByRequest, Capabilities, LLMIdentity, Place
from autointerp.prompting import Prompt

Answer = Callable[[Prompt, int], str | Reply | Awaitable[str | Reply]]
"""`(prompt, index)`: index 0 is the first answer to a prompt, 1 one more try. It may be async, and may raise
the errors of `LLM`; one that is not async and takes its time holds up everybody else."""


@dataclass(frozen=True, slots=True)
class Scripted:
    """Answers from a function of yours, `package.module:function`, called with (prompt, index)."""

    function: str
    model: str = "scripted"
    """The name under which answers are kept: give another one when the function changes its mind."""
    revision: str = ""

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = True
    """True, so that answers are kept in the request journal as those of any LLM are."""
    local: ClassVar[bool] = False
    queues: ClassVar[bool] = False

    def identity(self) -> LLMIdentity:
        return LLMIdentity(self.model, self.revision)

    def connect(self, place: Place = ANYWHERE) -> ScriptedLLM:
        """Raises RecipeError where `function` names none."""
        return ScriptedLLM(self.identity(), find_function(self.function))


class ScriptedLLM(ByRequest):
    """A function as an LLM."""

    def __init__(self, identity: LLMIdentity, function: Answer) -> None:
        self.identity = identity
        self.capabilities = Capabilities()
        self._function = function

    async def answer(self, request: Request) -> Reply:
        """What the function says; it is told the prompt and the index, and none of the other settings."""
        answer = cast(
            object, self._function(request.prompt, request.index)
        )  # code from outside may return anything
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, str):
            return Reply(answer)
        if isinstance(answer, Reply):
            return answer
        kind = type(answer).__name__
        raise LLMStopped(f"the scripted function returned {kind}; it must return a str or a Reply.")

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise LLMBadRequest("the scripted backend knows no probabilities.")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMBadRequest("the scripted backend has no embeddings.")

    async def close(self) -> None:
        """Holds nothing that wants closing."""


def find_function(name: str) -> Answer:
    """`package.module:function`. Raises RecipeError that says which half of the name is wrong."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise RecipeError(f"function: '{name}' must look like package.module:function.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise RecipeError(
            f"function: no module '{module}' can be imported ({error}). Is its folder in PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise RecipeError(f"function: module '{module}' has nothing called '{attribute}'.") from error
    if not callable(found):
        raise RecipeError(f"function: '{name}' can't be called, it is {type(found).__name__}.")
    return cast(Answer, found)
