"""A budget holds over kills: what was in flight counts as spent until nobody can be charged for it any more."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jinja2
import orjson
import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import BudgetReached, LLMUnavailable, Pending, RunError
from autointerp.journal import Journal, Part
from autointerp.llm import in_flight
from autointerp.llm.batch import Batch
from autointerp.llm.exchange import Prices, Reply
from autointerp.llm.in_flight import Slots, unfinished
from autointerp.llm.openai import Openai
from autointerp.llm.protocol import LLM, Place
from autointerp.llm.replay import Replayed
from autointerp.llm.spending import Bound, Budget, Spent
from autointerp.llm.within_budget import Budgeted, DelayedWithinBudget
from autointerp.merge import merge
from autointerp.progress import Silent
from autointerp.prompting import Prompt, Template
from autointerp.run import Run
from autointerp.stages.cut_off import CUT_OFF, settle
from autointerp.stages.spent import of_journal, spent, spent_in_all
from autointerp.types import Json
from batch_server import BatchServer, ok_row
from fault_server import Behaviour, FaultServer, body_of, ok, rate_limited, slow, status
from here import device_here, records
from tiny import Tiny

PRICES = Prices(input=10.0, output=10.0)
BOUND = 256 + 16 + 1 + 5
"""Of a request for five tokens whose one turn has a byte."""


def prompt(text: str) -> Prompt:
    return Prompt(Template("test", "0", (("user", jinja2.Template("{{ user }}")),)), {"user": text})


class Kept:
    """An LLM with a budget of tokens and a memory, in a folder that outlives it, as a run has them."""

    def __init__(self, folder: Path, llm: LLM, max_tokens: int = 10**9) -> None:
        self.slots = Slots.opened(folder / in_flight.FILE)
        self.usage = Journal(folder / "usage", None)
        self.budget = Budget(None, max_tokens, of_journal(self.usage), self.slots)
        requests = Journal(folder / "requests", None)
        self.llm = Replayed(Budgeted(llm, self.budget, PRICES), requests, self.usage, "0")

    async def ask(self, text: str) -> Reply:
        return await self.llm.generate(prompt(text), max_tokens=5)

    async def close(self) -> None:
        await self.llm.close()
        self.slots.close()


def taken(folder: Path) -> list[float]:
    """Tokens of the slots that are taken."""
    return [one.n_tokens for one in unfinished(folder / in_flight.FILE)]


# --- slots -----------------------------------------------------------------------------------------------


def test_slots_are_what_was_taken_and_not_freed(tmp_path: Path) -> None:
    path, names = tmp_path / "slots", [f"{n:032x}" for n in range(5)]
    slots = Slots.opened(path)
    at = [slots.take(name, 0.5, float(n)) for n, name in enumerate(names)]
    for n in (1, 3):
        slots.free(at[n])
    assert slots.take("f" * 32, 1.5, 7.0) in (at[1], at[3]), "slots are used again"
    slots.wait(at[4], names[4], 0.5, 4.0)
    found = {(one.name[-1], one.cost, one.n_tokens, one.is_awaited) for one in unfinished(path)}
    assert found == {
        ("0", 0.5, 0.0, False),
        ("2", 0.5, 2.0, False),
        ("f", 1.5, 7.0, False),
        ("4", 0.5, 4.0, True),
    }
    assert path.stat().st_size == 64 * 6
    slots.close()
    again = Slots.opened(path)
    assert [(one.name, slot) for slot, one in again.awaited.values()] == [(names[4], 0)]
    again.free(0)
    again.close()
    assert not path.exists(), "where nothing is in flight there is no file"


def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "slots").write_bytes(b"something else")
    with pytest.raises(RunError, match=r"slots is not what was written there: b'something else'.*delete it"):
        unfinished(tmp_path / "slots")
    (tmp_path / "slots").write_bytes(b"")
    assert unfinished(tmp_path / "slots") == []


# --- what holds a slot, and how long ---------------------------------------------------------------------


def test_a_slot_is_held_from_before_a_try_is_sent_until_it_is_noted(tmp_path: Path) -> None:
    """Two of three requests wait for their turn: nothing is sent of them, and nothing counts."""
    seen: list[list[float]] = []

    def look(_number: int, _body: Json) -> Behaviour:
        seen.append(taken(tmp_path))
        return ok("yes", usage={"prompt_tokens": 20, "completion_tokens": 5})

    async def main(url: str) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=url).connect(Place(n_in_flight=1)))
        await asyncio.gather(*(kept.ask(text) for text in "abc"))
        assert taken(tmp_path) == []
        await kept.close()

    with FaultServer(look) as server:
        asyncio.run(main(server.url))
    assert seen == [[BOUND]] * 3
    assert not (tmp_path / in_flight.FILE).exists()


def test_a_try_that_may_be_billed_holds_its_slot_beside_the_next_one_and_a_refused_one_does_not(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    def look(number: int, _body: Json) -> Behaviour:
        seen.append(len(taken(tmp_path)))
        return (rate_limited(), body_of('{"choices": [{"mess'), ok("yes"))[number]

    async def main(url: str) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=url, first_wait_s=0.01).connect())
        await kept.ask("a")
        await kept.close()

    with FaultServer(look) as server:
        asyncio.run(main(server.url))
    assert seen == [1, 1, 2] and not (tmp_path / in_flight.FILE).exists()
    assert of_journal(Journal(tmp_path / "usage", None)).aside_tokens == BOUND


def test_what_is_cancelled_in_flight_is_spent_and_what_waited_is_not(tmp_path: Path) -> None:
    async def main(server: FaultServer) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=server.url).connect(Place(n_in_flight=2)))
        asking = [asyncio.ensure_future(kept.ask(text)) for text in "abcde"]
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        for one in asking:
            one.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        await kept.close()

    with FaultServer(lambda _n, _b: slow(30.0, ok("yes"))) as server:
        asyncio.run(main(server))
    assert of_journal(Journal(tmp_path / "usage", None)) == Spent(
        aside_tokens=2 * BOUND, aside_cost=pytest.approx(2 * BOUND * 10 / 1e6)
    )
    assert not (tmp_path / in_flight.FILE).exists()


@pytest.mark.parametrize(("n_texts", "n_answered"), [(1, 0), (300, 1)])
def test_of_embeddings_that_are_cancelled_those_in_flight_are_spent(
    tmp_path: Path, n_texts: int, n_answered: int
) -> None:
    """Two requests at one connection: of one text each the second has sent nothing; of 300 each, in two parts, the
    first has its first answer, and waits with the second part for the other's first."""

    async def main(server: FaultServer) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=server.url).connect(Place(n_in_flight=1)))
        texts = [[f"{letter}{n:03}" for n in range(n_texts)] for letter in "ab"]
        asking = [asyncio.ensure_future(kept.llm.embed(some)) for some in texts]
        while len(server.requests) < n_answered + 1:
            await asyncio.sleep(0.01)
        for one in asking:
            one.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        await kept.close()

    def answer(number: int, body: Json) -> Behaviour:
        data = [{"index": n, "embedding": [1.0]} for n in range(len(body["input"]))]
        done = {"data": data, "usage": {"prompt_tokens": 100, "total_tokens": 100}}
        return body_of(orjson.dumps(done).decode()) if number < n_answered else slow(30.0, ok("yes"))

    with FaultServer(answer) as server:
        asyncio.run(main(server))
    bound = 256 + n_texts * (16 + 4)
    total = of_journal(Journal(tmp_path / "usage", None))
    assert (total.prompt_tokens, total.aside_tokens) == (100 * n_answered, bound)
    assert not (tmp_path / in_flight.FILE).exists()


