"""One feature of a run in full."""

from __future__ import annotations

from rich.console import Console

from autointerp.asking import Asking
from autointerp.errors import FeatureError, RecipeError
from autointerp.journal import unit_of_feature
from autointerp.llm.protocol import NoLLM
from autointerp.panel import control_places
from autointerp.report.sample import print_sample
from autointerp.report.trials import Beside, print_controls, print_trials
from autointerp.report.windows import print_directions, print_explanation, print_windows
from autointerp.results import Metrics
from autointerp.run import Run
from autointerp.sections import PluginSection, instance
from autointerp.stages.known import load_directions
from autointerp.stages.sample import load_sample, load_vocabulary, unit_windows
from autointerp.tables import random_rates
from autointerp.types import EXPLAINABLE, FeatureId, Json


def print_feature(console: Console, run: Run, text: str) -> None:
    """Raises FeatureError where the run holds no such feature."""
    feature = _feature(run, text)
    key, unit, dictionary = str(feature), unit_of_feature(feature.index), feature.dictionary
    records = run.existing("sample", dictionary).read(unit)
    if key not in records:
        raise FeatureError(
            f"{key} is not in {run.path}: it was not asked for, or not sampled yet. Ask for it: "
            f"autointerp explain --out {run.path} --features {feature}"
        )
    sample = load_sample(records[key])
    vocabulary = load_vocabulary(run)
    rates = random_rates(run, dictionary)
    print_sample(
        console, sample, vocabulary, rates.of(run.identities.columns([feature])[0].item()) if rates else None
    )
    if sample.status == "dead" and feature.index in run.no_candidates(dictionary):
        console.print("  it is outside of the pool that calibration chose, so that it can't fire")
    directions = load_directions(run, dictionary, unit).get(key)
    if directions is not None:
        print_directions(console, dictionary, directions, vocabulary)
    if sample.status not in EXPLAINABLE:
        return
    windows = unit_windows(run, dictionary, unit, [key], vocabulary)[key]
    for explainer in run.recipe.explainers:
        record = run.existing("explain", dictionary, explainer).read(unit).get(key)
        if record is not None:
            print_explanation(console, record)
    print_windows(console, "Shown to the explainer", windows.shown(key), sample.maximum)
    for explainer, scorer in run.scored():
        record = run.existing("score", dictionary, explainer, scorer).read(unit).get(key)
        if record is not None:
            asking = Asking(NoLLM(), key, run.recipe.seed)
            plugin = _plugin(run.recipe.scorers[scorer])
            print_trials(console, record, Beside(windows.heldout(key), sample.maximum, plugin, asking))
    print_controls(console, _controls(run, dictionary, unit, key))


def _controls(run: Run, dictionary: str, unit: str, feature: str) -> list[Json]:
    """Its control scores; none of a feature that is not on the panel."""
    found: list[Json] = []
    for place in control_places(run.path, run.recipe, dictionary):
        records = run.existing("control", dictionary, *place.split("/")).read(unit)
        found += [record for key, record in sorted(records.items()) if key.partition("<")[0] == feature]
    return found


def _plugin(section: PluginSection) -> object | None:
    """None where its code is not here: another program made the scores, or a plug-in is not installed."""
    try:
        return instance("scorers", section)
    except RecipeError:
        return None


def _feature(run: Run, text: str) -> FeatureId:
    if "/" in text:
        feature = FeatureId.parse(text)
        if feature.dictionary not in run.recipe.dictionaries:
            known = ", ".join(run.recipe.dictionaries)
            raise FeatureError(f"{run.path} has no dictionary '{feature.dictionary}'. It has: {known}.")
        return feature
    if len(run.recipe.dictionaries) > 1:
        raise FeatureError(f"which dictionary? Write e.g. {next(iter(run.recipe.dictionaries))}/{text}.")
    return FeatureId.parse(f"{next(iter(run.recipe.dictionaries))}/{text}")


def worth_showing(run: Run) -> str | None:
    """A scored feature to look at first: the one with the best first score, of the first unit."""
    for dictionary in run.recipe.dictionaries:
        for explainer in run.recipe.explainers:
            for scorer in run.recipe.scorers:
                journal = run.existing("score", dictionary, explainer, scorer)
                for unit in journal.units()[:1]:
                    scored = {
                        key: Metrics.of(record["metrics"])
                        for key, record in journal.read(unit).items()
                        if record["status"] == "ok"
                    }
                    values = {key: one.value.value for key, one in scored.items() if one.value is not None}
                    if values:
                        return max(sorted(values), key=values.__getitem__)
    return None
