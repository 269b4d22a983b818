"""The recipe and the identities of several runs as one: what must agree, and what adds up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from autointerp.errors import RunError
from autointerp.identities import Identities
from autointerp.journal import differing
from autointerp.recipe import DEFAULT_FEATURES, FeatureSection, Recipe, to_mapping
from autointerp.run import Run
from autointerp.types import FeatureId, Json

_PLACES_OF_FILES = ("path", "streaming", "reference")
"""Of the section `corpus`: where it lies here. What it holds is in the identities."""


def united(runs: Sequence[Run]) -> tuple[Recipe, Identities]:
    """Dictionaries, explainers, scorers and features of all; the rest as the first run has it. Raises
    RunError, with every field that differs, where the runs are not of the same work."""
    first = runs[0]
    for run in runs[1:]:
        faults = list(_faults(first, run))
        if faults:
            raise RunError(
                f"{first.path} and {run.path} can't be merged, because they differ in what results are made "
                f"from:\n" + "\n".join(f"  {fault}" for fault in faults)
            )
    recipes = [run.recipe for run in runs]
    identities = [run.identities for run in runs]
    recipe = dataclasses.replace(
        first.recipe,
        dictionaries=_all([recipe.dictionaries for recipe in recipes]),
        explainers=_all([recipe.explainers for recipe in recipes]),
        scorers=_all([recipe.scorers for recipe in recipes]),
        llms=dataclasses.replace(
            first.recipe.llms,
            explainer=next((r.llms.explainer for r in recipes if r.llms.explainer), None),
            judge=next((r.llms.judge for r in recipes if r.llms.judge), None),
            embedder=next((r.llms.embedder for r in recipes if r.llms.embedder), None),
        ),
        features=_features(runs),
        cache=max(recipes, key=lambda recipe: recipe.cache.random_tokens).cache,  # agrees in all else
        resources=dataclasses.replace(first.recipe.resources, shard=None),
    )
    whole = dataclasses.replace(
        first.identities,
        **{name: _all([getattr(known, name) for known in identities]) for name in _NAMED},
    )
    return recipe, whole


_NAMED = [f.name for f in dataclasses.fields(Identities) if f.name not in ("model", "corpus")]


def _all(sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By name; where several have it, as the first does."""
    return {name: section for of_run in reversed(sections) for name, section in of_run.items()}


def _faults(first: Run, other: Run) -> list[str]:
    """Fields that must agree and don't, each with both values."""
    pairs = differing(_agreed(first, other), _agreed(other, first))
    return [f"{name}: {one!r} in the first, {two!r} in the second" for name, one, two in pairs]


def _agreed(run: Run, other: Run) -> Json:
    """What must be the same; of what has a name, what both have. The LLMs of records that are there are
    compared with these records (`merge.py`): a run that asked none names none."""
    recipe = to_mapping(run.recipe)
    agreed: Json = {name: recipe[name] for name in ("cache", "sampling", "seed")}
    agreed["cache"] = {
        name: value for name, value in recipe["cache"].items() if not name.startswith("random_")
    }
    agreed["model"] = {name: value for name, value in recipe["model"].items() if name != "path"}
    corpus: Json = recipe["corpus"] or {}
    agreed["corpus"] = {name: value for name, value in corpus.items() if name not in _PLACES_OF_FILES}
    for kind in ("explainers", "scorers"):
        both = recipe[kind].keys() & getattr(other.recipe, kind).keys()
        agreed[kind] = {name: recipe[kind][name] for name in both}
    known: Json = dataclasses.asdict(run.identities)
    both = run.recipe.dictionaries.keys() & other.recipe.dictionaries.keys()
    agreed["identities"] = known | {kind: {name: known[kind].get(name) for name in both} for kind in _NAMED}
    return agreed


# --- features ------------------------------------------------------------------------------------------


def _features(runs: Sequence[Run]) -> FeatureSection:
    """What asks for all that any of them asked for."""
    sections = [run.recipe.features for run in runs]
    if all(section == sections[0] for section in sections):
        return sections[0]
    if all(run.recipe.dictionaries.keys() == runs[0].recipe.dictionaries.keys() for run in runs):
        if all(section.first is not None for section in sections):
            return FeatureSection(first=max(section.first or 0 for section in sections))
        if all(section.first is None and section.ids is None for section in sections):
            return FeatureSection(n=max(section.n or DEFAULT_FEATURES for section in sections))
    asked: dict[str, set[FeatureId]] = {}
    for run in runs:
        for name in run.recipe.dictionaries:
            asked.setdefault(name, set()).update(run.asked(name))
    has_poles = any(n > 1 for run in runs for n in run.identities.poles.values())
    each = [{feature.index for feature in features} for features in asked.values()]
    if not has_poles and all(indices == each[0] for indices in each):
        return FeatureSection(ids=_ranges(sorted(each[0])))
    return FeatureSection(ids=[str(feature) for of in asked.values() for feature in sorted(of)])


def _ranges(indices: list[int]) -> list[str]:
    """0, 1, 2, 7 -> `0-2`, `7`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return [str(low) if low == high else f"{low}-{high}" for low, high in runs]