def test_what_waits_behind_a_refusal_is_not_spent(tmp_path: Path) -> None:
    """The server takes a temperature, then refuses it, and is to be asked again a while later."""

    async def main(server: FaultServer) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=server.url, first_wait_s=30.0).connect())
        await kept.ask("a")
        asking = asyncio.ensure_future(kept.ask("b"))
        while len(server.requests) < 2 or taken(tmp_path):
            await asyncio.sleep(0.01)
            assert not asking.done()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await kept.close()

    error = {"message": "Unsupported parameter: 'temperature' is not supported.", "param": "temperature"}
    refusal = status(400, error)
    with FaultServer(lambda number, _b: refusal if number else ok("yes")) as server:
        asyncio.run(asyncio.wait_for(main(server), 20.0))
    assert of_journal(Journal(tmp_path / "usage", None)).aside_tokens == 0


def test_what_fails_for_good_holds_nothing(tmp_path: Path) -> None:
    async def main(url: str) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=url, first_wait_s=0.01, max_tries=2).connect())
        with pytest.raises(LLMUnavailable):
            await kept.ask("a")
        assert taken(tmp_path) == []
        await kept.close()

    with FaultServer(lambda _n, _b: rate_limited()) as server:
        asyncio.run(main(server.url))


def test_what_a_server_took_into_a_batch_stays_aside_over_a_kill_and_is_not_counted_twice(
    tmp_path: Path,
) -> None:
    """Room for four requests. Three are sent, and the process is gone; the next one asks for another two first,
    of which one fits, and for the three of the batch: whatever the order, the batch has its room."""
    limit = 4 * BOUND

    async def first(url: str) -> None:
        llm = Batch("tiny", base_url=url, first_poll_s=0.01).connect(Place(folder=tmp_path))
        kept = Kept(tmp_path, llm, limit)
        await llm.open(Silent())
        found = await asyncio.gather(*(kept.ask(text) for text in "abc"), return_exceptions=True)
        assert all(isinstance(one, Pending) for one in found)
        await llm.send(Silent())  # and here it ends

    async def second(url: str) -> list[Reply | BaseException]:
        llm = Batch("tiny", base_url=url, first_poll_s=0.01).connect(Place(folder=tmp_path))
        kept = Kept(tmp_path, llm, limit)
        await llm.open(Silent())
        while True:
            found = await asyncio.gather(*(kept.ask(text) for text in "deabc"), return_exceptions=True)
            if not any(isinstance(one, Pending) for one in found):
                await kept.close()
                return found
            n_asked.append(sum(batch.count(b"\n") for batch in server.uploads))
            await llm.send(Silent())
            await llm.fetch(Silent())

    n_asked: list[int] = []
    with BatchServer(lambda _body: ok_row("yes")) as server:  # of eight tokens each
        asyncio.run(first(server.url))
        assert taken(tmp_path) == [BOUND] * 3
        replies = asyncio.run(second(server.url))
    assert all(isinstance(one, Reply) for one in replies)
    assert n_asked[0] == 3 and len(server.batches) == 3, "d beside abc, and e where these left room"
    assert of_journal(Journal(tmp_path / "usage", None)).n_tokens == 5 * 8
    assert not (tmp_path / in_flight.FILE).exists()


