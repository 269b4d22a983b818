"""The batch backend: whole runs through files, at a server or by any other means, killed and cut."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.run import Run
from autointerp.types import Json
from batch_server import (
    BatchServer,
    ok_row,
)
from fault_server import FaultServer, ok
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
