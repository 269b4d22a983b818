"""A run's folder: where each journal lies, what it is made from, who works on it, what is in it.

recipe.yaml  identities.json  environment.json  run.lock  publication.json
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
in_flight.bin                             under a budget: what a kill would cut off (`llm/in_flight.py`)
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pydantic

from autointerp import judges, tables
from autointerp.environment import environment
from autointerp.errors import RunError, RunNotFound
from autointerp.files import read_sealed_json, sealed_json, write_atomically
from autointerp.identities import Identities
from autointerp.lock import locked
from autointerp.recipe import dump, parse, read_file
from autointerp.resolve import Resolved
from autointerp.run.contents import Contents
from autointerp.run.names import (
    ALL_ROWS,
    CALIBRATION,
    CHECK,
    ENVIRONMENT,
    IDENTITIES,
    N_NEIGHBOURS,
    N_TOKENS,
    NO_EXPLAINER,
    PACKED,
    PUBLICATION,
    RECIPE,
    SCORE_VERSION,
    TOKEN_EMBEDDING,
    VOCABULARY,
)
from autointerp.sections import fault

if TYPE_CHECKING:
    from autointerp.tables import Table

__all__ = [
    "ALL_ROWS",
    "CALIBRATION",
    "CHECK",
    "ENVIRONMENT",
    "NO_EXPLAINER",
    "N_NEIGHBOURS",
    "N_TOKENS",
    "PACKED",
    "PUBLICATION",
    "SCORE_VERSION",
    "TOKEN_EMBEDDING",
    "VOCABULARY",
    "Run",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Run(Contents):
    """One run. `Run.open(folder)` reads what is there; `Run.of(folder, resolved)` is one to be, which
    `save` makes or extends."""

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises RunNotFound."""
        path = Path(path)
        if not (path / RECIPE).is_file() or not (path / IDENTITIES).is_file():
            raise RunNotFound(
                f"no run lies in {path} (there is no {RECIPE}). `autointerp explain` makes one."
            )
        recipe = parse(read_file(str(path / RECIPE)), check_plugins=False)
        try:
            content = read_sealed_json(
                path / IDENTITIES,
                f"Delete that file; `autointerp explain --recipe {path / RECIPE} --out {path}` writes it anew, and "
                f"no result is lost.",
            )
            identities = pydantic.TypeAdapter(Identities).validate_python(content)
        except pydantic.ValidationError as error:
            raise RunError(
                f"{path / IDENTITIES} can't be read ({fault(error.errors()[0])}). A run "
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
        write_atomically(self.path / RECIPE, dump(self.recipe).encode())
        write_atomically(self.path / IDENTITIES, sealed_json(dataclasses.asdict(self.identities)))
        if not (self.path / ENVIRONMENT).exists():
            content = orjson.dumps(environment(), option=orjson.OPT_INDENT_2)
            write_atomically(self.path / ENVIRONMENT, content)

    def within(self, max_cost: float | None, max_tokens: int | None) -> Run:
        """The same with other limits, where some are given; written down by `save`."""
        given = {"max_cost": max_cost, "max_tokens": max_tokens}
        limits: dict[str, Any] = {name: most for name, most in given.items() if most is not None}
        resources = dataclasses.replace(self.recipe.resources, **limits)
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, resources=resources))

    def lock(self) -> AbstractContextManager[None]:
        """One process at a time. Raises RunBusy."""
        return locked(self.path)

    # --- in a notebook ---

    def __repr__(self) -> str:
        recipe = self.recipe
        by = f"explained by {', '.join(recipe.explainers)}; scored by {', '.join(recipe.scorers)}"
        return (
            f"<Run {self.path}: {', '.join(recipe.dictionaries)} on {recipe.model.path or 'unknown'}; {by}>"
        )

    def _repr_html_(self) -> str:
        from autointerp.report.notebook import html

        return html(self)

    # --- results as tables ---

    def features(self) -> Table:
        """A row a sampled feature and explainer: status, density, maximum, promoted tokens, explanation."""
        return tables.features(self)

    def scores(self) -> Table:
        """A row a (feature, explainer, scorer): status, metrics with intervals, protocol."""
        return tables.scores(self)

    def controls(self) -> Table:
        """A row a (feature of the panel, control, scorer): what else the judge was given for an explanation, and its
        score."""
        return tables.controls(self)

    def judges(self) -> Table:
        """A row a scorer and LLM: how far its probabilities can be believed, and Platt's scaling of them."""
        return judges.judges(self)

    def trials(self) -> Table:
        """A row a trial: what was asked about which window, the truth and the answer."""
        return tables.trials(self)
