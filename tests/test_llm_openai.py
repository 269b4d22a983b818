"""The openai backend against a real server that fails in every way we know of."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import jinja2
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.errors import LLMBadRequest, LLMError, LLMStopped, LLMUnavailable, RecipeError
from autointerp.llm import chat_format
from autointerp.llm.exchange import Reply, Usage
from autointerp.llm.openai import Openai
from autointerp.llm.protocol import LLM, Backend
from autointerp.llm.retries import Passing
from autointerp.llm.server_errors import (
    RefusedSetting,
    Server,
    error_in,
    is_this_machine,
    retry_after_s,
    status_of,
)
from autointerp.prompting import Prompt, Template
from fault_server import (
    Behaviour,
    FaultServer,
    body_of,
    cut_before_body,
    cut_in_body,
    dripping,
    echo,
    embedded,
    error_in_200,
    in_turn,
    no_choices,
    ok,
    quota_used_up,
    rate_limited,
    refused_url,
    slow,
    status,
    token,
)

T = TypeVar("T")

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def prompt(user: str = "hello", system: str = "") -> Prompt:
    system_turn, user_turn = jinja2.Template("{{ system }}"), jinja2.Template("{{ user }}")
    template = Template("test", "0", (("system", system_turn), ("user", user_turn)))
    return Prompt(template, {"system": system, "user": user})


def using(backend: Backend, work: Callable[[LLM], Awaitable[T]]) -> T:
    """Connects, works and closes, in an event loop of its own."""

    async def run() -> T:
        llm = backend.connect()
        try:
            return await work(llm)
        finally:
            await llm.close()

    return asyncio.run(run())


def ask(server: FaultServer, *, times: int = 1, **options: Any) -> Reply:
    """The last reply of `times` calls to generate, with waits short enough for tests."""
    defaults: dict[str, Any] = {"model": "tiny", "base_url": server.url, "first_wait_s": 0.01}
    backend = Openai(**(defaults | options))

    async def work(llm: LLM) -> Reply:
        replies = [await llm.generate(prompt(), max_tokens=5) for _ in range(times)]
        return replies[-1]

    return using(backend, work)


def error_of(server: FaultServer, **options: Any) -> LLMError:
    with pytest.raises(LLMError) as caught:
        ask(server, **options)
    return caught.value


# --- good answers --------------------------------------------------------------------------------------


def test_what_is_sent() -> None:
    async def work(llm: LLM) -> None:
        await llm.generate(prompt("hi", "be brief"), max_tokens=5, temperature=0.5, seed=7)
        await llm.generate(prompt("hi"), max_tokens=5, index=3, choices=["yes", "no"])

    with FaultServer() as server:
        using(Openai("tiny", base_url=server.url), work)
        with_seed, plain = (request.body for request in server.requests)
    assert with_seed == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "seed": 7,
    }
    assert plain.keys() == {"model", "messages", "max_tokens", "temperature"}  # no seed, choices, index


def test_the_headers_are_the_sdks_without_what_it_tells_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-7")
    with FaultServer() as server:
        ask(server, times=2)
        for request in server.requests:
            sent = request.headers
            assert sent["authorization"] == f"Bearer {KEY}" and sent["openai-organization"] == "org-7"
            assert sent["content-type"] == sent["accept"] == "application/json"
            assert "gzip" in sent["accept-encoding"] and "openai" in sent["user-agent"].lower()
            assert int(sent["content-length"]) == len(orjson.dumps(request.body))
            assert not [name for name in sent if name.lower().startswith("x-stainless")]


def test_a_server_that_moved_is_asked_where_it_is_now() -> None:
    with (
        FaultServer() as there,
        FaultServer(in_turn(status(307, headers={"location": f"{there.url}/chat/completions"}))) as here,
    ):
        assert ask(here).text == "ok"
        assert [request.body for request in there.requests] == [request.body for request in here.requests]


def test_usage_text_and_finish_reason() -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    with FaultServer(in_turn(ok("cut off he", finish_reason="length", usage=usage))) as server:
        reply = ask(server)
    assert (reply.text, reply.finish_reason) == ("cut off he", "length")
    counts = reply.usage
    assert (counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens) == (11, 8, 3)
    assert 0 < counts.latency_s < 5 and counts.counted


def test_counts_that_cannot_be_are_none() -> None:
    def found(**usage: Any) -> Usage:
        return chat_format.usage_of({"usage": usage})

    assert found(prompt_tokens=10, completion_tokens=2, prompt_tokens_details={"cached_tokens": 50}) == Usage(
        prompt_tokens=10, cached_tokens=10, completion_tokens=2
    )
    assert found(prompt_tokens=10, total_tokens=12) == Usage(prompt_tokens=10, completion_tokens=2)
    wrong: list[Any] = ["12", 12.5, -1, None, True, [1], 0]
    assert [found(prompt_tokens=n, completion_tokens=2) for n in wrong] == [Usage(counted=False)] * 7
    assert [found(prompt_tokens=9, completion_tokens=n).counted for n in wrong] == [False] * 6 + [True]
    assert found(prompt_tokens=9, completion_tokens=1, cost=-0.1).cost is None
    assert found(cost=0.25) == Usage(cost=0.25, counted=False)
    assert [chat_format.usage_of({"usage": one}).counted for one in ([1], "x", None, 5)] == [False] * 4


TEXT = {"type": "text", "text": "yes"}


@pytest.mark.parametrize(
    ("behaviour", "text", "finish_reason"),
    [
        (ok(None), "", "stop"),
        (ok("", finish_reason="content_filter"), "", "content_filter"),
        (ok(None, message={"refusal": "I can't help with that."}), "", "content_filter"),
        (ok("x", finish_reason="tool_calls"), "x", "other"),
        (ok("x", usage={}), "x", "stop"),
        (ok("<think>let me\nsee</think>\n\nyes"), "yes", "stop"),
        (ok("let me see</think> yes"), "yes", "stop"),  # the template had opened the thought
        (ok("<think>let me", finish_reason="length"), "", "length"),
        (ok("yes", message={"reasoning_content": "let me see"}), "yes", "stop"),
        (ok("a </b> c"), "a </b> c", "stop"),
        (ok(message={"content": [TEXT, TEXT]}), "yesyes", "stop"),
        (ok(message={"content": [{"type": "thinking", "thinking": []}, TEXT]}), "yes", "stop"),
    ],
)
def test_replies_of_all_kinds(behaviour: Behaviour, text: str, finish_reason: str) -> None:
    with FaultServer(in_turn(behaviour)) as server:
        reply = ask(server)
    assert (reply.text, reply.finish_reason) == (text, finish_reason)
    assert len(server.requests) == 1


def test_label_logprobs_sum_over_spellings_of_the_first_answer_token() -> None:
    top = {"Yes": math.log(0.5), " yes": math.log(0.2), "no": math.log(0.1), "yesterday": math.log(0.05)}
    logprobs = [token("\n", -0.1, {"no": -0.2}), token("Yes", top["Yes"], top), token("no", 0.0, {"no": 0.0})]

    async def work(llm: LLM) -> Reply:
        return await llm.generate(
            prompt(), max_tokens=1, label_tokens=["yes", "No", "maybe"], choices=["yes", "no"]
        )

    with FaultServer(in_turn(ok("\nYes", logprobs=logprobs))) as server:
        reply = using(Openai("tiny", base_url=server.url, constrain="structured_outputs"), work)
        body = server.requests[0].body
    assert reply.label_logprobs is not None
    assert reply.label_logprobs.keys() == {"yes", "No"}  # maybe is not among the most likely
    assert math.isclose(reply.label_logprobs["yes"], math.log(0.7))
    assert math.isclose(reply.label_logprobs["No"], math.log(0.1))
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert "structured_outputs" not in body  # a grammar would renormalise them


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (ok("yes"), None),  # the server sends none
        (ok("<think>a</think>yes", logprobs=[token("<think>", 0.0)]), None),  # of another token than asked
        (ok("yes", logprobs=[token("yes", math.log(0.25), {"no": math.log(0.5)})]), {"yes": 0.25, "no": 0.5}),
        (ok("yes", logprobs=[token("yes", 0.0, {"yes": 0.0, "no": -9999.0})]), {"yes": 1.0}),
    ],
)
def test_label_logprobs_at_the_edges(behaviour: Behaviour, expected: dict[str, float] | None) -> None:
    """The sampled token counts although it is not in the list; vLLM's -9999 is no probability."""

    async def work(llm: LLM) -> Reply:
        return await llm.generate(prompt(), max_tokens=1, label_tokens=["yes", "no"])

    with FaultServer(in_turn(behaviour)) as server:
        labels = using(Openai("tiny", base_url=server.url), work).label_logprobs
    found = None if labels is None else {label: math.exp(value) for label, value in labels.items()}
    assert found == (None if expected is None else pytest.approx(expected))


