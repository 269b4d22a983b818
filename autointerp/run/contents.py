"""What a run holds, what is asked of it, and what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.passes import Pass, is_covered
from autointerp.activations.random_rates import RandomRates
from autointerp.activations.top_up import passes_to_top_up
from autointerp.errors import RunError
from autointerp.files import seal_of
from autointerp.identities import asked_features
from autointerp.journal import unit_of_feature
from autointerp.portion import WHOLE, Portion, is_front
from autointerp.run.journals import Journals
from autointerp.run.names import (
    ALL_ROWS,
    CALIBRATION,
    CHECK,
    PACKED,
    TOKEN_EMBEDDING,
    VOCABULARY,
)
from autointerp.types import EXPLAINABLE, FeatureId, Json


@dataclasses.dataclass(frozen=True, slots=True)
class Contents(Journals):
    """Of one run, by its journals."""

    @property
    def vocabulary(self) -> Path:
        """The table of token texts; there is no such file before it is whole."""
        located = self.rows().located(VOCABULARY).get(VOCABULARY)
        return (located[1] if located else self.rows().folder / VOCABULARY).with_suffix(".parquet")

    @property
    def token_embedding(self) -> Path:
        """The table of token embeddings, [V, K] float16; there is no such file before it is whole."""
        located = self.rows().located(TOKEN_EMBEDDING).get(TOKEN_EMBEDDING)
        return (located[1] if located else self.rows().folder / TOKEN_EMBEDDING).with_suffix(".npy")

    def lacks_token_embedding(self) -> bool:
        """Whether windows are to be compared by token embeddings, and these are not there."""
        return self.recipe.sampling.n_embedding > 0 and not self.token_embedding.is_file()

    @property
    def first_position(self) -> int:
        """First position of a row that is looked at: 1 where position 0 (BOS, where it is put) is masked."""
        return 1 if self.recipe.cache.mask_first else 0

    @property
    def portion(self) -> Portion:
        """What of the cache this run is to make."""
        return Portion.parse(self.recipe.resources.shard) if self.recipe.resources.shard else WHOLE

    def row_units(self) -> list[str]:
        """The shards of rows that the corpus makes, whoever keeps them; none before it is read to its end."""
        record = self.rows().read(ALL_ROWS).get(ALL_ROWS)
        return self.units_of(record["n_rows"]) if record else []

    @property
    def keeps_all_rows(self) -> bool:
        """Whether a portion, too, keeps the rows of all: any of them may be drawn to calibrate on, and every
        portion must find the same thresholds. They weigh 4 bytes a token."""
        return any(map(self.is_calibrated, self.recipe.dictionaries))

    def units_of(self, n_rows: int, first_row: int = 0) -> list[str]:
        """The shards that so many rows make, numbered from `first_row` on."""
        stop, step = first_row + n_rows, self.recipe.cache.rows_per_shard
        return [f"{first:09d}" for first in range(first_row, stop, step)]

    def top_up_units(self) -> list[str]:
        """The shards of the further rows; none before all of them are there."""
        journal = self.top_up_rows()
        record = journal.read(ALL_ROWS).get(ALL_ROWS)
        units = self.units_of(record["n_rows"], record["first_row"]) if record else []
        return units if all(unit in journal.read(unit) for unit in units) else []

    def own_units(self) -> list[str]:
        """Those on which this run is to cache what fires."""
        return [unit for number, unit in enumerate(self.row_units()) if self.portion.takes(number)]

    def has_all_rows(self) -> bool:
        """Whether every row is there that this run is to keep."""
        journal, units = self.rows(), self.row_units()
        n_tokens, at_front = 0, True  # the front has no gap, or this ends there
        for number, unit in enumerate(units):
            at_front = at_front and is_front(n_tokens, number * self.recipe.cache.rows_per_shard)
            if at_front or self.keeps_all_rows or self.portion.takes(number):
                record = journal.read(unit).get(unit)
                if record is None:
                    return False
                n_tokens += record["n_tokens"]
        return bool(units)

    def needed(self, dictionary: str) -> NDArray[np.int64]:
        """Features whose firings the later stages read, ascending: those asked for and, where a dictionary
        need not be cached whole, their neighbours, on which silent windows are looked for."""
        if self.recipe.sampling.n_density:
            return np.arange(self.identities.n_columns(dictionary))  # any feature may be of similar density
        asked = self.asked(dictionary)
        found = set(self.identities.columns(asked).tolist())
        if self.identities.sliceable[dictionary]:
            journal = self.directions(dictionary)
            for unit, features in groupby(asked, lambda feature: unit_of_feature(feature.index)):
                records = journal.read(unit)
                for feature in features:
                    found.update(records.get(str(feature), {}).get("neighbours", ()))
        return np.array(sorted(found), np.int64)

    def is_cached(self, dictionary: str) -> bool:
        """Whether every shard of rows has its record of every feature that is needed, and the dictionary its
        check."""
        journal, needed = self.cache(dictionary), self.needed(dictionary)
        is_checked = self.has_ready_firings or CHECK in journal.read(CHECK)
        is_checked &= not self.is_calibrated(dictionary) or CALIBRATION in journal.read(CALIBRATION)
        return is_checked and self.has_all_rows() and is_covered(journal, self.own_units(), needed)

    def no_candidates(self, dictionary: str) -> NDArray[np.int64]:
        """Features that can't fire, ascending: calibration gave them an infinite threshold. None of a run whose
        thresholds were left behind (`pack.py`). Raises RunError."""
        located = self.existing("cache", dictionary).located(CALIBRATION).get(CALIBRATION)
        is_there = located is not None and located[1].with_suffix(".npy").is_file()
        threshold_F = self.thresholds(dictionary) if is_there else None
        return np.flatnonzero(np.isposinf(np.zeros(0) if threshold_F is None else threshold_F))

    def thresholds(self, dictionary: str) -> NDArray[np.float32] | None:
        """[F], as calibration found them; None where nothing was calibrated. Raises RunError where they are not what
        was written."""
        located = self.existing("cache", dictionary).located(CALIBRATION).get(CALIBRATION)
        if located is None:
            return None
        record, part = located
        path = part.with_suffix(".npy")
        if not path.is_file() or seal_of(path) != {key: record[key] for key in ("bytes", "checksum")}:
            raise RunError(
                f"{path} is missing or not what was written, and without the thresholds in it nothing can be encoded "
                f"as before: autointerp cache verify --repair {self.path}"
            )
        return np.load(path)

    def passes_to_top_up(self, dictionary: str) -> list[Pass] | None:
        """What is missing of a cache that is there to the end of its rows. None: nobody has looked yet which
        features lack windows."""
        journals = self.cache(dictionary), self.top_up(dictionary)
        return passes_to_top_up(*journals, self.top_up_units(), self.needed(dictionary))

    def is_topped_up(self, dictionary: str) -> bool:
        """Whether nothing is missing of what the recipe asks for beyond the cache."""
        return not self.recipe.cache.top_up or self.passes_to_top_up(dictionary) == []

    @property
    def is_packed(self) -> bool:
        """Whether rows and shards were left behind (`pack.py`)."""
        return (self.path / PACKED).is_file()

    def has_activations(self) -> bool:
        """Whether the subject model has nothing left to do: every row and every shard is there."""
        if self.lacks_token_embedding() or not self.vocabulary.is_file():
            return False
        return all(self.is_cached(name) and self.is_topped_up(name) for name in self.recipe.dictionaries)

    @property
    def is_published(self) -> bool:
        """Whether its windows are those that somebody published, and there are no others."""
        return self.recipe.activations is not None and self.recipe.activations.is_published

    @property
    def has_ready_firings(self) -> bool:
        """Whether what fires is read from files, and nobody knows the dictionary's weights."""
        return self.recipe.activations is not None and self.recipe.activations.has_firings

    def without_directions(self, dictionary: str) -> list[FeatureId]:
        """Features asked for of which the weights have not been read yet, ascending."""
        if self.has_ready_firings:
            return []
        journal, missing = self.directions(dictionary), list[FeatureId]()
        for unit, features in groupby(self.asked(dictionary), lambda f: unit_of_feature(f.index)):
            done = journal.read(unit)
            missing += [feature for feature in features if str(feature) not in done]
        return missing

    def without_random_rates(self, dictionary: str) -> list[FeatureId]:
        """Features asked for that have not been counted on random tokens, where that is asked for, ascending.
        A portion counts none: it hasn't the rows that say how frequent a token is."""
        if self.recipe.random_tokens is None or self.recipe.resources.shard:
            return []
        asked = self.asked(dictionary)
        rates = RandomRates(self.cache(dictionary), self.recipe.random_tokens.unit)
        held = rates.holds(self.identities.columns(asked))
        return [feature for feature, is_held in zip(asked, held.tolist(), strict=True) if not is_held]

    def without_effects(self, dictionary: str) -> list[FeatureId]:
        """Sampled features that have windows and have not been pushed, ascending."""
        journal, sampled, missing = self.intervene(dictionary), self.sample(dictionary), list[FeatureId]()
        for unit, features in groupby(self.asked(dictionary), lambda f: unit_of_feature(f.index)):
            done, samples = journal.read(unit), sampled.read(unit)
            missing += [
                feature
                for feature in features
                if (key := str(feature)) not in done and samples.get(key, {}).get("status") in EXPLAINABLE
            ]
        return missing

    def without_responses(self, dictionary: str) -> Iterator[tuple[str, str, str, dict[str, Json]]]:
        """(explainer, scorer, unit, texts by feature, ascending) of what was written and not read yet."""
        for explainer, scorer in self.scored():
            if not self.is_probing(scorer):
                continue
            texts, responses = (of(dictionary, explainer, scorer) for of in (self.texts, self.responses))
            for unit in texts.units():
                written, done = texts.read(unit), responses.read(unit)
                left = {k: written[k] for k in sorted(written) if k not in done and written[k]["texts"]}
                if left:
                    yield explainer, scorer, unit, left

    def is_cached_whole(self) -> bool:
        """Whether nothing is left for the device to do: activations are there, and of every feature asked for
        the directions and, if wanted, the rate on random tokens."""
        names = self.recipe.dictionaries
        lacking = (*map(self.without_directions, names), *map(self.without_random_rates, names))
        return self.has_activations() and not any(lacking)

    def asked(self, dictionary: str) -> list[FeatureId]:
        """Features the recipe asks for, ascending."""
        return asked_features(self.recipe, self.identities, dictionary)
