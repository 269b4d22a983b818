"""A run's folder: where each journal lies, what it is made from, who works on it, what is in it.

recipe.yaml  identities.json  environment.json  run.lock
rows/                                     token rows
cache/<dictionary>/                       activation shards, the check of the dictionary
top-up/rows/  top-up/cache/<dictionary>/  further rows, and what features that lack windows do on them
directions/<dictionary>/                  what features' weights alone say: neighbours, promoted tokens
sample/<dictionary>/                      samples and window stores
intervene/<dictionary>/                   what pushing along features' directions does
explain/<dictionary>/<explainer>/         explanations
probe/<dictionary>/<explainer>/<scorer>/  texts/ written for explanations, responses/ of the subject to them
score/<dictionary>/<explainer>/<scorer>/  scores
control/<dictionary>/<kind>/...           what control explanations score (`panel.py`)
requests/... usage/... failed/...         as explain and score: LLM replies, their cost, open keys
batch/<round>/                            requests in files, and the answers to them (`llm/batch.py`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
import pydantic
from numpy.typing import NDArray

from autointerp import __version__, tables
from autointerp.activations.passes import Pass, is_covered
from autointerp.activations.random_rates import RandomRates
from autointerp.activations.top_up import passes_to_top_up
from autointerp.environment import environment
from autointerp.errors import RecipeError, RunError, RunNotFound
from autointerp.evidence import needs_explanation, needs_of, uses_of
from autointerp.files import write_atomically
from autointerp.identities import Identities, asked_features
from autointerp.journal import Journal, unit_of_feature
from autointerp.llm.protocol import Role
from autointerp.lock import locked
from autointerp.panel import Control, controls_of
from autointerp.portion import WHOLE, Portion, is_front
from autointerp.prompting import load_template
from autointerp.recipe import Recipe, dump, parse, read_file
from autointerp.resolve import Resolved
from autointerp.sampling.settings import digested
from autointerp.scorers.protocol import Scorer, role_of
from autointerp.sections import FALLBACK, PluginSection, fallback_of, instance, without_fallback
from autointerp.subject.corpus_spec import RANDOM
from autointerp.types import EXPLAINABLE, FeatureId, Json

if TYPE_CHECKING:
    from autointerp.tables import Table

CACHE_VERSION: Final = "2"
TOP_UP_VERSION: Final = "1"
DIRECTIONS_VERSION: Final = "1"
SAMPLE_VERSION: Final = "2"
INTERVENE_VERSION: Final = "1"
PROBE_VERSION: Final = "1"
"""Digested: raise them when the same input would give other shards, directions or windows."""
SCORE_VERSION: Final = "2"
"""Digested: raise it when a score's record keeps other things. Not when only numbers are made otherwise from the
same trials: `autointerp rescore` does that."""

N_NEIGHBOURS: Final = 16
N_TOKENS: Final = 10
"""Kept of a feature: its nearest others; the tokens it promotes most, and those it suppresses most."""

ALL_ROWS: Final = "all"
"""Unit and key of the record that says: the corpus is read to its end, and makes so many rows."""
CALIBRATION_VERSION: Final = "1"
"""Digested: raise it when the same tokens would give other thresholds."""

CALIBRATION: Final = "calibration"
"""Unit and key of the thresholds that a dictionary has from the run's own tokens."""
CHECK: Final = "check"
"""Unit and key of what a dictionary does on the first tokens."""
VOCABULARY: Final = "vocabulary"
"""Unit and key of the table of token texts."""
TOKEN_EMBEDDING: Final = "embedding"
"""Unit and key of the table of token embeddings, by which windows are compared."""

NO_EXPLAINER: Final = "_"
"""In the place of an explainer's name, which never looks so, where a scorer needs no explanation: the folder of its
scores, one a feature."""

