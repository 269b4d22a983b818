"""How many windows one prompt holds, where the recipe leaves it open: by what the server charges.

Each prompt begins with instructions and examples. Where they come from the prompt cache they cost next to
nothing, and ten windows are what judges read well; where every prompt pays for them, twenty halve their part.
A new run writes the number into its recipe, and every score's protocol tells it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

from autointerp.llm.dialects import Addressed
from autointerp.prompting import load_template
from autointerp.recipe import PluginSection, Recipe, instance
from autointerp.stages.expected import n_tokens

CHOICES: Final = (10, 20)
WINDOW_TOKENS: Final = 45
"""Of a window of 32 tokens with its number and its answer."""
PAYS: Final = 0.1
"""A larger prompt must save so much of what a window costs."""
_FIELD: Final = "windows_per_prompt"


def with_packing(recipe: Recipe) -> Recipe:
    """The recipe with the number written into those scorers that have it as an option and don't say it."""
    judge = recipe.llms.judge
    if judge is None:
        return recipe
    backend = instance("llm", judge)
    if not isinstance(backend, Addressed):
        return recipe
    dialect = backend.dialect()
    if dialect.cached_from is None or dialect.prices is None:
        return recipe  # nobody knows what a long beginning costs there: the scorer's own default stays
    scorers = {
        name: _packed(recipe, section, dialect.cached_from, dialect.prices.cached, dialect.prices.input)
        for name, section in recipe.scorers.items()
    }
    return dataclasses.replace(recipe, scorers=scorers)


def _packed(
    recipe: Recipe, section: PluginSection, cached_from: int, cached: float | None, price: float
) -> PluginSection:
    scorer: Any = instance("scorers", section)
    if _FIELD in section or _FIELD not in {field.name for field in dataclasses.fields(scorer)}:
        return section
    beginning = sum(_beginning(recipe, name) for name in scorer.templates())
    is_cached = bool(cached_from) and beginning >= cached_from
    share = (price if cached is None else cached) / price if is_cached and price else 1.0
    return {**section, _FIELD: cheapest(beginning * share)}


def cheapest(beginning: float) -> int:
    """`beginning`: of a prompt, in tokens at the full price."""
    chosen = CHOICES[0]
    for larger in CHOICES[1:]:
        before, after = (beginning / n + WINDOW_TOKENS for n in (chosen, larger))
        if after < before * (1 - PAYS):
            chosen = larger
    return chosen


def _beginning(recipe: Recipe, name: str) -> int:
    """Tokens of a template's turns before its last, which hold no variables."""
    folder = recipe.resources.prompts
    template = load_template(name, Path(folder) if folder else None)
    return sum(n_tokens(turn.render()) for _, turn in template.turns[:-1])
