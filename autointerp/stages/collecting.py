"""From codes to shards on disk: while one shard goes through the model, a thread sorts the one before and writes
it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from autointerp.activations.cap import shard_arrays, share
from autointerp.activations.collected import Kept
from autointerp.activations.passes import Pass
from autointerp.activations.rows import Rows, RowShard
from autointerp.activations.shards import save_shard
from autointerp.journal import Journal, Part
from autointerp.progress import Progress, Stop
from autointerp.run import Run


class OneShard(Protocol):
    """What one dictionary does on one shard, not sorted yet."""

    def kept(self) -> Kept:
        """May run in another thread. Raises InputErrors."""
        ...


class Codes(Protocol):
    """What a run's dictionaries do on any shard."""

    @property
    def passes(self) -> dict[str, tuple[str, Pass]]:
        """What is missing, by a label: the dictionary, and the features of it."""
        ...

    def shard(self, shard: RowShard, rows: Rows, on_batch: Callable[[int], None]) -> Mapping[str, OneShard]:
        """By label. `rows`: the shard's. `on_batch(n)` after so many tokens; it may raise to stop."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where shards go."""

    stage: str
    """What it is called while it works."""
    journals: Mapping[str, Journal]
    """Of each dictionary."""
    first_position: int
    """The first position of a row that was looked at."""
    max_rows: int
    """Rows of a feature that a shard keeps."""

    @classmethod
    def cache(cls, run: Run) -> Target:
        """A run's cache, whose rows are all there."""
        journals = {name: run.cache(name) for name in run.recipe.dictionaries}
        return cls(
            "cache", journals, run.first_position, share(run.recipe.cache.max_rows, len(run.row_units()))
        )

    @classmethod
    def top_up(cls, run: Run) -> Target:
        """What tops it up, whose rows are all there too; its shards share the cap with those of the cache."""
        journals = {name: run.top_up(name) for name in run.recipe.dictionaries}
        n_shards = len(run.row_units()) + len(run.top_up_units())
        return cls("top up", journals, run.first_position, share(run.recipe.cache.max_rows, n_shards))


def collect_shards(
    codes: Codes, shards: list[RowShard], target: Target, progress: Progress, stop: Stop
) -> None:
    """Those of `shards` that are missing. Raises DiskFull, Interrupted."""

    def missing(shard: RowShard) -> list[str]:
        return [
            label
            for label, (name, entry) in codes.passes.items()
            if entry.key(shard.unit) not in target.journals[name].read(shard.unit)
        ]

    todo = [shard for shard in shards if missing(shard)]
    total = sum(int(shard.read()["length"].sum()) for shard in shards)
    left = sum(int(shard.read()["length"].sum()) for shard in todo)
    progress.begin(target.stage, total, "tokens", done=total - left)

    def on_batch(n_tokens: int) -> None:
        stop.check()
        progress.advance(n_tokens)

    with _one_behind() as behind:
        for shard in todo:
            rows = np.asarray(shard.read())
            collected = dict(codes.shard(shard, rows, on_batch))
            for label in missing(shard):
                name, entry = codes.passes[label]
                made = collected.pop(label)
                behind(partial(_save, target, name, shard.unit, entry, rows, made))
            del collected
    progress.end()


@contextmanager
def _one_behind() -> Generator[Callable[[Callable[[], None]], None]]:
    """Gives a function that runs work in a thread, one piece at a time: it waits for the piece before, so
    that two shards at most are in memory, and raises what that one raised."""
    pending: list[Future[None]] = []

    def submit(work: Callable[[], None]) -> None:
        while pending:
            pending.pop().result()
        pending.append(thread.submit(work))

    with ThreadPoolExecutor(1, "autointerp-write") as thread:
        yield submit
        while pending:
            pending.pop().result()


def _save(target: Target, name: str, unit: str, entry: Pass, rows: Rows, collected: OneShard) -> None:
    kept = collected.kept()
    arrays = shard_arrays(kept.firings, kept.sinks, rows, target.max_rows)
    with Part(target.journals[name], unit) as part:
        seal = part.attach(".safetensors", partial(save_shard, arrays=arrays))
        part.append(
            entry.key(unit),
            {
                "n_tokens": kept.n_tokens,
                "n_masked": {"first": target.first_position * len(rows), "sinks": len(kept.sinks)},
                "n_firings": len(kept.firings.values),
                "n_kept": len(arrays["values"]),
                "n_capped": len(arrays["capped"]),
                **seal,
            },
        )


def masked(journal: Journal) -> str:
    """How many tokens nobody looked at, and why."""
    counts = {
        record["key"].partition(":")[0]: record["n_masked"]  # every pass over a shard says the same
        for record in journal.records()
        if "n_masked" in record
    }
    first, sinks = (sum(count[kind] for count in counts.values()) for kind in ("first", "sinks"))
    return f"masked {first:,} tokens at position 0 and {sinks:,} of massive norm"
