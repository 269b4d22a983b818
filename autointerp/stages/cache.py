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
from autointerp.activations.passes import Pass, passes_to_make
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
from autointerp.run import CHECK, VOCABULARY, Run
from autointerp.sources import DictionaryFound
from autointerp.stages.directions import run_directions
from autointerp.stages.frozen import CPU_BATCH, Frozen, read_frozen, tuned_batch, within_memory
from autointerp.stages.random_rates import run_random_rates
from autointerp.stages.sources import ReadyFirings, open_source
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Site


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


@dataclasses.dataclass(slots=True)
class Opened:
    """A run's dictionaries on the vectors they read, loaded, checked and ready to collect."""

    run: Run
    vectors: Vectors
    weights: dict[str, Weights]
    """Of each dictionary of which shards are missing."""
    passes: dict[str, tuple[str, Pass]]
    attached: dict[str, Attached]
    collector: Collector
    norms: dict[str, float]
    """Median norm at what each pass reads."""
    frozen: Frozen
    progress: Progress

    def shard(self, shard: RowShard, rows: Rows, on_batch: Callable[[int], None]) -> dict[str, Collected]:
        """Out of memory, the batch is halved for good and the shard redone."""

        def halve() -> None:
            self.frozen = self.frozen.after_out_of_memory(rows.dtype["tokens"].shape[0])
            self.frozen.save(self.run, list(self.weights))
            n_tokens = self.collector.batch_tokens = self.frozen.batch_tokens
            self.progress.note(f"out of memory: going on with batches of {n_tokens:,} tokens")

        return within_memory(lambda: self.collector.shard(rows, shard.first_row, self.norms, on_batch), halve)