def test_fifty_at_once_get_their_own_answers() -> None:
    async def work(llm: LLM) -> list[Reply]:
        calls = (llm.generate(prompt(f"number {i}"), max_tokens=5) for i in range(50))
        return await asyncio.gather(*calls)

    def script(number: int, _body: dict[str, Any]) -> Behaviour:
        good = slow(0.001 * (number % 7), echo())
        return rate_limited() if number % 5 == 0 else good

    with FaultServer(script) as server:
        replies = using(Openai("tiny", base_url=server.url, first_wait_s=0.01, max_tries=20), work)
    assert [reply.text for reply in replies] == [f"echo number {i}" for i in range(50)]


NAMES = ("choices", "message", "content", "logprobs", "usage", "error", "data", "code", "finish_reason")
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_no_json_breaks_the_reader(value: Any) -> None:
    """Whatever a server sends is an answer, or is said not to be one, and an error has a verdict."""
    read: list[Callable[[Any], object]] = [
        lambda answer: chat_format.read_reply(answer, label_tokens=["yes"]),
        lambda answer: chat_format.read_vectors(answer, 1),
        chat_format.read_model_names,
    ]
    for reader in read:
        with contextlib.suppress(chat_format.NotAnAnswer):
            reader({"choices": value, "data": value})
    error = error_in(value)
    server = Server("http://127.0.0.1:1/v1", "tiny", "OPENAI_API_KEY", KEY)
    for status_code in (status_of(error), 400, 404):
        assert isinstance(server.verdict(status_code, error, {}), LLMError | Passing)


