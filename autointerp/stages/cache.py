"""Cache: documents -> token rows, once; rows -> what fires where, a shard at a time.

Runs in a child process (`device.py`), so that the GPU is free again when it ends. Where the recipe asks for it
further rows follow, of which only what features that lack windows do is kept (`activations/top_up.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from autointerp.activations.collect import Attached, Check, Collector
from autointerp.activations.collected import Collected
from autointerp.activations.delphi import DelphiCache
from autointerp.activations.looked_at import Masking
from autointerp.activations.passes import Pass, passes_to_make
from autointerp.activations.rows import Rows, RowShard, row_shards
from autointerp.activations.top_up import note_lacking, rows_fired
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.spec import Weights
from autointerp.errors import RecipeError
from autointerp.journal import Part
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import CHECK, VOCABULARY, Run
from autointerp.sources import DictionaryFound
from autointerp.stages.calibrating import calibrate_missing, weights_of
from autointerp.stages.collecting import Target, collect_shards, masked
from autointerp.stages.directions import run_directions
from autointerp.stages.first_check import first_checks
from autointerp.stages.frozen import CPU_BATCH, Frozen, read_frozen, tuned_batch, within_memory
from autointerp.stages.random_rates import run_random_rates
from autointerp.stages.sources import ReadyFirings, Source, open_source
from autointerp.stages.token_embedding import run_token_embedding
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Site


@dataclasses.dataclass(slots=True)
class Opened:
    """A run's dictionaries on the vectors they read, loaded, checked and ready to collect."""

    run: Run
    source: Source
    collector: Collector
    weights: dict[str, Weights]
    """Of each dictionary of which shards are missing."""
    whole: dict[str, Attached]
    checks: dict[str, Check]
    """Both of the same."""
    frozen: Frozen
    progress: Progress
    passes: dict[str, tuple[str, Pass]]
    attached: dict[str, Attached]
    norms: dict[str, float]
    """Median norm at what each pass reads."""

    def take_up(self, passes: dict[str, tuple[str, Pass]]) -> None:
        """From here on these are collected."""
        self.passes = passes
        self.attached = _attached(self.whole, passes)
        self.norms = _norms(self.checks, passes)
        self.collector = self.collector.turned_to(self.attached)

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
    if run.vocabulary.is_file():  # of a run cached before: all else may be there, and no model be needed
        run_token_embedding(run, resolved, device)
    codes = None
    _note_lacking(run, progress, stop)  # of a run cached before: perhaps there is nothing to load a model for
    if not run.has_activations():
        codes = open_cache(run, resolved, device, progress, stop)
        if codes is not None:
            own = set(run.own_units())
            shards = [shard for shard in row_shards(run.rows()) if shard.unit in own]
            _collect(codes, shards, Target.cache(run), progress, stop)
            if isinstance(codes, Opened):  # what delphi cached can't be topped up (`sources.py`)
                _top_up(run, codes, progress, stop)
    run_directions(run, resolved, device, progress, stop)
    vectors = codes.source.vectors if isinstance(codes, Opened) else None
    run_random_rates(run, resolved, vectors, device, progress, stop)


def _collect(
    codes: Opened | ReadyFirings, shards: list[RowShard], target: Target, progress: Progress, stop: Stop
) -> None:
    collect_shards(codes, shards, target, progress, stop)
    for name in dict.fromkeys(name for name, _ in codes.passes.values()):
        progress.note(f"{name}: {masked(target.journals[name])}")


def _note_lacking(run: Run, progress: Progress, stop: Stop) -> None:
    """Which features lack windows, of every pass of the cache that is finished. Raises DiskFull, Interrupted."""
    cache = run.recipe.cache
    if not cache.top_up or not run.has_all_rows():
        return
    assert cache.context_length is not None
    for name in run.recipe.dictionaries:
        journal, width = run.cache(name), run.identities.n_columns(name)
        counts = partial(rows_fired, journal, width, cache.context_length, stop.check)
        for entry in note_lacking(journal, run.top_up(name), run.row_units(), counts, cache.top_up_below):
            n = 0 if entry.features is None else len(entry.features)
            progress.note(
                f"{name}: {n:,} features lack windows: they fire in fewer than {cache.top_up_below} rows"
            )