def test_a_resumed_run_waits_for_its_batch_whatever_it_asks_for_first(tmp_path: Path) -> None:
    """Room for three requests, and three are in a batch. The next process asks for another one before these; and
    for one that there is no room for, which ends it behind the first pass and not in it."""
    limit = 3 * BOUND

    async def process(url: str, texts: str, *, goes_on: bool) -> list[Reply | BaseException]:
        llm = Batch("tiny", base_url=url, first_poll_s=0.01).connect(Place(folder=tmp_path))
        kept = Kept(tmp_path, llm, limit)
        delayed = DelayedWithinBudget(llm, kept.budget)
        await delayed.open(Silent())
        while True:
            found = await asyncio.gather(*(kept.ask(text) for text in texts), return_exceptions=True)
            if any(isinstance(one, Pending) for one in found):
                await delayed.send(Silent())
            if not goes_on or not any(isinstance(one, Pending) for one in found):
                await kept.close()
                return found
            await delayed.fetch(Silent())

    with BatchServer(lambda _body: ok_row("yes")) as server:  # of eight tokens each
        asyncio.run(process(server.url, "abc", goes_on=False))
        replies = asyncio.run(process(server.url, "dabc", goes_on=True))
        assert all(isinstance(one, Reply) for one in replies) and len(server.batches) == 2
        assert of_journal(Journal(tmp_path / "usage", None)).n_tokens == 4 * 8
        limit = 4 * 8 + BOUND
        asyncio.run(process(server.url, "e", goes_on=False))
        (reached,) = asyncio.run(process(server.url, "f", goes_on=True))
    assert isinstance(reached, BudgetReached)
    assert f"32 tokens of {limit} are spent, up to {BOUND} tokens are set aside for batches that" in str(
        reached
    )
    assert "cut off" not in str(reached)


