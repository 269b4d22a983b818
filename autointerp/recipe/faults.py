"""What is wrong with a recipe: keys that don't exist, and what types alone don't say. Each fault is a line that
begins with its place."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from autointerp import plugins
from autointerp.errors import RecipeError
from autointerp.llm.protocol import Role
from autointerp.portion import Portion
from autointerp.recipe.fields import NAME, Recipe
from autointerp.sampling import settings
from autointerp.sections import FALLBACK, PluginSection, instance, nearest


def unknown_keys(kind: type[Any], mapping: Mapping[str, Any], place: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for key, value in mapping.items():
        inner = f"{place}.{key}" if place else str(key)
        if key not in hints:
            yield f"{inner}: no such key.{nearest(str(key), hints)}"
            continue
        section = _section_in(hints[key])
        if section is None:
            continue
        if typing.get_origin(hints[key]) is dict:
            for name, entry in (value or {}).items():
                if isinstance(entry, Mapping):
                    yield from unknown_keys(section, typing.cast(Mapping[str, Any], entry), f"{inner}.{name}")
        elif isinstance(value, Mapping):
            yield from unknown_keys(section, typing.cast(Mapping[str, Any], value), inner)


def _section_in(hint: Any) -> type[Any] | None:
    """The dataclass that a field's type holds: `X`, `X | None` or `dict[str, X]`."""
    candidates = (
        typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_args(hint) else (hint,)
    )
    return next((kind for kind in candidates if dataclasses.is_dataclass(kind)), None)  # type: ignore[return-value]  # a class, as it comes from an annotation


def faults_of(recipe: Recipe, check_plugins: bool) -> Iterator[str]:
    """What types alone don't say."""
    yield from _source_faults(recipe)
    for section in ("dictionaries", "explainers", "scorers"):
        for name in getattr(recipe, section):
            if not NAME.fullmatch(name):
                yield f"{section}.{name}: a name is letters, digits, '_', '.' and '-'"
    if check_plugins:
        yield from _all_plugin_faults(recipe)
    asked = recipe.features
    if sum(value is not None for value in (asked.n, asked.first, asked.ids)) > 1:
        yield "features: n, first and ids exclude each other; give one of them"
    if asked.n is not None and asked.n < 1:
        yield f"features.n: at least 1 (found {asked.n})"
    if asked.first is not None and asked.first < 1:
        yield f"features.first: at least 1 (found {asked.first})"
    yield from _control_faults(recipe)
    if recipe.resources.shard is not None:
        try:
            Portion.parse(recipe.resources.shard)
        except RecipeError as error:
            yield f"resources.shard: {error}"
        if recipe.cache.top_up:
            yield (
                f"cache.top_up: a portion of a cache can't be topped up (found resources.shard "
                f"{recipe.resources.shard}): which features lack windows is known when all of it is there. Merge "
                f"the portions (`autointerp merge`), then: explain --top-up {recipe.cache.top_up} --out RUN"
            )
    yield from _number_faults(recipe)


def _control_faults(recipe: Recipe) -> Iterator[str]:
    controls = recipe.controls
    if controls is None:
        return
    if controls.panel < 2:
        yield (
            f"controls.panel: at least 2, since each lends another its explanation (found {controls.panel}); for no "
            f"controls: --set controls=off"
        )
    for name in controls.scorers or ():
        if name not in recipe.scorers:
            yield f"controls.scorers: no scorer is called '{name}'.{nearest(name, recipe.scorers)}"


def _source_faults(recipe: Recipe) -> Iterator[str]:
    """Firings may come without weights; everything else needs dictionaries."""
    given = recipe.activations
    if given is None and not recipe.dictionaries:
        yield "dictionaries: none is named; give one with --sae PATH, or --sae demo"
    if given is not None and given.format == "folder" and not recipe.dictionaries:
        yield "dictionaries: none is named to encode these activations; give one with --sae PATH"
    if given is not None and recipe.corpus is not None:
        yield (
            "corpus: can't be used with activations, which are of their own text already; leave one of the "
            "two out (a run keeps what it began with: for the other use another --out)"
        )
    if given is not None and recipe.model.weights == "random":
        yield "model.weights: random weights make other activations than those in files; leave one of the two out"
    if given is not None and recipe.sampling.n_embedding:
        yield (
            "sampling.n_embedding: windows are compared by the model's token embeddings, and of these "
            f"activations the model is not here (found {recipe.sampling.n_embedding}); set it to 0"
        )
    if given is not None and recipe.cache.random_tokens:
        yield (
            f"cache.random_tokens: no model runs where activations come from files, so nothing is known of "
            f"random tokens; leave it out (found {recipe.cache.random_tokens})"
        )
    for name, section in recipe.dictionaries.items():
        if section.path is None and (given is None or given.format == "folder"):
            yield f"dictionaries.{name}.path: field required (found None)"


def _all_plugin_faults(recipe: Recipe) -> Iterator[str]:
    for kind, sections in (("explainers", recipe.explainers), ("scorers", recipe.scorers)):
        for name, section in sections.items():
            yield from _plugin_faults(typing.cast(plugins.Kind, kind), f"{kind}.{name}", section)
    for role in get_args(Role):
        section = getattr(recipe.llms, role)
        if section is not None:
            yield from _plugin_faults("llm", f"llms.{role}", section)
            yield from _fallback_faults(role, f"llms.{role}", [section])


