"""What caching costs beside the work nobody can avoid.

    bare     forward to the last hook, the dictionary's product, the selection; nothing kept
    cached   the same, and everything `explain` does with it: masking, sorting, checksums, files, journal
    forward  the whole model, logits included

Shard by shard in turn, so that a machine that slows down slows all alike. Run in a process of its own, which
also tells the peak memory: `python -m autointerp.bench.cache_child FOLDER RECIPE COMPARE`.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Final

from autointerp.bench.size import Size

FEWEST_TOKENS: Final = 2_000
"""More than one document of the made-up corpus, which a run insists on."""


@dataclass(frozen=True, slots=True)
class CacheBench:
    """One measurement. Times in microseconds a token; None where only memory was asked for."""

    device: str
    n_tokens: int
    cached: float
    bare: float | None
    bare_with_torch_topk: float | None
    """The same with torch.topk for the selection."""
    forward: float | None
    forward_to_hook: float | None
    bytes_a_firing: float
    peak_rss: int
    """Bytes, of the whole process."""
    peak_rss_quarter: int | None = None
    """The same for a quarter of the tokens; None beside the bare work, whose memory is not caching's."""

    @property
    def ratio(self) -> float | None:
        """cached / bare."""
        return self.cached / self.bare if self.bare else None

    @property
    def growth(self) -> float | None:
        """Peak memory with four times the tokens: 1 where it doesn't grow. (It does until two shards are full: one
        is written while the next is filled.)"""
        return self.peak_rss / self.peak_rss_quarter if self.peak_rss_quarter else None


def bench_cache(n_tokens: int, size: Size, *, compare: bool = True) -> CacheBench:
    """Measures in a child; without `compare` a quarter of the tokens too, for what memory grows by.

    Raises subprocess.CalledProcessError where that fails."""
    whole = _in_a_child(n_tokens, size, compare=compare)
    if compare:
        return whole
    quarter = _in_a_child(max(FEWEST_TOKENS, n_tokens // 4), size, compare=False)
    return dataclasses.replace(whole, peak_rss_quarter=quarter.peak_rss)


def _in_a_child(n_tokens: int, size: Size, *, compare: bool) -> CacheBench:
    with tempfile.TemporaryDirectory() as folder:
        # What the material takes is not caching's.
        recipe = _last_line("material", folder, json.dumps(dataclasses.asdict(size)), str(n_tokens))
        measured = _last_line("cache_child", folder, recipe, str(int(compare)))
    return CacheBench(**json.loads(measured))


def _last_line(module: str, *arguments: str) -> str:
    """Of what a module prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"autointerp.bench.{module}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]
