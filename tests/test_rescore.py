"""`autointerp rescore`: numbers anew from stored trials, and nothing else touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from autointerp import pipeline, rescore
from autointerp.cli import app
from autointerp.errors import RunError
from autointerp.files import write_atomically
from autointerp.journal import lines_of
from autointerp.run import Run
from here import contents, device_here
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}


@pytest.fixture(scope="module")
def scored(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rescore") / "run"
    with device_here():
        llms = {"explainer": SCRIPTED, "judge": SCRIPTED}
        pipeline.explain(made.recipe(llms=llms, features={"n": 8}), out=out)
    return out


@pytest.fixture
def stale(scored: Path, tmp_path: Path) -> Path:
    """A copy whose every other record has numbers of an earlier way of making them, and another status."""
    out = tmp_path / "run"
    shutil.copytree(scored, out)
    for part in parts(out):
        header, *lines = lines_of(part)
        for n in range(0, len(lines), 2):
            record = orjson.loads(lines[n])
            record["metrics"]["values"] = {"balanced_accuracy": {"value": 2.0, "low": 2.0, "high": 2.0}}
            lines[n] = orjson.dumps(record | {"status": "unreadable", "reason": "so it was"})
        part.write_bytes(b"".join(line + b"\n" for line in (header, *lines)))
    return out


def parts(run: Path) -> list[Path]:
    return sorted((run / "score").rglob("*.jsonl"))


def n_changed(found: list[rescore.Rescored]) -> int:
    return sum(len(one.changes) for one in found)


def test_a_fresh_run_has_the_numbers_its_trials_say(scored: Path) -> None:
    """What is read back from a record gives the record, and no file is touched."""
    before = {path: path.stat().st_mtime_ns for path in parts(scored)}
    found = rescore.rescore(Run.open(scored))
    assert n_changed(found) == 0 and sum(one.n_records for one in found) >= 10
    assert {path: path.stat().st_mtime_ns for path in parts(scored)} == before


def test_numbers_are_made_anew_and_nothing_else_changes(scored: Path, stale: Path) -> None:
    """Every file of the run is what it was before its numbers were spoiled, to the byte; again is for free."""
    assert contents(stale) != contents(scored)
    assert n_changed(rescore.rescore(Run.open(stale))) >= 5
    assert contents(stale) == contents(scored)
    assert n_changed(rescore.rescore(Run.open(stale))) == 0


def test_a_dry_run_says_the_same_and_writes_nothing(stale: Path) -> None:
    before = contents(stale)
    said = rescore.rescore(Run.open(stale), dry_run=True)
    assert contents(stale) == before
    assert rescore.rescore(Run.open(stale)) == said and n_changed(said) >= 5
    assert all(
        change.before == 2.0 and 0 <= (change.after or 0) <= 1 for one in said for change in one.changes
    )


def test_killed_between_two_parts_it_goes_on(
    scored: Path, stale: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part is written, the second not begun: each is as before or as it is to be."""
    written: list[Path] = []

    def dies_at_the_second(path: Path, content: Any) -> None:
        if written:
            raise KeyboardInterrupt
        write_atomically(path, content)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(rescore, "write_atomically", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            rescore.rescore(Run.open(stale))
    assert Run.open(stale).scores().num_rows == Run.open(scored).scores().num_rows
    assert n_changed(rescore.rescore(Run.open(stale))) > 0
    assert contents(stale) == contents(scored)


def test_of_two_records_of_a_key_both_are_made_anew(scored: Path, stale: Path) -> None:
    """A later part holds the same keys: the older still wins, with the new numbers."""
    part = parts(stale)[0]
    shutil.copy(part, part.with_name(part.name.replace(".0001.", ".0002.")))
    rescore.rescore(Run.open(stale))
    assert Run.open(stale).scores().equals(Run.open(scored).scores())


@pytest.mark.parametrize("lost", ["trials", "facts"])
def test_scores_without_trials_are_refused(stale: Path, lost: str) -> None:
    """The message names the part and the feature, and what to do."""
    part = parts(stale)[0]
    header, *lines = lines_of(part)
    record = orjson.loads(lines[0])
    del record[lost]
    part.write_bytes(b"".join(line + b"\n" for line in (header, orjson.dumps(record), *lines[1:])))
    before = contents(stale)
    with pytest.raises(RunError, match=f"{record['key']} is stored without its trials"):
        rescore.rescore(Run.open(stale))
    assert contents(stale) == before


def test_a_run_of_an_earlier_version_is_refused_before_anything_is_written(stale: Path) -> None:
    made_from = parts(stale)[-1].parent / "made_from.json"
    content = orjson.loads(made_from.read_bytes())
    del content["made_from"]["version"]
    made_from.write_bytes(orjson.dumps(content))
    before = contents(stale)
    with pytest.raises(RunError, match="version 1; this one reads 2"):
        rescore.rescore(Run.open(stale))
    assert contents(stale) == before


def test_the_command_says_what_changes(stale: Path) -> None:
    dry = CliRunner().invoke(app, ["rescore", str(stale), "--dry-run"])
    assert dry.exit_code == 0 and "would change. Nothing was written." in dry.stdout
    assert CliRunner().invoke(app, ["rescore", str(stale)]).exit_code == 0
    again = CliRunner().invoke(app, ["rescore", str(stale)])
    assert "All numbers are what their trials say." in again.stdout