def _fallback_faults(role: str, place: str, refused: list[PluginSection]) -> Iterator[str]:
    """Of the last section of `refused`, whose fallback is asked when all of them have been."""
    if FALLBACK not in refused[-1]:
        return
    place, other = f"{place}.{FALLBACK}", refused[-1][FALLBACK]
    if role != "explainer":
        yield f"{place}: only the LLM that explains can have one; a judge that refuses leaves its answer unreadable"
    elif not isinstance(other, Mapping):
        yield (
            f"{place}: must be the section of an LLM, e.g. {{use: openai, model: MODEL}}, which may have a "
            f"{FALLBACK} itself (found {other!r})"
        )
    else:
        next_one = typing.cast(PluginSection, other)
        yield from _plugin_faults("llm", place, next_one)
        if any(_is_same_llm(one, next_one) for one in refused):
            yield (
                f"{place}: it is an LLM that has refused, whose answers are kept under its name; name another model"
            )
        else:
            yield from _fallback_faults(role, place, [*refused, next_one])


def _is_same_llm(section: PluginSection, other: PluginSection) -> bool:
    """Whether answers of both would be kept as one LLM's, also where they are asked at different addresses."""
    try:
        first, second = instance("llm", section), instance("llm", other)
    except RecipeError:  # told elsewhere
        return False
    model = getattr(first, "model", None)
    return (
        model is not None
        and model == getattr(second, "model", None)
        and first.identity() == second.identity()
    )


def _number_faults(recipe: Recipe) -> Iterator[str]:
    cache, engine = recipe.cache, recipe.resources.engine
    least = {
        "cache.n_tokens": (cache.n_tokens, 1),
        "cache.shard_tokens": (cache.shard_tokens, 1),
        "cache.top_up": (cache.top_up, 0),
        "cache.top_up_below": (cache.top_up_below, 1),
        "cache.max_rows": (cache.max_rows, 2),
        "cache.calibration_tokens": (cache.calibration_tokens, 1),
        "cache.random_tokens": (cache.random_tokens, 0),
        "resources.sample_firings": (recipe.resources.sample_firings, 1),
        "resources.n_in_flight": (
            1 if recipe.resources.n_in_flight is None else recipe.resources.n_in_flight,
            1,
        ),
        "resources.engine.tensor_parallel": (engine.tensor_parallel, 1),
        "resources.engine.data_parallel": (1 if engine.data_parallel is None else engine.data_parallel, 1),
    }
    for place, (value, minimum) in least.items():
        if value < minimum:
            yield f"{place}: at least {minimum} (found {value})"
    if cache.shard_tokens > 2**24:
        yield f"cache.shard_tokens: at most {2**24:,} (found {cache.shard_tokens:,})"
    if recipe.headline is not None and recipe.replica is None:
        yield (
            f"headline: {recipe.headline} rewards saying what most windows are; it is there to reproduce a published "
            f"protocol, and only a recipe that says so may have it: replica: NAME (else null)"
        )
    if recipe.replica is not None and not NAME.fullmatch(recipe.replica):
        yield f"replica: a name is letters, digits, '_', '.' and '-' (found {recipe.replica!r})"
    yield from _replica_only_faults(recipe)
    yield from settings.faults(recipe.sampling, is_replica=recipe.replica is not None)
    yield from (f"intervention.{fault}" for fault in recipe.intervention.faults())
    if cache.sink_ratio is not None and cache.sink_ratio <= 1:
        yield f"cache.sink_ratio: above 1, or null (found {cache.sink_ratio:g})"
    for name, most in (("max_cost", recipe.resources.max_cost), ("max_tokens", recipe.resources.max_tokens)):
        if most is not None and not 0 <= most < math.inf:
            yield f"resources.{name}: 0 or more (found {most:g})"
    if not 0 < engine.memory <= 1:
        yield f"resources.engine.memory: above 0, at most 1 (found {engine.memory:g})"
    if cache.context_length is not None and not 2 <= cache.context_length <= 65_535:
        yield f"cache.context_length: from 2 to 65,535 (found {cache.context_length})"


def _replica_only_faults(recipe: Recipe) -> Iterator[str]:
    """Scorers' options that reproduce a published protocol's faults."""
    if recipe.replica is not None:
        return
    for name, section in recipe.scorers.items():
        try:
            scorer = instance("scorers", section)
        except RecipeError:  # told elsewhere
            continue
        kept: dict[str, Any] = getattr(scorer, "replica_only", {})
        for option, value in kept.items():
            if (found := getattr(scorer, option)) != value:
                yield (
                    f"scorers.{name}.{option}: {found} tells a judge more than it should know; it is there to "
                    f"reproduce a published protocol, and only a recipe that says so may have it: replica: NAME "
                    f"(else {value})"
                )


def _plugin_faults(kind: plugins.Kind, place: str, section: PluginSection) -> Iterator[str]:
    try:
        instance(kind, section)
    except RecipeError as error:
        for line in str(error).splitlines():
            yield f"{place}: {line}"