def _top_up(run: Run, codes: Opened, progress: Progress, stop: Stop) -> None:
    """Behind the cache: the further rows, and what features that lack windows do on them."""
    _note_lacking(run, progress, stop)
    if all(map(run.is_topped_up, run.recipe.dictionaries)):
        return
    if not run.top_up_units():
        codes.source.make_more_rows(run, progress, stop)
    passes = {name: run.passes_to_top_up(name) or [] for name in codes.whole}
    codes.take_up({name + p.key(""): (name, p) for name, of_one in passes.items() for p in of_one})
    _collect(codes, list(row_shards(run.top_up_rows())), Target.top_up(run), progress, stop)


def open_cache(
    run: Run, resolved: Resolved, device: str, progress: Progress, stop: Stop
) -> Opened | ReadyFirings | None:
    """Loads what is needed and makes the rows; None where no shard is missing."""
    frozen = read_frozen(run)
    source = open_source(run, resolved, device, frozen, progress)
    if not run.vocabulary.is_file():
        with Part(run.rows(), VOCABULARY) as part:
            part.append(VOCABULARY, part.attach(".parquet", Vocabulary.of(source.tokenizer).save))
    run_token_embedding(run, resolved, device)
    if not run.has_all_rows():
        source.make_rows(run, progress, stop)
    names = [n for n in run.recipe.dictionaries if not (run.is_cached(n) and run.is_topped_up(n))]
    if not names:
        return None
    if resolved.files is not None and isinstance(resolved.files.activations, DelphiCache):
        return ReadyFirings(run, resolved.files.activations, names, progress)
    assert source.vectors is not None
    found, vectors = {name: resolved.dictionaries[name] for name in names}, source.vectors
    product_dtype = getattr(torch, run.recipe.cache.encode_in)
    calibrate_missing(run, vectors, found, product_dtype, progress, stop)
    weights = {name: weights_of(run, name, entry, str(vectors.device)) for name, entry in found.items()}
    # Nobody expects a dictionary to reconstruct what a model does that it was not trained on.
    is_random = resolved.model is not None and resolved.model.random_seed is not None
    whole = {
        name: Attached(
            entry.inputs,
            Encoder(entry.spec, weights[name], product_dtype=product_dtype, place=entry.place),
            None if is_random else target_of(entry, from_model=resolved.model is not None),
            target_is_centred=entry.target_is_centred,
        )
        for name, entry in found.items()
    }
    masking = Masking(run.first_position, run.recipe.cache.sink_ratio)
    batch_tokens = frozen.batch_tokens if frozen else run.recipe.resources.batch_tokens or CPU_BATCH
    shards = list(row_shards(run.rows()))
    collector = Collector(vectors, whole, masking, batch_tokens)
    checks = first_checks(run, found, collector, shards, progress)
    run_directions(run, resolved, device, progress, stop, weights)
    passes = _passes(run, found)
    attached, norms = _attached(whole, passes), _norms(checks, passes)
    collector = collector.turned_to(attached)
    if frozen is None:
        frozen = Frozen(
            batch_tokens=_batch_tokens(run, collector, vectors.device, shards, norms),
            dtype=source.dtype,
            device=vectors.device.type,
            torch=torch.__version__,
        )
    frozen.save(run, names)
    collector.batch_tokens = frozen.batch_tokens
    return Opened(run, source, collector, weights, whole, checks, frozen, progress, passes, attached, norms)


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


def _attached(whole: Mapping[str, Attached], passes: Mapping[str, tuple[str, Pass]]) -> dict[str, Attached]:
    return {label: _of_pass(whole[name], entry) for label, (name, entry) in passes.items()}


def _norms(checks: Mapping[str, Check], passes: Mapping[str, tuple[str, Pass]]) -> dict[str, float]:
    return {label: checks[name].median_norm for label, (name, _) in passes.items()}


def _of_pass(whole: Attached, entry: Pass) -> Attached:
    if entry.features is None:
        return whole
    if whole.encoder.spec.feature_sliceable:
        return dataclasses.replace(whole, encoder=whole.encoder.sliced(entry.features.tolist()))
    return dataclasses.replace(whole, only=entry.features)


def target_of(found: DictionaryFound, *, from_model: bool) -> tuple[Site, ...] | None:
    """What decoding the codes should give, if it can be captured."""
    if not found.spec.reconstructs:
        return None
    if not found.spec.is_transcoder:
        return found.inputs
    if found.site_out is None or not from_model:  # files hold the vectors of one site
        return None
    return (found.site_out,)


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
