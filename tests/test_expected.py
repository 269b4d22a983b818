"""What the plan says of requests and tokens against what a run then sends."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.run import Run
from autointerp.scorers.question import Packing
from autointerp.sections import instance
from autointerp.stages.expected import expected
from autointerp.stages.metered import n_tokens
from autointerp.stages.packing import cheapest
from autointerp.stages.spent import spent
from autointerp.types import Json
from fault_server import Behaviour, FaultServer, ok
from tiny import Tiny


def answer_of(asked: str) -> str:
    """Readable, for the prompts of both roles."""
    if "EXPLANATION: " not in asked:
        return "EXPLANATION: something that happens\nLABEL: something"
    n_windows = len(re.findall(r"^[0-9]+: ", asked, re.MULTILINE))
    return "\n".join(f"{number}: yes" for number in range(1, n_windows + 1))


def counted(_number: int, body: Json) -> Behaviour:
    """Answers readably and counts as `n_tokens` does."""
    text = "".join(f"\n{turn['role']}\n{turn['content']}" for turn in body["messages"])
    said, n = answer_of(body["messages"][-1]["content"]), n_tokens(text)
    usage = {"prompt_tokens": n, "completion_tokens": n_tokens(said), "total_tokens": n + n_tokens(said)}
    return ok(said, usage=usage)


def recipe(made: Tiny, url: str) -> Json:
    llm = {"use": "openai", "model": "tiny", "base_url": url, "prices": {"input": 2.0, "output": 10.0}}
    return made.recipe(llms={"explainer": llm, "judge": llm}, features={"first": 8})


def test_with_samples_the_plan_is_what_is_sent(made: Tiny, tmp_path: Path) -> None:
    with FaultServer(counted) as server:
        mapping = recipe(made, server.url)
        run = pipeline.explain(mapping, out=tmp_path / "run", until="sample")
        planned = {one.role: one for one in asyncio.run(expected(run))}
        run = pipeline.explain(mapping, out=tmp_path / "run")
        took = spent(run)
    explained = took["explain/layers.1/plain"]
    n_scored = [len(list(run.score("layers.1", "plain", name).records())) for name in run.recipe.scorers]
    assert n_scored[0] == n_scored[1] <= 8
    assert planned["explainer"].n_requests == explained.n_requests
    assert planned["explainer"].prompt_tokens == pytest.approx(explained.prompt_tokens, rel=0.01)
    judged = [part for place, part in took.items() if place.startswith("score/")]
    assert planned["judge"].n_requests == sum(part.n_requests for part in judged)
    # The explanation that stands in these prompts was not known.
    assert planned["judge"].prompt_tokens == pytest.approx(sum(p.prompt_tokens for p in judged), rel=0.1)
    by_hand = planned["judge"].prompt_tokens * 2e-6 + planned["judge"].completion_tokens * 10e-6
    assert planned["judge"].cost == pytest.approx(by_hand, rel=1e-3)


def test_features_that_lack_windows_are_planned_until_that_is_known(made: Tiny, tmp_path: Path) -> None:
    mapping = recipe(made, "http://127.0.0.1:1/v1") | {"sampling": {"minimum": 30_000}}
    _, run = pipeline.prepare(mapping, tmp_path / "run")
    assert asyncio.run(expected(run))[0].n_requests == 8
    run = pipeline.explain(mapping, out=tmp_path / "run", until="sample")
    assert {record["status"] for record in run.sample("layers.1").records()} <= {"dead", "too_few"}
    assert asyncio.run(expected(run)) == []


def test_what_is_done_is_planned_no_more(made: Tiny, tmp_path: Path) -> None:
    """Of a run that was cut behind its explanations the scores are left; with four more features also these."""
    with FaultServer(counted) as server:
        mapping = recipe(made, server.url) | {"controls": {"panel": 4}}
        run = pipeline.explain(mapping, out=tmp_path / "run", until="explain")
        n_explained, n_before = len(list(run.explain("layers.1", "plain").records())), len(server.requests)
        (judge, controls) = asyncio.run(expected(run))
        run = pipeline.explain(mapping, out=tmp_path / "run")
        assert (judge.role, controls.role) == ("judge", "judge of controls")
        assert asyncio.run(expected(run)) == []
        n_sent = len(server.requests) - n_before
        assert judge.n_requests + controls.n_requests == pytest.approx(n_sent, rel=0.1)
        more = mapping | {"features": {"first": 12}}
        _, larger = pipeline.prepare(more, tmp_path / "run")
        by_role = {one.role: one for one in asyncio.run(expected(larger))}
        assert by_role["explainer"].n_requests == 4  # they are not sampled: all might be alive
        assert by_role["judge"].n_requests == pytest.approx(4 * judge.n_requests / n_explained, rel=0.1)
        out = str(tmp_path / "run")
        recipe_file = tmp_path / "recipe.yaml"
        recipe_file.write_text(yaml.safe_dump(mapping))
        said = CliRunner().invoke(app, ["explain", "--recipe", str(recipe_file), "--out", out, "--dry-run"])
    assert "about 0 LLM requests left" in said.output and "$" not in said.output


def test_the_plan_and_the_status_tell_tokens_money_and_hours(made: Tiny, tmp_path: Path) -> None:
    with FaultServer(counted) as server:
        recipe_file = tmp_path / "recipe.yaml"
        recipe_file.write_text(yaml.safe_dump(recipe(made, server.url)))
        out = str(tmp_path / "run")
        planned = CliRunner().invoke(
            app, ["explain", "--recipe", str(recipe_file), "--out", out, "--dry-run", "--rate", "2"]
        )
        assert planned.exit_code == 0 and not server.requests, planned.output
        assert "explainer tiny: 8 requests" in planned.output and "tokens in" in planned.output
        assert "together about $" in planned.output and "at 2 requests a second" in planned.output
        done = CliRunner().invoke(app, ["explain", "--recipe", str(recipe_file), "--out", out])
        assert done.exit_code == 0, done.output
    told = CliRunner().invoke(app, ["status", out]).output
    assert "US dollars" in told and "score/layers.1/plain/fuzzing" in told
    total = sum(part.cost for part in spent(Run.open(out)).values())
    assert f"{total:,.4f}" in told


def test_batch_files_are_planned_at_their_own_price(made: Tiny, tmp_path: Path) -> None:
    prices = {"input": 2.0, "output": 10.0, "cached": 1.0, "batch": 0.25}

    def planned(llm: Json) -> dict[str, float | None]:
        mapping = made.recipe(llms={"explainer": llm, "judge": llm}, features={"first": 8})
        run = pipeline.explain(mapping, out=tmp_path / llm["use"], until="sample")
        return {one.role: one.cost for one in asyncio.run(expected(run))}

    with FaultServer(counted) as server:
        live = planned({"use": "openai", "model": "tiny", "base_url": server.url, "prices": prices})
    files = planned({"use": "batch", "model": "tiny", "submit": False, "prices": prices})
    assert set(files) == {"explainer", "judge"}
    assert files == {role: pytest.approx(cost / 4) for role, cost in live.items() if cost is not None}


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("cat", 1),
        ("elephants", 2),
        (" the cat sat", 3),
        ("12345", 2),
        ("1: yes\n", 4),
        ("日本語", 3),
    ],
)
def test_tokens_by_hand(text: str, n: int) -> None:
    assert n_tokens(text) == n


# --- windows a prompt ------------------------------------------------------------------------------------


def test_the_judges_prices_choose_how_many_windows_a_prompt_holds(made: Tiny, tmp_path: Path) -> None:
    def chosen(llm: Json, **scorer: object) -> Packing:
        mapping = made.recipe(
            llms={"explainer": llm, "judge": llm}, scorers={"detection": {"use": "detection", **scorer}}
        )
        run = pipeline.prepare(mapping, tmp_path / "run")[1]
        return instance("scorers", run.recipe.scorers["detection"]).packing

    paid = {"use": "openai", "model": "gpt-4.1-mini", "base_url": "https://api.openai.com/v1"}
    assert chosen(paid) == 20
    assert chosen(paid, packing=5) == 5 and chosen(paid, packing="one") == "one"
    assert chosen({"use": "openai", "model": "unknown", "base_url": "http://127.0.0.1:1/v1"}) == "auto"
    assert chosen({"use": "lexical"}) == "auto"


@pytest.mark.parametrize(
    ("uncached", "output", "k"),
    [(0, 1, 1), (40, 4, 10), (132, 4, 10), (133, 4, 20), (400, 4, 20), (40, 30, 1)],
)
def test_the_number_by_hand(uncached: float, output: float, k: int) -> None:
    """At an answer's token worth four: b/20 + 53 is a tenth less than b/10 + 53 from b = 132.5 on,
    and b + 41 is more than that. Where it is worth 30, one token an answer, 40 + 67, beats four, 4 + 157."""
    assert cheapest(lambda _: uncached, output) == k


# --- what a feature takes ----------------------------------------------------------------------------------

MOST_NEW, MOST_BILLED = 10_500, 17_000
"""Tokens of prompts a feature: one explanation and two scorers of a hundred windows each."""
HUNDRED: Json = {"sampling": {"n_same_token": 0, "n_neighbour": 0}, "features": {"first": 8}}


def a_feature(run: Run) -> tuple[float, float]:
    """Tokens of prompts, all of them and those that no cache has."""
    found = asyncio.run(expected(run))
    assert {one.role for one in found} == {"explainer", "judge"}
    billed = sum(one.prompt_tokens for one in found) / 8
    return billed, billed - sum(one.cached_tokens for one in found) / 8


def test_a_feature_takes_few_new_tokens_behind_a_cache(made: Tiny, tmp_path: Path) -> None:
    """On cards of one's own."""
    llm = {"use": "vllm", "model": "some/model"}
    run = pipeline.prepare(made.recipe(llms={"explainer": llm, "judge": llm}, **HUNDRED), tmp_path / "run")[1]
    billed, new = a_feature(run)
    print(f"own cards: {new:,.0f} new of {billed:,.0f}")
    assert 200 * 32 < new <= MOST_NEW