@pytest.mark.parametrize("is_up", [True, False])
def test_a_request_that_is_made_by_itself_leaves_that_in_a_batch_its_room(
    tmp_path: Path, *, is_up: bool
) -> None:
    """The recipe's `batch` became `openai`: the batch is charged all the same."""

    async def batch(url: str) -> None:
        llm = Batch("tiny", base_url=url).connect(Place(folder=tmp_path))
        kept = Kept(tmp_path, llm)
        await llm.open(Silent())
        with pytest.raises(Pending):
            await kept.ask("a")
        await llm.send(Silent())

    async def single(url: str) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=url, max_tries=1).connect(), 2 * BOUND + 8)
        if not is_up:
            with pytest.raises(LLMUnavailable):
                await kept.ask("a")
        else:
            await kept.ask("a")
            await kept.ask("b")
            with pytest.raises(BudgetReached, match=f"16 tokens of .* up to {BOUND} tokens"):
                await kept.ask("c")
        await kept.close()

    def answer(_number: int, _body: Json) -> Behaviour:
        seen.append(taken(tmp_path))
        return ok("yes", usage={"prompt_tokens": 3, "completion_tokens": 5}) if is_up else rate_limited()

    seen: list[list[float]] = []
    with BatchServer(lambda _body: ok_row("yes")) as server:
        asyncio.run(batch(server.url))
    with FaultServer(answer) as other:
        asyncio.run(single(other.url))
    assert seen == [[BOUND] * 2] * (2 if is_up else 1), "the batch's, and its own"
    # Once the answer is paid for otherwise, nobody will note what the batch took: it is settled as cut off.
    (left,) = unfinished(tmp_path / in_flight.FILE)
    assert left.n_tokens == BOUND and left.is_awaited is not is_up


def test_batches_that_nobody_asks_for_any_more_keep_their_room_and_nobody_waits_for_them(
    tmp_path: Path,
) -> None:
    slots = Slots.opened(tmp_path / in_flight.FILE)
    slot = slots.take("a" * 32, 0.0, 700.0)
    slots.wait(slot, "a" * 32, 0.0, 700.0)
    slots.close()

    async def main(url: str) -> None:
        kept = Kept(tmp_path, Openai("tiny", base_url=url).connect(), 1_000)
        try:
            await kept.ask("a")
            with pytest.raises(
                BudgetReached, match="up to 700 tokens are set aside for batches that were sent"
            ):
                await kept.ask("b")
        finally:
            await kept.close()

    with FaultServer(
        lambda _n, _b: ok("yes", usage={"prompt_tokens": 200, "completion_tokens": 5})
    ) as server:
        asyncio.run(main(server.url))
    assert taken(tmp_path) == [700.0]


# --- in a run --------------------------------------------------------------------------------------------


def left_by_a_kill(run: Run, *n_tokens: float) -> None:
    slots = Slots.opened(run.path / in_flight.FILE)
    for number, n in enumerate(n_tokens):
        slots.take(f"{number:032x}", n / 1e6, n)


@pytest.fixture(scope="module")
def sampled(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Run]:
    base = tmp_path_factory.mktemp("sampled") / "run"
    with device_here():
        pipeline.explain(made.recipe(features={"first": 12}), out=base, until="sample")

    def copied(to: Path) -> Run:
        shutil.copytree(base, to)
        return Run.open(to)

    return copied


