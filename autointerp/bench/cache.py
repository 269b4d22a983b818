"""What caching costs beside the work nobody can avoid.

    bare     forward to the last hook, the dictionary's product, the selection; nothing kept
    cached   the same, and everything `explain` does with it: masking, sorting, checksums, files, journal
    forward  the whole model, logits included

Shard by shard in turn, so that a machine that slows down slows all alike. Run in a process of its own, which
also tells the peak memory: `python -m autointerp.bench.cache_child FOLDER N_TOKENS COMPARE SIZE`.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from autointerp.bench.size import Size


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

    @property
    def ratio(self) -> float | None:
        """cached / bare."""
        return self.cached / self.bare if self.bare else None


def bench_cache(n_tokens: int, size: Size, *, compare: bool = True) -> CacheBench:
    """Runs a measurement in a child. Raises subprocess.CalledProcessError where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [folder, str(n_tokens), str(int(compare)), json.dumps(dataclasses.asdict(size))]
        done = subprocess.run(
            [sys.executable, "-m", "autointerp.bench.cache_child", *asked],
            capture_output=True,
            text=True,
            check=True,
        )
    return CacheBench(**json.loads(done.stdout.splitlines()[-1]))
