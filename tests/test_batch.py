"""The batch backend: whole runs through files, at a server or by any other means, killed and cut."""

from __future__ import annotations

import hashlib
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from aiohttp import web
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import BudgetReached, LLMStopped
from autointerp.llm.batch_requests import keys_of
from autointerp.run import Run
from autointerp.stages.spent import spent_in_all
from autointerp.types import Json
from batch_server import BatchServer, answered, expired_row, failed_row, ok_row, reply, write_rows
from fault_server import FaultServer, ok, status
from here import device_here, records
from tiny import Tiny


@pytest.fixture(autouse=True)
def no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def text_for(body: Json) -> str:
    """What the LLM says to a request: readable at first, not, or in part, by a hash of the prompt."""
    said = "\n".join(turn["content"] for turn in body["messages"])
    name = hashlib.blake2b(said.encode(), digest_size=12).hexdigest()
    if body["max_tokens"] == 300:  # the explainer's
        return "I am not sure." if name[0] == "0" else f"EXPLANATION: words like {name[:6]}\nLABEL: words"
    n_windows = (body["max_tokens"] - 16) // 8
    lines = [f"{n + 1}: {'yes' if int(name, 16) >> n & 1 else 'no'}" for n in range(n_windows)]
    return "\n".join(lines[:-1] if name[0] == "1" else lines)


def answer(body: Json) -> Json:
    return ok_row(text_for(body))


def recipe(made: Tiny, use: str = "batch", n_features: int = 12, **options: Any) -> Json:
    defaults: dict[str, Any] = {"use": use, "model": "tiny", "first_wait_s": 0.01}
    if use == "batch":
        defaults |= {"first_poll_s": 0.01}
    llm = defaults | options
    return made.recipe(features={"n": n_features}, llms={"explainer": llm, "judge": llm})


