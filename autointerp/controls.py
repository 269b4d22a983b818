"""Floors: what the same pipeline gives where there is nothing to find.

    random dictionary  random directions at the same site, as wide, and firing as often a token, as the real one
    random model       the real dictionary on the model with random weights

Each is a run of its own beside the real one, with the same recipe and the same feature numbers, made by the
ordinary line: it resumes, and it is extended with the run it belongs to. (arXiv 2410.13928 has .55 for a random
dictionary; arXiv 2501.17727 is why a score alone says little.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autointerp.dictionaries import random_topk
from autointerp.errors import RunError
from autointerp.pipeline import prepare, run_line
from autointerp.progress import Progress, Stop
from autointerp.recipe import to_mapping
from autointerp.run import CHECK, Run
from autointerp.types import Json

DICTIONARY: Final = "random dictionary"
MODEL: Final = "random model"


@dataclass(frozen=True, slots=True)
class Control:
    """A control run to be."""

    name: str
    folder: Path
    mapping: dict[str, Any]
    """Its recipe."""


def controls_of(run: Run, folder: Path, width: int | None = None) -> list[Control]:
    """The controls that this run can have. `width`: of the random dictionaries; None: as wide as the real ones.

    Raises RunError where there can be none, or nobody knows yet how often the real dictionary fires.
    """
    given = run.recipe.activations
    if given is not None and given.has_firings:
        raise RunError(
            f"the firings of {run.path} were cached elsewhere, and neither its model nor its vectors are here: no "
            f"control can be run on them. Make a run from the model (--sae, --model, --corpus), and its controls."
        )
    recipe = to_mapping(run.recipe)
    recipe["resources"] |= {"shard": None, "reuse_requests": None}
    recipe["controls"] = None  # a floor needs none
    found = [Control(DICTIONARY, folder / "random-dictionary", recipe | _random_dictionaries(run, width))]
    if given is None:
        model = recipe["model"] | {"weights": "random"}
        found.append(Control(MODEL, folder / "random-model", recipe | {"model": model}))
    return found


def _random_dictionaries(run: Run, width: int | None) -> Json:
    """The sections of the recipe that change."""
    sections: Json = {}
    n_asked: list[int] = []
    as_before = width is None
    for name, section in run.recipe.dictionaries.items():
        its_width = width or run.identities.widths[name]
        k = max(1, min(its_width, round(_l0(run, name))))
        path = random_topk.name(its_width, k, run.recipe.seed)
        sections[name] = {"path": path, "hook": section.hook}
        n_asked.append(len(run.asked(name)))
        # Neither numbers beyond its width nor poles mean anything to it.
        as_before &= run.identities.poles[name] == 1
    changed: Json = {"dictionaries": sections}
    if not as_before:
        changed["features"] = {"n": max(n_asked), "first": None, "ids": None}
    return changed


def _l0(run: Run, dictionary: str) -> float:
    """How many features fire on a token, on the first tokens of the corpus."""
    record = run.cache(dictionary).read(CHECK).get(CHECK)
    if record is None:
        raise RunError(
            f"{run.path} is not cached yet, so nobody knows how many features of '{dictionary}' fire on a token. "
            f"First: autointerp resume {run.path}"
        )
    return record["l0"]


def run_control(control: Control, progress: Progress, stop: Stop) -> Run:
    """Makes what is missing of it. Raises AutointerpErrors and Interrupted; what is done stays done."""
    resolved, run = prepare(control.mapping, control.folder)
    return run_line(run, progress=progress, stop=stop, resolved=resolved).run
