"""What plots of a run show, as numbers: from the summary and the scores of single features, both read as every
other report reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from autointerp import plugins
from autointerp.llm.spending import Spent
from autointerp.recipe import Recipe
from autointerp.report.funnel import Step, steps
from autointerp.report.panel import BesideControl, beside_controls
from autointerp.report.summary import ScoreSummary, Summary, summarise
from autointerp.run import NO_EXPLAINER, Run
from autointerp.scored import Instance, scored
from autointerp.stages.spent import spent

PAIR: Final = ("detection", "fuzzing")
"""Scorers whose instances are set against each other, feature by feature, where an explainer has both."""


def used(recipe: Recipe, scorer: str) -> str:
    """The scorer behind an instance, whatever that is called. Of imported scores the instance's name says it."""
    use: str = recipe.scorers[scorer]["use"]
    return use if use in plugins.names("scorers") else scorer


@dataclass(frozen=True, slots=True)
class Charted:
    """One scorer on one explainer's explanations of one dictionary, of which at least one feature is scored."""

    score: ScoreSummary
    use: str
    """The scorer, whatever its instance is called."""
    beside: list[BesideControl]
    values: dict[str, float]
    """The headline by feature. Of a sequential scorer, of its panel: elsewhere it is biased."""
    densities: dict[str, float]
    """Share of tokens on which each of these features fires; 0 where nobody knows."""

    @property
    def name(self) -> str:
        if self.score.explainer == NO_EXPLAINER:
            return f"{self.score.scorer} (no explanation)"
        return f"{self.score.explainer} · {self.score.scorer}"


@dataclass(frozen=True, slots=True)
class Figures:
    """One dictionary. Memory: some numbers a feature and score."""

    summary: Summary
    steps: list[Step]
    charted: list[Charted]

    def pairs(self) -> Iterator[tuple[Charted, Charted]]:
        """An instance of the first of `PAIR` and one of the second, all such, explainer by explainer."""
        for explainer in dict.fromkeys(one.score.explainer for one in self.charted):
            own = [one for one in self.charted if one.score.explainer == explainer]
            first, second = ([one for one in own if one.use == use] for use in PAIR)
            yield from product(first, second)

    def by_decile(self) -> list[Charted]:
        """Those that ask about windows of known activation."""
        return [one for one in self.charted if one.score.bands]


@dataclass(frozen=True, slots=True)
class Shown:
    """A run in figures."""

    dictionaries: list[Figures]
    spent: dict[str, Spent]
    """By what asked."""


def shown(run: Run) -> Shown:
    """Reads the journals. Raises RunError."""
    return Shown([_figures(run, name) for name in run.recipe.dictionaries], spent(run))


def _figures(run: Run, dictionary: str) -> Figures:
    summary = summarise(run, dictionary)
    charted: list[Charted] = []
    for score in summary.scores:
        found = scored(run, Instance(dictionary, score.explainer, score.scorer))
        if found.values:
            beside = beside_controls(score.explainer, score.scorer, summary.controls, summary.floors)
            use = used(run.recipe, score.scorer)
            charted.append(Charted(score, use, list(beside), found.values, found.densities))
    return Figures(summary, list(steps(summary)), charted)
