"""What explaining and scoring costs beside the requests themselves.

    path   `explain` from sampled features on: prompts, the client, request journals, trials, metrics, records
    bare   the openai SDK on the same transport, sending the same bodies and dropping the answers: by its typed
           `create`, and by its `post`

Both ask a server of this machine, in a process of its own, that answers at once, and take turns, so that a
machine that slows down slows both. What the path's CPU time is spent on is told by leaving parts out: all but
the LLM (`alone`), and the request journals (`unkept`).

Measured in a process of its own, which also tells the peak memory: `python -m autointerp.bench.llm_child
FOLDER URL N_FEATURES N_IN_FLIGHT COMPARE`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from autointerp.bench.made_up_run import make_run


@dataclass(frozen=True, slots=True)
class Pace:
    """So many requests."""

    n_requests: int
    wall_s: float
    cpu_s: float
    """Of the asking process."""

    @property
    def a_second(self) -> float:
        return self.n_requests / self.wall_s

    @property
    def cpu_us(self) -> float:
        """A request."""
        return self.cpu_s / self.n_requests * 1e6


@dataclass(frozen=True, slots=True)
class LLMBench:
    """One measurement. The others are None where only the path was asked for."""

    n_features: int
    n_in_flight: int
    peak_rss: int
    """Bytes, of the asking process, behind the path over all features."""
    path: Pace
    """Over all features; with others in turn with them, over half."""
    bare: Pace | None = None
    """`chat.completions.create`."""
    bare_raw: Pace | None = None
    """The SDK's `post` without its types."""
    client: Pace | None = None
    """Our own client alone, which sends over the SDK's: the same bodies, their replies read."""
    unkept: Pace | None = None
    """The path without request journals."""
    alone: Pace | None = None
    """The path without an LLM: answered in its own process."""


@dataclass(frozen=True, slots=True)
class LLMBenches:
    """All features, and a quarter of them, of which only the path is measured."""

    whole: LLMBench
    quarter: LLMBench

    @property
    def ratio(self) -> float | None:
        """Requests a second, path / bare."""
        return self.whole.path.a_second / self.whole.bare.a_second if self.whole.bare else None

    @property
    def ratio_raw(self) -> float | None:
        """The same, path / bare_raw."""
        return self.whole.path.a_second / self.whole.bare_raw.a_second if self.whole.bare_raw else None

    @property
    def growth(self) -> float:
        """Peak memory with four times the features: 1 where it doesn't grow. (Of fewer than two units of 256
        features it does: as many are open at once as it takes to have enough in flight.)"""
        return self.whole.peak_rss / self.quarter.peak_rss


def bench_llm(n_features: int, n_in_flight: int, *, compare: bool = True) -> LLMBenches:
    """Makes runs in a temporary folder and measures; `compare`: the SDK and the parts too.

    Raises subprocess.CalledProcessError where the measuring process fails."""
    with _server() as url:
        quarter = _in_a_child(url, max(1, n_features // 4), n_in_flight, compare=False)
        return LLMBenches(_in_a_child(url, n_features, n_in_flight, compare=compare), quarter)


@contextmanager
def _server() -> Generator[str]:
    command = [sys.executable, "-m", "autointerp.bench.instant_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.stdin.close()  # which ends it


def _in_a_child(url: str, n_features: int, n_in_flight: int, *, compare: bool) -> LLMBench:
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "run", n_features)
        arguments = [folder, url, str(n_features), str(n_in_flight), str(int(compare))]
        command = [sys.executable, "-m", "autointerp.bench.llm_child", *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found = orjson.loads(done.stdout)
    paces = ("path", "bare", "bare_raw", "client", "unkept", "alone")
    return LLMBench(**(found | {name: Pace(**found[name]) if found[name] else None for name in paces}))
