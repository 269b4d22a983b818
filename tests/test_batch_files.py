"""Batch files by themselves: what a request's line and an answer's row say, and the index of digests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_llm_openai import prompt, using

from autointerp.errors import LLMBadRequest, LLMError, LLMFiltered, LLMStopped, Pending, RecipeError
from autointerp.llm import digests
from autointerp.llm.batch import Batch, BatchLLM
from autointerp.llm.batch_answers import answer_of
from autointerp.llm.digests import DigestIndex
from autointerp.llm.openai import Openai
from autointerp.llm.protocol import LLM, Place
from autointerp.llm.retries import Passing
from autointerp.llm.server_errors import Server
from autointerp.progress import Silent
from autointerp.types import Json, digest
from batch_server import expired_row, failed_row, ok_row, write_rows
from fault_server import FaultServer, in_turn, ok, token

T = TypeVar("T")
SERVER = Server("the batch", "tiny", "", "")


def offline(folder: Path, work: Callable[[BatchLLM], Awaitable[T]], **options: Any) -> T:
    """Works with an LLM whose files lie in `folder` and go to nobody."""

    async def run() -> T:
        llm = Batch("tiny", submit=False, **options).connect(Place(folder=folder))
        try:
            await llm.open(Silent())
            return await work(llm)
        finally:
            await llm.close()

    return asyncio.run(run())


def rows_of(folder: Path) -> list[Json]:
    paths = sorted((folder / "batch").glob("*/requests-*.jsonl"))
    return [orjson.loads(line) for path in paths for line in path.read_bytes().splitlines()]


ASKED: list[dict[str, Any]] = [
    {"max_tokens": 5, "temperature": 0.5, "seed": 7},
    {"max_tokens": 5, "choices": ["yes", "no"]},
    {"max_tokens": 5, "schema": {"type": "object"}},
    {"max_tokens": 1, "label_tokens": ["yes", "no"]},
    {"max_tokens": 5, "index": 1},
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system_role": False, "constrain": "structured_outputs"},
        {
            "max_tokens_field": "max_completion_tokens",
            "extra_body": {"reasoning_effort": "low", "seed": None},
        },
    ],
)
def test_a_file_holds_what_the_openai_backend_sends(tmp_path: Path, options: Json) -> None:
    """And under the same identity, so that either knows the other's answers."""

    async def single(llm: LLM) -> None:
        for asked in ASKED:
            await llm.generate(prompt("hi ⏎ ü", "be brief"), **asked)

    async def noted(llm: BatchLLM) -> None:
        for asked in ASKED:
            with pytest.raises(Pending):
                await llm.generate(prompt("hi ⏎ ü", "be brief"), **asked)
        await llm.send(Silent())

    with FaultServer() as server:
        using(Openai("tiny", base_url=server.url, **options), single)
        bodies = [request.body for request in server.requests]
    offline(tmp_path, noted, **options)
    rows = rows_of(tmp_path)
    assert [row["body"] for row in rows] == bodies
    assert {(row["method"], row["url"]) for row in rows} == {("POST", "/v1/chat/completions")}
    assert len({row["custom_id"] for row in rows}) == len(ASKED)
    assert Batch("tiny", **options).identity() == Openai("tiny", **options).identity()


def test_probabilities_are_read_as_from_a_single_answer(tmp_path: Path) -> None:
    logprobs = [token("Yes", -0.5, {"Yes": -0.5, " yes": -2.0, "no": -3.0})]
    asked: dict[str, Any] = {"max_tokens": 1, "label_tokens": ["yes", "no"]}
    with FaultServer(in_turn(ok("Yes", logprobs=logprobs))) as server:
        expected = using(Openai("tiny", base_url=server.url), lambda llm: llm.generate(prompt(), **asked))

    async def first(llm: BatchLLM) -> None:
        with pytest.raises(Pending):
            await llm.generate(prompt(), **asked)
        await llm.send(Silent())

    offline(tmp_path, first)
    row = ok_row("Yes")
    row["response"]["body"]["choices"][0]["logprobs"] = {"content": logprobs}
    write_rows(
        tmp_path / "batch/0001/answers-000.jsonl", [row | {"custom_id": rows_of(tmp_path)[0]["custom_id"]}]
    )
    reply = offline(tmp_path, lambda llm: llm.generate(prompt(), **asked))
    assert reply.label_logprobs == expected.label_logprobs and reply.label_logprobs
    assert (reply.text, reply.finish_reason, reply.usage.prompt_tokens) == ("Yes", "stop", 7)


