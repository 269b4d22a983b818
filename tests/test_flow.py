"""Explain and score as one flow: against a server that fails in every way, at scale, and with another run's
answers. Nothing is asked twice, nothing is lost, no key is written down."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from rich.console import Console
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.bench.instant_server import answer_to
from autointerp.bench.made_up_run import DICTIONARY, make_run
from autointerp.cli import app
from autointerp.errors import LLMStopped, RecipeError
from autointerp.journal import Journal
from autointerp.llm.replay import Replayed
from autointerp.progress import Silent
from autointerp.report.plan import spending
from autointerp.run import Run
from autointerp.stages.spent import spent, spent_in_all
from autointerp.types import Json
from fault_server import (
    Behaviour,
    FaultServer,
    Limits,
    body_of,
    cut_before_body,
    cut_in_body,
    error_in_200,
    n_tokens_of,
    no_choices,
    ok,
    quota_used_up,
    rate_limited,
    slow,
    status,
)
from here import records
from tiny import Tiny

KEY = "sk-never-to-be-seen-4711"
SMALL = {"n_shown": 10, "n_heldout": 10, "n_heldout_silent": 10, "n_same_token": 0, "n_neighbour": 0}
"""1 request to explain; of 20 windows 2 prompts a scorer: 5 requests a feature."""


def openai(url: str, **options: object) -> Json:
    return {"use": "openai", "model": "tiny", "base_url": url, "first_wait_s": 0.02, **options}


def made_up(path: Path, n: int, url: str, llm: Json | None = None, **resources: object) -> Run:
    section = openai(url, **(llm or {}))
    llms = {"explainer": section, "judge": section}
    return make_run(path, n, sampling=SMALL, llms=llms, resources={"n_in_flight": 32, **resources})


def line(run: Path) -> pipeline.Outcome:
    return pipeline.run_line(Run.open(run))


def good(body: Json) -> Behaviour:
    text = answer_to(body["max_tokens"])
    n_prompt, n_answer = n_tokens_of(body, text)
    counts = {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer}
    return ok(text, usage=counts)


# --- every fault there is ------------------------------------------------------------------------------


def quoting_the_key() -> Behaviour:
    """An error that quotes what it was sent, as some servers do."""

    async def answer(request: web.Request, body: Json) -> web.StreamResponse:
        error = {"message": f"upstream failed for {request.headers['authorization']}"}
        return await status(503, error)(request, body)

    return answer


class Faulty:
    """A script: three requests in ten fail, by a draw over the body and how often it came. Some bodies are
    never answered while `cursed`."""

    def __init__(self, server: FaultServer, limits: Limits, cursed_share: float, n_deaths: int) -> None:
        self.server, self.limits = server, limits
        self.cursed_share = cursed_share
        self.n_deaths = n_deaths
        self.kinds: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()

    def __call__(self, number: int, body: Json) -> Behaviour:
        text = answer_to(body["max_tokens"])
        self.limits.count(sum(n_tokens_of(body, text)), self.server.requests[-1].time_s)
        name = body["messages"][-1]["content"]
        self._seen[name] += 1
        draws = random.Random(f"{name} {self._seen[name]}")
        if random.Random(f"cursed {name}").random() < self.cursed_share:
            return self.noted("cursed", status(500))
        if self.n_deaths and number and number % 150 == 0:
            self.n_deaths -= 1
            return self.noted("dies", self.server.dies_for(0.3))
        if draws.random() < 0.7:
            return self.noted("good", good(body))
        lines = text.split("\n")
        faults: dict[str, Behaviour] = {
            "429": rate_limited(),
            "429 with a time": rate_limited(retry_after="0.05"),
            "429 in ms": rate_limited(retry_after_ms="30"),
            "500": status(500),
            "503": quoting_the_key(),
            "slow": slow(0.3, good(body)),
            "slow and cut": slow(0.2, cut_in_body()),
            "cut": cut_before_body(),
            "truncated": body_of('{"choices": [{"message": {"content": "1: y'),
            "error in 200": error_in_200({"code": 502, "message": "upstream"}),
            "no choices": no_choices(),
            "empty": ok(""),
            "refused": ok(None, message={"refusal": "I would rather not."}),
            "too few": ok("\n".join(lines[:-1])),
            "too many": ok("\n".join([*lines, "11: yes", "12: no"])),
            "twice": ok("\n".join(lines + lines)),
            "length": ok(text[: len(text) // 2], finish_reason="length"),
            "content_filter": ok("", finish_reason="content_filter"),
        }
        kind = draws.choice(sorted(faults))
        return self.noted(kind, faults[kind])

    def noted(self, kind: str, behaviour: Behaviour) -> Behaviour:
        self.kinds[kind] += 1
        return behaviour


def ends(run: Run) -> Counter[str]:
    """How each feature ended, by explainer and scorer; every end that is not a score says why."""
    found: Counter[str] = Counter()
    explained = {record["key"]: record for record in run.explain(DICTIONARY, "plain").records()}
    for record in explained.values():
        assert (record["status"] == "ok") == (record["reason"] is None)
        found[f"explain {record['status']}"] += 1
    for scorer in run.recipe.scorers:
        for record in run.score(DICTIONARY, "plain", scorer).records():
            assert explained[record["key"]]["status"] == "ok"
            assert (record["status"] == "ok") == (record["reason"] is None)
            found[f"{scorer} {record['status']}"] += 1
    return found


def check_adversary(folder: Path, n: int, per_s: int, n_deaths: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it once with some requests that are never answered, then again without."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    per_minute = per_s * 60 * 800.0
    limits, said = Limits(per_s, per_minute), ""
    with FaultServer() as server:
        script = server.script = Faulty(server, limits, 0.02, n_deaths)
        llm = {"requests_per_second": per_s, "tokens_per_minute": per_minute, "timeout_s": 60.0}
        run = made_up(folder / "run", n, server.url, llm)
        for command in (["resume"], ["status"], ["resume"], ["show"]):
            if command == ["resume"] and said:
                script.cursed_share = 0.0
            more = [f"{DICTIONARY}/1"] if command == ["show"] else []
            done = CliRunner().invoke(app, [*command, str(run.path), *more])
            said += done.output
            assert done.exit_code == (1 if command == ["resume"] and script.cursed_share else 0), done.output
        well, n_requests = server.well, len(server.requests)
    found = ends(run)
    n_ok = found["explain ok"]
    n_explained = sum(n for end, n in found.items() if end.startswith("explain "))
    assert n_explained == n, "every feature has an explanation or a reason"
    for scorer in run.recipe.scorers:
        assert sum(n for end, n in found.items() if end.startswith(f"{scorer} ")) == n_ok
    assert n_ok > 0.8 * n
    assert set(well.values()) == {1}, "nothing that was answered was asked again"
    kept = [run.beside("requests", journal) for journal in run.journals() if (run.path / "requests").exists()]
    assert sum(1 for journal in kept for _ in journal.records()) == len(well), "every answer is kept"
    assert list((run.path / "failed").rglob("*.jsonl")), "what stayed open said why"
    assert 0.25 < 1 - (script.kinds["good"] + script.kinds["slow"]) / n_requests < 0.5
    assert KEY not in said and KEY[3:14] not in said
    for path in run.path.rglob("*"):
        assert not path.is_file() or KEY[:14].encode() not in path.read_bytes(), f"{path} holds the key"
    assert script.kinds["503"], "the key was quoted"
    print(
        f"{n} features, {n_requests} requests, {dict(script.kinds)}; ends {dict(found)}; beyond the limits at most "
        f"{limits.excess_requests} of {per_s} requests a second and {limits.excess_tokens:,.0f} tokens "
        f"(largest request {limits.largest:,})"
    )
    # A late arrival and an early one: what a busy machine adds is less than a twentieth of a second's.
    assert limits.excess_requests <= 1 + per_s // 20
    assert limits.excess_tokens <= limits.largest * (1 + per_s // 20)


def test_every_feature_ends_whatever_the_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_adversary(tmp_path, 40, 60, 1, monkeypatch)


@pytest.mark.parametrize(("per_s", "per_minute"), [(20, 10**9), (10_000, 240_000)])
def test_a_servers_limits_are_passed_by_one_request_at_most(
    tmp_path: Path, per_s: int, per_minute: int
) -> None:
    """40 requests of some 850 tokens at 20 a second, and at 3,800 tokens a second behind 12,000 at once."""
    limits = Limits(per_s, per_minute)

    def script(_: int, body: Json) -> Behaviour:
        n_tokens = sum(n_tokens_of(body, answer_to(body["max_tokens"])))
        limits.count(n_tokens, server.requests[-1].time_s)
        return good(body)

    with FaultServer(script) as server:
        llm = {"requests_per_second": per_s, "tokens_per_minute": per_minute}
        run = made_up(tmp_path / "run", 8, server.url, llm)
        line(run.path)
        times = [request.time_s for request in server.requests]
    assert len(times) == 40 and 1.5 < times[-1] - times[0] < 30
    assert limits.excess_requests <= 1
    assert limits.excess_tokens <= limits.largest


@pytest.mark.slow
def test_a_thousand_features_end_whatever_the_server_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_adversary(tmp_path, 1_000, 100, 20, monkeypatch)


# --- the flow ------------------------------------------------------------------------------------------


def is_explaining(body: Json) -> bool:
    return body["max_tokens"] == 300


def test_an_account_that_runs_dry_costs_no_answer_twice(tmp_path: Path) -> None:
    """One of 32 requests in flight is told so while the others are being answered."""

    def script(number: int, body: Json) -> Behaviour:
        return quota_used_up() if number == 20 else slow(0.5, good(body))

    with FaultServer(script) as server:
        run = made_up(tmp_path / "run", 40, server.url)
        with pytest.raises(LLMStopped, match="no credit left"):
            line(run.path)
        kept = [run.beside("requests", journal) for journal in run.journals()]
        assert sum(1 for journal in kept for _ in journal.records()) == sum(server.well.values()) >= 15
        server.script = lambda number, body: good(body)
        line(run.path)
        assert ends(run)["explain ok"] == 40
        assert set(server.well.values()) == {1}


def test_scoring_begins_before_the_last_feature_is_explained(tmp_path: Path) -> None:
    """Of 20 features two at a time are in flight, and a feature is scored before the next but one is begun."""
    with FaultServer(lambda _, body: good(body)) as server:
        run = made_up(tmp_path / "run", 20, server.url, n_in_flight=2)
        assert list(line(run.path).seconds) == ["sample", "explain and score"]
        kinds = [is_explaining(request.body) for request in server.requests]
    n_explained = n_judged = 0
    for explains in kinds:
        n_explained, n_judged = n_explained + explains, n_judged + (not explains)
        assert n_explained <= n_judged / 4 + 2
    assert (n_explained, n_judged) == (20, 80)


def test_a_run_in_two_steps_scores_at_once_what_is_explained(tmp_path: Path) -> None:
    """The same records and requests as in one; until the explanations nothing is judged."""
    with FaultServer(lambda _, body: good(body)) as server:
        whole = made_up(tmp_path / "whole", 12, server.url)
        line(whole.path)
        n_whole = len(server.requests)
        server.requests.clear()
        run = made_up(tmp_path / "run", 12, server.url)
        outcome = pipeline.run_line(run, until="explain")
        assert list(outcome.seconds) == ["sample", "explain"]
        assert all(is_explaining(request.body) for request in server.requests) and len(server.requests) == 12
        line(run.path)
        assert len(server.requests) == n_whole == 60
    assert records(run.path) == records(whole.path)


def test_a_scorer_that_fails_leaves_only_its_key_open(tmp_path: Path) -> None:
    """The judge never answers one prompt; the feature's other score, and all others, are there."""
    with FaultServer() as server:
        run = made_up(tmp_path / "run", 8, server.url, {"max_tries": 2})
        poison: list[str] = []

        def script(_: int, body: Json) -> Behaviour:
            text = body["messages"][-1]["content"]
            if not poison and not is_explaining(body) and "«" in text:
                poison.append(text)
            return status(500) if text in poison else good(body)

        server.script = script
        outcome = line(run.path)
        assert sum(outcome.open.values()) == 1
        assert ends(run) == {"explain ok": 8, "detection ok": 8, "fuzzing ok": 7}
        server.script = lambda _, body: good(body)
        n_before = len(server.requests)
        assert not line(run.path).open
        assert len(server.requests) - n_before == 1, "the other prompt of that key was answered"
        assert ends(run)["fuzzing ok"] == 8


