"""What the plan tries a run's explainers and scorers on: a few of its features, or windows of full size that could
come from any run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from autointerp import draw
from autointerp.evidence import Evidence, needs_of, uses_of
from autointerp.explainers.protocol import Explainer
from autointerp.run import Run
from autointerp.scorers.protocol import Scorer
from autointerp.splits import Heldout
from autointerp.stages.evidence import UnitEvidence
from autointerp.stages.examples import Pushed, example_evidence, example_pushes, example_windows
from autointerp.stages.sample import by_unit, load_vocabulary, unit_windows
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import EXPLAINABLE

N_TRIED: Final = 8
"""Features that are looked at."""


@dataclass(frozen=True, slots=True)
class Case:
    """A feature."""

    evidence: Callable[[Explainer], Evidence]
    heldout: Callable[[Scorer], Heldout]


def cases(run: Run) -> list[Case]:
    """A few sampled features, chosen by a keyed hash; without samples, one that is made up."""
    for dictionary in run.recipe.dictionaries:
        able: list[tuple[str, str]] = []
        for unit, features in by_unit(run.asked(dictionary)):
            records = run.sample(dictionary).read(unit)
            keys = [str(feature) for feature in features]
            able += [(unit, key) for key in keys if key in records and records[key]["status"] in EXPLAINABLE]
        if able:
            order = sorted(able, key=lambda one: draw.key(run.recipe.seed, "expected", one[1]))[:N_TRIED]
            vocabulary = load_vocabulary(run)
            return [_sampled(run, dictionary, unit, key, vocabulary) for unit, key in order]
    return [_made_up(run)]


def _made_up(run: Run) -> Case:
    sampling = run.recipe.sampling
    evidence = example_evidence(run)
    active, silent = example_windows(run, sampling.n_heldout, sampling.n_heldout_silent)
    hard = example_windows(run, 0, sampling.n_hard, "same_token")[1]
    select = () if evidence.select is None else evidence.select.active
    pushed = example_pushes(run.recipe.intervention, evidence.shown.active, select, active)
    return Case(
        lambda explainer: evidence.only(uses_of(explainer) | {"hard"}),
        lambda scorer: _tested(Heldout(active, silent + hard), scorer, pushed),
    )


def _sampled(run: Run, dictionary: str, unit: str, key: str, vocabulary: Vocabulary) -> Case:
    """What pushing does is what the intervene stage recorded; before it has, what it will record."""
    windows = unit_windows(run, dictionary, unit, [key], vocabulary)
    of_unit = UnitEvidence(run, dictionary, unit, windows, vocabulary)
    store = windows[key]
    pushed: Pushed | None = None
    if run.needs_effects and key not in run.intervene(dictionary).read(unit):
        splits = (store.shown(key).active, store.select(key).active, store.heldout(key).active)
        pushed = example_pushes(run.recipe.intervention, *splits)

    def evidence(explainer: Explainer) -> Evidence:
        known = of_unit.of(key, explainer)
        if pushed is None or "effects" not in uses_of(explainer):
            return known
        return dataclasses.replace(known, effects=pushed.effects)

    def heldout(scorer: Scorer) -> Heldout:
        if "probe" in needs_of(scorer):
            return store.heldout(key)  # texts are yet to be written
        return _tested(of_unit.heldout(key, scorer, ("", "")), scorer, pushed)

    return Case(evidence, heldout)


def _tested(heldout: Heldout, scorer: Scorer, pushed: Pushed | None) -> Heldout:
    if pushed is None or "effects" not in uses_of(scorer):
        return heldout
    return dataclasses.replace(heldout, pushed=pushed.heldout, ablated=pushed.ablated)