@pytest.fixture(scope="module")
def sampled(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Copies a run that has its samples, and of whose LLM nothing is said yet."""
    import shutil

    base = tmp_path_factory.mktemp("sampled") / "run"
    with device_here():
        pipeline.explain(made.recipe(features={"n": 12}), out=base, until="sample")

    def copied(to: Path) -> Path:
        shutil.copytree(base, to)
        return to

    return copied


@pytest.fixture(scope="module")
def through_openai(
    made: Tiny, sampled: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run, each request on its own."""
    out = sampled(tmp_path_factory.mktemp("openai") / "run")
    with FaultServer(lambda _, body: ok(text_for(body))) as server:
        pipeline.explain(recipe(made, "openai", base_url=server.url), out=out)
    return out


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def sent(server: BatchServer) -> list[str]:
    """The custom_ids of all that the server was asked to run."""
    return [
        orjson.loads(line)["custom_id"]
        for batch in server.batches
        for line in server.files[batch["input_file_id"]].splitlines()
    ]


def journals(out: Path, kind: str) -> dict[str, list[bytes]]:
    return {
        str(path.relative_to(out)): sorted(path.read_bytes().splitlines()[1:])
        for path in sorted((out / kind).rglob("*.jsonl"))
    }


# --- whole runs at a server ----------------------------------------------------------------------------


def test_a_run_in_batches_has_the_records_of_one_that_asks_each_by_itself(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """Records, request journals and what they are made from, byte by byte; every round has its folder."""
    out = sampled(tmp_path / "run")
    with BatchServer(answer) as server:
        pipeline.explain(recipe(made, base_url=server.url), out=out)
        assert len(sent(server)) == len(set(sent(server)))
    assert records(out) == records(through_openai)
    assert any(record for stage in records(out, "score").values() for record in stage)
    # explain, second tries of it beside scoring, second tries of scoring, ...
    assert len(list((out / "batch").glob("0*/requests-000.jsonl"))) == len(server.batches) >= 3
    for journal in Run.open(out).journals():
        assert journal.digest in {other.digest for other in Run.open(through_openai).journals()}
    ours, theirs = journals(out, "requests"), journals(through_openai, "requests")
    keyed = {line for lines in ours.values() for line in lines}
    assert keyed == {line for name, lines in theirs.items() if "preflight" not in name for line in lines}
    usage = [orjson.loads(line) for lines in journals(out, "usage").values() for line in lines]
    assert len(usage) == len(keyed) and {row["prompt_tokens"] for row in usage} == {7}


def test_answers_in_any_order_twice_or_only_half_of_them_end_in_the_same_records(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)

    def spoiled(rows: list[Json]) -> list[Json]:
        rows = rows * 2
        rng.shuffle(rows)
        rows.append({"custom_id": "0" * 32} | ok_row("to nothing"))
        return rows if rng.random() < 0.3 else rows[: max(1, len(rows) // 2)]

    out = sampled(tmp_path / "run")
    with BatchServer(answer, shape=spoiled) as server:
        pipeline.explain(recipe(made, base_url=server.url, max_batches=50), out=out)
    assert records(out) == records(through_openai)
    assert len(sent(server)) > len(set(sent(server)))  # what got no answer was asked once more


def test_files_hold_no_more_rows_and_bytes_than_allowed(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    for name, limit in (("rows", {"max_rows": 5}), ("bytes", {"max_bytes": 30_000})):
        out = sampled(tmp_path / name)
        with BatchServer(answer) as server:
            pipeline.explain(recipe(made, base_url=server.url, **limit), out=out)
        assert records(out) == records(through_openai)
        files = list((out / "batch").glob("0*/requests-*.jsonl"))
        assert max(path.name for path in files) > "requests-000.jsonl"
        for path in files:
            assert path.read_bytes().count(b"\n") <= limit.get("max_rows", 10**9)
            assert path.stat().st_size <= limit.get("max_bytes", 10**9)
        assert len(server.batches) == len(files)
        assert len(sent(server)) == len(set(sent(server)))


def billed(n_prompt: int) -> Callable[[Json], Json]:
    """Answers that say they used so many tokens, and 20 of their own."""

    def row_for(body: Json) -> Json:
        row = answer(body)
        row["response"]["body"]["usage"] = {"prompt_tokens": n_prompt, "completion_tokens": 20}
        return row

    return row_for


def test_a_budget_is_spent_in_several_batches(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """What is sent waits set aside at the most that it can cost, which is far more than it does; what its answers
    leave over goes to the next batch, until all is done."""
    prices = {"input": 1.0, "output": 1.0}
    n_requests = sum(map(len, journals(through_openai, "requests").values()))
    limit = 3 * n_requests * (700 + 20) / 1e6
    out = sampled(tmp_path / "run")
    with BatchServer(billed(700)) as server:
        limited = {"resources": {"max_cost": limit}}
        pipeline.explain(recipe(made, base_url=server.url, prices=prices) | limited, out=out)
        assert len(sent(server)) == len(set(sent(server))) and len(server.batches) > 2
    assert records(out) == records(through_openai)
    assert spent_in_all(Run.open(out)).cost <= limit / 3


def test_a_budget_that_batches_use_up_says_what_is_spent(
    made: Tiny, sampled: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = sampled(tmp_path / "run")
    limited = {"resources": {"max_tokens": 60_000}}
    with BatchServer(billed(1_500)) as server:
        with pytest.raises(BudgetReached, match=r"tokens of 60,000 are spent, and the next"):
            pipeline.explain(recipe(made, base_url=server.url) | limited, out=out)
        n_sent = len(sent(server))
    run = Run.open(out)
    assert n_sent and spent_in_all(run).n_requests == n_sent, "what was collected is sent and taken"
    assert spent_in_all(run).n_tokens <= 60_000


# --- kills and stops -----------------------------------------------------------------------------------


def start(made: Tiny, out: Path, folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(made, **options)))
    command = [
        sys.executable,
        "-m",
        "autointerp",
        "explain",
        "--recipe",
        folder / "recipe.yaml",
        "--out",
        out,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("moment", ["upload", "create", "created"])
def test_killed_around_the_creation_of_a_batch_a_run_asks_nothing_twice(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path, moment: str
) -> None:
    """kill -9 when the file is uploaded, before the batch is there, and when it is there but nobody was told."""
    out = sampled(tmp_path / "run")
    processes: list[subprocess.Popen[bytes]] = []
    n_met = 0

    def kill() -> web.Response | None:
        nonlocal n_met
        n_met += 1
        if n_met != 2:  # the second round: by then something is on disk already
            return None
        processes[0].kill()
        processes[0].wait()
        return reply({"error": {"message": "nobody hears this"}}, 503) if moment == "create" else None

    with BatchServer(answer) as server:
        server.on[moment] = kill
        processes.append(start(made, out, tmp_path, base_url=server.url))
        _, errors = processes[0].communicate(timeout=300)
        assert processes[0].returncode == -signal.SIGKILL, errors.decode()
        pipeline.run_line(Run.open(out))
        assert len(sent(server)) == len(set(sent(server)))
        assert len(server.batches) == len(list((out / "batch").glob("0*/requests-*.jsonl")))
        assert len(server.uploads) == len(server.batches) + (moment == "upload")
    assert records(out) == records(through_openai)


def test_a_creation_without_an_answer_is_looked_up_before_it_is_tried_again(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """The batch is made, and the server says 500: half of the time it is not."""
    out = sampled(tmp_path / "run")
    with BatchServer(answer) as server:
        failures = iter([1, 0, 1])
        server.on["created"] = lambda: (
            reply({"error": {"message": "oops"}}, 500) if next(failures, 0) else None
        )
        lost = iter([0, 1, 1])
        server.on["create"] = lambda: reply({"error": {"message": "oops"}}, 500) if next(lost, 0) else None
        pipeline.explain(recipe(made, base_url=server.url), out=out)
        assert len(sent(server)) == len(set(sent(server)))
        assert next(failures, None) is None and next(lost, None) is None
    assert records(out) == records(through_openai)


def test_ctrl_c_ends_the_wait_and_resuming_takes_the_same_batch(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    out = sampled(tmp_path / "run")
    with BatchServer(answer, n_looks=10**9) as server:
        process = start(made, out, tmp_path, base_url=server.url)
        until = time.monotonic() + 120
        while not any(batch["looks"] > 2 for batch in server.batches):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors.decode()
        assert f"autointerp resume {out}" in errors.decode() and "Traceback" not in errors.decode()
        server.n_looks = 1
        pipeline.run_line(Run.open(out))
        assert len(sent(server)) == len(set(sent(server)))
    assert records(out) == records(through_openai)


def test_what_a_kill_left_half_written_is_nothing(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    out = sampled(tmp_path / "run")
    half, empty = out / "batch" / "0001", out / "batch" / "0002"
    half.mkdir(parents=True)
    empty.mkdir()
    (half / "llm.json").write_bytes(b'{"model":"tiny","revision":""}')
    (half / ".requests-000.jsonl.1.tmp").write_bytes(b'{"custom_id":"00')
    with BatchServer(answer) as server:
        pipeline.explain(recipe(made, base_url=server.url), out=out)
    assert not list((out / "batch").rglob(".*"))
    assert records(out) == records(through_openai)


# --- failures in rows and batches ----------------------------------------------------------------------


def marked(body: Json, share: int) -> bool:
    """A fixed part of all requests, by their text."""
    return (
        int(hashlib.blake2b(body["messages"][-1]["content"].encode(), digest_size=4).hexdigest(), 16) % share
        == 0
    )


def test_a_row_that_is_refused_fails_its_feature_as_it_would_by_itself(
    made: Tiny, sampled: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Reasons name the server's address, which is the only difference."""
    error = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
    ours, theirs = sampled(tmp_path / "ours"), sampled(tmp_path / "theirs")
    with BatchServer(lambda body: failed_row(400, error) if marked(body, 6) else answer(body)) as server:
        pipeline.explain(recipe(made, base_url=server.url), out=ours)
        address = server.url
        assert len(sent(server)) == len(set(sent(server)))
    with FaultServer(lambda _, body: status(400, error) if marked(body, 6) else ok(text_for(body))) as single:
        pipeline.explain(recipe(made, "openai", base_url=single.url), out=theirs)
        found = {
            name: [line.replace(single.url.encode(), address.encode()) for line in lines]
            for name, lines in records(theirs).items()
        }
    assert records(ours) == found
    refused = [orjson.loads(row) for lines in found.values() for row in lines if b"bad_request" in row]
    assert refused and all("too long" in row["reason"] for row in refused)


def test_rows_that_failed_for_now_go_into_the_next_file(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """Status 500, an expired batch, an answer that is none: each request fails in one way the first time."""
    out = sampled(tmp_path / "run")
    seen: set[bytes] = set()
    none: Json = {"response": {"status_code": 200, "body": {"choices": []}}, "error": None}
    ways: list[Json] = [failed_row(500, {"message": "oops"}), expired_row(), none]

    def first_not(body: Json) -> Json:
        asked = orjson.dumps(body)
        if asked in seen:
            return answer(body)
        seen.add(asked)
        return ways[len(seen) % 3]

    with BatchServer(first_not) as server:
        pipeline.explain(recipe(made, base_url=server.url), out=out)
        assert len(sent(server)) == 2 * len(set(sent(server)))
    assert records(out) == records(through_openai)


def test_what_fails_in_every_batch_stays_open_for_the_next_run(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    out = sampled(tmp_path / "run")
    down = True
    with BatchServer(
        lambda body: failed_row(503, {"message": "overloaded"}) if down and marked(body, 4) else answer(body)
    ) as server:
        outcome = pipeline.run_line(*_prepared(recipe(made, base_url=server.url, max_batches=2), out))
        (reason,) = outcome.open
        assert "no answer in 2 batches" in reason and "overloaded" in reason
        n_asked = len(sent(server))
        down = False
        pipeline.run_line(Run.open(out))
        assert len(sent(server)) < 2 * n_asked
    assert records(out) == records(through_openai)


def _prepared(mapping: Json, out: Path) -> tuple[Run]:
    _, run = pipeline.prepare(mapping, out)
    with run.lock():
        run.save()
    return (run,)


def test_an_empty_account_stops_the_run_and_what_was_answered_stays(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    out = sampled(tmp_path / "run")
    empty = True
    quota = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
    with BatchServer(
        lambda body: failed_row(429, quota) if empty and marked(body, 3) else answer(body)
    ) as server:
        with pytest.raises(LLMStopped, match="no credit left"):
            pipeline.explain(recipe(made, base_url=server.url), out=out)
        assert len(server.batches) == 1
        first = set(sent(server))
        empty = False
        pipeline.run_line(Run.open(out))
        again = [key for key in sent(server) if key in first][len(first) :]
        assert 0 < len(again) < len(first) / 2  # only those without an answer
    assert records(out) == records(through_openai)


@pytest.mark.parametrize("code", ["billing_hard_limit_reached", "invalid_json_line"])
def test_a_batch_that_the_server_refuses_stops_the_run_and_is_sent_again_on_resuming(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path, code: str
) -> None:
    out = sampled(tmp_path / "run")
    with BatchServer(answer) as server:

        def refuse() -> None:
            server.batches[-1]["status"] = "failed"
            server.batches[-1]["errors"] = {"data": [{"code": code, "message": f"because of {code}"}]}

        server.on["created"] = refuse
        with pytest.raises(LLMStopped, match=f"because of {code}.*Resuming"):
            pipeline.explain(recipe(made, base_url=server.url), out=out)
        del server.on["created"]
        pipeline.run_line(Run.open(out))
        assert server.files["file-0"] == server.files["file-1"]
    assert records(out) == records(through_openai)


def test_a_full_queue_is_waited_for(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """The server takes one batch at a time; one that it never takes is an error that says so."""
    out = sampled(tmp_path / "run")
    full = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]}
    with BatchServer(answer) as server:

        def queue() -> None:
            running = [one for one in server.batches if one["status"] in ("validating", "in_progress")]
            if len(running) > 1:
                server.batches[-1] |= {"status": "failed", "errors": full}

        server.on["created"] = queue
        pipeline.explain(recipe(made, base_url=server.url, max_rows=6), out=out)
        done = [batch for batch in server.batches if batch["status"] == "completed"]
        assert len(done) == len(list((out / "batch").glob("0*/requests-*.jsonl"))) < len(server.batches)
    assert records(out) == records(through_openai)
    with BatchServer(answer) as server:
        server.on["created"] = lambda: server.batches[-1].update(status="failed", errors=full)
        with pytest.raises(LLMStopped, match="max_rows"):
            pipeline.explain(recipe(made, base_url=server.url), out=sampled(tmp_path / "never"))


def test_a_batch_the_server_lost_and_one_cancelled_say_what_to_do(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    out = sampled(tmp_path / "run")
    with BatchServer(answer) as server:
        server.on["look"] = lambda: reply({"error": {"message": "No batch found"}}, 404)
        with pytest.raises(LLMStopped, match=r"does not know the batch batch_0 .*delete .*batch\.json"):
            pipeline.explain(recipe(made, base_url=server.url), out=out)
        del server.on["look"]
        server.end = lambda batch: batch.update(status="cancelled")
        server.shape = lambda rows: rows[:3]
        with pytest.raises(LLMStopped, match="was cancelled"):
            pipeline.run_line(Run.open(out))
        server.end, server.shape = lambda batch: None, list
        pipeline.run_line(Run.open(out))
    assert records(out) == records(through_openai)


def test_a_server_that_is_gone_for_a_while_is_waited_for(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    out = sampled(tmp_path / "run")
    with BatchServer(answer) as server:
        looks = iter(range(100))
        server.on["look"] = lambda: (
            reply({"error": {"message": "oops"}}, 502) if next(looks) in range(1, 9) else None
        )
        pipeline.explain(recipe(made, base_url=server.url, max_tries=2), out=out)
        assert next(looks) > 9
    assert records(out) == records(through_openai)


# --- checked before anything runs ----------------------------------------------------------------------


def test_a_key_and_a_model_are_checked_before_the_cache(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with BatchServer(answer) as server:
        server.key = "sk-right"
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        with pytest.raises(LLMStopped, match="refuses the key in OPENAI_API_KEY"):
            pipeline.explain(recipe(made, base_url=server.url), out=out)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
        with pytest.raises(LLMStopped, match=r"has no model 'huge'.*tiny"):
            pipeline.explain(recipe(made, base_url=server.url, model="huge"), out=out)
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(LLMStopped, match="submit: false"):
            pipeline.explain(recipe(made, base_url="https://api.openai.com/v1"), out=out)
        assert not server.uploads
    assert not (out / "rows").exists() and not (out / "recipe.yaml").exists()


def test_a_server_without_batches_is_told_of(
    made: Tiny, sampled: Callable[[Path], Path], tmp_path: Path
) -> None:
    with FaultServer() as server, pytest.raises(LLMStopped, match="submit: false"):
        pipeline.explain(recipe(made, base_url=server.url), out=sampled(tmp_path / "run"))


# --- answered by other means ---------------------------------------------------------------------------


def commands(stderr: str) -> list[list[str]]:
    return [shlex.split(line) for line in stderr.splitlines() if line.lstrip().startswith("vllm run-batch")]


def run_batch(command: list[str], shape: Callable[[list[Json]], list[Json]] = list) -> None:
    """Does what the command would."""
    arguments = dict(zip(command[2::2], command[3::2], strict=True))
    assert arguments["--model"] == "tiny"
    write_rows(Path(arguments["-o"]), shape(answered(Path(arguments["-i"]), answer)))


def written(made: Tiny, sampled: Callable[[Path], Path], out: Path, tmp_path: Path) -> tuple[int, str, str]:
    sampled(out)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(made, submit=False, max_rows=30)))
    return run("explain", "--recipe", tmp_path / "recipe.yaml", "--out", out)


def test_files_are_written_answered_by_a_command_and_taken(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """Exactly what is printed is run, until nothing is left to do. No server is there to be talked to."""
    out = tmp_path / "the run"
    code, _, stderr = written(made, sampled, out, tmp_path)
    n_rounds, given = 0, 0
    while code != 0:
        assert code == 1 and f"Go on: autointerp resume {out}" in stderr
        asked = commands(stderr)
        assert asked and len(asked) == len({command[3] for command in asked})
        n_requests = sum(Path(command[3]).read_bytes().count(b"\n") for command in asked)
        assert f"{n_requests:,} requests wait for answers" in stderr
        _, status, _ = run("status", out)
        assert commands(status) == asked and f"{n_requests:,} requests wait for answers" in status
        again, _, same = run("resume", out)  # nothing has come: nothing is written, the same is said
        assert (again, commands(same)) == (1, asked)
        for command in asked:
            run_batch(command)
        given += n_requests
        n_rounds += 1
        code, _, stderr = run("resume", out)
    assert n_rounds >= 3
    assert records(out) == records(through_openai)
    assert given == sum(len(lines) for lines in journals(out, "requests").values())
    assert "wait for answers" not in run("status", out)[1]


def test_what_waits_in_two_runs_waits_in_the_merged_one(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """Merged while files of both are out, again when one is answered there, and none is asked for once more."""
    asked = [str(feature.index) for feature in Run.open(through_openai).asked("layers.1")]
    parts = [tmp_path / "one", tmp_path / "two"]
    for part, ids in zip(parts, (asked[:6], asked[6:]), strict=True):
        mapping = recipe(made, submit=False) | {"features": {"ids": ids}}
        (tmp_path / f"{part.name}.yaml").write_text(yaml.safe_dump(mapping))
        code, _, _ = run("explain", "--recipe", tmp_path / f"{part.name}.yaml", "--out", sampled(part))
        assert code == 1
    out = tmp_path / "run"
    for _ in range(2):  # the second time there is nothing to take
        code, stdout, stderr = run("merge", *parts, "--out", out)
        assert code == 0, stdout + stderr
        waiting = commands(run("status", out)[1])
        assert len(waiting) == 2 and {Path(command[3]).parent.parent for command in waiting} == {
            out / "batch"
        }
    before = {key for command in waiting for key in keys_of(Path(command[3]))}
    assert before == {
        key for part in parts for path in (part / "batch").rglob("requests-*.jsonl") for key in keys_of(path)
    }
    n_given, code = 0, 1
    while code != 0:
        for command in waiting:
            n_given += Path(command[3]).read_bytes().count(b"\n")
            run_batch(command)
        code, stdout, stderr = run("resume", out)
        assert code in (0, 1), stdout + stderr
        waiting = commands(stderr)
    assert records(out) == records(through_openai)
    assert n_given == sum(len(lines) for lines in journals(out, "requests").values())


def test_answers_are_taken_shuffled_doubled_and_half_a_file(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """What is missing of a file goes into a new one; a row that was cut off is none."""
    rng = random.Random(1)
    out = tmp_path / "run"
    code, _, stderr = written(made, sampled, out, tmp_path)
    while code != 0:
        assert code == 1, stderr
        for command in commands(stderr):
            run_batch(command, lambda rows: rng.sample(rows * 2, len(rows) * 2)[: len(rows)])
            with Path(command[5]).open("ab") as file:
                file.write(b'{"custom_id": "00')
        before = set(commands(stderr)[0][3:4])
        code, stdout, stderr = run("resume", out)
        assert " answers" in stdout
        assert not before & {command[3] for command in commands(stderr)}
    assert records(out) == records(through_openai)


def test_answers_from_anywhere_are_imported(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """As plain texts, in two files, one of them twice, with rows of somebody else."""
    out, one, two = tmp_path / "run", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    code, _, stderr = written(made, sampled, out, tmp_path)
    while code != 0:
        assert code == 1, stderr
        lines = [
            orjson.loads(line)
            for command in commands(stderr)
            for line in Path(command[3]).read_bytes().splitlines()
        ]
        rows = [{"custom_id": line["custom_id"], "text": text_for(line["body"])} for line in lines]
        half = len(rows) // 2 + 1
        write_rows(one, [*rows[:half], {"custom_id": "somebody else's", "text": "hello"}])
        write_rows(two, rows[half:] or rows)
        code, said, stderr = run("llm", "answers", out, one, two)
        assert code == 0, stderr
        assert f"{half:,} answers" in said and "1 answer nothing" in said and "resume" in said
        n_files = len(list((out / "batch" / "imported").iterdir()))
        assert f"{half:,} known already" in run("llm", "answers", out, one)[1]
        assert len(list((out / "batch" / "imported").iterdir())) == n_files
        code, _, stderr = run("resume", out)
    assert records(out) == records(through_openai)


def test_wrong_files_of_answers_are_named(
    made: Tiny, sampled: Callable[[Path], Path], tmp_path: Path
) -> None:
    out, bad = tmp_path / "run", tmp_path / "bad.jsonl"
    assert "no requests" in run("llm", "answers", sampled(tmp_path / "other"), bad)[2]
    _, _, stderr = written(made, sampled, out, tmp_path)
    requests = Path(commands(stderr)[0][3])
    good = orjson.dumps(answered(requests, answer)[0]) + b"\n"
    for content, message in (
        (None, "can't be read: No such file"),
        (requests.read_bytes(), "line 1, is a request"),
        (good + b"hello\n" + good, "line 2, is not JSON"),
        (good + b"[]\n", "line 2, has no custom_id"),
        (good + b'{"custom_id": "x"}\n', "line 2, is no answer"),
        (b'{"custom_id": "x", "text": "y"}\n', "none of its 1 rows answers a request of this run"),
        (b"", "it is empty, and answers nothing of this run"),
    ):
        bad.unlink(missing_ok=True)
        if content is not None:
            bad.write_bytes(content)
        code, _, stderr = run("llm", "answers", out, bad)
        assert code == 2 and message in " ".join(stderr.split()), stderr
    assert not list((out / "batch" / "imported").glob("*"))


def test_a_run_changes_from_batches_to_single_requests_and_pays_nothing_twice(
    made: Tiny, sampled: Callable[[Path], Path], through_openai: Path, tmp_path: Path
) -> None:
    """The first round in files, the rest one by one: the openai backend knows what the files were answered."""
    out = tmp_path / "run"
    _, _, stderr = written(made, sampled, out, tmp_path)
    for command in commands(stderr):
        run_batch(command)
    _, _, stderr = run("resume", out)
    waiting = sum(Path(command[3]).read_bytes().count(b"\n") for command in commands(stderr))
    with FaultServer(lambda _, body: ok(text_for(body))) as server:
        pipeline.explain(recipe(made, "openai", base_url=server.url), out=out)
        n_all = sum(len(lines) for lines in journals(through_openai, "requests").values())
        assert waiting <= len(server.requests) < n_all
    assert records(out) == records(through_openai)


def test_two_llms_have_files_of_their_own(
    made: Tiny, sampled: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A file may hold requests to one model only."""
    out = sampled(tmp_path / "run")
    with BatchServer(answer) as server:
        mapping = recipe(made, base_url=server.url)
        mapping["llms"]["judge"] = mapping["llms"]["judge"] | {"model": "other"}
        pipeline.explain(mapping, out=out)
        for batch in server.batches:
            lines = server.files[batch["input_file_id"]].splitlines()
            models = {orjson.loads(line)["body"]["model"] for line in lines}
            assert len(models) == 1
    assert {
        row["llm"] for row in Run.open(out).existing("score", "layers.1", "plain", "detection").records()
    } == {"other"}
