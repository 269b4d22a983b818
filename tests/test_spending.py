"""A budget is never passed, whatever requests turn out to cost, and nothing paid for is lost by it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import jinja2
import orjson
import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import BudgetReached, LLMStopped
from autointerp.llm.openai import Openai
from autointerp.llm.protocol import ByRequest, Capabilities, LLMIdentity, Prices, Reply, Request, Usage
from autointerp.llm.spending import Budget, Budgeted, Spent
from autointerp.panel import controls_of
from autointerp.prompting import Prompt, Template
from autointerp.run import Run
from autointerp.stages.spent import spent, spent_in_all
from autointerp.types import Json
from fault_server import Behaviour, FaultServer, ok
from tiny import Tiny


def prompt(text: str) -> Prompt:
    return Prompt(Template("test", "0", (("user", jinja2.Template("{{ user }}")),)), {"user": text})


class Priced(ByRequest):
    """An LLM whose answers cost what a draw says: less than could be, and for some seeds now and then more
    than its prices allow for."""

    identity = LLMIdentity("priced")
    capabilities = Capabilities()

    def __init__(self, prices: Prices, seed: int) -> None:
        self._prices, self._draws = prices, random.Random(seed)
        self.total, self.tokens, self.n_cut, self.largest = 0.0, 0, 0, 0.0

    async def answer(self, request: Request) -> Reply:
        n_bytes = len(request.prompt.messages[-1].content.encode())
        n_prompt = max(1, round(n_bytes * self._draws.uniform(0.15, 1.0)))
        cached = round(n_prompt * self._draws.choice([0.0, 0.0, 0.5, 0.9]))
        out = self._draws.randint(1, request.max_tokens)
        usage = Usage(prompt_tokens=n_prompt, cached_tokens=cached, completion_tokens=out)
        cost = self._prices.of(usage)
        self.n_cut += 1
        try:
            await asyncio.sleep(self._draws.uniform(0.0, 0.002))
        finally:
            self.n_cut -= 1
        self.total += cost
        self.tokens += n_prompt + out
        return Reply("ok", usage=Usage(n_prompt, cached, 0, out, 0, cost))

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise NotImplementedError

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("seed", range(50))
def test_spending_ends_below_the_limit_over_random_prices_and_usage(seed: int) -> None:
    draws = random.Random(f"budget {seed}")
    prices = Prices(
        input=draws.uniform(0.05, 10), output=draws.uniform(0.1, 60), cached=draws.choice([None, 0.01]),
        written=draws.choice([None, 12.0]),
    )  # fmt: skip
    max_cost = draws.choice([None, draws.uniform(0.01, 2.0)])
    max_tokens = (
        draws.choice([None, draws.randint(2_000, 60_000)]) if max_cost else draws.randint(2_000, 60_000)
    )
    before = Spent(cost=draws.choice([0.0, (max_cost or 0.0) / 2]), prompt_tokens=500)

    async def main() -> tuple[Priced, int, int]:
        llm = Priced(prices, seed)
        budgeted = Budgeted(llm, Budget(max_cost, max_tokens, before), prices)

        async def ask(n: int) -> int:
            text = "x" * draws.randint(10, 3_000)
            return len((await budgeted.generate(prompt(text), max_tokens=draws.randint(1, 300))).text)

        found = await asyncio.gather(*(ask(n) for n in range(300)), return_exceptions=True)
        refused = [one for one in found if isinstance(one, BaseException)]
        assert all(isinstance(one, BudgetReached) for one in refused)
        return llm, 300 - len(refused), len(refused)

    llm, n_answered, n_refused = asyncio.run(main())
    if max_cost is not None:
        assert before.cost + llm.total <= max_cost
    if max_tokens is not None:
        assert before.n_tokens + llm.tokens <= max_tokens
    assert llm.n_cut == 0 and n_answered + n_refused == 300
    assert n_refused == 0 or n_answered > 0 or (max_cost or 1) < 0.05 or (max_tokens or 10**9) < 5_000


def test_a_budget_is_used_well() -> None:
    """Nine tenths of what the limit allows is spent where what is set aside is a few times what is used."""

    async def main() -> Priced:
        prices = Prices(input=1.0, output=1.0)
        llm = Priced(prices, 0)
        budgeted = Budgeted(llm, Budget(0.05, None, Spent()), prices)
        asking = (budgeted.generate(prompt("x" * 300), max_tokens=20) for _ in range(1_000))
        await asyncio.gather(*asking, return_exceptions=True)
        return llm

    llm = asyncio.run(main())
    assert 0.9 * 0.05 <= llm.total <= 0.05


def test_what_is_in_flight_when_the_budget_ends_is_answered() -> None:
    async def main() -> tuple[list[object], Priced]:
        prices = Prices(input=1.0, output=1.0)
        llm = Priced(prices, 0)
        budgeted = Budgeted(llm, Budget(None, 20_000, Spent()), prices)
        asking = [
            asyncio.ensure_future(budgeted.generate(prompt("x" * 900), max_tokens=50)) for _ in range(100)
        ]
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_EXCEPTION)
        assert any(task.exception() for task in done)
        assert llm.n_cut == 0, "the first refusal comes when nothing is in flight"
        return list(await asyncio.gather(*asking, return_exceptions=True)), llm

    found, llm = asyncio.run(main())
    n_answered = sum(isinstance(one, Reply) for one in found)
    assert 0 < n_answered < 100
    assert f"{llm.tokens:,} tokens of 20,000" in str(
        next(one for one in found if isinstance(one, BudgetReached))
    )


# --- in a run --------------------------------------------------------------------------------------------


def priced_answer(_number: int, body: Json) -> Behaviour:
    text = body["messages"][-1]["content"]
    n = len(text) // 4
    said = "EXPLANATION: something\nLABEL: something" if "EXPLANATION: " not in text else "\n".join(
        f"{number}: yes" for number in range(1, 40)
    )  # fmt: skip
    return ok(said, usage={"prompt_tokens": n, "completion_tokens": 20, "total_tokens": n + 20})


def recipe(made: Tiny, url: str, **resources: object) -> Json:
    llm = {"use": "openai", "model": "tiny", "base_url": url, "prices": {"input": 2.0, "output": 10.0}}
    return made.recipe(
        llms={"explainer": llm, "judge": llm},
        features={"first": 12},
        resources={"n_in_flight": 4, **resources},
    )


def test_a_run_stops_before_its_budget_and_goes_on_with_a_larger_one(made: Tiny, tmp_path: Path) -> None:
    with FaultServer(priced_answer) as server:
        whole = pipeline.explain(recipe(made, server.url), out=tmp_path / "whole")
        n_whole = len(server.requests)
        total = spent_in_all(whole)
        assert total.n_requests == n_whole and total.n_unpriced == 0 and total.cost > 0
        by_place = spent(whole)
        assert set(by_place) == {
            "preflight", "explain/layers.1/plain", "score/layers.1/plain/detection",
            "score/layers.1/plain/fuzzing",
        }  # fmt: skip
        assert sum(part.cost for part in by_place.values()) == pytest.approx(total.cost)

        limit = total.cost / 2
        server.requests.clear()
        with pytest.raises(BudgetReached, match=r"budget is used up: \$0\.\d+ of"):
            pipeline.explain(recipe(made, server.url, max_cost=limit), out=tmp_path / "some")
        run = Run.open(tmp_path / "some")
        n_first = len(server.requests)
        assert limit / 2 < spent_in_all(run).cost <= limit and n_first < n_whole
        assert spent_in_all(run).n_requests == n_first, "every answer that was paid for is kept"

        result = CliRunner().invoke(app, ["resume", str(run.path)])
        assert result.exit_code == 2 and "--max-cost" in result.output
        asked = [orjson.dumps(request.body["messages"]) for request in server.requests]
        assert len(asked) - len(set(asked)) <= 6, "nothing was asked twice but the preflight"
        assert spent_in_all(run).cost <= limit, "smaller requests may still have fitted"
        result = CliRunner().invoke(app, ["resume", str(run.path), "--max-cost", "1000"])
        assert result.exit_code == 0, result.output
        assert Run.open(run.path).recipe.resources.max_cost == 1000
        assert len(server.requests) <= n_whole + 6, "nothing was asked twice but the preflight"
        scores = {name: list(run.score("layers.1", "plain", name).records()) for name in run.recipe.scorers}
        assert scores == {name: list(whole.score("layers.1", "plain", name).records()) for name in scores}


def test_what_is_asked_about_controls_counts_and_ends_with_the_budget(made: Tiny, tmp_path: Path) -> None:
    """A limit between what the run's own scores cost and what they cost with controls: the own ones are whole, some
    of the controls' are there, and a larger budget makes the rest."""
    controls = {"controls": {"panel": 6, "kinds": ["shuffled"]}}
    with FaultServer(priced_answer) as server:
        mapping = recipe(made, server.url) | controls
        whole = pipeline.explain(mapping, out=tmp_path / "whole")
        by_place = {place: part.cost for place, part in spent(whole).items()}
        of_controls = sum(cost for place, cost in by_place.items() if place.startswith("control/"))
        total = sum(by_place.values())
        assert 0 < of_controls < total / 2
        limit = total - of_controls / 2
        with pytest.raises(BudgetReached):
            pipeline.explain(recipe(made, server.url, max_cost=limit) | controls, out=tmp_path / "some")
        run = Run.open(tmp_path / "some")
        assert total - of_controls <= spent_in_all(run).cost <= limit
        for name in run.recipe.scorers:
            own = (list(one.score("layers.1", "plain", name).records()) for one in (run, whole))
            assert next(own) == next(own)
        journals = [
            [one.control("layers.1", control) for control in controls_of(one.recipe)] for one in (run, whole)
        ]
        n_some, n_whole = (sum(len(list(journal.records())) for journal in of) for of in journals)
        assert n_some < n_whole == 2 * 6
        result = CliRunner().invoke(app, ["resume", str(run.path), "--max-cost", "1000"])
        assert result.exit_code == 0, result.output
        some, all_ = (sorted(r["key"] for journal in of for r in journal.records()) for of in journals)
        assert some == all_


def test_a_limit_on_cost_needs_prices(made: Tiny, tmp_path: Path) -> None:
    with FaultServer(priced_answer) as server:
        mapping = recipe(made, server.url, max_cost=1.0)
        mapping["llms"] = {role: {**one, "prices": None} for role, one in mapping["llms"].items()}
        with pytest.raises(LLMStopped, match="nobody knows what tiny costs"):
            pipeline.explain(mapping, out=tmp_path / "run")
        assert not server.requests


def test_prices_are_no_part_of_who_answers() -> None:
    assert Openai("m", prices=Prices(input=1.0, output=2.0)).identity() == Openai("m").identity()
