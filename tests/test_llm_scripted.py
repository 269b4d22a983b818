"""The scripted backend: a function as an LLM."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import jinja2
import pytest

from autointerp.errors import LLMBadRequest, LLMStopped, LLMUnavailable, RecipeError
from autointerp.llm.exchange import Reply
from autointerp.llm.protocol import LLM, Backend, LLMIdentity
from autointerp.llm.scripted import Answer, Scripted, ScriptedLLM
from autointerp.prompting import Prompt, Template

PROMPT = Prompt(Template("test", "0", (("user", jinja2.Template("{{ word }}")),)), {"word": "hello"})

NOT_A_FUNCTION = 3


def loud(prompt: Prompt, index: int) -> str:
    return prompt.messages[-1].content.upper() + "!" * index


def generated(llm: LLM, index: int = 0) -> Reply:
    return asyncio.run(llm.generate(PROMPT, max_tokens=5, index=index))


def test_a_function_named_in_the_recipe_answers() -> None:
    backend: Backend = Scripted(f"{__name__}:loud", model="mine", revision="2")
    assert str(backend.identity()) == "mine@2"
    assert backend.paid  # so that its answers go through the request journal
    llm = backend.connect()
    assert llm.identity == backend.identity()
    assert generated(llm) == Reply("HELLO")
    assert generated(llm, index=2) == Reply("HELLO!!")
    asyncio.run(llm.close())


def test_functions_may_be_async_and_may_return_whole_replies() -> None:
    reply = Reply("yes", "length", {"yes": -0.1})

    async def whole(prompt: Prompt, index: int) -> Reply:
        await asyncio.sleep(0)
        return reply

    assert generated(ScriptedLLM(LLMIdentity("mine"), whole)) is reply


def test_functions_may_fail_as_llms_do() -> None:
    def gone(prompt: Prompt, index: int) -> str:
        raise LLMUnavailable("gone for lunch")

    with pytest.raises(LLMUnavailable, match="gone for lunch"):
        generated(ScriptedLLM(LLMIdentity("mine"), gone))


def test_an_answer_that_is_none_stops_the_run() -> None:
    nothing = cast(Answer, lambda prompt, index: None)  # type: ignore[misc]  # wrong on purpose
    with pytest.raises(LLMStopped, match="returned NoneType"):
        generated(ScriptedLLM(LLMIdentity("mine"), nothing))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("loud", "must look like package.module:function"),
        (":loud", "must look like"),
        ("no_such_module_anywhere:loud", "no module 'no_such_module_anywhere'"),
        (f"{__name__}:quiet", "has nothing called 'quiet'"),
        (f"{__name__}:NOT_A_FUNCTION", "can't be called, it is int"),
    ],
)
def test_a_function_that_is_not_there(function: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Scripted(function).connect()


def test_what_it_cannot_do() -> None:
    llm: Any = ScriptedLLM(LLMIdentity("mine"), loud)
    assert not (llm.capabilities.logprobs or llm.capabilities.embed)
    for call in (llm.logprobs(PROMPT, "x"), llm.embed(["x"])):
        with pytest.raises(LLMBadRequest):
            asyncio.run(call)
