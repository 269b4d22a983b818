"""A second LLM for what the first one declines: asked then alone, named in the record, counted and kept."""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from asked import asking, heldout_of
from rich.console import Console

from autointerp import pipeline
from autointerp.bench.made_up_run import DICTIONARY, make_run
from autointerp.errors import RecipeError, Refused, Unreadable
from autointerp.evidence import Evidence
from autointerp.explainers.plain import Plain
from autointerp.llm.exchange import Reply
from autointerp.prompting import Prompt
from autointerp.recipe import parse
from autointerp.report.summary import summarise
from autointerp.report.terminal import print_summary
from autointerp.splits import Shown
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


def _declines(*remainders: int) -> Callable[[Prompt, int], str]:
    """A quarter of the features for each remainder."""

    def declines(prompt: Prompt, index: int) -> str:
        is_refused = zlib.crc32(prompt.messages[-1].content.encode()) % 4 in remainders
        return "I must decline." if is_refused else "EXPLANATION: it\nLABEL: it"

    return declines


declines_most, declines_half, declines_some = _declines(0, 1, 2), _declines(0, 1), _declines(0)


def test_fallbacks_are_asked_in_turn(tmp_path: Path) -> None:
    """Each about what all before it refused; what the last refuses stays refused."""
    chain: Json = {}
    for model in ("some", "half", "most"):
        chain = section(function=f"test_fallback:declines_{model}", model=model) | (
            {"fallback": chain} if chain else {}
        )
    run = make_run(tmp_path / "run", 60, llms={"explainer": chain, "judge": {"use": "lexical"}})
    assert asyncio.run(_planned(run)) == {"explainer": 60, "fallback": 3, "fallback 2": 0}  # 5%, .25%
    pipeline.run_line(run, until="explain")
    records = list(run.explain(DICTIONARY, "plain").records())
    found = Counter((record["status"], record["llm"], *record.get("refused_by", ())) for record in records)
    n_by_place = [
        found["ok", "most"],
        found["ok", "half", "most"],
        found["ok", "some", "most", "half"],
        found["refused", "some", "most", "half", "some"],
    ]
    assert min(n_by_place) > 0 and sum(n_by_place) == 60
    identity = run.explain(DICTIONARY, "plain").made_from["llms"]["explainer"]
    assert identity["fallback"]["fallback"]["model"] == "some"


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
            "llms.explainer.fallback: it is an LLM that has refused",
        ),
        ({"explainer": section(fallback="mild")}, "llms.explainer.fallback: must be the section of an LLM"),
        (
            {"explainer": section(fallback=FALLBACK | {"fallback": {"use": "opnai"}})},
            "llms.explainer.fallback.fallback: .*Did you mean 'openai'",
        ),
        (
            {"explainer": section(fallback=FALLBACK | {"fallback": section()})},
            "llms.explainer.fallback.fallback: it is an LLM that has refused",
        ),
        (
            {"explainer": section(fallback={"use": "opnai"})},
            "llms.explainer.fallback: .*Did you mean 'openai'",
        ),
    ],
)
def test_a_fallback_that_cant_be(llms: Json, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse({"dictionaries": {"a": {"path": "x"}}, "llms": llms})


_WINDOWS = heldout_of(8, 8, random.Random(1))
EVIDENCE = Evidence(Shown(_WINDOWS.active, _WINDOWS.silent))
DECLINED = (
    "I'm sorry, but I can't help with that request.",
    "I’m sorry, I won’t assist with this.",
    "I am very sorry, but this content is not something I can discuss.",
    "Sorry, I can't do that.",
    "I cannot provide an explanation of this content.",
    "I can't assist with that.",
    "I am unable to help with this.",
    "I'm not able to continue with this one.",
    "I won't engage with these texts.",
    "Unfortunately, I cannot fulfill this request.",
    "I must decline to describe these examples.",
    "I apologize, but these examples are explicit.",
    "My apologies, but no.",
    "As an AI language model, I do not describe such content.",
    "I'd rather not say what these have in common.",
    "This content violates my guidelines.",
    "**I'm sorry**, but no.",
    "抱歉，我无法协助处理这个请求。",
)
ANSWERED = (
    "",
    "The texts are about people who say sorry.",
    "I can't see what these examples have in common.",
    "I cannot find a pattern.",
    "I think the feature fires on apologies such as I'm sorry.",
    "Sorrow and grief in poems",
    "Words that refuse: I can't help it",
    "As a rule, it fires on verbs.",
)


@pytest.mark.parametrize("said", DECLINED)
def test_refusals_in_words_are_refusals(said: str) -> None:
    """As vLLM's and transformers' models refuse; asked twice, as whatever can't be read."""
    with pytest.raises(Refused, match="declined in words"):
        asyncio.run(Plain().explain(EVIDENCE, asking(lambda prompt, index: said)))


@pytest.mark.parametrize("said", ANSWERED)
def test_what_is_no_refusal_is_unreadable(said: str) -> None:
    with pytest.raises(Unreadable):
        asyncio.run(Plain().explain(EVIDENCE, asking(lambda prompt, index: said)))


@pytest.mark.parametrize("said", DECLINED)
def test_an_explanation_behind_an_apology_is_one(said: str) -> None:
    """On the second try too; and one that speaks of refusals is no refusal."""
    replies = [said, f"{said}\nEXPLANATION: {said}\nLABEL: it"]
    explained = asyncio.run(Plain().explain(EVIDENCE, asking(lambda prompt, index: replies[index])))
    assert explained.text == said


def mumbles(prompt: Prompt, index: int) -> str:
    """By the text of a feature's first window: declines in words, can't keep to the format, or explains."""
    ASKED["first"] += 1
    n = len(prompt.messages[-1].content) % 3
    return ("I'm sorry, but I can't help with that.", "It fires on words.", "EXPLANATION: first")[n]


def test_of_replies_that_cant_be_read_the_fallback_is_asked_about_refusals_alone(tmp_path: Path) -> None:
    first: Json = {"use": "scripted", "function": "test_fallback:mumbles", "model": "strict"}
    llms = {"explainer": first | {"fallback": FALLBACK}, "judge": {"use": "lexical"}}
    run = make_run(tmp_path / "run", 24, llms=llms)
    ASKED.update(first=0, second=0)
    pipeline.run_line(run, until="explain")
    records = list(run.explain(DICTIONARY, "plain").records())
    by_second = [record for record in records if record.get("refused_by")]
    unreadable = [record for record in records if record["status"] == "unreadable"]
    assert by_second and unreadable and len(by_second) + len(unreadable) < 24
    assert {record["text"] for record in by_second} == {"second"}
    assert {record["llm"] for record in unreadable} == {"strict"}
    assert ASKED["second"] == len(by_second)
    (summary,) = summarise(run, DICTIONARY).explainers
    assert (summary.n_refused, summary.ends) == (len(by_second), {"unreadable": len(unreadable)})
