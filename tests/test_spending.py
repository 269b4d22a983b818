"""A budget is never passed, whatever requests turn out to cost, and nothing paid for is lost by it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

import jinja2
import orjson
import pytest
from aiohttp import web
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import BudgetReached, LLMStopped, LLMUnavailable
from autointerp.journal import Journal
from autointerp.llm import chat_format, metering
from autointerp.llm.exchange import Prices, Reply, Request, Usage
from autointerp.llm.openai import Openai
from autointerp.llm.protocol import LLM, ByRequest, Capabilities, LLMIdentity, Place
from autointerp.llm.replay import Replayed
from autointerp.llm.spending import Budget, Spent
from autointerp.llm.within_budget import Budgeted
from autointerp.panel import controls_of
from autointerp.prompting import Prompt, Template
from autointerp.run import Run
from autointerp.stages.spent import of_journal, spent, spent_in_all
from autointerp.types import Json
from fault_server import (
    Behaviour,
    FaultServer,
    body_of,
    cut_in_body,
    dripping,
    error_in_200,
    in_turn,
    ok,
    rate_limited,
    status,
)
from tiny import Tiny


def prompt(text: str) -> Prompt:
    return Prompt(Template("test", "0", (("user", jinja2.Template("{{ user }}")),)), {"user": text})


def error_in_200_used(n_prompt: int, n_answer: int) -> Behaviour:
    """The model behind a gateway failed, and what it had said is billed."""
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_answer}
    return body_of(orjson.dumps({"error": {"code": 502, "message": "lost"}, "usage": usage}).decode())


class Priced(ByRequest):
    """An LLM whose answers cost what a draw says, less than could be. Some tries are lost and cost as much, and some
    answers and lost tries don't say what they cost."""

    identity = LLMIdentity("priced")
    capabilities = Capabilities()

    def __init__(self, prices: Prices, seed: int, *, lost: float = 0.0, silent: float = 0.0) -> None:
        """`lost`: share of the tries; `silent`: of those that don't say what they cost."""
        self._prices, self._draws = prices, random.Random(seed)
        self._lost, self._silent = lost, silent
        self.total, self.tokens, self.n_cut, self.n_lost, self.n_silent = 0.0, 0, 0, 0, 0

    async def answer(self, request: Request) -> Reply:
        for _ in range(6):
            await metering.current().may_try()
            usage = await self._try(request)
            if self._draws.random() < self._silent:
                self.n_silent += 1
                usage = metering.UNCOUNTED
            if self._draws.random() >= self._lost:
                return Reply("ok", usage=usage)
            self.n_lost += 1
            metering.current().use(usage)
            await asyncio.sleep(self._draws.uniform(0.0, 0.002))
        raise LLMUnavailable("no answer after 6 tries")

    async def _try(self, request: Request) -> Usage:
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
        return Usage(n_prompt, cached, 0, out, 0, cost)

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
        shares = {"lost": draws.choice([0.0, 0.2, 0.7]), "silent": draws.choice([0.0, 0.3, 1.0])}
        llm = Priced(prices, seed, **shares)
        budgeted = Budgeted(llm, Budget(max_cost, max_tokens, before), prices)

        async def ask(n: int) -> int:
            text = "x" * draws.randint(10, 3_000)
            return len((await budgeted.generate(prompt(text), max_tokens=draws.randint(1, 300))).text)

        found = await asyncio.gather(*(ask(n) for n in range(300)), return_exceptions=True)
        refused = [one for one in found if isinstance(one, BaseException)]
        assert all(isinstance(one, BudgetReached | LLMUnavailable) for one in refused)
        return llm, 300 - len(refused), len(refused)

    llm, n_answered, n_refused = asyncio.run(main())
    if max_cost is not None:
        assert before.cost + llm.total <= max_cost
    if max_tokens is not None:
        assert before.n_tokens + llm.tokens <= max_tokens
    assert llm.n_cut == 0 and n_answered + n_refused == 300
    is_small = (max_cost or 1) < 0.05 or (max_tokens or 10**9) < 5_000
    assert n_refused == 0 or n_answered > 0 or llm.n_lost or is_small


