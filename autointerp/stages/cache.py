"""Cache: documents -> token rows, once; rows -> what fires where, a shard at a time.

Runs in a child process (`device.py`), so that the GPU is free again when it ends. While one shard goes
through the model, a thread sorts the one before and writes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import torch

from autointerp.activations.cap import shard_arrays, share
from autointerp.activations.collect import Attached, Check, Collected, Collector, Kept, Masking
from autointerp.activations.delphi import DelphiCache
from autointerp.activations.rows import Rows, RowShard, row_shards
from autointerp.activations.shards import save_shard
from autointerp.activations.vectors import Vectors
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import reader_of
from autointerp.dictionaries.spec import Weights
from autointerp.errors import CheckpointError, RecipeError
from autointerp.journal import Journal, Part
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import Run
from autointerp.stages.frozen import CPU_BATCH, Frozen, read_frozen, tuned_batch
from autointerp.stages.sources import ReadyFirings, open_source
from autointerp.subject.vocabulary import Vocabulary

_CHECK = "check"


class OneShard(Protocol):
    """What one dictionary does on one shard, not sorted yet."""

    def kept(self) -> Kept:
        """May run in another thread. Raises InputErrors."""
        ...


class Codes(Protocol):
    """What a run's dictionaries do on any shard."""

    @property
    def names(self) -> list[str]:
        """Dictionaries of which shards are missing."""
        ...

    def shard(self, shard: RowShard, rows: Rows, on_batch: Callable[[int], None]) -> Mapping[str, OneShard]:
        """By dictionary. `rows`: the shard's. `on_batch(n)` after so many tokens; it may raise to stop."""
        ...


@dataclasses.dataclass(slots=True)
class Opened:
    """A run's dictionaries on the vectors they read, loaded, checked and ready to collect."""

    run: Run
    vectors: Vectors
    attached: dict[str, Attached]
    """Dictionaries of which shards are missing."""
    weights: dict[str, Weights]
    collector: Collector
    checks: dict[str, Check]
    frozen: Frozen
    progress: Progress

    @property
    def names(self) -> list[str]:
        return list(self.attached)

    def shard(self, shard: RowShard, rows: Rows, on_batch: Callable[[int], None]) -> dict[str, Collected]:
        """Out of memory, the batch is halved for good and the shard redone."""
        while True:
            try:
                return self.collector.shard(rows, shard.first_row, _norms(self.checks), on_batch)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                self.frozen = self.frozen.after_out_of_memory(rows.dtype["tokens"].shape[0])
                self.frozen.save(self.run, self.names)
                n_tokens = self.collector.batch_tokens = self.frozen.batch_tokens
                self.progress.note(f"out of memory: going on with batches of {n_tokens:,} tokens")


