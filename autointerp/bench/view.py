"""What writing a run's explorer costs, and how fast it is in a browser.

A made-up run is written as a page by a process of its own, which also tells its memory and that of its processes:
`python -m autointerp.bench.view RUN OUT JOBS`. Where there are Chromium and playwright, the page is looked at
(`browsing.py`).
"""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from autointerp.bench.browsing import Browsed, Missing, browse
from autointerp.bench.made_up_explained import make_explained_run
from autointerp.run import Run
from autointerp.view.folder import write_folder


@dataclass(frozen=True, slots=True)
class Built:
    """A page that was written."""

    n_features: int
    n_files: int
    n_bytes: int
    n_windows: int | None
    """At most so many of each split are in the page; None: all."""
    wall_s: float
    cpu_s: float
    """Of all processes."""
    peak_rss: int
    """Bytes, of the process that writes."""
    peak_rss_child: int
    """Bytes, of the largest of its processes; 0 where it has none."""

    @property
    def cpu_ms(self) -> float:
        """A feature."""
        return 1e3 * self.cpu_s / self.n_features


@dataclass(frozen=True, slots=True)
class ViewBench:
    """One measurement."""

    jobs: int
    built: Built
    browsed: Browsed | Missing


def bench_view(n_features: int, jobs: int) -> ViewBench:
    """Makes a run in a temporary folder and measures. Raises subprocess.CalledProcessError where the writing process
    fails."""
    with tempfile.TemporaryDirectory() as temporary:
        run, out = Path(temporary) / "run", Path(temporary) / "page"
        make_explained_run(run, n_features)
        command = [sys.executable, "-m", "autointerp.bench.view", str(run), str(out), str(jobs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        return ViewBench(jobs, Built(**orjson.loads(done.stdout)), browse(out / "index.html"))


def _measure(run: Path, out: Path, jobs: int) -> Built:
    began = time.monotonic()
    found = write_folder(Run.open(run), out, single=False, jobs=jobs)
    wall_s = time.monotonic() - began
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Built(
        n_features=found.n_features,
        n_files=found.n_files,
        n_bytes=found.n_bytes,
        n_windows=found.n_windows,
        wall_s=wall_s,
        cpu_s=sum(one.ru_utime + one.ru_stime for one in (own, children)),
        peak_rss=own.ru_maxrss * 1024,
        peak_rss_child=children.ru_maxrss * 1024,
    )


if __name__ == "__main__":
    measured = _measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.buffer.write(orjson.dumps(dataclasses.asdict(measured)))
