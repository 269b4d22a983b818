"""Where `random` and `graded` windows are drawn from, of features of which only some rows are kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from made_up import FEW, C, Made, corpora, make

from autointerp import draw
from autointerp.sampling.any_place import AnyPlace
from autointerp.sampling.contrast import Slots
from autointerp.sampling.selected import STRATA
from autointerp.sampling.text import Ints
from autointerp.sampling.windows import Places


def proposed(any_place: AnyPlace, group: int, n: int) -> Ints:
    """Rows of n slots of a feature."""
    twin = Places(np.zeros(n, np.int64), np.ones(n, np.int64), np.full(n, 8))
    keys = np.full(n, draw.key(0, "any place", group), np.uint64)
    return any_place(Slots(np.full(n, group), np.arange(n), twin, keys), 0).row


def stands_for(made: Made, feature: int) -> dict[int, float]:
    """Row -> for how many it stands, counted one by one."""
    kept = {token // C: weight for token, (_, weight) in made.kept(feature).items()}
    fires = {token // C for token in made.fired.get(feature, {})}
    return {row: kept.get(row, 0.0 if row in fires else 1.0) for row in range(len(made.rows.length))}


@settings(max_examples=25)
@given(made=corpora())
def test_rows_come_up_as_often_as_they_stand_for_rows(made: Made) -> None:
    """Of every split and feature: never a dropped row, the others in proportion to their weight."""
    text = made.text()
    firings = made.firings.read(0, 40)
    for rows in text.rows_of:
        any_place = AnyPlace.of(rows, firings, C)
        can = any_place.can(len(firings.features))
        for group, feature in enumerate(firings.features.tolist()):
            weights = stands_for(made, feature)
            total = sum(weights[row] for row in rows.tolist())
            assert can[group] == (total > 0)
            if not total:
                continue
            n = 4000
            found = np.bincount(proposed(any_place, group, n), minlength=len(text.length))
            for row, n_times in enumerate(found.tolist()):
                expected = n * weights[row] / total if row in rows else 0.0
                assert (n_times == 0) if not expected else abs(n_times - expected) < 6 * expected**0.5 + 6


def test_a_capped_features_silence_is_that_of_the_corpus() -> None:
    """Nearly all rows fire. Half of those kept are kept for their strength: they would be half of the silence,
    and are one row in thirteen of the corpus."""
    features = [1, 2, 4, 5, 7, 8, 10, 11]
    made = make(5, 400, dict.fromkeys(features, 0.05), max_rows=60)
    windows = made.sample(FEW, features).windows
    n_silent = n_in_strongest = 0
    for group, feature in enumerate(features):
        kept = {token // C: weight for token, (_, weight) in made.kept(feature).items()}
        strongest = {row for row, weight in kept.items() if weight == 1}
        assert len(strongest) == 60 and len(kept) == 120 and len(made.rows.length) == 776
        is_silent = (windows.stratum == STRATA.index("random")) & (windows.group == group)
        rows = windows.places.row[is_silent].tolist()
        n_silent += len(rows)
        n_in_strongest += sum(row in strongest for row in rows)
    assert n_silent > 190
    assert n_in_strongest / n_silent < 1.5 * 60 / 776


@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_a_capped_feature_finds_its_weak_windows(rate: float) -> None:
    """One row in fifty is known: places are tried among these, so hardly a slot runs out of tries."""
    made = make(3, 3000, {7: rate}, max_rows=60)
    sample = made.sample(dataclasses.replace(FEW, contrast="graded")).samples[0]
    found = [n for split in (sample.shown, sample.select, sample.heldout) for _, n in split.strata]
    assert sum(found) >= 10 + 5 + 10 - 1
