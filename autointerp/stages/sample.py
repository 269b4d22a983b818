"""Sample: firings -> a record a feature, and its windows in a store beside it. numpy only, no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.rows import RowStore
from autointerp.activations.shards import Firings, FiringStore, firing_shards
from autointerp.journal import Journal, Part, unit_of_feature
from autointerp.progress import Progress, Stop
from autointerp.run import Run
from autointerp.sampling.sample import SPLITS, Sampler
from autointerp.sampling.store import Windows, save_windows
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import FeatureId, Json, Sample, WindowRefs

_FEATURES_AT_ONCE = 64
"""Features whose windows go into one file: what a kill can cost."""


def by_unit(features: Iterable[FeatureId]) -> Iterator[tuple[str, list[FeatureId]]]:
    """Features in ascending order -> (unit, its features)."""
    for unit, group in groupby(features, lambda feature: unit_of_feature(feature.index)):
        yield unit, list(group)


def run_sample(run: Run, dictionary: str, progress: Progress, stop: Stop) -> None:
    """Samples what is asked for and missing. Raises DiskFull, Interrupted."""
    journal = run.sample(dictionary)
    asked = run.asked(dictionary)
    missing: dict[str, list[FeatureId]] = {}
    for unit, features in by_unit(asked):
        done = journal.read(unit)
        missing[unit] = [feature for feature in features if str(feature) not in done]
    n_missing = sum(map(len, missing.values()))
    progress.begin("sample", len(asked), "features", done=len(asked) - n_missing)
    try:
        if n_missing:
            _sample_missing(run, dictionary, journal, missing, progress, stop)
    finally:
        progress.end()


def _sample_missing(
    run: Run,
    dictionary: str,
    journal: Journal,
    missing: dict[str, list[FeatureId]],
    progress: Progress,
    stop: Stop,
) -> None:
    rows = RowStore.of(run.rows(), bos=bool(run.recipe.cache.prepend_bos))
    firings = FiringStore(list(firing_shards(run.cache(dictionary))), rows.context_length)
    sampler = Sampler(rows, firings, run.recipe.sampling, seed=run.recipe.seed, first=run.first_position)
    for unit, features in missing.items():
        for begin in range(0, len(features), _FEATURES_AT_ONCE):
            stop.check()
            block = features[begin : begin + _FEATURES_AT_ONCE]
            _sample_block(journal, unit, block, rows, firings, sampler)
            progress.advance(len(block))


def _sample_block(
    journal: Journal,
    unit: str,
    features: list[FeatureId],
    rows: RowStore,
    firings: FiringStore,
    sampler: Sampler,
) -> None:
    fired = firings.read(features[0].index, features[-1].index + 1)
    sampled = [sampler.sample(feature, *_of(fired, feature.index)) for feature in features]
    with Part(journal, unit) as part:
        part.attach(".parquet", lambda path: save_windows(path, sampled, rows))
        for one in sampled:
            part.append(one.sample.feature, _record(one.sample))


def _of(fired: Firings, feature: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    at = fired.at(feature)
    piece = slice(0, 0) if at is None else slice(int(fired.offsets[at]), int(fired.offsets[at + 1]))
    return fired.tokens[piece], fired.values[piece]


def _record(sample: Sample) -> dict[str, object]:
    record = dataclasses.asdict(sample)
    del record["feature"]  # the key says it
    return record


# --- for the stages behind -----------------------------------------------------------------------------


def load_vocabulary(run: Run) -> Vocabulary:
    return Vocabulary.load(run.vocabulary)


def unit_windows(
    run: Run, dictionary: str, unit: str, features: Iterable[str], vocabulary: Vocabulary
) -> dict[str, Windows]:
    """The window store of each of these features of a unit; they must be sampled."""
    located = run.existing("sample", dictionary).located(unit)
    opened: dict[Path, Windows] = {}
    stores: dict[str, Windows] = {}
    for feature in features:
        path = located[feature][1].with_suffix(".parquet")
        opened[path] = opened.get(path) or Windows(path, vocabulary)
        stores[feature] = opened[path]
    return stores


def load_sample(record: Json) -> Sample:
    """A journal's record -> what it says."""
    fields = {field.name: record.get(field.name) for field in dataclasses.fields(Sample)}
    splits = {name: WindowRefs(**record[name]) for name in SPLITS}
    return Sample(**cast(Json, fields | splits | {"feature": record["key"]}))
