"""The scores of a run as numbers by feature, read from its journals: what controls, bridges and comparisons are
made of."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from autointerp.journal import unit_of_feature
from autointerp.metrics.features import Population
from autointerp.metrics.records import ScoreRecord
from autointerp.results import Metrics
from autointerp.run import Run
from autointerp.sequential import counts_in_means
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Instance:
    """Who explained features of which dictionary, and who scored that."""

    dictionary: str
    explainer: str
    scorer: str


@dataclass(slots=True)
class Scored:
    """What one scorer found for one explainer's explanations of one dictionary."""

    values: dict[str, float] = field(default_factory=dict[str, float])
    """The headline's number by feature id."""
    headline: str = ""
    """What that number is; empty where there is none."""
    chance: float | None = None
    """What it is where nothing is known of the feature."""
    protocol: str = ""
    llm: str = ""
    densities: dict[str, float] = field(default_factory=dict[str, float])
    """Share of tokens on which each of these features fires."""
    n_without: int = 0
    """Features asked for that end here without a number: unreadable, or refused."""


def records(run: Run, instance: Instance) -> Iterator[tuple[str, Json]]:
    """(feature, record) of the features that the recipe asks for. Memory: one unit's records."""
    journal = run.existing("score", instance.dictionary, instance.explainer, instance.scorer)
    asked = {str(feature): unit_of_feature(feature.index) for feature in run.asked(instance.dictionary)}
    for unit in sorted(set(asked.values())):
        yield from ((key, record) for key, record in sorted(journal.read(unit).items()) if key in asked)


def pooled(run: Run, instance: Instance, among: Container[str] | None = None) -> Population:
    """Headlines of the features that `scored` has, with what documents add to them; `among`: of these features."""
    found = Population()
    for key, record in records(run, instance):
        if among is None or key in among:
            ScoreRecord.of(record).add_to(found)
    return found


def instances(run: Run) -> Iterator[Instance]:
    for dictionary in run.recipe.dictionaries:
        for explainer in run.recipe.explainers:
            for scorer in run.recipe.scorers:
                yield Instance(dictionary, explainer, scorer)


def scored(run: Run, instance: Instance) -> Scored:
    """Of the features that the recipe asks for; of a sequential scorer, of those in its panel. Memory: one unit's
    records, and a number a feature."""
    found = Scored()
    for key, record in records(run, instance):
        if not counts_in_means(record):
            continue
        metrics = None if record["metrics"] is None else Metrics.of(record["metrics"])
        if record["status"] != "ok" or metrics is None or metrics.value is None:
            found.n_without += 1
            continue
        found.values[key] = metrics.value.value
        found.densities[key] = record["facts"]["density"]
        found.headline, found.chance = metrics.headline, metrics.chance
        # Of features that fire nearly everywhere the protocol is another one; the usual one is told.
        if not found.protocol or record["contrast"] == "silent":
            found.protocol, found.llm = record["protocol"], record["llm"]
    return found