# --- options -------------------------------------------------------------------------------------------


def test_without_system_role_the_first_user_turn_has_both() -> None:
    async def work(llm: LLM) -> Reply:
        return await llm.generate(prompt("hi", "be brief"), max_tokens=5)

    with FaultServer() as server:
        using(Openai("tiny", base_url=server.url, system_role=False), work)
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "be brief\n\nhi"}]


def test_options_that_change_the_body() -> None:
    options = Openai(
        "tiny",
        max_tokens_field="max_completion_tokens",
        constrain="structured_outputs",
        extra_body={"temperature": None, "reasoning_effort": "low"},
    )

    async def work(llm: LLM) -> Reply:
        return await llm.generate(prompt(), max_tokens=5, choices=["yes", "no"])

    with FaultServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.url)
        using(options, work)
    body = server.requests[0].body
    assert body.keys() == {
        *("model", "messages", "max_completion_tokens"),
        *("structured_outputs", "reasoning_effort"),
    }
    assert body["structured_outputs"] == {"choice": ["yes", "no"]}


def test_identity_names_what_changes_answers_and_nothing_else() -> None:
    def named(**options: Any) -> str:
        return str(Openai("m", **options).identity())

    assert named() == "m"
    assert named(revision="r", base_url="http://a/v1", timeout_s=1.0, max_tries=1) == "m@r"
    thinking = [named(extra_body={"think": think}) for think in (True, False)]
    changed = [*thinking, named(system_role=False), named(constrain="structured_outputs")]
    assert len({*changed, named()}) == 5


