"""The device stages in the tests' own process: their child would spend its time on importing torch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from autointerp import pipeline
from autointerp.progress import Progress, Stop
from autointerp.resolve import resolve
from autointerp.run import Run
from autointerp.stages.device import run_on_device

SHARDS = {"n_tokens": 45_000, "shard_tokens": 2_048}
"""A cache of the tiny corpus in many shards, of which not all are at the front."""


@contextmanager
def device_here() -> Generator[None]:
    """Within, `pipeline` runs device stages without a child."""

    def run_here(run: Run, stage: str, progress: Progress, stop: Stop) -> None:
        from autointerp.stages.cache import run_cache
        from autointerp.stages.intervene import run_intervene
        from autointerp.stages.probe import run_probe

        saved = Run.open(run.path)
        stages = {"cache": run_cache, "intervene": run_intervene, "probe": run_probe}
        stages[stage](saved, resolve(saved.recipe), progress, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_on_device", run_here)
        yield


@contextmanager
def device_child() -> Generator[None]:
    """Within, they run in a child, as users' do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_on_device", run_on_device)
        yield


def contents(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file of a run that no machine or moment shows in, by its name."""
    passing = ("run.lock", "device.log", "environment.json", *without)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in passing
    }


def records(folder: Path, *stages: str) -> dict[str, list[bytes]]:
    """Sorted records of every journal of a run, as bytes."""
    found: dict[str, list[bytes]] = {}
    run = Run.open(folder)
    for journal in run.journals():
        name = str(journal.folder.relative_to(run.path))
        if not stages or name.split("/")[0] in stages:
            found[name] = sorted(orjson.dumps(record) for record in journal.records())
    return found


def device_processes(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
