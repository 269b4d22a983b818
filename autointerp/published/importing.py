"""Delphi's results -> a run: the same journals as any, without model, corpus or LLM behind them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

import orjson

from autointerp import __version__, trials
from autointerp.activations.delphi import site_name
from autointerp.errors import PublishedError, SiteError
from autointerp.files import write_atomically
from autointerp.identities import Identities
from autointerp.journal import Journal, Part, unit_of_feature
from autointerp.published.delphi_results import (
    NO_EXPLANATION,
    Asked,
    Reading,
    Results,
    answer,
    check_usable,
    read_results,
    reading_of,
)
from autointerp.published.windows import Texts, document_of, save_published
from autointerp.recipe import ActivationsSection, DictionarySection, FeatureSection, Recipe
from autointerp.results import Explanation, ExplanationStatus, Facts, Score
from autointerp.run import PACKED, SCORE_VERSION, VOCABULARY, Run
from autointerp.stages.explain import explanation_record
from autointerp.stages.score import measured
from autointerp.trials import Trials, to_4_digits
from autointerp.types import FeatureId, Json, Sample, WindowRefs, digest

EXPLAINER: Final = "published"
_SCORERS: Final = {"fuzz": "fuzzing", "recall": "detection"}
"""Delphi's names of scorers that have another one here."""


@dataclass(slots=True)
class Imported:
    """What came of it."""

    run: Run
    n_explanations: int
    notes: list[str] = field(default_factory=list[str])


def import_delphi(folder: Path, out: Path, said: Reading | None = None) -> Imported:
    """Everything is read and checked before anything is written. Raises PublishedError, DiskFull."""
    if out.exists() and any(out.iterdir()):
        raise PublishedError(f"{out} is there already, and not empty: import into a new folder with --out.")
    results = read_results(folder)
    notes = [f"{name} is not read: {why}" for name, why in results.skipped.items()]
    readings: dict[str, Reading] = {}
    for scorer, of_feature in results.scores.items():
        check_usable(scorer, of_feature)
        asked = [one for windows in of_feature.values() for one in windows]
        readings[scorer], note = reading_of(scorer, asked, said)
        notes.append(note)
        notes += _left_out(scorer, results)
    partial_folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    run = _run(folder, partial_folder, results)
    try:
        run.write()
        _write(run, results, _features(results), readings)
        said_packed = {"package": __version__, "with_requests": False}
        write_atomically(partial_folder / PACKED, orjson.dumps(said_packed))
        partial_folder.replace(out)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    notes.append(
        "what the explainer was shown is not in these files, so nobody can tell how much of the test it saw"
    )
    return Imported(Run.open(out), len(results.explanations), notes)


def _left_out(scorer: str, results: Results) -> Iterator[str]:
    """What is in the files of a scorer and not in the run, and why."""
    keys = results.scores[scorer].keys()
    if n_empty := results.n_empty.get(scorer, 0):
        yield f"{scorer}: {n_empty:,} files hold an empty list, and are left out"
    if n_without := len(keys - results.explanations.keys()):
        yield f"{scorer}: scores of {n_without:,} features are left out: no explanation of them is in the files"
    if n_unreadable := sum(results.explanations.get(key) == NO_EXPLANATION for key in keys):
        yield f"{scorer}: scores of {n_unreadable:,} features are left out: of '{NO_EXPLANATION}'"


def _is_explained(results: Results, key: tuple[str, int]) -> bool:
    return results.explanations.get(key, NO_EXPLANATION) != NO_EXPLANATION


def _features(results: Results) -> dict[FeatureId, tuple[str, int]]:
    """Ascending, each with its name in the files."""
    keys = set(results.explanations).union(*results.scores.values())
    return dict(
        sorted((FeatureId.parse(f"{_dictionary(hook)}/{index}"), (hook, index)) for hook, index in keys)
    )


def _dictionary(hook: str) -> str:
    try:
        return site_name(hook).replace("+", "-")
    except SiteError:  # a name of somebody's own: no model is here that it would have to fit
        return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in hook)


def _run(folder: Path, out: Path, results: Results) -> Run:
    features = _features(results)
    hooks = {feature.dictionary: hook for feature, (hook, _) in features.items()}
    widths = {
        name: 1 + max(feature.index for feature in features if feature.dictionary == name) for name in hooks
    }
    recipe = Recipe(
        dictionaries={name: DictionarySection(hook=hook) for name, hook in hooks.items()},
        activations=ActivationsSection(str(folder.absolute()), "delphi", documents="rows"),
        features=FeatureSection(ids=[str(feature) for feature in features]),
        explainers={EXPLAINER: {"use": EXPLAINER}},
        scorers={_SCORERS.get(name, name): {"use": EXPLAINER} for name in results.scores},
        controls=None,
    )
    source = digest("published", *(f"{hook} {index}" for hook, index in features.values()))
    identities = Identities(
        model="unknown",
        corpus=source,
        dictionaries={name: digest("published", name) for name in hooks},
        widths=widths,
        sites=hooks,
        sliceable=dict.fromkeys(hooks, False),
        poles=dict.fromkeys(hooks, 1),
    )
    return Run(out, recipe, identities)