def test_what_a_kill_left_is_settled_once_whatever_is_killed_meanwhile(
    sampled: Callable[[Path], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sampled(tmp_path / "run")
    left_by_a_kill(run, 300.0, 400.5)
    with monkeypatch.context() as patch:
        patch.setattr(
            "autointerp.stages.cut_off.begin", lambda *_: None
        )  # killed before the slots are given up
        assert settle(run).aside_tokens == 300 + 401
    assert settle(run).aside_tokens == 701 and settle(run) == Spent()
    assert spent(run) == {CUT_OFF: Spent(aside_tokens=701, aside_cost=pytest.approx(700.5 / 1e6))}
    left_by_a_kill(run, 300.0)
    settle(run)
    assert spent_in_all(run).aside_tokens == 1_001, "another process's slot of the same number"
    said = " ".join(CliRunner().invoke(app, ["status", str(run.path)]).output.split())
    assert (
        "can have taken up to 1,001 tokens ($0.0010) more; a budget counts them" in said
        and CUT_OFF not in said
    )


def test_merging_counts_what_kills_left_in_each_run(sampled: Callable[[Path], Run], tmp_path: Path) -> None:
    runs = [sampled(tmp_path / name) for name in ("one", "two")]
    for run, n in zip(runs, (300.0, 400.0), strict=True):
        left_by_a_kill(run, n)
    for _ in range(2):
        merged = merge([run.path for run in runs], tmp_path / "out").run
        assert spent_in_all(merged).aside_tokens == 700


@pytest.mark.parametrize("how", ["noted", "reused", "not noted", "awaited"])
def test_a_batch_whose_answer_is_there_is_counted_once(
    how: str, sampled: Callable[[Path], Run], tmp_path: Path
) -> None:
    """A process without a budget takes it, and notes what it used; or nobody can note that any more."""
    run, name = sampled(tmp_path / "run"), "a" * 32
    slots = Slots.opened(run.path / in_flight.FILE)
    slots.wait(slots.take(name, 0.5, 700.0), name, 0.5, 700.0)
    slots.close()
    requests, usage = (Journal(run.path / kind / "explain/x", None) for kind in ("requests", "usage"))
    with Part(requests, "0") as replies, Part(usage, "0") as used:
        if how != "awaited":
            replies.append(name, {"text": "yes", "finish_reason": "stop", "label_logprobs": None})
        if how == "noted":
            used.append(name, {"prompt_tokens": 20, "completion_tokens": 5, "cost": 0.125})
        if how == "reused":
            used.append(name, {"reused": True})
    known, most = (0.125, 25), (0.5, 700)
    expected = known if how == "noted" else most
    for _ in range(2):  # nothing is counted again
        settle(run)
        limited = Budget(None, 10**9, spent_in_all(run), Slots.opened(run.path / in_flight.FILE))
        total = spent_in_all(run)
        counted = total.cost + total.aside_cost, total.n_tokens + total.aside_tokens
        n_slots = len(unfinished(run.path / in_flight.FILE))
        assert (counted, n_slots) == (((0.0, 0), 1) if how == "awaited" else (expected, 0))
        with pytest.raises(BudgetReached, match="are set aside" if how != "noted" else "25 tokens of"):
            asyncio.run(too_much(limited))


async def too_much(budget: Budget) -> None:
    async with budget.aside(Bound(0.0, 1e9), "b" * 32):
        pass


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "autointerp", "resume", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_spending_stays_below_the_limit_over_kills(
    made: Tiny, sampled: Callable[[Path], Run], tmp_path: Path
) -> None:
    """kill -9 with three requests in flight, three times, at a server that charges for each as it comes in, nearly
    as much as it can cost; then on until the budget is used up, and with a larger one to the same records."""
    charged: list[int] = []

    def charge(_number: int, body: Json) -> Behaviour:
        text = "".join(turn["content"] for turn in body["messages"])
        n_prompt = len(text.encode()) + 200
        charged.append(n_prompt + body["max_tokens"])
        usage = {"prompt_tokens": n_prompt, "completion_tokens": body["max_tokens"]}
        is_judge = "EXPLANATION: " in text
        said = (
            "\n".join(f"{n}: yes" for n in range(1, 40)) if is_judge else "EXPLANATION: words\nLABEL: words"
        )
        return slow(delay_s, ok(said, usage=usage))

    def recipe(**resources: object) -> Json:
        llm = {"use": "openai", "model": "tiny", "base_url": server.url}
        llms = {"explainer": llm, "judge": llm}
        return made.recipe(features={"first": 12}, llms=llms, resources={"n_in_flight": 3, **resources})

    delay_s = 0.0
    with FaultServer(charge) as server:
        whole = pipeline.explain(recipe(), out=sampled(tmp_path / "whole").path)
        limit = sum(charged) * 2 // 3
        charged.clear()
        _, run = pipeline.prepare(recipe(max_tokens=limit), sampled(tmp_path / "run").path)
        run.save()
        delay_s = 1.0
        for _ in range(3):
            n_before = len(charged)
            process = start(run.path)
            until = time.monotonic() + 60
            while len(charged) < n_before + 3:
                assert time.monotonic() < until and process.poll() is None, process.communicate()[0].decode()
                time.sleep(0.01)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        n_killed, delay_s = sum(charged), 0.0
        process = start(run.path)
        said = process.communicate(timeout=120)[0].decode()
        assert process.returncode == 2 and "the budget is used up" in " ".join(said.split()), said
        assert limit / 2 < n_killed < sum(charged) <= limit
        assert spent(run)[CUT_OFF].aside_tokens >= sum(charged[:3])
        assert sum(charged) <= spent_in_all(run).n_tokens + spent_in_all(run).aside_tokens <= limit
        assert "were in flight when a process of this run was killed" in " ".join(said.split())
        process = start(run.path, "--max-tokens", str(10**9))
        assert process.wait(120) == 0
    assert records(run.path) == records(whole.path)
    assert not (run.path / in_flight.FILE).exists()
