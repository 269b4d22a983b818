"""How many features each explainer, scorer and control of a run still has to do: what a plan multiplies by."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from autointerp.panel import Control, controls_of
from autointerp.run import NO_EXPLAINER, Run
from autointerp.stages.asked import NOBODY, Asked
from autointerp.stages.control import controls_left
from autointerp.stages.left import Left, Line
from autointerp.stages.sample import by_unit

_NOBODY: Final[Mapping[str, Asked]] = defaultdict(lambda: NOBODY)
"""Whatever the role."""


@dataclass(slots=True)
class Outstanding:
    """Features over all dictionaries. Of those that are not sampled yet all count, as none is known to have too
    few windows; of explanations yet to come all are taken to succeed."""

    explain: Counter[str] = field(default_factory=Counter[str])
    """By explainer."""
    score: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """By explainer (NO_EXPLAINER where none is needed) and scorer; of one that the subject reads texts for, those
    for which none are written."""
    control: Counter[Control] = field(default_factory=Counter[Control])


def outstanding(run: Run) -> Outstanding:
    """Reads what the journals hold. Memory: one unit's records. Raises RecipeChanged."""
    found = Outstanding()
    for dictionary in run.recipe.dictionaries:
        line = Line(run, dictionary, _NOBODY, with_scores=True)
        n_able = n_unsampled = n_unexplained = 0
        for unit, features in by_unit(run.asked(dictionary)):
            left = line.left(unit, features)
            n_able += len(left.with_windows)
            n_unsampled += len(features) - len(left.features)
            n_unexplained += sum(map(len, left.explain.values()))
            _count(found, line, left, len(features) - len(left.features))
        _count_controls(
            found, run, dictionary, n_able + n_unsampled, is_explained=not n_unsampled + n_unexplained
        )
    return found


def _count(found: Outstanding, line: Line, left: Left, n_unsampled: int) -> None:
    for name, keys in left.explain.items():
        found.explain[name] += len(keys) + n_unsampled
    for place, scorer in line.scorers.items():
        there = left.score[place] if scorer.texts is None else left.write[place]
        to_come: set[str] = set()
        if place[0] != NO_EXPLAINER:
            to_come = set(left.able(scorer.plugin)).intersection(left.explain[place[0]])
        found.score[place] += len(there) + len(to_come) + n_unsampled


def _count_controls(
    found: Outstanding, run: Run, dictionary: str, n_able: int, *, is_explained: bool
) -> None:
    """Who lends its explanation to whom is not known before all are there."""
    if is_explained:
        found.control += controls_left(run, dictionary, _NOBODY)
        return
    most = 0 if run.recipe.controls is None else run.recipe.controls.panel
    for control in controls_of(run.recipe):
        n_done = sum(1 for _ in run.control(dictionary, control).records())
        found.control[control] += max(0, min(most, n_able) - n_done)