@pytest.mark.parametrize(
    ("behaviour", "n_sent", "said"),
    [
        # A request takes at most 256 and 16 for its turn, 2 bytes and 5 tokens of an answer: 279.
        (ok("ok", usage={}), 3, "837 tokens are set aside"),
        (ok("ok", usage={"prompt_tokens": "12", "completion_tokens": 3}), 3, "837 tokens are set aside"),
        (ok("ok", usage={"prompt_tokens": -12, "completion_tokens": -3}), 3, "837 tokens are set aside"),
        (body_of('{"choices": [{"mess'), 3, "837 tokens are set aside"),
        (cut_in_body(), 3, "837 tokens are set aside"),
        (dripping(100, 0.05), 3, "837 tokens are set aside"),
        (body_of('{"choices": [], "usage": {"prompt_tokens": 150, "completion_tokens": 50}}'), 4, "800 tokens of"),
        (error_in_200_used(150, 50), 4, "800 tokens of"),
    ],
)  # fmt: skip
def test_what_is_billed_without_an_answer_or_without_counts_is_spent(
    behaviour: Behaviour, n_sent: int, said: str
) -> None:
    async def main(url: str) -> list[BaseException | Reply]:
        prices = Prices(input=10.0, output=10.0)
        options = Openai("tiny", base_url=url, prices=prices, first_wait_s=0.01, timeout_s=1.0)
        llm = options.connect(Place(n_in_flight=1))
        budgeted = Budgeted(llm, Budget(None, 1_000, Spent()), prices)
        asking = (budgeted.generate(prompt(f"{n:02}"), max_tokens=5) for n in range(20))
        found = await asyncio.gather(*asking, return_exceptions=True)
        await llm.close()
        return found

    with FaultServer(lambda _number, _body: behaviour) as server:
        found = asyncio.run(main(server.url))
        assert len(server.requests) == n_sent
    refused = [one for one in found if isinstance(one, BaseException)]
    assert all(isinstance(one, BudgetReached) for one in refused) and said in str(refused[-1])


def test_failures_that_cost_nothing_are_not_spent() -> None:
    async def main(url: str) -> Reply:
        llm = Openai("tiny", base_url=url, first_wait_s=0.01).connect()
        budgeted = Budgeted(llm, Budget(None, 320, Spent()), None)  # one request fits
        try:
            return await budgeted.generate(prompt("x"), max_tokens=5)
        finally:
            await llm.close()

    refusals = (status(500), rate_limited(), error_in_200({"code": 502, "message": "lost"}), ok("there"))
    with FaultServer(in_turn(*refusals)) as server:
        assert asyncio.run(main(server.url)).text == "there"


def test_what_was_lost_is_known_to_the_next_process(tmp_path: Path) -> None:
    """Of a request that got no answer at all, and of one that did; whether a budget stood in between or not."""

    async def main(url: str, budget: Budget | None) -> None:
        prices = Prices(input=10.0, output=10.0)
        llm: LLM = Openai("tiny", base_url=url, prices=prices, first_wait_s=0.01, max_tries=2).connect()
        kept = Replayed(
            llm if budget is None else Budgeted(llm, budget, prices),
            Journal(tmp_path / "requests", None), Journal(tmp_path / "usage" / "explain", None), "0",
        )  # fmt: skip
        for text in "ab":
            with contextlib.suppress(LLMUnavailable):
                await kept.generate(prompt(text), max_tokens=5)
        await kept.close()

    counts = {"prompt_tokens": 150, "completion_tokens": 50}
    lost = body_of(orjson.dumps({"choices": [], "usage": counts}).decode())
    silent = body_of("[]")
    with FaultServer(in_turn(lost, silent, lost, ok("b", usage=counts))) as server:
        asyncio.run(main(server.url, Budget(1.0, None, Spent())))
    total = _of(tmp_path / "usage" / "explain")
    assert (total.n_requests, total.prompt_tokens, total.completion_tokens) == (1, 450, 150)
    assert total.cost == pytest.approx(600 * 10 / 1e6)
    assert total.aside_tokens == 256 + 16 + 1 + 5  # the silent one's
    assert total.aside_cost == pytest.approx(278 * 10 / 1e6)
    with FaultServer(in_turn(lost)) as server:
        asyncio.run(main(server.url, None))
    assert _of(tmp_path / "usage" / "explain").prompt_tokens == 450 + 2 * 150
    with pytest.raises(BudgetReached, match=r"0\.0060 of \$0\.0110 .*up to \$0\.0028 are set aside"):
        asyncio.run(_one(Budgeted(Priced(Prices(input=10.0, output=10.0), 0), Budget(0.011, None, total),
                                  Prices(input=10.0, output=10.0))))  # fmt: skip


