"""What the explanations of a run are set against, on a panel of its features.

    shuffled     another feature's explanation, by the same explainer: a score that it gets is not for its content
    top_tokens   the list of strongest tokens: what needs no look at contexts
    lexical      what counting words and tokens says: what needs no LLM

The panel are the first of the features asked for that have enough windows, in the order in which features are
sampled for a run: a run that grows by `features.n` keeps its panel. Each borrows its explanation from the one
behind it in that order, the last from the first: nobody has its own. Who lends to whom depends on the features asked
for, so the key of a record names both, and a run that grows keeps what it has and scores the pairs that are new.
Where a scorer is sequential, only features that it judges on all windows can be in the panel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autointerp import draw
from autointerp.evidence import needs_explanation, needs_of
from autointerp.identities import Identities, asked_features
from autointerp.journal import Journal, unit_of_feature
from autointerp.recipe import ControlKind, Recipe
from autointerp.sections import PluginSection, instance
from autointerp.sequential import Sequential, is_in_panel
from autointerp.types import EXPLAINABLE, Json


@dataclass(frozen=True, slots=True)
class Control:
    """A control explanation under a scorer."""

    kind: ControlKind
    explainer: str | None
    """Whose explanations are shuffled; None for an explanation that is made of the feature's own windows."""
    scorer: str

    @property
    def place(self) -> str:
        """Of its journal, relative to those of all controls of a dictionary."""
        return "/".join(part for part in (self.kind, self.explainer, self.scorer) if part is not None)


def controls_of(recipe: Recipe) -> list[Control]:
    """Those that are to be scored. None that one of the run's own explainers writes anyway."""
    if recipe.controls is None:
        return []
    found: list[Control] = []
    for kind in recipe.controls.kinds:
        is_written = kind != "shuffled" and (stand_in(recipe, kind) or _is_llm(recipe, kind))
        explainers = list(recipe.explainers) if kind == "shuffled" else [None]
        if not is_written:
            found += [
                Control(kind, explainer, scorer) for explainer in explainers for scorer in _scorers(recipe)
            ]
    return found


def control_places(run: Path, recipe: Recipe, dictionary: str) -> list[str]:
    """Of the journals of control scores that are there and that the recipe names, as `Control.place` has them. `run`:
    its folder."""
    folder = run / "control" / dictionary
    found = {path.parent.relative_to(folder) for path in folder.rglob("*.jsonl")}
    named = (
        place
        for place in found
        if place.name in recipe.scorers and all(name in recipe.explainers for name in place.parts[1:-1])
    )
    return sorted(place.as_posix() for place in named)


def stand_in(recipe: Recipe, kind: ControlKind) -> str | None:
    """The run's own explainer whose explanations are this control's, if it has one: its scores are the control's."""
    return next((name for name, section in recipe.explainers.items() if section == {"use": kind}), None)


def _is_llm(recipe: Recipe, kind: ControlKind) -> bool:
    """Whether the LLM that explains is the control itself."""
    return recipe.llms.explainer is not None and recipe.llms.explainer["use"] == kind


def _scorers(recipe: Recipe) -> list[str]:
    named = recipe.controls.scorers if recipe.controls is not None else None
    found: list[str] = []
    for name in recipe.scorers:
        scorer = _scorer(recipe, name)
        is_asked = getattr(scorer, "controlled", True) if named is None else name in named
        if is_asked and needs_explanation(scorer) and "probe" not in needs_of(scorer):
            found.append(name)
    return found


def _scorer(recipe: Recipe, name: str) -> object:
    return instance("scorers", recipe.scorers[name])


def _sequential(recipe: Recipe) -> list[Sequential]:
    found = [getattr(_scorer(recipe, name), "sequential", None) for name in _scorers(recipe)]
    return [rule for rule in found if rule is not None]


def scorer_section(recipe: Recipe, control: Control) -> PluginSection:
    """Its scorer, with the options that it declares for controls. A sequential one asks about all windows, as it does
    of features in its panel: else the mean of the control would be biased."""
    scorer = _scorer(recipe, control.scorer)
    section = recipe.scorers[control.scorer] | getattr(scorer, "as_control", {})
    rule: Sequential | None = getattr(scorer, "sequential", None)
    return section if rule is None else section | {"sequential": dataclasses.replace(rule, panel=1.0)}


def panel_of(recipe: Recipe, identities: Identities, dictionary: str, samples: Journal) -> list[str]:
    """The panel's features, in order; `samples`: the dictionary's. Raises FeatureError. Memory: a name a feature."""
    if recipe.controls is None:
        return []
    asked = asked_features(recipe, identities, dictionary)
    hashes = draw.mix(
        draw.key(recipe.seed, "features", dictionary), identities.columns(asked).astype(np.uint64)
    )
    rules = _sequential(recipe)
    able: dict[str, set[str]] = {}
    found: list[str] = []
    for at in draw.smallest(hashes, len(asked)).tolist():
        if not all(is_in_panel(rule, recipe.seed, str(asked[at])) for rule in rules):
            continue
        unit = unit_of_feature(asked[at].index)
        if unit not in able:
            records = samples.read(unit)
            able[unit] = {key for key, record in records.items() if record["status"] in EXPLAINABLE}
        if str(asked[at]) in able[unit]:
            found.append(str(asked[at]))
            if len(found) == recipe.controls.panel:
                break
    return found


def lenders(panel: Sequence[str], explained: Mapping[str, Json]) -> dict[str, str]:
    """Of each feature that has an explanation, whose it borrows. `explained`: an explainer's records.

    The next one in the order that has one. Left out is a feature while nobody knows yet whether the next has one: it
    waits. Features whose explanation ended without a text are passed over, and borrow nothing.
    """
    found: dict[str, str] = {}
    for at, feature in enumerate(panel):
        if explained.get(feature, {}).get("status") != "ok":
            continue
        for other in (*panel[at + 1 :], *panel[:at]):
            record = explained.get(other)
            if record is None:
                break
            if record["status"] == "ok":
                found[feature] = other
                break
    return found


def key_of(feature: str, lender: str | None) -> str:
    """Of a control's record."""
    return feature if lender is None else f"{feature}<{lender}"