PACKED: Final = "packed.json"
ENVIRONMENT: Final = "environment.json"
_RECIPE, _IDENTITIES = "recipe.yaml", "identities.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One run. `Run.open(folder)` reads what is there; `Run.of(folder, resolved)` is one to be, which
    `save` makes or extends."""

    path: Path
    recipe: Recipe
    identities: Identities

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises RunNotFound."""
        path = Path(path)
        if not (path / _RECIPE).is_file() or not (path / _IDENTITIES).is_file():
            raise RunNotFound(
                f"no run lies in {path} (there is no {_RECIPE}). `autointerp explain` makes one."
            )
        recipe = parse(read_file(str(path / _RECIPE)), check_plugins=False)
        try:
            identities = pydantic.TypeAdapter(Identities).validate_json((path / _IDENTITIES).read_bytes())
        except pydantic.ValidationError as error:
            fault = error.errors()[0]
            raise RunError(
                f"{path / _IDENTITIES} can't be read ({'.'.join(map(str, fault['loc']))}: {fault['msg']}). A run "
                f"of another version of autointerp looks so: start another with --out."
            ) from error
        return cls(path, recipe, identities)

    @classmethod
    def of(cls, path: str | Path, resolved: Resolved) -> Run:
        """What a recipe would make of a folder; nothing is written."""
        return cls(Path(path), resolved.recipe, resolved.identities)

    def save(self) -> None:
        """Writes recipe and identities; the caller holds the lock. Raises RecipeChanged, before anything
        is written, where the folder holds results of other settings."""
        self.check()
        self.write()

    def write(self) -> None:
        """Recipe and identities, unchecked: of results that no plug-in here made."""
        write_atomically(self.path / _RECIPE, dump(self.recipe).encode())
        write_atomically(self.path / _IDENTITIES, orjson.dumps(self.identities, option=orjson.OPT_INDENT_2))
        if not (self.path / ENVIRONMENT).exists():
            content = orjson.dumps(environment(), option=orjson.OPT_INDENT_2)
            write_atomically(self.path / ENVIRONMENT, content)

    def within(self, max_cost: float | None, max_tokens: int | None) -> Run:
        """The same with other limits, where some are given; written down by `save`."""
        given = {"max_cost": max_cost, "max_tokens": max_tokens}
        limits: dict[str, Any] = {name: most for name, most in given.items() if most is not None}
        resources = dataclasses.replace(self.recipe.resources, **limits)
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, resources=resources))

    # --- journals, in the order of the line ---

    def check(self) -> None:
        """Compares what is there with the recipe. Raises RecipeChanged for the first stage that differs."""
        for journal in self.journals():
            journal.check()

    def journals(self) -> Iterator[Journal]:
        """Those of all stages, in the order of the line."""
        yield self.rows()
        if self.recipe.cache.top_up:
            yield self.top_up_rows()
        for dictionary in self.recipe.dictionaries:
            yield self.cache(dictionary)
            if self.recipe.cache.top_up:
                yield self.top_up(dictionary)
            yield self.directions(dictionary)
            yield self.sample(dictionary)
            if self.needs_effects:
                yield self.intervene(dictionary)
            for explainer in self.recipe.explainers:
                yield self.explain(dictionary, explainer)
            for explainer, scorer in self.scored():
                if self.is_probing(scorer):
                    yield self.texts(dictionary, explainer, scorer)
                    yield self.responses(dictionary, explainer, scorer)
                yield self.score(dictionary, explainer, scorer)
            for control in controls_of(self.recipe):
                yield self.control(dictionary, control)

    def rows(self) -> Journal:
        recipe, cache = self.recipe, self.recipe.cache
        identity: Json = {"identity": self.identities.corpus}
        if recipe.activations is not None:
            source = {"activations": _without(recipe.activations, "path", "tokenizer") | identity}
        else:
            assert recipe.corpus is not None  # filled by `resolve`
            source = {"corpus": _without(recipe.corpus, "path", "streaming", "reference") | identity}
        made_from: Json = source | {
            "version": CACHE_VERSION,
            "model": {"identity": self.identities.model},
            "cache": {
                name: getattr(cache, name)
                for name in ("n_tokens", "context_length", "prepend_bos", "shard_tokens")
            },
        }
        if recipe.corpus is not None and RANDOM in (recipe.corpus.path, recipe.corpus.format):
            made_from["seed"] = recipe.seed  # other corpora are read, not drawn
        return self._journal("rows", made_from)

    def cache(self, dictionary: str) -> Journal:
        cache, given = self.recipe.cache, self.recipe.activations
        model: Json = {"identity": self.identities.model}
        if given is None:
            model["dtype"] = self.recipe.model.dtype
        # Of firings that delphi cached nothing is encoded, and without vectors there are no sinks.
        names = ("sink_ratio", "encode_in") if given is None or given.format != "delphi" else ()
        made_from: Json = {
            "version": CACHE_VERSION,
            "rows": self.rows().digest,
            "model": model,
            "dictionaries": {dictionary: self._identity(dictionary)},
            "cache": {name: getattr(cache, name) for name in ("mask_first", "max_rows", *names)},
        }
        if self.is_calibrated(dictionary):
            made_from["cache"]["calibration_tokens"] = cache.calibration_tokens
            made_from |= {"calibration_version": CALIBRATION_VERSION, "seed": self.recipe.seed}
        return self._journal(f"cache/{dictionary}", made_from)

    def top_up_rows(self) -> Journal:
        """The rows behind those of `rows`, numbered on."""
        made_from: Json = {
            "version": TOP_UP_VERSION,
            "rows": self.rows().digest,
            "cache": {"top_up": self.recipe.cache.top_up},
        }
        return self._journal("top-up/rows", made_from)

    def top_up(self, dictionary: str) -> Journal:
        """What features that lack windows do on the rows of `top_up_rows`. Which these are follows from the
        cache, so its digest stands for them."""
        made_from: Json = {
            "rows": self.top_up_rows().digest,
            "base": self.cache(dictionary).digest,
            "cache": {"top_up_below": self.recipe.cache.top_up_below},
        }
        return self._journal(f"top-up/cache/{dictionary}", made_from)

    def directions(self, dictionary: str) -> Journal:
        made_from: Json = {
            "version": DIRECTIONS_VERSION,
            "model": {"identity": self.identities.model},
            "dictionaries": {dictionary: self._identity(dictionary)},
            "n_neighbours": N_NEIGHBOURS,
            "n_tokens": N_TOKENS,
        }
        return self._journal(f"directions/{dictionary}", made_from)

    def sample(self, dictionary: str) -> Journal:
        cache, sampling = self.recipe.cache, digested(self.recipe.sampling)
        made_from: Json = {
            "version": SAMPLE_VERSION,
            "cache": self.cache(dictionary).digest,
            "sampling": sampling,
            "seed": self.recipe.seed,
        }
        if cache.top_up:  # named as in the recipe: a run that was sampled without one is told of these
            made_from["top_up"] = self.top_up(dictionary).digest
            made_from |= {f"cache.{name}": getattr(cache, name) for name in ("top_up", "top_up_below")}
        return self._journal(f"sample/{dictionary}", made_from)

    def intervene(self, dictionary: str) -> Journal:
        settings = dataclasses.asdict(self.recipe.intervention)
        del settings["always"]
        made_from: Json = {
            "version": INTERVENE_VERSION,
            "sample": self.sample(dictionary).digest,
            "intervention": settings,
            "seed": self.recipe.seed,
        }
        return self._journal(f"intervene/{dictionary}", made_from)

    @property
    def needs_effects(self) -> bool:
        """Whether features are to be pushed: the recipe asks for it, or an explainer or scorer can't do without."""
        recipe = self.recipe
        plugins = [instance("explainers", section) for section in recipe.explainers.values()]
        plugins += [instance("scorers", section) for section in recipe.scorers.values()]
        return recipe.intervention.always or any("effects" in needs_of(plugin) for plugin in plugins)

    def explain(self, dictionary: str, explainer: str) -> Journal:
        section = self.recipe.explainers[explainer]
        plugin = instance("explainers", section)
        made_from: Json = {
            "sample": self.sample(dictionary).digest,
            "explainers": {explainer: self._plugin(plugin, section)},
            "llms": {"explainer": self._llm("explainer", plugin.needs_llm)},
            "seed": self.recipe.seed,
        }
        if (judge := self.judge_of_candidates(plugin)) is not None:
            made_from["llms"]["judge"] = judge
        if "directions" in uses_of(plugin):
            made_from["directions"] = self.directions(dictionary).digest
        if "effects" in uses_of(plugin) and self.needs_effects:
            made_from["effects"] = self.intervene(dictionary).digest
        return self._journal(f"explain/{dictionary}/{explainer}", made_from)

    def judge_of_candidates(self, plugin: object) -> Json | None:
        """Who judges an explainer's candidates, as it is digested; None where it doesn't choose between any, or who
        explains judges them as well."""
        llms = self.recipe.llms
        if llms.judge is None or llms.explainer is None or not getattr(plugin, "chooses", False):
            return None
        judge = self._llm_of(llms.judge)
        return None if judge == self._llm_of(without_fallback(llms.explainer)) else judge

    def texts(self, dictionary: str, explainer: str, scorer: str) -> Journal:
        """What was written for explanations, for the subject to read."""
        section = self.recipe.scorers[scorer]
        plugin: Scorer = instance("scorers", section)
        role = role_of(plugin)
        made_from: Json = {
            "scorers": {scorer: self._plugin(plugin, section)},
            "llms": {role: self._llm(role, plugin.needs_llm)},
            "seed": self.recipe.seed,
            "explanations": self.explain(dictionary, explainer).digest,
        }
        return self._journal(f"probe/{dictionary}/{explainer}/{scorer}/texts", made_from)

    def responses(self, dictionary: str, explainer: str, scorer: str) -> Journal:
        """What the subject does on these texts. Model, dictionary and masking are those of the cache, whose digest
        is in that of the explanations."""
        made_from: Json = {
            "version": PROBE_VERSION,
            "texts": self.texts(dictionary, explainer, scorer).digest,
        }
        return self._journal(f"probe/{dictionary}/{explainer}/{scorer}/responses", made_from)

    def is_probing(self, scorer: str) -> bool:
        """Whether the subject has to read texts before the scorer can judge."""
        return "probe" in needs_of(instance("scorers", self.recipe.scorers[scorer]))

    def without_responses(self, dictionary: str) -> Iterator[tuple[str, str, str, dict[str, Json]]]:
        """(explainer, scorer, unit, texts by feature, ascending) of what was written and not read yet."""
        for explainer, scorer in self.scored():
            if not self.is_probing(scorer):
                continue
            texts, responses = (of(dictionary, explainer, scorer) for of in (self.texts, self.responses))
            for unit in texts.units():
                written, done = texts.read(unit), responses.read(unit)
                left = {k: written[k] for k in sorted(written) if k not in done and written[k]["texts"]}
                if left:
                    yield explainer, scorer, unit, left

    def score(self, dictionary: str, explainer: str, scorer: str) -> Journal:
        """`explainer`: NO_EXPLAINER for a scorer that needs no explanation."""
        if explainer == NO_EXPLAINER:
            judged: Json = {"sample": self.sample(dictionary).digest}
        else:
            judged = {"explanations": self.explain(dictionary, explainer).digest}
        if "probe" in needs_of(instance("scorers", self.recipe.scorers[scorer])):
            judged["responses"] = self.responses(dictionary, explainer, scorer).digest
        made_from = self._judging(dictionary, scorer) | judged
        return self._journal(f"score/{dictionary}/{explainer}/{scorer}", made_from)

    def control(self, dictionary: str, control: Control) -> Journal:
        """Scores of control explanations. Which features these are, and whose they borrow, is said by the keys."""
        made_from = self._judging(dictionary, control.scorer)
        if control.explainer is not None:
            made_from["explanations"] = self.explain(dictionary, control.explainer).digest
        else:
            section: PluginSection = {"use": control.kind}
            made_from["explainers"] = self._plugin(instance("explainers", section), section)
            made_from["sample"] = self.sample(dictionary).digest
        return self._journal(f"control/{dictionary}/{control.place}", made_from)

    def _judging(self, dictionary: str, scorer: str) -> Json:
        """What a scorer makes of any explanation is made from."""
        section = self.recipe.scorers[scorer]
        plugin: Scorer = instance("scorers", section)
        role = role_of(plugin)
        made_from: Json = {
            "version": SCORE_VERSION,
            "scorers": {scorer: self._plugin(plugin, section)},
            "llms": {role: self._llm(role, plugin.needs_llm)},
            "seed": self.recipe.seed,
        }
        if "effects" in uses_of(plugin):
            made_from["effects"] = self.intervene(dictionary).digest
        if self.recipe.replica is not None:  # every score says it
            made_from |= {"replica": self.recipe.replica, "headline": self.recipe.headline}
        return made_from

    def scored(self) -> list[tuple[str, str]]:
        """Whose explanations (NO_EXPLAINER where none is needed) each scorer scores, explainer by explainer. A
        scorer whose code is not here counts as one that needs explanations."""
        pairs = [(name, scorer) for name in self.recipe.explainers for scorer in self.recipe.scorers]
        without = {name for name, section in self.recipe.scorers.items() if _scores_features(section)}
        return [pair for pair in pairs if pair[1] not in without] + [
            (NO_EXPLAINER, name) for name in self.recipe.scorers if name in without
        ]

    def existing(self, *place: str) -> Journal:
        """A stage's journal to read from, e.g. `existing("score", "layers.2", "plain", "detection")`."""
        return Journal.existing(self.path.joinpath(*place))

    def beside(self, kind: str, journal: Journal) -> Journal:
        """The journal of LLM `requests`, their `usage`, or `failed` keys that belongs to a stage's."""
        return Journal(self.path / kind / journal.folder.relative_to(self.path), None, package=__version__)

    def _journal(self, place: str, made_from: Json) -> Journal:
        return Journal(self.path / place, made_from, package=__version__)

    def _identity(self, dictionary: str) -> Json:
        known = self.identities
        return {"identity": known.dictionaries[dictionary], "hook": known.sites[dictionary]}

    def _plugin(self, plugin: Any, section: dict[str, Any]) -> Json:
        added: Json = getattr(plugin, "added", {})
        options = dataclasses.asdict(plugin).items()
        return {
            "use": section["use"],
            "version": plugin.version,
            "options": {name: value for name, value in options if name not in added or value != added[name]},
            "prompts": self.templates(plugin),
        }

    def templates(self, plugin: Any) -> dict[str, str]:
        """Digest of each prompt template an explainer or scorer uses, by name."""
        return {name: load_template(name, self.prompts).digest for name in plugin.templates()}

    @property
    def prompts(self) -> Path | None:
        """The user's own prompt folder."""
        return Path(self.recipe.resources.prompts) if self.recipe.resources.prompts else None

    def _llm(self, role: Role, needed: bool) -> Json | None:
        section = self.recipe.llms.of(role)
        return None if not needed or section is None else self._llm_of(section)

    def _llm_of(self, section: PluginSection) -> Json:
        backend = instance("llm", section)
        # A backend that says whom it answers as is not told from it: `batch` asks what `openai` would.
        use = getattr(backend, "answers_as", section["use"])
        said = {"use": use, "version": backend.version} | dataclasses.asdict(backend.identity())
        other = fallback_of(section)
        return said if other is None else said | {FALLBACK: self._llm_of(other)}

    # --- what is there, what is asked for, who works on it ---

    @property
    def vocabulary(self) -> Path:
        """The table of token texts; there is no such file before it is whole."""
        located = self.rows().located(VOCABULARY).get(VOCABULARY)
        return (located[1] if located else self.rows().folder / VOCABULARY).with_suffix(".parquet")

    @property
    def token_embedding(self) -> Path:
        """The table of token embeddings, [V, K] float16; there is no such file before it is whole."""
        located = self.rows().located(TOKEN_EMBEDDING).get(TOKEN_EMBEDDING)
        return (located[1] if located else self.rows().folder / TOKEN_EMBEDDING).with_suffix(".npy")

    def lacks_token_embedding(self) -> bool:
        """Whether windows are to be compared by token embeddings, and these are not there."""
        return self.recipe.sampling.n_embedding > 0 and not self.token_embedding.is_file()

    @property
    def first_position(self) -> int:
        """First position of a row that is looked at: 1 where position 0 (BOS, where it is put) is masked."""
        return 1 if self.recipe.cache.mask_first else 0

    @property
    def portion(self) -> Portion:
        """What of the cache this run is to make."""
        return Portion.parse(self.recipe.resources.shard) if self.recipe.resources.shard else WHOLE

    def row_units(self) -> list[str]:
        """The shards of rows that the corpus makes, whoever keeps them; none before it is read to its end."""
        record = self.rows().read(ALL_ROWS).get(ALL_ROWS)
        return self.units_of(record["n_rows"]) if record else []

    def is_calibrated(self, dictionary: str) -> bool:
        """Whether the dictionary's thresholds come from the run's own tokens."""
        return self.identities.calibrated.get(dictionary, False)

    @property
    def keeps_all_rows(self) -> bool:
        """Whether a portion, too, keeps the rows of all: any of them may be drawn to calibrate on, and every
        portion must find the same thresholds. They weigh 4 bytes a token."""
        return any(map(self.is_calibrated, self.recipe.dictionaries))

    def units_of(self, n_rows: int, first_row: int = 0) -> list[str]:
        """The shards that so many rows make, numbered from `first_row` on."""
        stop, step = first_row + n_rows, self.recipe.cache.rows_per_shard
        return [f"{first:09d}" for first in range(first_row, stop, step)]

    def top_up_units(self) -> list[str]:
        """The shards of the further rows; none before all of them are there."""
        journal = self.top_up_rows()
        record = journal.read(ALL_ROWS).get(ALL_ROWS)
        units = self.units_of(record["n_rows"], record["first_row"]) if record else []
        return units if all(unit in journal.read(unit) for unit in units) else []

    def own_units(self) -> list[str]:
        """Those on which this run is to cache what fires."""
        return [unit for number, unit in enumerate(self.row_units()) if self.portion.takes(number)]

    def has_all_rows(self) -> bool:
        """Whether every row is there that this run is to keep."""
        journal, units = self.rows(), self.row_units()
        n_tokens, at_front = 0, True  # the front has no gap, or this ends there
        for number, unit in enumerate(units):
            at_front = at_front and is_front(n_tokens, number * self.recipe.cache.rows_per_shard)
            if at_front or self.keeps_all_rows or self.portion.takes(number):
                record = journal.read(unit).get(unit)
                if record is None:
                    return False
                n_tokens += record["n_tokens"]
        return bool(units)

    def needed(self, dictionary: str) -> NDArray[np.int64]:
        """Features whose firings the later stages read, ascending: those asked for and, where a dictionary
        need not be cached whole, their neighbours, on which silent windows are looked for."""
        if self.recipe.sampling.n_density:
            return np.arange(self.identities.n_columns(dictionary))  # any feature may be of similar density
        asked = self.asked(dictionary)
        found = set(self.identities.columns(asked).tolist())
        if self.identities.sliceable[dictionary]:
            journal = self.directions(dictionary)
            for unit, features in groupby(asked, lambda feature: unit_of_feature(feature.index)):
                records = journal.read(unit)
                for feature in features:
                    found.update(records.get(str(feature), {}).get("neighbours", ()))
        return np.array(sorted(found), np.int64)

    def is_cached(self, dictionary: str) -> bool:
        """Whether every shard of rows has its record of every feature that is needed, and the dictionary its
        check."""
        journal, needed = self.cache(dictionary), self.needed(dictionary)
        is_checked = self.has_ready_firings or CHECK in journal.read(CHECK)
        is_checked &= not self.is_calibrated(dictionary) or CALIBRATION in journal.read(CALIBRATION)
        return is_checked and self.has_all_rows() and is_covered(journal, self.own_units(), needed)

    def passes_to_top_up(self, dictionary: str) -> list[Pass] | None:
        """What is missing of a cache that is there to the end of its rows. None: nobody has looked yet which
        features lack windows."""
        journals = self.cache(dictionary), self.top_up(dictionary)
        return passes_to_top_up(*journals, self.top_up_units(), self.needed(dictionary))

    def is_topped_up(self, dictionary: str) -> bool:
        """Whether nothing is missing of what the recipe asks for beyond the cache."""
        return not self.recipe.cache.top_up or self.passes_to_top_up(dictionary) == []

    @property
    def is_packed(self) -> bool:
        """Whether rows and shards were left behind (`pack.py`)."""
        return (self.path / PACKED).is_file()

    def has_activations(self) -> bool:
        """Whether the subject model has nothing left to do: every row and every shard is there."""
        if self.lacks_token_embedding() or not self.vocabulary.is_file():
            return False
        return all(self.is_cached(name) and self.is_topped_up(name) for name in self.recipe.dictionaries)

    @property
    def has_ready_firings(self) -> bool:
        """Whether what fires is read from files, and nobody knows the dictionary's weights."""
        return self.recipe.activations is not None and self.recipe.activations.format == "delphi"

    def without_directions(self, dictionary: str) -> list[FeatureId]:
        """Features asked for of which the weights have not been read yet, ascending."""
        if self.has_ready_firings:
            return []
        journal, missing = self.directions(dictionary), list[FeatureId]()
        for unit, features in groupby(self.asked(dictionary), lambda f: unit_of_feature(f.index)):
            done = journal.read(unit)
            missing += [feature for feature in features if str(feature) not in done]
        return missing

    def without_random_rates(self, dictionary: str) -> list[FeatureId]:
        """Features asked for that have not been counted on random tokens, where that is asked for, ascending.
        A portion counts none: it hasn't the rows that say how frequent a token is."""
        if self.recipe.random_tokens is None or self.recipe.resources.shard:
            return []
        asked = self.asked(dictionary)
        rates = RandomRates(self.cache(dictionary), self.recipe.random_tokens.unit)
        held = rates.holds(self.identities.columns(asked))
        return [feature for feature, is_held in zip(asked, held.tolist(), strict=True) if not is_held]

    def without_effects(self, dictionary: str) -> list[FeatureId]:
        """Sampled features that have windows and have not been pushed, ascending."""
        journal, sampled, missing = self.intervene(dictionary), self.sample(dictionary), list[FeatureId]()
        for unit, features in groupby(self.asked(dictionary), lambda f: unit_of_feature(f.index)):
            done, samples = journal.read(unit), sampled.read(unit)
            missing += [
                feature
                for feature in features
                if (key := str(feature)) not in done and samples.get(key, {}).get("status") in EXPLAINABLE
            ]
        return missing

    def is_cached_whole(self) -> bool:
        """Whether nothing is left for the device to do: activations are there, and of every feature asked for
        the directions and, if wanted, the rate on random tokens."""
        names = self.recipe.dictionaries
        lacking = (*map(self.without_directions, names), *map(self.without_random_rates, names))
        return self.has_activations() and not any(lacking)

    def asked(self, dictionary: str) -> list[FeatureId]:
        """Features the recipe asks for, ascending."""
        return asked_features(self.recipe, self.identities, dictionary)

    def lock(self) -> AbstractContextManager[None]:
        """One process at a time. Raises RunBusy."""
        return locked(self.path)

    # --- results as tables ---

    def features(self) -> Table:
        """A row a sampled feature and explainer: status, density, maximum, promoted tokens, explanation."""
        return tables.features(self)

    def scores(self) -> Table:
        """A row a (feature, explainer, scorer): status, metrics with intervals, protocol."""
        return tables.scores(self)

    def trials(self) -> Table:
        """A row a trial: what was asked about which window, the truth and the answer."""
        return tables.trials(self)


def _scores_features(section: dict[str, Any]) -> bool:
    try:
        return not needs_explanation(instance("scorers", section))
    except RecipeError:
        return False


def _without(section: Any, *names: str) -> Json:
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in names}
