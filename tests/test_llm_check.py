"""`autointerp llm check`: what a server can do is told, and a judge that can't judge is called that."""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson
import pytest
from typer.testing import CliRunner

from autointerp.cli import app
from autointerp.stages.llm_check import anchors
from autointerp.types import Json
from fault_server import Behaviour, FaultServer, ok, status, token

Judge = Callable[[str, str], str]


def knows(explanation: str, excerpt: str) -> str:
    fits = next(fits for said, fits, _ in anchors() if said == explanation)
    return "yes" if excerpt in [text.replace("\n", "⏎").strip("⏎") for text in fits] else "no"


def server_of(judge: Judge, *, schema: bool = False, labels: bool = False, refuses: str = "") -> FaultServer:
    def script(_number: int, body: Json) -> Behaviour:
        if refuses in body:
            return status(400, {"message": f"unsupported parameter: {refuses}", "param": refuses})
        if schema and "fires" in orjson.dumps(body.get("response_format")).decode():
            return ok('{"fires": true}')
        asked = body["messages"][-1]["content"]
        explanation = re.search(r"^EXPLANATION: (.*)$", asked, re.MULTILINE)
        excerpts = re.findall(r"^[0-9]+: (.*)$", asked, re.MULTILINE)
        assert explanation and excerpts
        said = "\n".join(
            f"{n}: {judge(explanation[1], text.strip('⏎'))}" for n, text in enumerate(excerpts, 1)
        )
        logprobs = [token("1", -0.1, {"1": -0.1})] if labels and "logprobs" in body else None
        return ok(said, logprobs=logprobs)

    return FaultServer(script)


def check(server: FaultServer, *settings: str) -> tuple[int, str]:
    flags = [flag for text in (f"base_url={server.url}", *settings) for flag in ("--set", text)]
    result = CliRunner().invoke(app, ["llm", "check", "openai:tiny", "--rounds", "2", *flags])
    return result.exit_code, result.output


def test_a_good_judge_is_fit_and_what_it_can_do_is_told() -> None:
    with server_of(knows, schema=True, labels=True) as server:
        code, told = check(server, "constrain=response_format", "prices={input: 1, output: 2}")
        n_requests = len(server.requests)
    assert code == 0, told
    assert "balanced accuracy 1.000" in told and "on 160 questions" in told and "0 unreadable" in told
    assert re.search(r"label logprobs +yes", told) and re.search(r"keeps a schema +yes", told)
    assert n_requests == 2 + 2 * len(anchors()) and f"{n_requests} requests" in told
    # 7 tokens in and 1 out each, see `fault_server.ok`
    assert f"${n_requests * 9e-6:,.4f}" in told


def test_a_judge_that_always_says_yes_is_called_unfit() -> None:
    with server_of(lambda _explanation, _excerpt: "yes", refuses="seed") as server:
        code, told = check(server)
    assert code == 1 and "balanced accuracy 0.500" in told and "Below 0.85" in told
    assert told.count("misjudged") == 8
    assert re.search(r"label logprobs +no", told) and re.search(r"keeps a schema +no", told)


def test_a_judge_that_nobody_can_read_is_called_that() -> None:
    with server_of(lambda _explanation, _excerpt: "perhaps") as server:
        code, told = check(server)
    assert code == 1 and "not one of 160 answers could be read" in told


def test_what_a_server_refuses_is_told() -> None:
    with server_of(knows, refuses="temperature") as server:
        code, told = check(server)
    assert code == 0 and re.search(r"refused +temperature", told)


def test_anchors_are_balanced_and_no_excerpt_stands_on_both_sides() -> None:
    for explanation, fits, others in anchors():
        assert explanation.endswith((".", '".')) and len(fits) == len(others) == 4
        assert not set(fits) & set(others) and len({*fits, *others}) == 8


@pytest.mark.parametrize("llm", ["nothing:x", "openai"])
def test_a_wrong_name_is_a_users_error(llm: str) -> None:
    result = CliRunner().invoke(app, ["llm", "check", llm])
    assert result.exit_code == 2 and "Error: " in result.output
