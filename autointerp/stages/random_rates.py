"""Rates on random tokens: a pass over rows that are drawn, not read, of which only counts are kept.

Runs in the device stages' child behind the cache, whose check, masking, precision and batches it shares. A
kill loses the pass; made again it is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.activations.collect import Attached, Collector
from autointerp.activations.collected import Collected
from autointerp.activations.looked_at import Masking
from autointerp.activations.passes import WORTH_IT
from autointerp.activations.random_rates import RandomCounts, RandomTokens
from autointerp.activations.random_tokens import TokenUrn, drawable, random_rows
from autointerp.activations.rows import Rows, row_shards
from autointerp.activations.vectors import Vectors
from autointerp.dictionaries.encode import Encoder
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import CHECK, Run
from autointerp.sources import DictionaryFound
from autointerp.stages.calibrating import weights_of
from autointerp.stages.frozen import CPU_BATCH, Frozen, read_frozen, within_memory
from autointerp.stages.sources import open_source
from autointerp.subject.tokenizer import bos_of, load_tokenizer
from autointerp.types import FeatureId


def run_random_rates(
    run: Run, resolved: Resolved, vectors: Vectors | None, device: str, progress: Progress, stop: Stop
) -> None:
    """Counts what is asked for and missing; the run's cache must be whole. `vectors`: of the subject model,
    if it is loaded. Raises InputErrors, DiskFull, Interrupted."""
    asked = run.recipe.random_tokens
    missing = {
        name: features for name in run.recipe.dictionaries if (features := run.without_random_rates(name))
    }
    if asked is None or not missing:
        return
    frozen = read_frozen(run)
    if vectors is None:
        source = open_source(run, resolved, device, frozen, progress)
        vectors = source.vectors
        assert vectors is not None
        if frozen is None:  # the manifest was spoiled and set aside
            batch_tokens = run.recipe.resources.batch_tokens or CPU_BATCH
            frozen = Frozen(batch_tokens, source.dtype, vectors.device.type, torch.__version__)
    assert frozen is not None and resolved.model is not None  # the cache is there, and made by a model
    tokenizer = load_tokenizer(resolved.model)
    features = {name: _counted(resolved.dictionaries[name], of) for name, of in missing.items()}
    attached = {
        name: _attached(run, name, resolved.dictionaries[name], of, vectors.device)
        for name, of in features.items()
    }
    masking = Masking(run.first_position, run.recipe.cache.sink_ratio)
    collector = Collector(vectors, attached, masking, frozen.batch_tokens)
    bos = bos_of(tokenizer) if run.recipe.cache.prepend_bos else None
    urn = _urn(run, asked, drawable(tokenizer), bos)
    counts = {name: RandomCounts(resolved.dictionaries[name].spec.n_columns) for name in missing}
    _count(run, collector, _shards(run, asked, urn, bos), counts, frozen, progress, stop)
    for name, of_one in counts.items():
        of_one.save(run.cache(name), asked.unit, features[name])


def _counted(found: DictionaryFound, missing: list[FeatureId]) -> NDArray[np.int64]:
    """All of a dictionary whose features can't be computed alone, or of which much is missing."""
    spec = found.spec
    if not spec.feature_sliceable or len(missing) >= WORTH_IT * spec.n_columns:
        return np.arange(spec.n_columns)
    return np.array([feature.column(spec.n_poles) for feature in missing], np.int64)


def _attached(
    run: Run, name: str, found: DictionaryFound, features: NDArray[np.int64], device: torch.device
) -> Attached:
    weights = weights_of(run, name, found, str(device))
    product_dtype = getattr(torch, run.recipe.cache.encode_in)
    encoder = Encoder(found.spec, weights, product_dtype=product_dtype, place=found.place)
    is_whole = len(features) == found.spec.n_columns
    return Attached(found.inputs, encoder if is_whole else encoder.sliced(features.tolist()), target=None)


def _urn(run: Run, asked: RandomTokens, token_ids: NDArray[np.uint32], bos: int | None) -> TokenUrn:
    if asked.distribution == "uniform":
        return TokenUrn.uniform(token_ids)
    return TokenUrn.unigram(token_ids, _corpus_tokens(run, bos))


def _corpus_tokens(run: Run, bos: int | None) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(shard, its tokens) of the run's rows in order, BOS left out."""
    for number, shard in enumerate(row_shards(run.rows())):
        rows = shard.read()
        position = np.arange(rows.dtype["tokens"].shape[0])
        is_text = (position >= (bos is not None)) & (position < rows["length"][:, None])
        yield number, rows["tokens"][is_text]


def _shards(run: Run, asked: RandomTokens, urn: TokenUrn, bos: int | None) -> Iterator[Rows]:
    """All rows asked for, as many at a time as a shard of the run has."""
    cache = run.recipe.cache
    assert cache.context_length is not None
    a_shard = cache.rows_per_shard * (cache.context_length - (bos is not None))
    for number, before in enumerate(range(0, asked.n_tokens, a_shard)):
        yield random_rows(
            urn,
            n_tokens=min(a_shard, asked.n_tokens - before),
            context_length=cache.context_length,
            bos=bos,
            seed=asked.seed,
            first=number * cache.rows_per_shard,
        )


def _count(
    run: Run,
    collector: Collector,
    shards: Iterator[Rows],
    counts: Mapping[str, RandomCounts],
    frozen: Frozen,
    progress: Progress,
    stop: Stop,
) -> None:
    """Adds what fires on these rows to the counts. Out of memory, the batch is halved for good."""
    norms = {name: float(run.cache(name).read(CHECK)[CHECK]["median_norm"]) for name in counts}
    cache = run.recipe.cache
    assert cache.context_length is not None
    n_rows = -(-cache.random_tokens // (cache.context_length - bool(cache.prepend_bos)))
    progress.begin("random tokens", cache.random_tokens + bool(cache.prepend_bos) * n_rows, "tokens")

    def on_batch(n_tokens: int) -> None:
        stop.check()
        progress.advance(n_tokens)

    def halve() -> None:
        nonlocal frozen
        assert cache.context_length is not None
        frozen = frozen.after_out_of_memory(cache.context_length)
        frozen.save(run, list(counts))
        collector.batch_tokens = frozen.batch_tokens

    def collected(rows: Rows) -> dict[str, Collected]:
        return within_memory(lambda: collector.shard(rows, 0, norms, on_batch), halve)

    for rows in shards:
        for name, of_one in collected(rows).items():
            kept = of_one.kept()
            counts[name].add(kept.firings, kept.n_tokens)
    progress.end()
