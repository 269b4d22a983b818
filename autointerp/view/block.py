"""Features of a dictionary, made ready for the page: any number of processes does that, each some units."""

from __future__ import annotations

from functools import cached_property

from autointerp.activations.random_rates import RandomRates
from autointerp.run import Run
from autointerp.stages.sample import load_vocabulary
from autointerp.subject.vocabulary import Vocabulary
from autointerp.tables import random_rates
from autointerp.view.columns import Row
from autointerp.view.controls import OwnControls
from autointerp.view.feature import Unit
from autointerp.view.packed import packed

Block = list[tuple[str, str, list[str]]]
"""(dictionary, unit, features of it that are asked for, ascending)."""
Ready = list[tuple[Row, str]]
"""A sampled feature's row of the index, and all that is known of it, packed."""


class Blocks:
    """Memory: the records of one unit, and what comes of a block."""

    def __init__(self, run: Run, n_windows: int | None) -> None:
        """`n_windows`: at most so many of each split are kept of a feature, beside those that a judge got wrong;
        None: all."""
        self._run, self._n_windows = run, n_windows
        self._rates: dict[str, RandomRates | None] = {}
        self._controls: dict[str, OwnControls] = {}

    def __call__(self, block: Block) -> Ready:
        """Raises JournalCorrupt, RecipeChanged, and RunError where a window store is missing."""
        return [one for dictionary, name, keys in block for one in self._unit(dictionary, name, keys)]

    def _unit(self, dictionary: str, name: str, keys: list[str]) -> Ready:
        if dictionary not in self._rates:
            self._rates[dictionary] = random_rates(self._run, dictionary)
            self._controls[dictionary] = OwnControls(self._run, dictionary)
        rates, controls = self._rates[dictionary], self._controls[dictionary]
        unit = Unit(self._run, dictionary, name, self._vocabulary, rates, controls)
        return [
            (
                Row.of(key, unit.samples[key], unit.explained(key), unit.scored(key)),
                packed(unit.entry(key, self._n_windows)),
            )
            for key in keys
            if key in unit.samples
        ]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return load_vocabulary(self._run)