def test_wrong_options_are_all_named() -> None:
    with pytest.raises(RecipeError) as caught:
        Openai("m", base_url="localhost:8000/v1", timeout_s=0.0, max_tries=0, requests_per_second=-1.0)
    for part in ("base_url: 'localhost:8000/v1'", "timeout_s", "max_tries", "requests_per_second"):
        assert part in str(caught.value)


def test_a_rate_limit_is_kept() -> None:
    rate = 25

    async def work(llm: LLM) -> None:
        await asyncio.gather(*(llm.generate(prompt(), max_tokens=5) for _ in range(40)))

    with FaultServer() as server:
        using(Openai("tiny", base_url=server.url, requests_per_second=rate), work)
    times = [request.time_s for request in server.requests]
    assert len(times) == 40
    for start in times:  # not quite the second it is kept over: on a busy machine arrivals bunch up
        assert sum(start <= t < start + 0.6 for t in times) <= rate + 2


def test_lone_surrogates_are_sent_as_question_marks() -> None:
    async def work(llm: LLM) -> Reply:
        return await llm.generate(prompt("a\ud800b 😀"), max_tokens=5)

    with FaultServer(in_turn(echo())) as server:
        assert using(Openai("tiny", base_url=server.url), work).text == "echo a?b 😀"


def test_importing_the_backend_does_not_import_the_sdk() -> None:
    code = (
        "import sys, autointerp.llm.openai as o; o.Openai('m'); "
        "print({'openai', 'aiohttp', 'httpx2', 'asyncio_throttle'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"


# --- failures that pass --------------------------------------------------------------------------------

PASSING: dict[str, Behaviour] = {
    "408": status(408),
    "409": status(409),
    "429": rate_limited(),
    "429 with Retry-After": rate_limited(retry_after="0.05"),
    "429 with a bad Retry-After": rate_limited(retry_after="soon"),
    "402 with Retry-After": status(402, headers={"retry-after": "0.05"}),
    "500": status(500),
    "503 in plain text": status(503, "upstream connect error"),
    "cut before the body": cut_before_body(),
    "cut in the body": cut_in_body(),
    "half a JSON": body_of('{"choices": [{"mess'),
    "a web page": body_of("<!doctype html><title>hello</title>"),
    "a JSON list": body_of("[1, 2]"),
    "an empty body": body_of(""),
    "no choices": no_choices(),
    "no message": body_of('{"choices": [{"index": 0}]}'),
    "a choice that is none": body_of('{"choices": [null]}'),
    "content that is no text": body_of('{"choices": [{"message": {"content": {"a": 1}}}]}'),
    "error in a 200": error_in_200({"code": 502, "message": "provider returned error"}),
    "error in a 200, no code": error_in_200({"message": "provider returned error"}),
    "error in a choice": body_of('{"choices": [{"error": {"code": 502, "message": "lost"}}]}'),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_failure_is_tried_again(name: str) -> None:
    with FaultServer(in_turn(PASSING[name], ok("there"))) as server:
        assert ask(server).text == "there"
    assert len(server.requests) == 2


@pytest.mark.parametrize("behaviour", [slow(10, ok()), dripping(200, 0.05)])
def test_a_slow_answer_is_asked_for_again(behaviour: Behaviour) -> None:
    """Also one that drips, of which no single read takes long."""
    with FaultServer(in_turn(behaviour, ok("there"))) as server:
        assert ask(server, timeout_s=0.7).text == "there"
    first, second = (request.time_s for request in server.requests)
    assert 0.7 <= second - first < 6


def test_retry_after_is_obeyed() -> None:
    for headers, least in (({"retry_after": "0.3"}, 0.3), ({"retry_after_ms": "200"}, 0.2)):
        with FaultServer(in_turn(rate_limited(**headers), ok())) as server:
            ask(server)
        first, second = (request.time_s for request in server.requests)
        assert least <= second - first < 5
    soon = email.utils.formatdate(time.time() + 3, usegmt=True)
    assert 1 < (retry_after_s({"retry-after": soon}) or 0) <= 3
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None
    assert [retry_after_s({"retry-after": text}) for text in ("0", "nan", "inf", "-1", "")] == [None] * 5


def test_a_wait_that_cannot_be_read_is_none() -> None:
    for text in (
        "Wed, 21 Oct 2015 07:28:00 +99999999999999999999",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "soon",
    ):
        assert retry_after_s({"retry-after": text}) is None
    assert retry_after_s({"retry-after": "7", "retry-after-ms": "abc"}) == 7
    assert retry_after_s({"retry-after": "7", "retry-after-ms": "250"}) == 0.25


@pytest.mark.parametrize("text", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_402_that_says_when_to_ask_again_passes(text: str) -> None:
    with FaultServer(in_turn(status(402, headers={"retry-after": text}), ok("there"))) as server:
        assert ask(server).text == "there"


def test_a_wait_of_a_server_that_is_down_holds_back_everybody() -> None:
    """One is told to wait for two seconds; of the others, who come every half second, nobody asks before that, but
    for one who may have been on its way."""

    async def work(llm: LLM) -> None:
        await asyncio.gather(*(llm.generate(prompt(f"{n}"), max_tokens=5) for n in range(5)))

    def script(number: int, _body: dict[str, Any]) -> Behaviour:
        return status(503, headers={"retry-after": "2"}) if number == 0 else ok()

    with FaultServer(script) as server:
        using(Openai("tiny", base_url=server.url, requests_per_second=2, first_wait_s=0.01), work)
        times = [request.time_s - server.requests[0].time_s for request in server.requests]
    assert len(times) == 6
    assert sum(time_s < 1.9 for time_s in times) <= 2


def test_a_very_long_retry_after_is_not_waited_for() -> None:
    with FaultServer(in_turn(rate_limited(retry_after="7200"))) as server:
        error = error_of(server)
    assert isinstance(error, LLMUnavailable)
    assert "7,200 s" in str(error)
    assert len(server.requests) == 1


def test_waits_grow() -> None:
    with FaultServer(in_turn(status(500), status(500), status(500), ok())) as server:
        ask(server, first_wait_s=0.1)
    times = [request.time_s for request in server.requests]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True))


def test_all_tries_used() -> None:
    with FaultServer(in_turn(status(503, {"message": "overloaded"}))) as server:
        error = error_of(server, max_tries=3)
    assert isinstance(error, LLMUnavailable)
    for part in (server.url, "3 tries", "503", "overloaded"):
        assert part in str(error)
    assert len(server.requests) == 3


def test_one_try_is_one_try() -> None:
    with FaultServer(in_turn(status(500))) as server:
        assert isinstance(error_of(server, max_tries=1), LLMUnavailable)
    assert len(server.requests) == 1


def test_no_server_at_all_is_said_at_once() -> None:
    url = refused_url()
    start = time.monotonic()
    with pytest.raises(LLMUnavailable, match=r"no server answers at http://127.*refused.*running") as caught:
        using(Openai("tiny", base_url=url, first_wait_s=60), lambda llm: llm.generate(prompt(), max_tokens=1))
    assert url in str(caught.value)
    assert time.monotonic() - start < 30


def test_a_server_that_went_away_is_waited_for() -> None:
    with FaultServer() as server:

        async def work(llm: LLM) -> None:
            await llm.generate(prompt(), max_tokens=1)
            await asyncio.to_thread(server.stop)
            await llm.generate(prompt(), max_tokens=1)

        with pytest.raises(LLMUnavailable, match="after 3 tries"):
            using(Openai("tiny", base_url=server.url, max_tries=3, first_wait_s=0.01), work)


def test_a_proxy_from_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, refused_url())
    with FaultServer() as server:
        assert ask(server).text == "ok"