def test_a_filter_that_refuses_the_prompt_is_an_llm_that_declines(tmp_path: Path) -> None:
    async def first(llm: BatchLLM) -> None:
        with pytest.raises(Pending):
            await llm.generate(prompt(), max_tokens=5)
        await llm.send(Silent())

    offline(tmp_path, first)
    row = failed_row(400, {"message": "filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}})
    named = row | {"custom_id": rows_of(tmp_path)[0]["custom_id"]}
    write_rows(tmp_path / "batch/0001/answers-000.jsonl", [named])
    reply = offline(tmp_path, lambda llm: llm.generate(prompt(), max_tokens=5))
    assert (reply.text, reply.finish_reason) == ("", "content_filter")


def test_a_request_stands_in_one_open_file(tmp_path: Path) -> None:
    """Asked twice in a pass, in a pass that a kill ended, and in the next one."""

    async def ask(llm: BatchLLM) -> None:
        for user in ("a", "b", "a"):
            with pytest.raises(Pending):
                await llm.generate(prompt(user), max_tokens=5)

    async def ask_and_send(llm: BatchLLM) -> None:
        await ask(llm)
        await llm.send(Silent())
        await ask(llm)
        await llm.send(Silent())

    offline(tmp_path, ask)  # not sent: nothing is there
    assert not rows_of(tmp_path)
    offline(tmp_path, ask_and_send)
    offline(tmp_path, ask_and_send)
    assert [row["body"]["messages"][0]["content"] for row in rows_of(tmp_path)] == ["a", "b"]


def test_an_answer_goes_before_a_refusal_and_the_first_answer_before_others(tmp_path: Path) -> None:
    async def ask(llm: BatchLLM) -> str:
        try:
            return (await llm.generate(prompt(), max_tokens=5)).text
        except LLMBadRequest as error:
            return str(error)
        except Pending:
            await llm.send(Silent())
            return "pending"

    assert offline(tmp_path, ask) == "pending"
    key = {"custom_id": rows_of(tmp_path)[0]["custom_id"]}
    refused = key | failed_row(400, {"message": "too long"})
    rows = [refused, key | failed_row(500, {}), key | ok_row("one"), refused, key | ok_row("two")]
    place = tmp_path / "batch/0001/answers-000.jsonl"
    for held, expected in ((rows[1:2], "pending"), (rows, "one"), (rows[:1], "refuses this request")):
        write_rows(place, held)
        assert expected in offline(tmp_path, ask)


def test_a_request_larger_than_a_file_fails_alone(tmp_path: Path) -> None:
    async def ask(llm: BatchLLM) -> None:
        with pytest.raises(LLMBadRequest, match="max_bytes"):
            await llm.generate(prompt("long " * 100), max_tokens=5)
        with pytest.raises(Pending):
            await llm.generate(prompt("short"), max_tokens=5)
        await llm.send(Silent())

    offline(tmp_path, ask, max_bytes=300)
    assert len(rows_of(tmp_path)) == 1


# --- rows ----------------------------------------------------------------------------------------------

VLLM_OLD = {"response": {"status_code": 400, "body": None}, "error": {"message": "too long", "code": 400}}
VLLM_NEW = {"response": {"status_code": 400}, "error": {"error": {"message": "too long", "code": 400}}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (failed_row(400, {"message": "too long"}), LLMBadRequest),
        (failed_row(400, {"message": "filtered", "code": "content_filter"}), LLMFiltered),
        (VLLM_OLD, LLMBadRequest),
        (VLLM_NEW, LLMBadRequest),
        ({"response": None, "error": {"code": "invalid_prompt", "message": "no"}}, LLMBadRequest),
        (expired_row(), Passing),
        ({"response": None, "error": {"code": "batch_cancelled", "message": "no"}}, Passing),
        (failed_row(500, {"message": "oops"}), Passing),
        (failed_row(429, {"message": "slow down", "code": "rate_limit_exceeded"}), Passing),
        ({"response": {"status_code": 200, "body": {"choices": []}}, "error": None}, Passing),
        ({"response": {"status_code": 200, "body": None}, "error": None}, Passing),
        ({"response": {"status_code": 200, "body": {"error": {"code": 503}}}, "error": None}, Passing),
        ({"response": None, "error": None}, Passing),
        (failed_row(429, {"message": "no", "code": "insufficient_quota"}), LLMStopped),
        (failed_row(401, {"message": "no", "code": "invalid_api_key"}), LLMStopped),
        (failed_row(404, {"message": "no", "code": "model_not_found"}), LLMStopped),
    ],
)
def test_what_a_failing_row_means(row: Json, expected: type[Exception]) -> None:
    try:
        answer = answer_of(row, SERVER)
    except (Passing, LLMError) as error:
        assert type(error) is expected
    else:
        assert type(answer.refusal) is expected and answer.body is None


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"max_rows": 0}, "max_rows: above 0"),
        ({"first_poll_s": -1.0}, "first_poll_s: above 0"),
        ({"endpoint": "v1/chat"}, "endpoint: begins with a slash"),
        ({"base_url": "localhost"}, "base_url: 'localhost' is no address"),
    ],
)
def test_options_that_cannot_be_are_named(options: Json, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        Batch("tiny", **options)


def test_without_a_run_there_is_no_place_for_files() -> None:
    with pytest.raises(LLMStopped, match="run's folder"):
        Batch("tiny", submit=False).connect()


# --- the index -----------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.integers(0, 300).map(digest),
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.binary(max_size=3).map(lambda few: few.ljust(16, b"\0").hex()),  # numpy drops zeros at the end
    st.binary(max_size=3).map(lambda few: few.rjust(16, b"\0").hex()),
)


@given(st.lists(st.tuples(NAMES, st.integers(0, 2**62))), st.lists(NAMES), st.integers(1, 7))
def test_the_index_is_a_dict(pairs: list[tuple[str, int]], others: list[str], merge_at: int) -> None:
    index, expected = DigestIndex(), dict[str, int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_MERGE_AT", merge_at)
        for name, number in pairs:
            index.set(name, number)
            expected[name] = number
            assert index
    for name in [*expected, *others]:
        assert index.get(name) == expected.get(name)
        assert index.holds(name) == (name in expected)
