"""A dictionary's journals added up unit by unit, each record read once. What units give is put together in their
order, so it does not matter which process read which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from autointerp.metrics.records import Against, ScoreRecord
from autointerp.report.sums import Explained, Sums
from autointerp.run import Run
from autointerp.types import EXPLAINABLE, FeatureId

UnitAsked = tuple[str, frozenset[str]]
"""A unit, and the features in it that are asked for."""


@dataclass(slots=True)
class Tally:
    """Of the features asked for. Memory: some numbers a score."""

    statuses: Counter[str] = field(default_factory=Counter[str])
    """Of samples."""
    n_no_candidates: int = 0
    """Sampled features that calibration left no way to fire."""
    explained: dict[str, Explained] = field(default_factory=dict[str, Explained])
    """By explainer."""
    scored: dict[tuple[str, str], Sums] = field(default_factory=dict[tuple[str, str], Sums])
    """By explainer and scorer."""
    pairs: dict[tuple[str, str, str], Against] = field(default_factory=dict[tuple[str, str, str], Against])
    """By two explainers and the scorer."""

    def extend(self, other: Tally) -> None:
        """By features that come behind these."""
        self.statuses.update(other.statuses)
        self.n_no_candidates += other.n_no_candidates
        for name, explained in other.explained.items():
            self.explained.setdefault(name, Explained()).extend(explained)
        for place, sums in other.scored.items():
            self.scored.setdefault(place, Sums()).extend(sums)
        for pair, against in other.pairs.items():
            self.pairs.setdefault(pair, Against()).extend(against)


class Tallying:
    """Reads units of a dictionary. Memory: one unit's records of one scorer."""

    def __init__(self, run: Run, dictionary: str) -> None:
        self._run, self._dictionary = run, dictionary
        self._no_candidates = run.no_candidates(dictionary)

    def __call__(self, units: list[UnitAsked]) -> Tally:
        """Raises JournalCorrupt, RecipeChanged."""
        found = Tally()
        for unit, asked in units:
            found.extend(self._unit(unit, asked))
        return found

    def _unit(self, unit: str, asked: Set[str]) -> Tally:
        recipe = self._run.recipe
        samples = self._run.existing("sample", self._dictionary).read(unit)
        without = {key for key, record in samples.items() if record["status"] not in EXPLAINABLE}
        found = Tally(Counter(record["status"] for key, record in samples.items() if key in asked))
        if len(self._no_candidates):
            sampled = [FeatureId.parse(key).index for key in samples if key in asked]
            found.n_no_candidates = int(np.isin(sampled, self._no_candidates).sum())
        for name in recipe.explainers:
            found.explained[name] = self._explained(name, unit, asked, without)
        by_scorer: dict[str, list[str]] = {}
        for explainer, scorer in self._run.scored():
            found.scored[explainer, scorer] = Sums()  # in this order
            by_scorer.setdefault(scorer, []).append(explainer)
        for scorer, explainers in by_scorer.items():
            scores = {name: self._scores(name, scorer, unit, asked) for name in explainers}
            for name, of_explainer in scores.items():
                for score in of_explainer.values():
                    found.scored[name, scorer].add(score)
            for first, second in combinations(explainers, 2):
                against = found.pairs[first, second, scorer] = Against()
                for key in sorted(scores[first].keys() & scores[second].keys()):
                    against.add(scores[first][key], scores[second][key])
        return found

    def _explained(self, explainer: str, unit: str, asked: Set[str], without: Set[str]) -> Explained:
        found = Explained()
        records = self._run.existing("explain", self._dictionary, explainer).read(unit)
        found.explains_all = not without.isdisjoint(records)
        for key, record in records.items():
            if key not in asked:
                continue
            status: str = record["status"]
            found.statuses[status] += 1
            found.n_refused += status == "refused" or bool(record.get("refused_by"))
            if key in without:
                found.n_untestable += status == "ok"
            else:
                found.with_windows[status] += 1
        return found

    def _scores(self, explainer: str, scorer: str, unit: str, asked: Set[str]) -> dict[str, ScoreRecord]:
        """By key, ascending."""
        records = self._run.existing("score", self._dictionary, explainer, scorer).read(unit)
        return {key: ScoreRecord.of(records[key]) for key in sorted(records) if key in asked}
