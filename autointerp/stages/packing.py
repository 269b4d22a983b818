"""How many windows one prompt holds, where the recipe leaves it open: what the judge's prices make the cheapest.

Each prompt begins with instructions and examples. Where they come from the prompt cache they cost next to
nothing; where every prompt pays for them, twenty windows halve the part of ten. One window a prompt pays most
for beginnings and least for answers: a token instead of four. Of two that cost nearly the same the smaller one is
taken, for judges read fewer windows better, and one window's answer has a probability. All windows in one prompt
are for who asks for it: one bad reply would lose a feature.

A new run writes the choice into its recipe, the plan shows it, and every score's protocol tells it. Where nobody
knows the prices (a server of one's own) `auto` stays: ten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from autointerp.llm.dialects import Addressed, Dialect
from autointerp.prompting import load_template
from autointerp.recipe import Recipe
from autointerp.scorers import question
from autointerp.sections import PluginSection, instance
from autointerp.stages.expected import n_tokens

CHOICES: Final = (1, 10, 20)
WINDOW_TOKENS: Final = 37
"""Of a window of 32 tokens with its number and, in fuzzing, its marks."""
ANSWER_TOKENS: Final = {1: 1, 10: 4, 20: 4}
"""Of the answer to a window, by windows a prompt."""
UNCACHED_TOKENS: Final = 40
"""Of a prompt's beginning that no cache holds: the explanation now and then, half a cache block, the end of a
turn."""
PAYS: Final = 0.1
"""A larger prompt must save so much of what a window costs."""
_FIELD: Final = "packing"


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
    scorers = {name: _packed(recipe, section, dialect) for name, section in recipe.scorers.items()}
    return dataclasses.replace(recipe, scorers=scorers)


def _packed(recipe: Recipe, section: PluginSection, dialect: Dialect) -> PluginSection:
    scorer: Any = instance("scorers", section)
    if getattr(scorer, _FIELD, None) != "auto":
        return section

    def beginning(k: int) -> float:
        """Of a prompt for k windows, in tokens at the full price."""
        names = (question.one_of(name) if k == 1 else name for name in scorer.templates())
        n = sum(_beginning(recipe, name) for name in names)
        return UNCACHED_TOKENS + n * _share(dialect, n)

    assert dialect.prices is not None
    output = dialect.prices.output / dialect.prices.input if dialect.prices.input else 1.0
    k = cheapest(beginning, output, choices=CHOICES if dialect.logprobs else CHOICES[1:])
    return {**section, _FIELD: "one" if k == 1 else k}


def _share(dialect: Dialect, n: int) -> float:
    """Of the full price, that the first n tokens of most prompts cost."""
    prices = dialect.prices
    assert prices is not None
    if not dialect.cached_from or n < dialect.cached_from or prices.cached is None or not prices.input:
        return 1.0
    return prices.cached / prices.input


def cheapest(beginning: Callable[[int], float], output: float, *, choices: tuple[int, ...] = CHOICES) -> int:
    """Windows a prompt. `beginning(k)`: of a prompt for k windows, in tokens at the full price; `output`: price
    of an answer's token, in those of a prompt's."""

    def of_a_window(k: int) -> float:
        return beginning(k) / k + WINDOW_TOKENS + output * ANSWER_TOKENS[k]

    chosen = choices[0]
    for larger in choices[1:]:
        if of_a_window(larger) < of_a_window(chosen) * (1 - PAYS):
            chosen = larger
    return chosen


def _beginning(recipe: Recipe, name: str) -> int:
    """Tokens of a template's turns before its last, which hold no variables."""
    folder = recipe.resources.prompts
    template = load_template(name, Path(folder) if folder else None)
    return sum(n_tokens(turn.render()) for _, turn in template.turns[:-1])