GEMINI_QUOTA = "You exceeded your current quota, please check your plan and billing details."


@pytest.mark.parametrize(
    ("code", "error", "kind"),
    [
        (400, {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."},
         LLMStopped),
        (403, {"message": "Key limit exceeded (total limit).", "code": 403}, LLMStopped),
        (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}], LLMStopped),
        (429, [{"error": {"code": 429, "message": GEMINI_QUOTA, "status": "RESOURCE_EXHAUSTED"}}], LLMStopped),
        (429, [{"error": {"code": 429, "message": f"{GEMINI_QUOTA} Please retry in 21.5s."}}], Passing),
        (429, [{"error": {"code": 429, "message": f"{GEMINI_QUOTA} Please retry in 21.5s.", "details": [
            {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}]}}], LLMStopped),
        (404, [{"error": {"code": 404, "message": "models/tiny is not found"}}], LLMStopped),
        (400, {"message": "Reasoning is mandatory for this endpoint and cannot be disabled."}, RefusedSetting),
        (404, {"message": "No endpoints found that can handle the requested parameters."}, RefusedSetting),
        (429, {"message": "Rate limit reached"}, Passing),
    ],
)  # fmt: skip
def test_what_gateways_say_in_words(code: int, error: Any, kind: type) -> None:
    verdict = Server("http://127.0.0.1:1/v1", "tiny", "KEY", KEY).verdict(code, error, {})
    assert isinstance(verdict, kind), verdict
    if kind is Passing and "21.5" in str(verdict):
        assert isinstance(verdict, Passing) and verdict.wait_s == 21.5


