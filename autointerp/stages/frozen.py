"""What changes the last bits of activations, fixed with a run's first shard.

A run that goes on on another machine must not mix two precisions under one digest; and on a GPU, where the
product of another batch shape rounds differently, not two batch shapes either.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import torch

from autointerp.errors import ModelError, RunError
from autointerp.files import read_sealed_json, sealed_json, write_atomically
from autointerp.run import CALIBRATION, Run
from autointerp.subject.pretrained import Dtype

T = TypeVar("T")

CPU_BATCH: Final = 2_048
"""Tokens: more don't fit a CPU's caches. Not tuned, because on a CPU two runs give the same bytes."""
SMALLEST_GPU_BATCH: Final = 4_096
LARGEST_GPU_BATCH: Final = 2**19
SMALLEST_GAIN: Final = 1.05
"""A batch twice as large must be so many times as fast a token, or the smaller one stays."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The manifest of a dictionary's cache."""

    batch_tokens: int
    dtype: Dtype
    device: str
    torch: str
    halved: list[int] = dataclasses.field(default_factory=list[int])
    """Batch sizes that ran out of memory on the way."""

    def after_out_of_memory(self, context_length: int) -> Frozen:
        """With half the batch. Raises ModelError where a batch is a single row already."""
        if self.batch_tokens <= context_length:
            raise ModelError(
                f"not even one row of {context_length:,} tokens fits the memory of the {self.device}. Use a "
                f"shorter cache.context_length, resources.device_map=auto over several cards, or bfloat16."
            )
        halved = [*self.halved, self.batch_tokens]
        return dataclasses.replace(self, batch_tokens=self.batch_tokens // 2, halved=halved)

    def save(self, run: Run, dictionaries: list[str]) -> None:
        for name in dictionaries:
            content = dataclasses.asdict(self)
            calibration = run.cache(name).read(CALIBRATION).get(CALIBRATION)
            if calibration is not None:
                content[CALIBRATION] = calibration
            write_atomically(_manifest(run, name), sealed_json(content))


def read_frozen(run: Run) -> Frozen | None:
    """Of the first dictionary that has any; a dictionary added later is cached alike. Raises RunError."""
    for name in run.recipe.dictionaries:
        if (path := _manifest(run, name)).is_file():
            way_on = f"`autointerp cache verify --repair {run.path}` sets it aside, and the run finds a batch anew."
            content = read_sealed_json(path, way_on)
            content.pop(CALIBRATION, None)  # for whoever reads the manifest; the journal's record counts
            if {"halved", *content} != {field.name for field in dataclasses.fields(Frozen)}:
                raise RunError(f"{path} holds other fields than a manifest: {', '.join(content)}. {way_on}")
            return Frozen(**content)
    return None


def _manifest(run: Run, name: str) -> Path:
    return run.cache(name).folder / "manifest.json"


def within_memory(step: Callable[[], T], halve: Callable[[], None]) -> T:
    """What `step()` returns; where it runs out of memory, `halve()` is called and it is done again."""
    while True:
        try:
            return step()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            halve()


def tuned_batch(step: Callable[[int], None], *, largest: int) -> int:
    """Doubles the batch until a step gets no faster a token, or runs out of memory.

    `step(n)` does what caching does on a batch of n tokens and returns when the device is done.
    """
    best, best_time = SMALLEST_GPU_BATCH, float("inf")
    batch = SMALLEST_GPU_BATCH
    while batch <= min(largest, LARGEST_GPU_BATCH):
        try:
            step(batch)  # the first of a shape allocates and compiles
            began = time.perf_counter()
            step(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        a_token = (time.perf_counter() - began) / batch
        if a_token * SMALLEST_GAIN > best_time:
            break
        best, best_time = batch, a_token
        batch *= 2
    return best
