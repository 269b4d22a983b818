"""Totals on W&B, with a client that stands in for it: what it is told, and that it can't harm a run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from autointerp import pipeline, tracking
from autointerp.errors import PackageMissing
from autointerp.progress import Silent
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.stages.spent import spent_in_all
from here import contents, device_here
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}


class Client(ModuleType):
    """A fake `wandb`: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.summary: dict[str, float] = {}
        self.finished: list[int] = []
        self.fails_at = ""
        self.hangs = threading.Event()
        self.is_logged_in = True
        self.Settings = dict

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify  # nobody is there to type a key
        return self.is_logged_in

    def init(self, **given: Any) -> Any:
        self._may_fail("init")
        self.begun.append(given)
        return SimpleNamespace(id="abc123", log=self._log, summary=self.summary, finish=self._finish)

    def _log(self, totals: dict[str, float]) -> None:
        self._may_fail("log")
        self.logged.append(totals)

    def _finish(self, exit_code: int) -> None:
        self._may_fail("finish")
        self.finished.append(exit_code)

    def _may_fail(self, at: str) -> None:
        if self.fails_at == f"{at} hangs":
            self.hangs.wait(300)
        elif self.fails_at == at:
            raise ConnectionError("nobody\nthere")


class Noted(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.threads: set[str] = set()

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        self.threads.add(threading.current_thread().name)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Generator[Client]:
    fake = Client()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    monkeypatch.setattr(tracking, "LAST_S", 1.0)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield fake
    fake.hangs.set()


def recipe_of(made: Tiny, project: str | None, n: int = 4) -> dict[str, Any]:
    return made.recipe(
        features={"n": n},
        llms={"explainer": SCRIPTED, "judge": SCRIPTED},
        scorers={"detection": {"use": "detection"}},
        resources={"wandb": project},
    )


def explained(made: Tiny, out: Path, project: str | None = "team/features", n: int = 4) -> tuple[Run, Noted]:
    noted = Noted()
    with device_here():
        return pipeline.explain(recipe_of(made, project, n), out=out, progress=noted), noted


def test_totals_and_scores_arrive_and_the_run_is_known_again(
    made: Tiny, tmp_path: Path, client: Client
) -> None:
    run, noted = explained(made, tmp_path / "run")
    (begun,) = client.begun
    assert (begun["entity"], begun["project"], begun["name"]) == ("team", "features", "run")
    assert begun["id"] is None and begun["mode"] is None and "resources" not in begun["config"]
    assert str(made.model.parent) not in str(begun["config"])
    last, total = client.logged[-1], spent_in_all(run)
    assert last["requests"] == total.n_requests > 4
    assert last["sample/done"] == last["sample/features"] == 4
    (score,) = summarise(run, "layers.1").scores
    assert score.value is not None
    assert client.summary["score/layers.1/plain/detection"] == score.value.value
    assert client.summary["score/layers.1/plain/detection/low"] == score.value.low
    assert client.finished == [0] and not [note for note in noted.notes if "wandb" in note]
    explained(made, tmp_path / "run", n=5)
    assert client.begun[1]["id"] == "abc123" and client.begun[1]["resume"] == "allow"


@pytest.mark.parametrize("fails_at", ["init", "log", "finish", "init hangs", "finish hangs"])
def test_whatever_goes_wrong_there_is_said_once_and_the_run_is_whole(
    made: Tiny, tmp_path: Path, client: Client, fails_at: str
) -> None:
    client.fails_at = fails_at
    began = time.monotonic()
    run, noted = explained(made, tmp_path / "run")
    assert run.scores().num_rows > 0 and time.monotonic() - began < 200
    (said,) = [note for note in noted.notes if "wandb" in note]
    assert "took no answer in 1 s" in said if "hangs" in fails_at else "ConnectionError: nobody there" in said
    assert noted.threads == {threading.current_thread().name}


def test_totals_come_while_it_runs(
    made: Tiny, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "EVERY_S", 0.01)
    explained(made, tmp_path / "run")
    assert len(client.logged) > 3
    requests = [one["requests"] for one in client.logged]
    assert requests == sorted(requests) and requests[0] < requests[-1]


def test_a_run_that_fails_ends_so_there(made: Tiny, tmp_path: Path, client: Client) -> None:
    with pytest.raises(KeyError), tracking.tracked(_saved(made, tmp_path), Silent()):
        raise KeyError("ours")
    assert client.finished == [1] and not client.summary


def _saved(made: Tiny, tmp_path: Path) -> Run:
    return pipeline.prepare(recipe_of(made, "features"), tmp_path / "run")[1]


def test_a_missing_package_is_told_before_anything_begins(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"pip install '\.\[wandb\]'.*resources\.wandb=null"):
        explained(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nobody_logged_in_is_never_asked(made: Tiny, tmp_path: Path, client: Client) -> None:
    client.is_logged_in = False
    with tracking.tracked(_saved(made, tmp_path), Silent()):
        pass
    assert client.begun[0]["mode"] == "offline"


def test_results_are_the_same_with_it_and_without(made: Tiny, tmp_path: Path, client: Client) -> None:
    explained(made, tmp_path / "with")
    run, _ = explained(made, tmp_path / "without", project=None)
    other = ("recipe.yaml", "wandb.json")
    assert contents(tmp_path / "with", without=other).keys() == contents(run.path, without=other).keys()
    assert Run.open(tmp_path / "with").scores().equals(run.scores())
    assert len(client.begun) == 1
