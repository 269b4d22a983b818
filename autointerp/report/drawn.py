"""Explanations to quote: drawn by a keyed hash, so nobody chose them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from autointerp import draw
from autointerp.journal import unit_of_feature
from autointerp.report.templates import mean_of
from autointerp.run import Run
from autointerp.types import FeatureId, Json

N_DRAWN: Final = 8
"""Of each dictionary."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One, by the run's first explainer."""

    feature: str
    text: str
    numbers: list[str]
    """Of each scorer."""


def drawn(run: Run, dictionary: str) -> Iterator[Drawn]:
    """In the order of the features. Memory: one unit's records."""
    explainer = next(iter(run.recipe.explainers))
    journal, seed = run.existing("explain", dictionary, explainer), run.recipe.seed
    explained = (record for record in journal.records() if record["status"] == "ok")
    found = heapq.nsmallest(N_DRAWN, explained, key=lambda record: draw.key(seed, "card", str(record["key"])))
    for record in sorted(found, key=lambda record: FeatureId.parse(record["key"])):
        unit = unit_of_feature(FeatureId.parse(record["key"]).index)
        numbers: list[str] = []
        for scorer in run.recipe.scorers:
            score = run.existing("score", dictionary, explainer, scorer).read(unit).get(record["key"])
            metrics: Json = (score or {}).get("metrics") or {}
            numbers.append(mean_of(metrics.get("values", {}).get(metrics.get("headline", ""))))
        yield Drawn(record["key"], record["text"], numbers)
