"""A published run -> a run: the same records, to rescore, compare and show without model, corpus or LLM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final, get_args

import orjson
import pyarrow.parquet as pq
import pydantic

from autointerp import __version__
from autointerp.activations.random_rates import RandomRate, save_rates
from autointerp.errors import PublishedError, RecipeError
from autointerp.files import write_atomically
from autointerp.identities import Identities
from autointerp.journal import Journal, Part
from autointerp.panel import Control, key_of
from autointerp.publish import records
from autointerp.publish.dates import times_of
from autointerp.publish.effect_rows import effects_record
from autointerp.publish.folder import CONTROLS, IDENTITIES, RECIPE, VOCABULARY
from autointerp.publish.folder import RUN as RUN_FOLDER
from autointerp.publish.manifest import NAME, Manifest, read_manifest
from autointerp.publish.publication import Publication, Written, keep
from autointerp.publish.reading import Units, check_whole
from autointerp.publish.stores import HIDDEN, from_trials, save_examples
from autointerp.recipe import ControlKind, parse, read_file
from autointerp.run import ENVIRONMENT, NO_EXPLAINER, PACKED, Run
from autointerp.run import VOCABULARY as VOCABULARY_UNIT
from autointerp.stages.spent import ELSEWHERE
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import FeatureId, Json

_PLACES: Final = ("feature", "split", "row", "start", "band", "stratum")


@dataclass(slots=True)
class Imported:
    """What came of it."""

    run: Run
    notes: list[str] = field(default_factory=list[str])


def import_published(folder: Path, out: Path) -> Imported:
    """`folder`: what `autointerp publish` wrote. Everything is checked before the run appears.

    Raises PublishedError where the folder is not whole or not of this kind, DiskFull.
    """
    if out.exists() and any(out.iterdir()):
        raise PublishedError(f"{out} is there already, and not empty: import into a new folder with --out.")
    manifest = read_manifest(folder / NAME)
    check_whole(folder, manifest)
    partial_folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        run = _run(folder, partial_folder)
        if (folder / RUN_FOLDER / ENVIRONMENT).is_file():
            content = (folder / RUN_FOLDER / ENVIRONMENT).read_bytes()
            write_atomically(partial_folder / ENVIRONMENT, content)
        if (folder / CONTROLS).is_file():
            write_atomically(partial_folder / "controls.json", (folder / CONTROLS).read_bytes())
        run.write()
        if manifest.spent:
            write_atomically(partial_folder / ELSEWHERE, orjson.dumps(manifest.spent))
        hidden = _vocabulary(run, folder / VOCABULARY, manifest)
        for dictionary in run.recipe.dictionaries:
            _Import(run, folder, manifest, dictionary, hidden).write()
        if manifest.run:
            keep(partial_folder, Publication(manifest.run, manifest.spans, _written(run, manifest)))
        said = {"package": __version__, "with_requests": False}
        write_atomically(partial_folder / PACKED, orjson.dumps(said))
        partial_folder.replace(out)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return Imported(Run.open(out), _notes(manifest))


def _written(run: Run, manifest: Manifest) -> Written | None:
    """When what was just imported was written."""
    return Written(*manifest.written, max(times_of(run), default=0.0)) if manifest.written else None


def _notes(manifest: Manifest) -> list[str]:
    if not manifest.options.examples:
        return [f"no windows were published: their tokens are shown as '{HIDDEN}'"]
    if manifest.options.max_quote is not None:
        most = manifest.options.max_quote
        return [f"windows were published cut to {most} characters: other tokens are shown as '{HIDDEN}'"]
    return []


def _run(folder: Path, out: Path) -> Run:
    try:
        recipe = parse(read_file(str(folder / RECIPE)), check_plugins=False)
        identities = pydantic.TypeAdapter(Identities).validate_json((folder / IDENTITIES).read_bytes())
    except (RecipeError, pydantic.ValidationError, OSError) as error:
        raise PublishedError(
            f"{folder / RUN_FOLDER} has no recipe and identities that can be read: {error}"
        ) from error
    names = set(recipe.dictionaries)
    known = (identities.widths, identities.poles, identities.sites, identities.dictionaries)
    if any(names - of_name.keys() for of_name in known):
        raise PublishedError(f"{folder / IDENTITIES} lacks a dictionary of {folder / RECIPE}.")
    return Run(out, recipe, identities)


def _vocabulary(run: Run, path: Path, manifest: Manifest) -> int:
    """Writes the table of token texts; the id of the token that stands for what was not published."""
    table: list[bytes] = pq.read_table(path, columns=["bytes"])["bytes"].to_pylist()
    hidden = len(table)
    if not manifest.options.examples or manifest.options.max_quote is not None:
        table.append(HIDDEN.encode())
    with Part(run.rows(), VOCABULARY_UNIT) as part:
        part.append(VOCABULARY_UNIT, part.attach(".parquet", Vocabulary(table).save))
    return hidden


class _Import:
    """One dictionary. Memory: one unit's rows."""

    def __init__(self, run: Run, folder: Path, manifest: Manifest, dictionary: str, hidden: int) -> None:
        self._run, self._manifest, self._dictionary, self._hidden = run, manifest, dictionary, hidden
        scorers = list(run.recipe.scorers)
        self._explanations = Units(folder, manifest, dictionary, "explanations", scorers)
        self._scores = Units(folder, manifest, dictionary, "scores", scorers)
        self._examples = Units(folder, manifest, dictionary, "examples", scorers)
        self._controls = Units(folder, manifest, dictionary, "controls", scorers)
        self._effects = Units(folder, manifest, dictionary, "effects", scorers)
        self._rates: dict[int, RandomRate] = {}

    def write(self) -> None:
        for unit, table in self._explanations:
            rows: list[Json] = table.to_pylist()
            scores: list[Json] = self._scores.of(unit).to_pylist()
            self._samples(unit, rows, [(row["feature"], records.score(row)) for row in scores])
            self._told(unit, rows)
            self._scored(unit, scores)
            self._control(unit, self._controls.of(unit).to_pylist())
            pushed: list[Json] = self._effects.of(unit).to_pylist()
            by_feature = groupby(pushed, lambda row: row["feature"])
            self._write(
                ("intervene", self._dictionary),
                unit,
                [(key, effects_record(list(of_feature))) for key, of_feature in by_feature],
            )
        self._scores.check_read()
        for table in (self._examples, self._controls, self._effects):
            table.check_read()
        if self._rates and self._run.recipe.random_tokens is not None:
            cache = self._journal("cache", self._dictionary)
            save_rates(cache, self._run.recipe.random_tokens.unit, self._rates)

    def _journal(self, *place: str) -> Journal:
        made_from = self._manifest.journals.get("/".join(place), {"published": "/".join(place)})
        return Journal(self._run.path.joinpath(*place), made_from, package=__version__)

    def _write(self, place: tuple[str, ...], unit: str, found: Iterable[tuple[str, Json]]) -> None:
        """Makes no journal of a stage that left no records."""
        records = list(found)
        if not records:
            return
        with Part(self._journal(*place), unit) as part:
            for key, record in records:
                part.append(key, record)

    def _samples(self, unit: str, rows: list[Json], scores: list[tuple[str, Json]]) -> None:
        has_examples = self._manifest.options.examples
        if has_examples:
            windows = self._examples.of(unit)
        else:
            of_feature: dict[str, list[Json]] = {row["feature"]: [] for row in rows}
            for key, record in scores:
                of_feature.setdefault(key, []).append(record)
            windows = from_trials(of_feature)
        refs: dict[str, records.Refs] = {}
        if has_examples:
            places: list[Json] = windows.select(list(_PLACES)).to_pylist()
            for (key, split), group in groupby(places, lambda one: (one["feature"], one["split"])):
                refs.setdefault(key, {})[split] = records.refs(list(group))
        with Part(self._journal("sample", self._dictionary), unit) as part:
            part.attach(".parquet", partial(save_examples, rows=windows, hidden=self._hidden))
            for row in _first_of_each(rows):
                part.append(row["feature"], records.sample(row, refs.get(row["feature"])))

    def _told(self, unit: str, rows: list[Json]) -> None:
        """What is said of each feature, and what its weights say."""
        firsts = _first_of_each(rows)
        weights = [(row["feature"], records.directions(row)) for row in firsts]
        known = [(key, record) for key, record in weights if record is not None]
        self._write(("directions", self._dictionary), unit, known)
        for row in firsts:
            if row["random_n_tokens"] is not None:
                column = FeatureId.parse(row["feature"]).column(self._run.identities.poles[self._dictionary])
                counts = row["random_n_fired"], row["random_n_tokens"], row["random_maximum"]
                self._rates[column] = RandomRate(*counts)
        for explainer in self._run.recipe.explainers:
            of_one = [row for row in rows if row["explainer"] == explainer]
            said = [(row["feature"], records.explanation(row)) for row in of_one]
            found = [(key, record) for key, record in said if record is not None]
            self._write(("explain", self._dictionary, explainer), unit, found)
        if unknown := {row["explainer"] for row in rows} - {None, *self._run.recipe.explainers}:
            raise PublishedError(f"an explanation is by '{unknown.pop()}', whom the recipe doesn't name.")

    def _control(self, unit: str, rows: list[Json]) -> None:
        by_place: dict[str, list[Json]] = {}
        for row in rows:
            explainer = None if row["lender"] is None else row["explainer"]
            known = row["control"] in get_args(ControlKind) and row["scorer"] in self._run.recipe.scorers
            if not known or explainer not in (None, *self._run.recipe.explainers):
                raise PublishedError(
                    f"a control score is of '{row['control']}' by '{row['scorer']}', whom the recipe doesn't name."
                )
            by_place.setdefault(Control(row["control"], explainer, row["scorer"]).place, []).append(row)
        for place, of_place in by_place.items():
            found = [(key_of(row["feature"], row["lender"]), records.control(row)) for row in of_place]
            self._write(("control", self._dictionary, *place.split("/")), unit, found)

    def _scored(self, unit: str, rows: list[Json]) -> None:
        by_pair: dict[tuple[str, str], list[Json]] = {}
        for row in rows:
            by_pair.setdefault((row["explainer"] or NO_EXPLAINER, row["scorer"]), []).append(row)
        for (explainer, scorer), of_pair in by_pair.items():
            if explainer not in (NO_EXPLAINER, *self._run.recipe.explainers) or (
                scorer not in self._run.recipe.scorers
            ):
                raise PublishedError(
                    f"a score is of '{explainer}' by '{scorer}', whom the recipe doesn't name."
                )
            place = ("score", self._dictionary, explainer, scorer)
            self._write(place, unit, ((row["feature"], records.score(row)) for row in of_pair))


def _first_of_each(rows: list[Json]) -> list[Json]:
    """A row a feature: what is known of it without an explainer is the same in all of them."""
    firsts: dict[str, Json] = {}
    for row in rows:
        firsts.setdefault(row["feature"], row)
    return list(firsts.values())