def run_cache(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> None:
    """Makes what is missing. Raises InputErrors, DiskFull, Interrupted."""
    codes = open_cache(run, resolved, progress, stop)
    if codes is not None:
        collect_shards(run, codes, list(row_shards(run.rows())), progress, stop)
        for name in codes.names:
            progress.note(f"{name}: {_masked(run.cache(name))}")


def open_cache(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> Opened | ReadyFirings | None:
    """Loads what is needed and makes the rows; None where no shard is missing."""
    frozen = read_frozen(run)
    device = _device(run.recipe.resources.device)
    source = open_source(run, resolved, device, frozen, progress)
    if not run.vocabulary.is_file():
        run.vocabulary.parent.mkdir(parents=True, exist_ok=True)
        Vocabulary.of(source.tokenizer).save(run.vocabulary)
    if not run.has_all_rows():
        source.make_rows(run, progress, stop)
    names = [name for name in run.recipe.dictionaries if not run.is_cached(name)]
    if not names:
        return None
    if resolved.files is not None and isinstance(resolved.files.activations, DelphiCache):
        return ReadyFirings(run, resolved.files.activations, names, progress)
    assert source.vectors is not None
    found = {name: resolved.dictionaries[name] for name in names}
    vectors = source.vectors
    weights = {
        name: reader_of(entry.spec).load(entry.spec, str(vectors.device)) for name, entry in found.items()
    }
    product_dtype = getattr(torch, run.recipe.cache.encode_in)
    attached = {
        name: Attached(entry.site, Encoder(entry.spec, weights[name], product_dtype=product_dtype))
        for name, entry in found.items()
    }
    collector = Collector(
        vectors,
        attached,
        Masking(run.first_position, run.recipe.cache.sink_ratio),
        frozen.batch_tokens if frozen else run.recipe.resources.batch_tokens or CPU_BATCH,
    )
    shards = list(row_shards(run.rows()))
    checks = _checks(run, collector, names, shards, progress)
    if frozen is None:
        frozen = Frozen(
            batch_tokens=_batch_tokens(run, collector, vectors.device, shards, checks),
            dtype=source.dtype,
            device=vectors.device.type,
            torch=torch.__version__,
        )
    frozen.save(run, names)
    collector.batch_tokens = frozen.batch_tokens
    return Opened(run, vectors, attached, weights, collector, checks, frozen, progress)


def _device(name: str) -> str:
    """`auto` -> the GPU if there is one. Raises RecipeError for a device this machine doesn't have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"resources.device is '{name}', which can't be used here: {reason}") from error
    return name


def _batch_tokens(
    run: Run,
    collector: Collector,
    device: torch.device,
    shards: list[RowShard],
    checks: Mapping[str, Check],
) -> int:
    """Asked for, or tried on a GPU."""
    if run.recipe.resources.batch_tokens or device.type != "cuda":
        return run.recipe.resources.batch_tokens or CPU_BATCH
    rows = np.asarray(shards[0].read())
    context_length = rows.dtype["tokens"].shape[0]

    def step(n_tokens: int) -> None:
        collector.batch_tokens = n_tokens
        some = rows[: max(1, n_tokens // context_length)]
        collector.shard(some, shards[0].first_row, _norms(checks))
        torch.cuda.synchronize(device)

    return tuned_batch(step, largest=rows.size * context_length)


def _norms(checks: Mapping[str, Check]) -> dict[str, float]:
    return {name: check.median_norm for name, check in checks.items()}


def _checks(
    run: Run, collector: Collector, names: list[str], shards: list[RowShard], progress: Progress
) -> dict[str, Check]:
    """The check of each dictionary, from its record or made now. Raises CheckpointError where FVU >= 1."""
    known = {name: run.cache(name).read(_CHECK).get(_CHECK) for name in names}
    made = {} if all(known.values()) else collector.check((shard.first_row, shard.read()) for shard in shards)
    checks: dict[str, Check] = {}
    for name, record in known.items():
        if record is not None:
            checks[name] = Check(**{field.name: record[field.name] for field in dataclasses.fields(Check)})
            continue
        check = checks[name] = made[name]
        explained = f"explains {1 - check.fvu:.1%} of the variance"
        progress.note(f"{name}: {check.l0:.1f} features a token, {explained} of {check.n_tokens:,} tokens")
        if not (check.n_tokens and check.fvu < 1):
            raise CheckpointError(
                f"dictionary '{name}' does not fit these activations: on {check.n_tokens:,} tokens its "
                f"reconstruction is no better than the mean (FVU {check.fvu:.3g}, L0 {check.l0:.1f}). Check "
                f"whether the checkpoint is complete, and --model, --hook and cache.prepend_bos; give other "
                f"ones together with another --out."
            )
    for name, record in known.items():  # behind all refusals: a dictionary that is refused leaves no trace
        if record is None:
            with Part(run.cache(name), _CHECK) as part:
                part.append(_CHECK, dataclasses.asdict(checks[name]))
    return checks


# --- firings -------------------------------------------------------------------------------------------


def collect_shards(run: Run, codes: Codes, shards: list[RowShard], progress: Progress, stop: Stop) -> None:
    """Those of `shards` that are missing. Raises DiskFull, Interrupted."""
    journals = {name: run.cache(name) for name in codes.names}
    todo = [
        shard
        for shard in shards
        if any(shard.unit not in journal.read(shard.unit) for journal in journals.values())
    ]
    total = sum(int(shard.read()["length"].sum()) for shard in shards)
    left = sum(int(shard.read()["length"].sum()) for shard in todo)
    max_rows = share(run.recipe.cache.max_rows, len(run.rows().units()) - 1)  # one unit says: all rows
    progress.begin("cache", total, "tokens", done=total - left)

    def on_batch(n_tokens: int) -> None:
        stop.check()
        progress.advance(n_tokens)

    with _one_behind() as behind:
        for shard in todo:
            rows = np.asarray(shard.read())
            collected = codes.shard(shard, rows, on_batch)
            missing = {
                name: of_one
                for name, of_one in collected.items()
                if shard.unit not in journals[name].read(shard.unit)
            }
            del collected
            behind(partial(_save, run, shard.unit, rows, missing, max_rows))
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


def _save(run: Run, unit: str, rows: Rows, collected: Mapping[str, OneShard], max_rows: int) -> None:
    for name, of_one in collected.items():
        kept = of_one.kept()
        arrays = shard_arrays(kept.firings, kept.sinks, rows, max_rows)
        with Part(run.cache(name), unit) as part:
            seal = save_shard(part.open().with_suffix(".safetensors"), arrays)
            part.append(
                unit,
                {
                    "n_tokens": kept.n_tokens,
                    "n_masked": {"first": run.first_position * len(rows), "sinks": len(kept.sinks)},
                    "n_firings": len(kept.firings.values),
                    "n_kept": len(arrays["values"]),
                    "n_capped": len(arrays["capped"]),
                    **seal,
                },
            )


def _masked(journal: Journal) -> str:
    """How many tokens nobody looked at, and why."""
    counts = [record["n_masked"] for record in journal.records() if "n_masked" in record]
    first, sinks = (sum(count[kind] for count in counts) for kind in ("first", "sinks"))
    return f"masked {first:,} tokens at position 0 and {sinks:,} of massive norm"