# --- failures that stay --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        status(400, {"message": "context length is 4096", "code": 400, "type": "BadRequestError"}),
        status(413),
        status(422, {"message": "bad field"}),
        error_in_200({"message": "too long", "type": "invalid_request_error"}),
        error_in_200({"message": "too long", "code": "400"}),
    ],
)
def test_a_bad_request_is_this_items_failure_alone(behaviour: Behaviour) -> None:
    with FaultServer(in_turn(behaviour)) as server:
        assert isinstance(error_of(server), LLMBadRequest)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        status(
            400,
            {
                "message": "The response was filtered.",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
            },
        ),
        status(400, {"message": "x", "code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}),
        status(400, {"message": "not allowed: seed", "code": "content_policy_violation"}),
        status(403, {"message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "x"}}),
        error_in_200({"message": "filtered", "code": "content_filter"}),
    ],
)
def test_a_filter_that_refuses_the_prompt_is_an_llm_that_declines(behaviour: Behaviour) -> None:
    """OpenAI's, Azure's and OpenRouter's: an answer like one that a filter stops half-way, and never asked again."""
    with FaultServer(in_turn(behaviour)) as server:
        reply = ask(server)
    assert (reply.text, reply.finish_reason) == ("", "content_filter")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("behaviour", "part"),
    [
        (status(401, {"message": "Incorrect API key"}), "refuses the key in OPENAI_API_KEY (401)"),
        (status(403), "refuses the key"),
        (status(402, {"message": "Insufficient credits"}), "no credit left"),
        (quota_used_up(), "no credit left"),
        (error_in_200({"message": "no", "code": "insufficient_quota"}), "no credit left"),
        (status(404, {"message": "nothing here"}), "no model 'tiny': nothing here It has: tiny-chat, other."),
        (status(400, {"message": "?", "code": "model_not_found"}), "It has: tiny-chat, other."),
        (
            status(400, {"message": "Use 'max_completion_tokens'", "code": "unsupported_parameter"}),
            "max_tokens_field",
        ),
        (status(405), "is base_url that of a chat server?"),
    ],
)
def test_what_no_request_can_survive_stops_the_run(
    behaviour: Behaviour, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer(in_turn(behaviour), models=("other", "tiny-chat")) as server:
        error = error_of(server)
    assert isinstance(error, LLMStopped)
    assert part in str(error)
    assert len(server.requests) == 1


# --- keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 404, 405, 500])
def test_the_key_is_in_no_error(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, cut short or starred: a server's echo of the key is cut out, also from the chain of causes."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said = f"key '{KEY}', {KEY[:12]}, sk-t***cdef is wrong"
    with FaultServer(in_turn(status(code, {"message": said, "code": KEY}))) as server:
        error = error_of(server, max_tries=2)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown: BaseException | None = error
    while shown is not None:
        assert KEY[:12] not in repr(shown)
        assert "cdef" not in repr(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    assert "[key]" in str(error)


def test_the_key_is_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    backend = Openai("tiny", base_url="http://127.0.0.1:1/v1")

    async def work(llm: LLM) -> str:
        return repr(llm) + repr([vars(one) for one in vars(llm)["_endpoints"]]) + str(llm.identity)

    assert KEY not in repr(backend) + using(backend, work)
    with pytest.raises(RecipeError, match="must not hold a user or password") as caught:
        Openai("tiny", base_url="http://user:secret@127.0.0.1:1/v1")
    assert "secret" not in str(caught.value)


def test_this_machine_needs_no_key() -> None:
    with FaultServer() as server:
        assert ask(server).text == "ok"
    local = ("http://localhost:1/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1", "http://0.0.0.0:1/v1")
    assert all(is_this_machine(address) for address in local)
    assert not any(is_this_machine(a) for a in ("https://api.openai.com/v1", "http://10.0.0.1:1/v1"))


def test_elsewhere_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LLMStopped, match="MY_KEY is not set") as caught:
        Openai("m", base_url="https://llm.example/v1", api_key_env="MY_KEY").connect()
    assert "api_key_env: ''" in str(caught.value)
    monkeypatch.setenv("MY_KEY", "ключ")
    with pytest.raises(LLMStopped, match="MY_KEY holds characters"):
        Openai("m", base_url="https://llm.example/v1", api_key_env="MY_KEY").connect()
    monkeypatch.setenv("OPENAI_BASE_URL", "llm.example")
    with pytest.raises(LLMStopped, match=r"OPENAI_BASE_URL: 'llm\.example' is no address"):
        Openai("m").connect()

    async def work(llm: LLM) -> str:
        return str(llm.identity)

    assert using(Openai("m", base_url="https://llm.example/v1", api_key_env=""), work) == "m"


# --- the rest of the protocol --------------------------------------------------------------------------


def test_embeddings_come_in_order_and_are_tried_again() -> None:
    texts = ["x" * n for n in range(300)]  # two requests
    with FaultServer(in_turn(status(500), embedded(missing=1), None)) as server:
        vectors = using(
            Openai("tiny", base_url=server.url, first_wait_s=0.01), lambda llm: llm.embed([*texts, "a\ud800"])
        )
    assert [vector[0] for vector in vectors] == [*(float(n) for n in range(300)), 2.0]
    assert [len(request.body["input"]) for request in server.requests] == [256, 256, 256, 45]
    assert server.requests[0].body["encoding_format"] == "float"


def test_capabilities_are_honest() -> None:
    async def work(llm: LLM) -> None:
        assert llm.capabilities.embed
        assert not llm.capabilities.logprobs
        with pytest.raises(LLMBadRequest):
            await llm.logprobs(prompt(), "x")
        assert await llm.embed([]) == []

    using(Openai("tiny", base_url=refused_url()), work)