@pytest.mark.parametrize(
    "server", [{"model": "unknown", "base_url": "http://127.0.0.1:1/v1"}, {"model": "gpt-4.1-mini"}]
)
def test_a_feature_takes_few_tokens_where_nothing_is_cached(made: Tiny, tmp_path: Path, server: Json) -> None:
    """On a server of which nothing is known, and on one that takes no prompt this short into its cache."""
    llm = {"use": "openai", "base_url": "https://api.openai.com/v1", **server}
    run = pipeline.prepare(made.recipe(llms={"explainer": llm, "judge": llm}, **HUNDRED), tmp_path / "run")[1]
    billed, new = a_feature(run)
    print(f"{server['model']}: {billed:,.0f} billed")
    assert new == billed and 200 * 32 < billed <= MOST_BILLED


MOST_NEW_SEQUENTIAL, MOST_BILLED_SEQUENTIAL = 6_000, 9_000
"""The same with sequential scoring, on average over judges of mixed quality and the panel's share of features."""
SEQUENTIAL: Json = {name: {"use": name, "sequential": {}} for name in ("detection", "fuzzing")}


def test_sequential_scoring_takes_fewer_new_tokens_behind_a_cache(made: Tiny, tmp_path: Path) -> None:
    llm = {"use": "vllm", "model": "some/model"}
    mapping = made.recipe(llms={"explainer": llm, "judge": llm}, scorers=SEQUENTIAL, **HUNDRED)
    billed, new = a_feature(pipeline.prepare(mapping, tmp_path / "run")[1])
    print(f"own cards: {new:,.0f} new of {billed:,.0f}")
    assert 60 * 32 < new <= MOST_NEW_SEQUENTIAL


@pytest.mark.parametrize(
    "server", [{"model": "unknown", "base_url": "http://127.0.0.1:1/v1"}, {"model": "gpt-4.1-mini"}]
)
def test_sequential_scoring_takes_fewer_tokens_where_nothing_is_cached(
    made: Tiny, tmp_path: Path, server: Json
) -> None:
    llm = {"use": "openai", "base_url": "https://api.openai.com/v1", **server}
    mapping = made.recipe(llms={"explainer": llm, "judge": llm}, scorers=SEQUENTIAL, **HUNDRED)
    billed, new = a_feature(pipeline.prepare(mapping, tmp_path / "run")[1])
    print(f"{server['model']}: {billed:,.0f} billed")
    assert new == billed and 60 * 32 < billed <= MOST_BILLED_SEQUENTIAL