def run_cache(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> None:
    """Makes what is missing. Raises InputErrors, DiskFull, Interrupted."""
    device = choose_device(run.recipe.resources.device)
    # A dictionary's neighbours are among the features to cache; but first it must have passed its check.
    if run.vocabulary.is_file() and all(
        CHECK in run.cache(name).read(CHECK) for name in run.recipe.dictionaries
    ):
        run_directions(run, resolved, device, progress, stop)
    codes = None
    if not run.has_activations():
        codes = open_cache(run, resolved, device, progress, stop)
        if codes is not None:
            own = set(run.own_units())
            shards = [shard for shard in row_shards(run.rows()) if shard.unit in own]
            collect_shards(run, codes, shards, progress, stop)
            for name in dict.fromkeys(name for name, _ in codes.passes.values()):
                progress.note(f"{name}: {_masked(run.cache(name))}")
    run_directions(run, resolved, device, progress, stop)
    vectors = codes.vectors if isinstance(codes, Opened) else None
    run_random_rates(run, resolved, vectors, device, progress, stop)


def open_cache(
    run: Run, resolved: Resolved, device: str, progress: Progress, stop: Stop
) -> Opened | ReadyFirings | None:
    """Loads what is needed and makes the rows; None where no shard is missing."""
    frozen = read_frozen(run)
    source = open_source(run, resolved, device, frozen, progress)
    if not run.vocabulary.is_file():
        with Part(run.rows(), VOCABULARY) as part:
            part.append(VOCABULARY, part.attach(".parquet", Vocabulary.of(source.tokenizer).save))
    if not run.has_all_rows():
        source.make_rows(run, progress, stop)
    names = [name for name in run.recipe.dictionaries if not run.is_cached(name)]
    if not names:
        return None
    if resolved.files is not None and isinstance(resolved.files.activations, DelphiCache):
        return ReadyFirings(run, resolved.files.activations, names, progress)
    assert source.vectors is not None
    found, vectors = {name: resolved.dictionaries[name] for name in names}, source.vectors
    weights = {
        name: reader_of(entry.spec).load(entry.spec, str(vectors.device)) for name, entry in found.items()
    }
    product_dtype = getattr(torch, run.recipe.cache.encode_in)
    whole = {
        name: Attached(
            entry.site,
            Encoder(entry.spec, weights[name], product_dtype=product_dtype),
            target_of(entry, from_model=resolved.model is not None),
        )
        for name, entry in found.items()
    }
    masking = Masking(run.first_position, run.recipe.cache.sink_ratio)
    batch_tokens = frozen.batch_tokens if frozen else run.recipe.resources.batch_tokens or CPU_BATCH
    shards = list(row_shards(run.rows()))
    checks = _checks(run, Collector(vectors, whole, masking, batch_tokens), names, shards, progress)
    run_directions(run, resolved, device, progress, stop)
    passes = _passes(run, found)
    attached = {label: _of_pass(whole[name], entry) for label, (name, entry) in passes.items()}
    norms = {label: checks[name].median_norm for label, (name, _) in passes.items()}
    collector = Collector(vectors, attached, masking, batch_tokens)
    if frozen is None:
        frozen = Frozen(
            batch_tokens=_batch_tokens(run, collector, vectors.device, shards, norms),
            dtype=source.dtype,
            device=vectors.device.type,
            torch=torch.__version__,
        )
    frozen.save(run, names)
    collector.batch_tokens = frozen.batch_tokens
    return Opened(run, vectors, weights, passes, attached, collector, norms, frozen, progress)


def _passes(run: Run, found: dict[str, DictionaryFound]) -> dict[str, tuple[str, Pass]]:
    return {
        name + entry.key(""): (name, entry)
        for name, one in found.items()
        for entry in passes_to_make(
            run.cache(name),
            run.own_units(),
            run.needed(name),
            one.spec.width,
            sliceable=one.spec.feature_sliceable,
        )
    }


def _of_pass(whole: Attached, entry: Pass) -> Attached:
    if entry.features is None:
        return whole
    return dataclasses.replace(whole, encoder=whole.encoder.sliced(entry.features.tolist()))


def target_of(found: DictionaryFound, *, from_model: bool) -> Site | None:
    """What decoding the codes should give, if it can be captured."""
    if not found.spec.reconstructs:
        return None
    if not found.spec.is_transcoder:
        return found.site
    return found.site_out if from_model else None  # files hold the vectors of one site


def choose_device(name: str) -> str:
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
    run: Run, collector: Collector, device: torch.device, shards: list[RowShard], norms: Mapping[str, float]
) -> int:
    """Asked for, or tried on a GPU."""
    if run.recipe.resources.batch_tokens or device.type != "cuda":
        return run.recipe.resources.batch_tokens or CPU_BATCH
    rows = np.asarray(shards[0].read())
    context_length = rows.dtype["tokens"].shape[0]

    def step(n_tokens: int) -> None:
        collector.batch_tokens = n_tokens
        collector.shard(rows[: max(1, n_tokens // context_length)], shards[0].first_row, norms)
        torch.cuda.synchronize(device)

    return tuned_batch(step, largest=rows.size * context_length)


def _checks(
    run: Run, collector: Collector, names: list[str], shards: list[RowShard], progress: Progress
) -> dict[str, Check]:
    """The check of each dictionary, from its record or made now. Raises CheckpointError where FVU >= 1."""
    known = {name: run.cache(name).read(CHECK).get(CHECK) for name in names}
    made = {} if all(known.values()) else collector.check((shard.first_row, shard.read()) for shard in shards)
    checks: dict[str, Check] = {}
    for name, record in known.items():
        if record is not None:
            checks[name] = Check(**{field.name: record[field.name] for field in dataclasses.fields(Check)})
            continue
        check = checks[name] = made[name]
        explained = " on" if check.fvu is None else f", explains {1 - check.fvu:.1%} of the variance of"
        progress.note(f"{name}: {check.l0:.1f} features a token{explained} {check.n_tokens:,} tokens")
        if check.fvu is not None and not (check.n_tokens and check.fvu < 1):
            raise CheckpointError(
                f"dictionary '{name}' does not fit these activations: on {check.n_tokens:,} tokens its "
                f"reconstruction is no better than the mean (FVU {check.fvu:.3g}, L0 {check.l0:.1f}). Check "
                f"whether the checkpoint is complete, and --model, --hook and cache.prepend_bos; give other "
                f"ones together with another --out."
            )
    for name, record in known.items():  # behind all refusals: a dictionary that is refused leaves no trace
        if record is None:
            with Part(run.cache(name), CHECK) as part:
                part.append(CHECK, dataclasses.asdict(checks[name]))
    return checks


# --- firings -------------------------------------------------------------------------------------------


def collect_shards(run: Run, codes: Codes, shards: list[RowShard], progress: Progress, stop: Stop) -> None:
    """Those of `shards` that are missing. Raises DiskFull, Interrupted."""

    def missing(shard: RowShard) -> list[str]:
        return [
            label
            for label, (name, entry) in codes.passes.items()
            if entry.key(shard.unit) not in run.cache(name).read(shard.unit)
        ]

    todo = [shard for shard in shards if missing(shard)]
    total = sum(int(shard.read()["length"].sum()) for shard in shards)
    left = sum(int(shard.read()["length"].sum()) for shard in todo)
    max_rows = share(run.recipe.cache.max_rows, len(run.row_units()))
    progress.begin("cache", total, "tokens", done=total - left)

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
                behind(partial(_save, run, name, shard.unit, entry, rows, made, max_rows))
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


def _save(
    run: Run, name: str, unit: str, entry: Pass, rows: Rows, collected: OneShard, max_rows: int
) -> None:
    kept = collected.kept()
    arrays = shard_arrays(kept.firings, kept.sinks, rows, max_rows)
    with Part(run.cache(name), unit) as part:
        seal = part.attach(".safetensors", partial(save_shard, arrays=arrays))
        part.append(
            entry.key(unit),
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
    counts = {
        record["key"].partition(":")[0]: record["n_masked"]  # every pass over a shard says the same
        for record in journal.records()
        if "n_masked" in record
    }
    first, sinks = (sum(count[kind] for count in counts.values()) for kind in ("first", "sinks"))
    return f"masked {first:,} tokens at position 0 and {sinks:,} of massive norm"
