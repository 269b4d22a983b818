"""Sample: firings -> a record a feature, and its windows in a store beside it. numpy only, no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.activations.rows import RowStore, row_shards
from autointerp.activations.statistics import MOST_FEATURES
from autointerp.activations.top_up import lacking
from autointerp.journal import Journal, Part, unit_of_feature
from autointerp.progress import Progress, Stop
from autointerp.run import Run
from autointerp.sampling.cofiring import Codes
from autointerp.sampling.sample import Sampled, Sampler
from autointerp.sampling.store import Windows, save_windows
from autointerp.sampling.text import SPLITS, Text
from autointerp.stages.known import load_directions
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Assumed, FeatureId, Json, Sample, WindowRefs


def by_unit(features: Iterable[FeatureId]) -> Iterator[tuple[str, list[FeatureId]]]:
    """Features in ascending order -> (unit, its features)."""
    for unit, group in groupby(features, lambda feature: unit_of_feature(feature.index)):
        yield unit, list(group)


def run_sample(run: Run, dictionary: str, progress: Progress, stop: Stop) -> None:
    """Samples what is asked for and missing. Raises DiskFull, Interrupted."""
    journal = run.sample(dictionary)
    asked = run.asked(dictionary)
    missing: list[FeatureId] = []
    for unit, features in by_unit(asked):
        done = journal.read(unit)
        missing += [feature for feature in features if str(feature) not in done]
    progress.begin("sample", len(asked), "features", done=len(asked) - len(missing))
    try:
        if missing:
            _sample_missing(run, dictionary, journal, missing, progress, stop)
    finally:
        progress.end()


def _sample_missing(
    run: Run,
    dictionary: str,
    journal: Journal,
    missing: list[FeatureId],
    progress: Progress,
    stop: Stop,
) -> None:
    settings, seed, first = run.recipe.sampling, run.recipe.seed, run.first_position
    identities = run.identities
    is_whole = not identities.sliceable[dictionary]
    base = _Known.of(run, [run.rows()], [run.cache(dictionary)])
    codes: Codes | None = None
    if settings.needs_codes:
        text = Text(base.rows, base.firings.masked, seed=seed, first=first, shares=settings.shares)
        codes = Codes(base.firings, text, is_whole=is_whole)
    token_embedding = np.load(run.token_embedding) if settings.n_embedding else None
    for known, features in _by_what_is_known(run, dictionary, missing, base):
        sampler = Sampler(
            known.rows,
            known.firings,
            settings,
            seed=seed,
            first=first,
            neighbours=_neighbours(run, dictionary, features),
            is_whole=is_whole,
            n_poles=identities.poles[dictionary],
            codes=codes,
            token_embedding=token_embedding,
        )
        n_firings = known.firings.counts(identities.n_columns(dictionary))[identities.columns(features)]
        for block in blocks(features, n_firings, run.recipe.resources.sample_firings):
            stop.check()
            save_samples(journal, sampler.sample(block))
            progress.advance(len(block))
        del sampler  # before the next is made


@dataclass(frozen=True, slots=True)
class _Known:
    """Rows in which everything is known of some features."""

    rows: RowStore
    firings: FiringStore

    @classmethod
    def of(cls, run: Run, rows: list[Journal], firings: list[Journal]) -> _Known:
        """Journals of rows that follow each other, and of what fires in each."""
        store = RowStore(
            [shard for journal in rows for shard in row_shards(journal)],
            bos=bool(run.recipe.cache.prepend_bos),
        )
        shards = [shard for journal in firings for shard in firing_shards(journal)]
        return cls(store, FiringStore(shards, store.context_length))


def _by_what_is_known(
    run: Run, dictionary: str, features: list[FeatureId], base: _Known
) -> Iterator[tuple[_Known, list[FeatureId]]]:
    """Those of which all is known in the rows of the cache, `base`; and those that lacked windows there, of
    which all is known in the further rows too."""
    is_lacking = np.zeros(run.identities.n_columns(dictionary), bool)
    if run.recipe.cache.top_up:
        is_lacking[lacking(run.top_up(dictionary))] = True
    lacks = is_lacking[run.identities.columns(features)].tolist()
    if others := [feature for feature, is_one in zip(features, lacks, strict=True) if not is_one]:
        yield base, others
    if of_these := [feature for feature, is_one in zip(features, lacks, strict=True) if is_one]:
        rows, firings = [run.rows(), run.top_up_rows()], [run.cache(dictionary), run.top_up(dictionary)]
        yield _Known.of(run, rows, firings), of_these


def _neighbours(run: Run, dictionary: str, features: list[FeatureId]) -> dict[int, NDArray[np.int64]]:
    """Of each feature whose weights are known, by column."""
    n_poles = run.identities.poles[dictionary]
    found: dict[int, NDArray[np.int64]] = {}
    for unit, of_unit in by_unit(features):
        directions = load_directions(run, dictionary, unit)
        for feature in of_unit:
            if (known := directions.get(str(feature))) is not None:
                near = [FeatureId(dictionary, index, feature.pole) for index in known.neighbours]
                found[feature.column(n_poles)] = run.identities.columns(near)
    return found


def blocks(
    features: Sequence[FeatureId], counts: NDArray[np.int64], most_firings: int
) -> Iterator[list[FeatureId]]:
    """Features (ascending) in pieces that fit in memory. `counts`: firings of each. Changes no result."""
    block: list[FeatureId] = []
    n_firings = 0
    for feature, n in zip(features, counts.tolist(), strict=True):
        if block and (n_firings + n > most_firings or len(block) == MOST_FEATURES):
            yield block
            block, n_firings = [], 0
        block.append(feature)
        n_firings += n
    if block:
        yield block


def save_samples(journal: Journal, sampled: Sampled) -> None:
    """Records, and windows beside them, of each unit in a part of its own. Raises DiskFull."""
    begin = 0
    features = [FeatureId.parse(sample.feature) for sample in sampled.samples]
    for unit, of_unit in by_unit(features):
        which = slice(begin, begin + len(of_unit))
        begin = which.stop
        with Part(journal, unit) as part:
            part.attach(".parquet", partial(save_windows, sampled=sampled, which=which))
            for sample in sampled.samples[which]:
                part.append(sample.feature, _record(sample))


_FIELDS = [field.name for field in dataclasses.fields(Sample) if field.name != "feature"]  # the key says it


def _record(sample: Sample) -> Json:
    # `dataclasses.asdict` would copy every number of every column one by one.
    record = {name: getattr(sample, name) for name in _FIELDS}
    if sample.assumed is None:
        del record["assumed"]
    return record


# --- for the stages behind -----------------------------------------------------------------------------


def load_vocabulary(run: Run) -> Vocabulary:
    return Vocabulary.load(run.vocabulary)


def unit_windows(
    run: Run, dictionary: str, unit: str, features: Iterable[str], vocabulary: Vocabulary
) -> dict[str, Windows]:
    """The window store of each of these features of a unit; they must be sampled."""
    return window_stores(run.existing("sample", dictionary).located(unit), features, vocabulary)


def window_stores(
    located: Mapping[str, tuple[Json, Path]], features: Iterable[str], vocabulary: Vocabulary
) -> dict[str, Windows]:
    """The same, of records that were read already: `Journal.located`."""
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
    fields |= {name: WindowRefs(**record[name]) for name in SPLITS}
    if fields["assumed"] is not None:
        fields["assumed"] = Assumed(**fields["assumed"])
    return Sample(**cast(Json, fields | {"feature": record["key"]}))
