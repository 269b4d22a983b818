"""A second LLM for what the first one declines: asked then alone, named in the record, counted and kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from autointerp import pipeline
from autointerp.bench.made_up_run import DICTIONARY, make_run
from autointerp.errors import RecipeError
from autointerp.llm.protocol import Reply
from autointerp.prompting import Prompt
from autointerp.recipe import parse
from autointerp.report.summary import summarise
from autointerp.report.terminal import print_summary
from autointerp.stages.expected import expected
from autointerp.types import Json
from fault_server import Behaviour, FaultServer, ok, status

ASKED: dict[str, int] = {"first": 0, "second": 0}


def refuses(prompt: Prompt, index: int) -> str | Reply:
    """Every other feature, by the text of its first window."""
    ASKED["first"] += 1
    is_even = len(prompt.messages[-1].content) % 2 == 0
    return Reply("", "content_filter") if is_even else "EXPLANATION: first\nLABEL: first"


def answers(prompt: Prompt, index: int) -> str:
    ASKED["second"] += 1
    return "EXPLANATION: second\nLABEL: second"


def section(**options: object) -> Json:
    first: Json = {"use": "scripted", "function": "test_fallback:refuses", "model": "strict"}
    return first | options


FALLBACK: Json = {"use": "scripted", "function": "test_fallback:answers", "model": "mild"}


def test_the_second_is_asked_where_the_first_refuses(tmp_path: Path) -> None:
    llms = {"explainer": section(fallback=FALLBACK), "judge": {"use": "lexical"}}
    run = make_run(tmp_path / "run", 12, llms=llms)
    ASKED.update(first=0, second=0)
    pipeline.run_line(run, until="explain")
    records = list(run.explain(DICTIONARY, "plain").records())
    by_second = [record for record in records if record["llm"] == "mild"]
    assert len(records) == 12 and 0 < len(by_second) < 12
    assert {record["text"] for record in by_second} == {"second"}
    assert all(record["refused_by"] == ["strict"] for record in by_second)
    assert all("refused_by" not in record for record in records if record["llm"] == "strict")
    assert {"first": 12, "second": len(by_second)} == ASKED
    # Replies of both are kept: records that are lost cost nothing.
    for path in run.explain(DICTIONARY, "plain").folder.glob("*.jsonl"):
        path.unlink()
    pipeline.run_line(run, until="explain")
    assert list(run.explain(DICTIONARY, "plain").records()) == records
    assert {"first": 12, "second": len(by_second)} == ASKED
    (summary,) = summarise(run, DICTIONARY).explainers
    assert (summary.n_explained, summary.n_refused, summary.ends) == (12, len(by_second), {})
    console = Console(record=True, width=160)
    print_summary(console, summarise(run, DICTIONARY), {})
    assert re.search(
        rf"refused by an LLM.*{len(by_second)}.*{len(by_second) / 12:.1%} of those", console.export_text()
    )


def test_without_one_a_refusal_stays_a_refusal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 12, llms={"explainer": section(), "judge": {"use": "lexical"}})
    pipeline.run_line(run, until="explain")
    statuses = [record["status"] for record in run.explain(DICTIONARY, "plain").records()]
    (summary,) = summarise(run, DICTIONARY).explainers
    assert summary.n_refused == statuses.count("refused") > 0


def filters(_number: int, body: Json) -> Behaviour:
    """As OpenAI and Azure do it: the prompt itself is refused, with status 400."""
    said = body["messages"][-1]["content"]
    if len(said) % 2:
        return ok("EXPLANATION: first\nLABEL: first")
    return status(400, {"message": "The response was filtered.", "code": "content_filter"})


def test_a_prompt_that_a_filter_refuses_goes_to_the_second(tmp_path: Path) -> None:
    with FaultServer(filters) as server:
        first: Json = {"use": "openai", "model": "strict", "base_url": server.url, "fallback": FALLBACK}
        run = make_run(tmp_path / "run", 12, llms={"explainer": first, "judge": {"use": "lexical"}})
        pipeline.run_line(run, until="explain")
        n_requests = len(server.requests)
        records = list(run.explain(DICTIONARY, "plain").records())
        by_second = [record for record in records if record["llm"] == "mild"]
        assert len(records) == 12 and 0 < len(by_second) < 12
        assert all(record["refused_by"] == ["strict"] for record in by_second)
        (summary,) = summarise(run, DICTIONARY).explainers
        assert (summary.n_explained, summary.n_refused, summary.ends) == (12, len(by_second), {})
        for path in run.explain(DICTIONARY, "plain").folder.glob("*.jsonl"):
            path.unlink()
        pipeline.run_line(run, until="explain")
        assert list(run.explain(DICTIONARY, "plain").records()) == records
        assert len(server.requests) == n_requests  # the refusals are kept as well


async def _planned(run: object) -> dict[str, int]:
    return {one.role: one.n_requests for one in await expected(run)}  # type: ignore[arg-type]  # a Run


def test_the_plan_counts_it_and_another_fallback_is_another_run(tmp_path: Path) -> None:
    import asyncio

    llms = {"explainer": section(fallback=FALLBACK), "judge": {"use": "lexical"}}
    run = make_run(tmp_path / "run", 40, llms=llms)
    assert asyncio.run(_planned(run)) == {"explainer": 40, "fallback": 2}  # 5% are taken to be refused
    alone = make_run(tmp_path / "alone", 1, llms={**llms, "explainer": section()})
    digests = {one.explain(DICTIONARY, "plain").digest for one in (run, alone)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("llms", "message"),
    [
        ({"judge": section(fallback=FALLBACK)}, "llms.judge.fallback: only the LLM that explains"),
        (
            {
                "explainer": {
                    "use": "openai",
                    "model": "m",
                    "base_url": "http://127.0.0.1:1/v1",
                    "fallback": {"use": "openai", "model": "m", "base_url": "http://127.0.0.1:2/v1"},
                }
            },
            "llms.explainer.fallback: it is the LLM that refused",
        ),
        ({"explainer": section(fallback="mild")}, "llms.explainer.fallback: must be the section of an LLM"),
        ({"explainer": section(fallback=FALLBACK | {"fallback": FALLBACK})}, "has none of its own"),
        (
            {"explainer": section(fallback={"use": "opnai"})},
            "llms.explainer.fallback: .*Did you mean 'openai'",
        ),
    ],
)
def test_a_fallback_that_cant_be(llms: Json, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse({"dictionaries": {"a": {"path": "x"}}, "llms": llms})