def _write(
    run: Run, results: Results, features: dict[FeatureId, tuple[str, int]], readings: dict[str, Reading]
) -> None:
    texts = Texts()
    for dictionary in run.recipe.dictionaries:
        own = [feature for feature in features if feature.dictionary == dictionary]
        for unit, group in groupby(own, lambda feature: unit_of_feature(feature.index)):
            of_unit = {feature: features[feature] for feature in group}
            windows = {feature: _all_windows(results, key) for feature, key in of_unit.items()}
            with Part(_journal(run, "sample", dictionary), unit) as part:
                stored = {str(feature): found for feature, found in windows.items()}
                part.attach(".parquet", partial(save_published, windows=stored, texts=texts))
                for feature, found in windows.items():
                    part.append(str(feature), _sample(feature, found))
            with Part(_journal(run, "explain", dictionary, EXPLAINER), unit) as part:
                for feature, key in of_unit.items():
                    part.append(str(feature), _explanation(feature, results.explanations.get(key)))
            for scorer, of_feature in results.scores.items():
                name = _SCORERS.get(scorer, scorer)
                journal = _journal(run, "score", dictionary, EXPLAINER, name, version=SCORE_VERSION)
                with Part(journal, unit) as part:
                    for feature, key in of_unit.items():
                        if key in of_feature and _is_explained(results, key):
                            record = _score(
                                feature,
                                name,
                                results.explanations[key],
                                of_feature[key],
                                windows[feature],
                                readings[scorer],
                            )
                            part.append(str(feature), record)
    with Part(run.rows(), VOCABULARY) as part:
        part.append(VOCABULARY, part.attach(".parquet", texts.vocabulary().save))


def _journal(run: Run, *place: str, **more: str) -> Journal:
    """`more`: what its records are made from beside the files."""
    made_from = {"published": run.identities.corpus} | more
    return Journal(run.path.joinpath(*place), made_from, package=__version__)


def _all_windows(results: Results, key: tuple[str, int]) -> list[Asked]:
    """Those of all scorers, each text once, active ones first."""
    found: dict[tuple[tuple[str, ...], bool], Asked] = {}
    for of_feature in results.scores.values():
        for one in of_feature.get(key, []):
            found.setdefault((one.tokens, one.truth), one)
    return sorted(found.values(), key=lambda one: not one.truth)


def _sample(feature: FeatureId, windows: list[Asked]) -> Json:
    """What the files say; how often the feature fires they don't: counts of tokens are 0."""
    active = [one for one in windows if one.truth]
    none = WindowRefs([], [], [], [])
    sample = Sample(
        feature=str(feature), status="full", contrast="silent", n_tokens=0, n_fired=0, n_rows=0,
        n_documents=len({document_of(one) for one in active}), n_windows=len(active),
        maximum=max((max(one.activations, default=0.0) for one in active), default=0.0), mean=0.0,
        histogram={}, top_tokens=[], rates=[], donors=[], shown=none, select=none,
        heldout=WindowRefs(
            list(range(len(windows))), [0] * len(windows), [(one.band or 0, 1) for one in active],
            [("random", len(windows) - len(active))],
        ),
    )  # fmt: skip
    return {name: getattr(sample, name) for name in _names(Sample) if name != "assumed"}


def _names(kind: type[Sample] | type[Score]) -> list[str]:
    return [entry.name for entry in dataclasses.fields(kind) if entry.name != "feature"]  # the key says it


def _explanation(feature: FeatureId, text: str | None) -> Json:
    """`text`: None where the files hold scores of the feature and no explanation."""
    status: ExplanationStatus = "ok"
    reason = None
    if text is None:
        status, reason = "no_evidence", "no explanation of it was published"
    elif text == NO_EXPLANATION:
        status, text, reason = "unreadable", None, f"delphi wrote '{NO_EXPLANATION}'"
    explanation = Explanation(
        feature=str(feature),
        explainer=EXPLAINER,
        status=status,
        text=text,
        label=None,
        llm="unknown",
        prompts={},
        reason=reason,
    )
    return explanation_record(explanation)


def _score(
    feature: FeatureId, scorer: str, text: str, asked: list[Asked], windows: list[Asked], reading: Reading
) -> Json:
    place = {(one.tokens, one.truth): at for at, one in enumerate(windows)}
    asked = sorted(asked, key=lambda one: place[one.tokens, one.truth])
    maxima = [max(one.activations, default=0.0) if one.truth else 0.0 for one in asked]
    columns = Trials(
        window=[place[one.tokens, one.truth] for one in asked],
        truth=[one.truth for one in asked],
        answer=[answer(one, reading) for one in asked],
        probability=[one.probability for one in asked],
        band=[one.band for one in asked],
        stratum=[None if one.truth else "random" for one in asked],
        marks=[[] for _ in asked],
        offset=[
            one.activations.index(maximum) if maximum > 0 else None
            for one, maximum in zip(asked, maxima, strict=True)
        ],
        document=[document_of(one)[:8] for one in asked],
        maximum=[to_4_digits(maximum) for maximum in maxima],
        length=[len(one.tokens) for one in asked],
    )
    facts = Facts(density=0.0, prevalence=None, mass=[])
    status, metrics, reason = measured(columns, facts)
    score = Score(
        feature=str(feature),
        explainer=EXPLAINER,
        scorer=scorer,
        status=status,
        explanation=digest(text),
        protocol=f"imported from delphi's files (predictions read as '{reading}'); prompts, judge and split unknown",
        contrast="silent",
        llm="unknown",
        facts=facts,
        metrics=metrics,
        trials=columns,
        reason=reason,
    )
    return {name: getattr(score, name) for name in _names(Score)} | {"trials": trials.record(columns)}
