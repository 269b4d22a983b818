"""What sampling costs: features a second, memory, bytes, and whether time grows with features alone.

Runs in a process of its own, which also tells the peak memory:
`python -m autointerp.bench.sample FOLDER WIDTH N_FEATURES N_SLOW`.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import orjson

from autointerp.bench.made_up_cache import N_IDS, CacheSize, MadeUpCache, make_cache, open_cache
from autointerp.bench.memory import peak_rss
from autointerp.bench.slow_sampling import SlowSampler
from autointerp.journal import Journal
from autointerp.recipe import Resources
from autointerp.sampling.sample import Sampler
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.store import Windows
from autointerp.stages.sample import blocks, save_samples
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import FeatureId

SLOW_FEATURES: Final = 20
"""Features that plain Python samples for comparison."""


@dataclass(frozen=True, slots=True)
class SampleBench:
    """One measurement. Times are CPU seconds unless they say wall."""

    n_features: int
    n_tokens: int
    n_firings: int
    start_s: float
    """Before the first feature: the corpus is indexed, firings are sampled."""
    sample_s: float
    """Reading, sampling, writing records and windows."""
    wall_s: float
    """Both."""
    peak_rss: int
    """Bytes, of the whole process."""
    record_bytes: float
    store_bytes: float
    """A feature."""
    shown_s: float
    """Reading back what an explainer sees, a feature, the store's opening included."""
    heldout_s: float
    """The same of what a scorer sees."""
    slow_s: float | None
    """The same for plain Python, a feature; None where it was not asked for."""

    @property
    def features_a_second(self) -> float:
        """With the start."""
        return self.n_features / (self.start_s + self.sample_s)

    @property
    def ratio(self) -> float | None:
        """How many times faster than plain Python, once started."""
        return self.slow_s * self.n_features / self.sample_s if self.slow_s is not None else None


@dataclass(frozen=True, slots=True)
class SampleBenches:
    """All features of a dictionary, and a quarter of them on the same cache."""

    whole: SampleBench
    quarter: SampleBench

    @property
    def growth(self) -> float:
        """Time of four times the features, once started: 4 where it is linear."""
        return self.whole.sample_s / self.quarter.sample_s


def bench_sample(n_features: int, n_tokens: int, *, compare: bool = True) -> SampleBenches:
    """Makes a cache in a temporary folder and measures; `compare`: plain Python too.

    Raises subprocess.CalledProcessError where the measuring process fails."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_cache(folder, CacheSize(n_tokens=n_tokens, n_features=n_features))
        quarter = _in_a_child(folder, n_features, max(1, n_features // 4), 0)
        n_slow = min(n_features, SLOW_FEATURES) if compare else 0
        whole = _in_a_child(folder, n_features, n_features, n_slow)
        return SampleBenches(whole, quarter)


def _in_a_child(folder: Path, width: int, n_features: int, n_slow: int) -> SampleBench:
    arguments = [str(folder), str(width), str(n_features), str(n_slow)]
    command = [sys.executable, "-m", "autointerp.bench.sample", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return SampleBench(**orjson.loads(done.stdout))


def _measure(folder: Path, width: int, n_features: int, n_slow: int) -> SampleBench:
    began, wall_began = time.process_time(), time.monotonic()
    cache = open_cache(folder)
    sampler = Sampler(cache.rows, cache.firings, SamplingSettings(), seed=0, first=1)
    started = time.process_time()
    features = [FeatureId("bench", index) for index in range(n_features)]
    with tempfile.TemporaryDirectory() as out:
        journal = Journal(Path(out), {"bench": "sample"})
        counts = cache.firings.counts(width)
        for block in blocks(features, counts[: len(features)], Resources().sample_firings):
            save_samples(journal, sampler.sample(block))
        ended, wall_ended = time.process_time(), time.monotonic()
        peak = peak_rss()
        records, stores = list(Path(out).glob("*.jsonl")), list(Path(out).glob("*.parquet"))
        shown_s, heldout_s = (_read_back(journal, stores[:2], split) for split in ("shown", "heldout"))
        return SampleBench(
            n_features=n_features,
            n_tokens=int(cache.rows.length.sum()) - cache.rows.n_rows,
            n_firings=cache.firings.n_kept(),
            start_s=started - began,
            sample_s=ended - started,
            wall_s=wall_ended - wall_began,
            peak_rss=peak,
            record_bytes=sum(path.stat().st_size for path in records) / n_features,
            store_bytes=sum(path.stat().st_size for path in stores) / n_features,
            shown_s=shown_s,
            heldout_s=heldout_s,
            slow_s=_slow(cache, n_slow) if n_slow else None,
        )


def _read_back(journal: Journal, stores: list[Path], split: Literal["shown", "heldout"]) -> float:
    vocabulary = Vocabulary([f" w{number}".encode() for number in range(N_IDS + 1)])
    began, n_read = time.process_time(), 0
    for path in stores:
        read = getattr(Windows(path, vocabulary), split)
        for feature in journal.read(path.name.split(".")[0]):
            read(feature)
            n_read += 1
    return (time.process_time() - began) / max(1, n_read)


def _slow(cache: MadeUpCache, n_features: int) -> float:
    sampler = SlowSampler(cache, SamplingSettings())
    began = time.process_time()
    for feature in range(n_features):
        sampler.sample(feature)
    return (time.process_time() - began) / n_features


if __name__ == "__main__":
    measured = _measure(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    sys.stdout.buffer.write(orjson.dumps(dataclasses.asdict(measured)))
