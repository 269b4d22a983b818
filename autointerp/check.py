"""Whether dictionaries were read as they were meant: `autointerp sae check`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from autointerp import recipe as recipes
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.errors import RecipeError
from autointerp.fits import CHECKED, Fit, LeftOut
from autointerp.portion import CHECK_TOKENS
from autointerp.progress import Progress, Silent, Stop
from autointerp.resolve import resolve
from autointerp.run import Run
from autointerp.stages.device import run_on_device

MOST_TOKENS: Final = 2**24


@dataclass(frozen=True, slots=True)
class Checked:
    """One dictionary's fits: as read, then by other conventions."""

    name: str
    spec: DictionarySpec
    fits: list[Fit]
    left_out: LeftOut


def check_dictionaries(
    mapping: Mapping[str, Any],
    n_tokens: int = CHECK_TOKENS,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> list[Checked]:
    """Measures a recipe's dictionaries on so many tokens of its corpus.

    Raises RecipeError, InputErrors, Interrupted.
    """
    if not 1 <= n_tokens <= MOST_TOKENS:
        raise RecipeError(
            f"a check of {n_tokens:,} tokens: it holds the vectors of all of them in memory, and takes 1 to "
            f"{MOST_TOKENS:,}. Some 20,000 are enough (--n-tokens 20000)."
        )
    cache = {"n_tokens": n_tokens, "shard_tokens": n_tokens}
    sampling = {"width": 2, "overlap": 2, "context_before": 0}  # nothing is sampled: contexts may be short
    given = recipes.over_default_plugins(dict(mapping))
    recipe = recipes.parse(recipes.merge(given, {"cache": cache, "sampling": sampling}))
    resolved = resolve(recipe)
    if resolved.files is not None and resolved.files.has_firings:
        raise RecipeError(
            f"{resolved.files.activations.folder} holds firings without the vectors that they were made from, and a "
            "check reads vectors. Name a model and a corpus instead (--model, --corpus)."
        )
    with tempfile.TemporaryDirectory(prefix="autointerp-check-") as folder:
        run = Run.of(Path(folder) / "run", resolved)
        run.path.mkdir()
        run.save()
        run_on_device(run, "check", progress or Silent(), stop or Stop())
        found = orjson.loads((run.path / CHECKED).read_bytes())
    return [
        Checked(
            name,
            resolved.dictionaries[name].spec,
            [Fit(**fit) for fit in one["fits"]],
            LeftOut(**one["left_out"]),
        )
        for name, one in found.items()
    ]
