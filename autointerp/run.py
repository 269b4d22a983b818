"""A run's folder: where each journal lies, what it is made from, who works on it, what is in it.

recipe.yaml  identities.json  environment.json  run.lock
rows/                                     token rows
cache/<dictionary>/                       activation shards, the check of the dictionary
sample/<dictionary>/                      samples and window stores
explain/<dictionary>/<explainer>/         explanations
score/<dictionary>/<explainer>/<scorer>/  scores
requests/... usage/... failed/...         as explain and score: LLM replies, their cost, open keys
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import platform
import socket
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import pydantic

from autointerp import __version__, tables
from autointerp.errors import RunBusy, RunError, RunNotFound
from autointerp.journal import Journal, write_atomically
from autointerp.prompting import load_template
from autointerp.recipe import Recipe, dump, instance, parse, read_file
from autointerp.resolve import Identities, Resolved, asked_features
from autointerp.types import FeatureId, Json

if TYPE_CHECKING:
    from autointerp.tables import Table

CACHE_VERSION: Final = "2"
SAMPLE_VERSION: Final = "2"
"""Digested: raise them when the same input would give other shards, or other windows."""

ALL_ROWS: Final = "all"
"""Unit and key of the record that says: every row of the corpus is there."""

_RECIPE, _IDENTITIES, _ENVIRONMENT, _LOCK = "recipe.yaml", "identities.json", "environment.json", "run.lock"


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
            raise RunError(f"{path / _IDENTITIES} can't be read ({error.errors()[0]['msg']}).") from error
        return cls(path, recipe, identities)

    @classmethod
    def of(cls, path: str | Path, resolved: Resolved) -> Run:
        """What a recipe would make of a folder; nothing is written."""
        return cls(Path(path), resolved.recipe, resolved.identities)

    def save(self) -> None:
        """Writes recipe and identities; the caller holds the lock. Raises RecipeChanged, before anything
        is written, where the folder holds results of other settings."""
        self.check()
        write_atomically(self.path / _RECIPE, dump(self.recipe).encode())
        write_atomically(self.path / _IDENTITIES, orjson.dumps(self.identities, option=orjson.OPT_INDENT_2))
        if not (self.path / _ENVIRONMENT).exists():
            content = orjson.dumps(_environment(), option=orjson.OPT_INDENT_2)
            write_atomically(self.path / _ENVIRONMENT, content)

    # --- journals, in the order of the line ---

    def check(self) -> None:
        """Compares what is there with the recipe. Raises RecipeChanged for the first stage that differs."""
        for journal in self.journals():
            journal.check()

    def journals(self) -> Iterator[Journal]:
        """Those of all stages, in the order of the line."""
        yield self.rows()
        for dictionary in self.recipe.dictionaries:
            yield self.cache(dictionary)
            yield self.sample(dictionary)
            for explainer in self.recipe.explainers:
                yield self.explain(dictionary, explainer)
                for scorer in self.recipe.scorers:
                    yield self.score(dictionary, explainer, scorer)

    def rows(self) -> Journal:
        recipe, cache = self.recipe, self.recipe.cache
        assert recipe.corpus is not None  # filled by `resolve`
        made_from: Json = {
            "version": CACHE_VERSION,
            "corpus": _without(recipe.corpus, "path", "streaming") | {"identity": self.identities.corpus},
            "model": {"identity": self.identities.model},
            "cache": {
                name: getattr(cache, name)
                for name in ("n_tokens", "context_length", "prepend_bos", "shard_tokens")
            },
        }
        return self._journal("rows", made_from)

    def cache(self, dictionary: str) -> Journal:
        cache = self.recipe.cache
        made_from: Json = {
            "version": CACHE_VERSION,
            "rows": self.rows().digest,
            "model": {"identity": self.identities.model, "dtype": self.recipe.model.dtype},
            "dictionaries": {
                dictionary: {
                    "identity": self.identities.dictionaries[dictionary],
                    "hook": self.identities.sites[dictionary],
                }
            },
            "cache": {
                name: getattr(cache, name) for name in ("mask_first", "sink_ratio", "max_rows", "encode_in")
            },
        }
        return self._journal(f"cache/{dictionary}", made_from)

    def sample(self, dictionary: str) -> Journal:
        made_from: Json = {
            "version": SAMPLE_VERSION,
            "cache": self.cache(dictionary).digest,
            "sampling": dataclasses.asdict(self.recipe.sampling),
            "seed": self.recipe.seed,
        }
        return self._journal(f"sample/{dictionary}", made_from)

    def explain(self, dictionary: str, explainer: str) -> Journal:
        section = self.recipe.explainers[explainer]
        made_from: Json = {
            "sample": self.sample(dictionary).digest,
            "explainers": {explainer: self._plugin(instance("explainers", section), section)},
            "llms": {"explainer": self._llm("explainer", instance("explainers", section).needs_llm)},
            "seed": self.recipe.seed,
        }
        return self._journal(f"explain/{dictionary}/{explainer}", made_from)

    def score(self, dictionary: str, explainer: str, scorer: str) -> Journal:
        section = self.recipe.scorers[scorer]
        made_from: Json = {
            "explanations": self.explain(dictionary, explainer).digest,
            "scorers": {scorer: self._plugin(instance("scorers", section), section)},
            "llms": {"judge": self._llm("judge", instance("scorers", section).needs_llm)},
            "seed": self.recipe.seed,
        }
        return self._journal(f"score/{dictionary}/{explainer}/{scorer}", made_from)

    def existing(self, *place: str) -> Journal:
        """A stage's journal to read from, e.g. `existing("score", "layers.2", "plain", "detection")`."""
        return Journal.existing(self.path.joinpath(*place))

    def beside(self, kind: str, journal: Journal) -> Journal:
        """The journal of LLM `requests`, their `usage`, or `failed` keys that belongs to a stage's."""
        return Journal(self.path / kind / journal.folder.relative_to(self.path), None, package=__version__)

    def _journal(self, place: str, made_from: Json) -> Journal:
        return Journal(self.path / place, made_from, package=__version__)

    def _plugin(self, plugin: Any, section: dict[str, Any]) -> Json:
        return {
            "use": section["use"],
            "version": plugin.version,
            "options": dataclasses.asdict(plugin),
            "prompts": self.templates(plugin),
        }

    def templates(self, plugin: Any) -> dict[str, str]:
        """Digest of each prompt template an explainer or scorer uses, by name."""
        return {name: load_template(name, self.prompts).digest for name in plugin.templates()}

    @property
    def prompts(self) -> Path | None:
        """The user's own prompt folder."""
        return Path(self.recipe.resources.prompts) if self.recipe.resources.prompts else None

    def _llm(self, role: str, needed: bool) -> Json | None:
        section = getattr(self.recipe.llms, role)
        if not needed or section is None:
            return None
        backend = instance("llm", section)
        return {"use": section["use"], "version": backend.version} | dataclasses.asdict(backend.identity())

    # --- what is there, what is asked for, who works on it ---

    @property
    def vocabulary(self) -> Path:
        """The table of token texts."""
        return self.path / "rows" / "vocabulary.parquet"

    @property
    def first_position(self) -> int:
        """First position of a row that is looked at: 1 where position 0 (BOS, where it is put) is masked."""
        return 1 if self.recipe.cache.mask_first else 0

    def has_all_rows(self) -> bool:
        return ALL_ROWS in self.rows().read(ALL_ROWS)

    def is_cached(self, dictionary: str) -> bool:
        """Whether every shard of rows has its record of this dictionary."""
        journal = self.cache(dictionary)
        units = filter(str.isdigit, self.rows().units())
        return self.has_all_rows() and all(unit in journal.read(unit) for unit in units)

    def is_cached_whole(self) -> bool:
        """Whether the later stages have all they need of the cache."""
        return self.vocabulary.is_file() and all(map(self.is_cached, self.recipe.dictionaries))

    def asked(self, dictionary: str) -> list[FeatureId]:
        """Features the recipe asks for, ascending."""
        return asked_features(self.recipe, self.identities, dictionary)

    @contextmanager
    def lock(self) -> Generator[None]:
        """One process at a time. The kernel frees it with the process. Raises RunBusy."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / _LOCK).open("a+")
        except OSError as error:
            raise RunError(
                f"{self.path} can't be a run's folder: {error.strerror}. Use another --out."
            ) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise RunBusy(
                    f"{self.path} is being worked on by {file.read().strip() or 'another process'}. "
                    f"Wait for it, stop it, or use another --out."
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
            file.flush()
            yield
        finally:
            file.close()

    # --- results as tables ---

    def features(self) -> Table:
        """A row a sampled feature: status, density, maximum, one explanation column an explainer."""
        return tables.features(self)

    def scores(self) -> Table:
        """A row a (feature, explainer, scorer): status, metrics with intervals, protocol."""
        return tables.scores(self)

    def trials(self) -> Table:
        """A row a trial: what was asked about which window, the truth and the answer."""
        return tables.trials(self)


def _without(section: Any, *names: str) -> Json:
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in names}


def _environment() -> Json:
    packages = ("torch", "transformers", "numpy", "datasets", "openai", "safetensors", "tokenizers")
    versions: Json = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "autointerp": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
    }
