"""kill -9 while caching, of the parent or of the child that caches: the same shards, byte for byte."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from autointerp import pipeline
from autointerp.run import Run
from autointerp.verify import verify
from here import contents, device_here, device_processes, records
from tiny import Tiny

SMALL = {"n_tokens": 45_000, "shard_tokens": 512}
"""Shards so small that writing them takes its share of the time."""


def n_files(out: Path) -> int:
    """Files of shards, half written ones included."""
    return sum(len(names) for place in ("rows", "cache") for _, _, names in os.walk(out / place))


def killed(command: list[str], out: Path, rng: random.Random, most: int) -> str | None:
    """Starts a run and kills it when it has made a random number of new files, up to `most`, and a moment
    later; the parent, its child, or both. What was killed; None where the run ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    enough = n_files(out) + rng.randint(1, most)
    while n_files(out) < enough and process.poll() is None:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.01))
    children = device_processes(process.pid)
    whom = rng.choice(["parent", "child", "both"])
    if process.poll() is not None:
        return None
    if whom != "parent":
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    if whom != "child":
        process.kill()
    process.wait()
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):  # it goes with its parent
        time.sleep(0.01)
    return whom


def check_killed(made: Tiny, tmp_path: Path, n_kills: int, seed: int) -> list[str]:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    sections = made.recipe(cache=SMALL, features={"n": 5})
    recipe.write_text(yaml.safe_dump(sections))
    with device_here():
        pipeline.explain(sections, out=tmp_path / "unbroken", until="cache")
    words = ["explain", "--recipe", str(recipe), "--out", str(out), "--until", "cache"]
    command = [sys.executable, "-m", "autointerp", *words]
    rng = random.Random(seed)
    met: list[str] = []
    # The unbroken run's files, spread over the kills: the last still meets the run at work.
    most = max(2, 3 * n_files(tmp_path / "unbroken") // (2 * (n_kills + 1)))
    while len(met) < n_kills and (whom := killed(command, out, rng, most)) is not None:
        met.append(whom)
    subprocess.run(command, check=True, capture_output=True)
    assert records(out) == records(tmp_path / "unbroken")
    assert shards(out) == shards(tmp_path / "unbroken")
    assert not verify(Run.open(out)).faults
    print(f"{len(met)} kills: {met}")
    return met


def shards(folder: Path) -> dict[tuple[str, str], bytes]:
    """The file of each shard that its journal calls done, by journal and key."""
    run = Run.open(folder)
    found: dict[tuple[str, str], bytes] = {}
    for journal, suffix in ((run.rows(), ".npy"), (run.cache("layers.1"), ".safetensors")):
        for unit in filter(str.isdigit, journal.units()):
            for key, (_, part) in journal.located(unit).items():
                found[journal.folder.name, key] = part.with_suffix(suffix).read_bytes()
    assert len(found) > 100 and contents(folder)
    return found


def test_killed_four_times_while_caching_the_shards_are_the_same(made: Tiny, tmp_path: Path) -> None:
    assert len(check_killed(made, tmp_path, n_kills=4, seed=0)) == 4


@pytest.mark.slow
def test_killed_twenty_times_while_caching_the_shards_are_the_same(made: Tiny, tmp_path: Path) -> None:
    assert len(check_killed(made, tmp_path, n_kills=20, seed=1)) == 20