async def _one(llm: LLM) -> None:
    await llm.generate(prompt("x"), max_tokens=5)


def _embeddings(usage: Json | None, *, index: object = None, entry: object = 1.0) -> Behaviour:
    """`index` stands in for the first one's, `entry` for the first one's first number."""

    async def answer(_request: web.Request, body: Json) -> web.StreamResponse:
        data = [{"index": n, "embedding": [float(n), 1.0]} for n in range(len(body["input"]))]
        data[0] = {"index": 0 if index is None else index, "embedding": [entry, 1.0]}
        return web.json_response({"data": data} | ({} if usage is None else {"usage": usage}))

    return answer


@pytest.mark.parametrize("has_budget", [True, False])
def test_embeddings_are_noted_with_what_they_used(tmp_path: Path, *, has_budget: bool) -> None:
    """600 texts in three requests; and once more without counts, which a budget takes at their bound."""

    async def main(url: str, texts: list[str]) -> None:
        prices = Prices(input=10.0, output=0.0)
        llm: LLM = Openai("tiny", base_url=url, prices=prices).connect()
        asked = Budgeted(llm, Budget(1_000.0, None, Spent()), prices) if has_budget else llm
        kept = Replayed(asked, Journal(tmp_path / "requests", None), Journal(tmp_path / "usage", None), "0")
        assert len(await kept.embed(texts)) == len(await kept.embed(texts)) == len(texts)
        await kept.close()

    with FaultServer(in_turn(_embeddings({"prompt_tokens": 5_000, "total_tokens": 5_000}))) as server:
        asyncio.run(main(server.url, [f"{n:03}" for n in range(600)]))
        assert len(server.requests) == 3
    total = _of(tmp_path / "usage")
    assert (total.n_requests, total.n_unpriced, total.prompt_tokens) == (1, 0, 15_000)
    assert total.cost == pytest.approx(0.15)
    with FaultServer(in_turn(_embeddings(None))) as server:
        asyncio.run(main(server.url, ["abc"]))
    total = _of(tmp_path / "usage")
    assert (total.n_requests, total.n_unpriced, total.prompt_tokens) == (2, 1, 15_000)
    assert total.aside_tokens == (256 + 16 + 3 if has_budget else 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"entry": None}, {"entry": "1"}, {"entry": True}, {"entry": []},
        {"index": "0"}, {"index": 1}, {"index": False}, {"index": []}, {"index": 0.0},
    ],
)  # fmt: skip
def test_embeddings_that_are_none_are_asked_for_again(bad: Json) -> None:
    async def main(url: str) -> list[list[float]]:
        llm = Openai("tiny", base_url=url, first_wait_s=0.01).connect()
        try:
            return await llm.embed(["a", "b"])
        finally:
            await llm.close()

    with FaultServer(in_turn(_embeddings(None, **bad), _embeddings(None))) as server:
        assert asyncio.run(main(server.url)) == [[1.0, 1.0], [1.0, 1.0]]
        assert len(server.requests) == 2


def test_embeddings_of_two_lengths_are_none() -> None:
    data = [{"index": 0, "embedding": [1.0, 2.0]}, {"index": 1, "embedding": [1.0]}]
    with pytest.raises(chat_format.NotAnAnswer, match="differ in length"):
        chat_format.read_vectors({"data": data}, 2)


def _of(folder: Path) -> Spent:
    return of_journal(Journal(folder, None))


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
