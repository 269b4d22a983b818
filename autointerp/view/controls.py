"""What a feature's own explanations are set against: scores of control explanations on the same feature.

Shuffled ones are there for the panel alone (`panel.py`); where one of the run's explainers is a control, its scores
are, and those every feature has.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from autointerp.journal import unit_of_feature
from autointerp.panel import key_of, lenders, panel_of
from autointerp.report.panel import CONTROL_NAMES, place_of
from autointerp.run import Run
from autointerp.types import FeatureId, Json


class OwnControls:
    """One dictionary's. Memory: the panel's names."""

    def __init__(self, run: Run, dictionary: str) -> None:
        """Raises JournalCorrupt, RecipeChanged, FeatureError."""
        self._run, self._dictionary = run, dictionary
        self._kinds = run.recipe.controls.kinds if run.recipe.controls else ()
        panel = panel_of(run.recipe, run.identities, dictionary, run.existing("sample", dictionary))
        self._lenders = {name: lenders(panel, self._explained(name, panel)) for name in run.recipe.explainers}

    def _explained(self, explainer: str, panel: list[str]) -> dict[str, Json]:
        journal = self._run.existing("explain", self._dictionary, explainer)
        units = {unit_of_feature(FeatureId.parse(feature).index) for feature in panel}
        return {key: record for unit in units for key, record in journal.read(unit).items()}

    def of_unit(
        self, unit: str, scored: Mapping[tuple[str, str], Mapping[str, Json]]
    ) -> dict[tuple[str, str, str], list[Json]]:
        """By feature, explainer and scorer: each control's name, whose explanation was lent, and its headline.
        `scored`: the unit's own scores by explainer and scorer."""
        found: dict[tuple[str, str, str], list[Json]] = {}
        explained = [pair for pair in scored if pair[0] in self._lenders]
        for (explainer, scorer), kind in product(explained, self._kinds):
            place = place_of(self._run, self._dictionary, explainer, scorer, kind)
            records = self._records(place, unit, scored) if place else {}
            lent = self._lenders[explainer] if kind == "shuffled" else {}
            for key, record in records.items():
                feature = key.partition("<")[0]
                lender = lent.get(feature)
                # A run that grew may have scores with an earlier lender too.
                if key == key_of(feature, lender) and (value := _headline(record)):
                    said = {"name": CONTROL_NAMES[kind], "lender": lender} | value
                    found.setdefault((feature, explainer, scorer), []).append(said)
        return found

    def _records(
        self, place: tuple[str, ...], unit: str, scored: Mapping[tuple[str, str], Mapping[str, Json]]
    ) -> Mapping[str, Json]:
        match place:
            case ("score", _, explainer, scorer):
                return scored[explainer, scorer]
            case _:
                return self._run.existing(*place).read(unit)


def _headline(record: Json) -> Json | None:
    """With its interval."""
    metrics: Json = record["metrics"] or {}
    value: Json | None = metrics.get("values", {}).get(metrics.get("headline"))
    return None if value is None else {"value": value, "n": metrics["n"]}