def test_the_explainer_and_the_judge_may_be_two_llms(tmp_path: Path) -> None:
    with (
        FaultServer(lambda _, body: good(body)) as explainer,
        FaultServer(lambda _, body: good(body)) as judge,
    ):
        run = make_run(
            tmp_path / "run",
            6,
            sampling=SMALL,
            llms={"explainer": openai(explainer.url), "judge": openai(judge.url, model="other")},
        )
        line(run.path)
        assert all(is_explaining(request.body) for request in explainer.requests)
        assert not any(is_explaining(request.body) for request in judge.requests)
    assert ends(run) == {"explain ok": 6, "detection ok": 6, "fuzzing ok": 6}


class Shown(Silent):
    """Progress as it stands at the end."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}
        self.notes: list[str] = []

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        self.stages[stage] = [done, total]

    def advance(self, n: int = 1, stage: str = "") -> None:
        self.stages[stage][0] += n

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_progress_shows_both_stages(tmp_path: Path) -> None:
    with FaultServer(lambda _, body: good(body)) as server:
        run = made_up(tmp_path / "run", 6, server.url)
        some = Run.open(run.path)
        pipeline.run_line(some, until="explain")
        progress = Shown()
        pipeline.run_line(some, progress=progress)
        assert progress.stages["explain"] == [6, 6] and progress.stages["score"] == [12, 12]


# --- request journals at scale -------------------------------------------------------------------------


def test_a_finished_units_replies_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two units of features one is finished: on resuming, only the other's replies and windows are read."""
    with FaultServer(lambda _, body: good(body)) as server:
        llms = {"explainer": openai(server.url), "judge": openai(server.url)}
        run = make_run(tmp_path / "run", 4, every=128, sampling=SMALL, llms=llms)
        line(run.path)
        (lost,) = run.score(DICTIONARY, "plain", "fuzzing").parts("000000256")
        lost.unlink()
        read: list[str] = []
        real = Journal.read

        def noting(journal: Journal, unit: str) -> dict[str, Json]:
            if "requests" in journal.folder.parts:
                read.append(f"{journal.folder.name} {unit}")
            return real(journal, unit)

        monkeypatch.setattr(Journal, "read", noting)
        n_before = len(server.requests)
        line(run.path)
        assert read == ["fuzzing 000000256"]
        assert len(server.requests) == n_before, "the replies were kept"
        read.clear()
        line(run.path)
        assert read == []


