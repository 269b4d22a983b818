"""Several answers to one request are drawn with seeds of their own, by every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import jinja2
import pytest

from autointerp.llm.chat_request import chat_body
from autointerp.llm.dialects import Dialect
from autointerp.llm.engine_process import Engine
from autointerp.llm.exchange import Request
from autointerp.llm.protocol import LLMIdentity
from autointerp.llm.transformers import TransformersLLM
from autointerp.llm.vllm import Vllm, VllmLLM
from autointerp.prompting import Prompt, Template
from autointerp.types import Json

PROMPT = Prompt(Template("test", "0", (("user", jinja2.Template("hello")),)), {})


class Recording:
    """Stands for an engine and keeps what it is asked."""

    n_waiting, is_down = 0, False

    def __init__(self) -> None:
        self.asked: list[Json] = []

    async def ask(self, request: Json) -> Json:
        self.asked.append(request)
        counts = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1}
        return {"text": "", "finish_reason": "stop", "label_logprobs": None} | counts


def of_chat(request: Request) -> int | None:
    """The openai and the batch backend's."""
    return chat_body("tiny", Dialect(), request).get("seed")


def of_vllm(request: Request) -> int | None:
    engine = Recording()
    asyncio.run(VllmLLM(Vllm("org/model"), [cast(Engine, engine)]).answer(request))
    return engine.asked[0]["seed"]


def of_transformers(request: Request) -> int | None:
    engine = Recording()
    asyncio.run(TransformersLLM(LLMIdentity("tiny"), cast(Engine, engine)).answer(request))
    return engine.asked[0]["seed"]


def asked(**settings: Any) -> Request:
    return Request(PROMPT, 5, **({"temperature": 0.7, "seed": 0} | settings))


@pytest.mark.parametrize("sent", [of_chat, of_vllm, of_transformers])
def test_each_answer_is_drawn_with_its_own_seed(sent: Callable[[Request], int | None]) -> None:
    seeds = [sent(asked(index=index)) for index in range(200)]
    assert seeds[0] == 0, "the first one keeps the seed it was given"
    assert len(set(seeds)) == 200 and all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    assert seeds == [sent(asked(index=index)) for index in range(200)]
    assert sent(asked(seed=1, index=3)) not in seeds
    assert {sent(asked(temperature=0.0, index=index)) for index in range(5)} == {0}, "nothing is drawn"


def test_without_a_seed_a_server_draws_as_it_likes_and_our_own_model_by_the_index() -> None:
    requests = [asked(seed=None, index=index) for index in range(5)]
    assert {of_chat(request) for request in requests} == {of_vllm(request) for request in requests} == {None}
    assert len({of_transformers(request) for request in requests}) == 5