def test_memories_of_closed_units_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty units of two features, large replies: never are those of more than so many units in memory."""
    living: weakref.WeakSet[Replayed] = weakref.WeakSet()
    most, bound = 0, 2 * 5  # four features in flight: of four units, and one that is being opened
    real = Replayed.__init__

    def noting(self: Replayed, *arguments: Any) -> None:
        nonlocal most
        real(self, *arguments)
        living.add(self)
        if len(living) > bound:
            gc.collect()  # rings of references are freed when somebody looks
        most = max(most, len(living))

    monkeypatch.setattr(Replayed, "__init__", noting)

    def large(_: int, body: Json) -> Behaviour:
        return ok(answer_to(body["max_tokens"]) + "\n" + "x" * 20_000)

    with FaultServer(large) as server:
        run = make_run(
            tmp_path / "run",
            120,
            every=128,
            sampling=SMALL,
            scorers={"detection": {"use": "detection"}},
            resources={"n_in_flight": 4},
            llms={"explainer": openai(server.url), "judge": openai(server.url)},
        )
        line(run.path)
    assert len(run.beside("requests", run.explain(DICTIONARY, "plain")).units()) == 60
    assert 2 < most <= bound


# --- another run's answers -----------------------------------------------------------------------------


def used(run: Run) -> tuple[int, int]:
    """Answers that were paid for, and those taken over, as `usage` has them."""
    lines = [
        line for path in (run.path / "usage").rglob("*.jsonl") for line in path.read_bytes().splitlines()[1:]
    ]
    n_reused = sum(orjson.loads(line).keys() == {"key", "reused", "crc32"} for line in lines)
    return len(lines) - n_reused, n_reused


def test_another_runs_answers_are_used_and_not_paid_for(tmp_path: Path) -> None:
    """A run of eight features under other names takes over what a run of six knows, and asks for the rest."""
    with FaultServer(lambda _, body: good(body)) as server:
        llms = {"explainer": openai(server.url), "judge": openai(server.url)}
        names = {"explainers": {"simple": {"use": "plain"}}, "features": {"first": 8}}
        alone = make_run(tmp_path / "alone", 9, sampling=SMALL, llms=llms, **names)
        line(alone.path)
        first = make_run(tmp_path / "first", 9, sampling=SMALL, llms=llms, features={"first": 6})
        line(first.path)
        n_before = len(server.requests)
        resources = {"reuse_requests": str(first.path)}
        run = make_run(tmp_path / "run", 9, sampling=SMALL, llms=llms, resources=resources, **names)
        progress = Shown()
        pipeline.run_line(run, progress=progress)
        assert (len(server.requests) - n_before, 30) == used(run) == (2 * 5, 30)
        assert progress.notes == [f"30 answers were taken from {first.path}."]
        assert records(run.path) == records(alone.path)
        line(run.path)  # its own memory has them all
        assert len(server.requests) - n_before == 10
    total, told = spent_in_all(run), spent_in_all(alone)
    assert (total.n_requests, total.n_reused) == (10, 30) and (told.n_requests, told.n_reused) == (40, 0)
    assert 0 < total.n_tokens < told.n_tokens / 2
    table = Console(width=200, record=True)
    table.print(spending(spent(run)))
    assert "30 more answers were taken over from another run" in table.export_text()
    kept = [Run.open(path).beside("requests", journal) for path in (run.path,) for journal in run.journals()]
    assert sum(1 for journal in kept for _ in journal.records()) == 40


def test_a_run_whose_answers_cannot_be_used_is_named(tmp_path: Path, made: Tiny) -> None:
    nowhere = made.recipe(resources={"reuse_requests": str(tmp_path / "nowhere")})
    with pytest.raises(RecipeError, match=r"no run lies in .*nowhere"):
        pipeline.prepare(nowhere, tmp_path / "run")
    _, run = pipeline.prepare(made.recipe(), tmp_path / "run")
    run.save()
    with pytest.raises(RecipeError, match="is this run itself"):
        pipeline.prepare({"resources": {"reuse_requests": str(run.path)}}, run.path)
