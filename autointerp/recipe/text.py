"""A recipe from outside: YAML, mappings laid over each other, `--set a.b=1`; and back to YAML."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pydantic
import yaml

from autointerp.errors import RecipeError, UnknownName
from autointerp.prompting import shipped_folders
from autointerp.recipe.faults import faults_of, unknown_keys
from autointerp.recipe.fields import Recipe, default_explainers, default_scorers, none_if_off
from autointerp.sections import fault


def parse(mapping: Mapping[str, Any], *, check_plugins: bool = True) -> Recipe:
    """Checks everything and raises one RecipeError that lists every fault.

    To read a run's results its plug-ins need not be there: then `check_plugins` is False.
    """
    faults = list(unknown_keys(Recipe, mapping, ""))
    recipe: Recipe | None = None
    try:
        recipe = pydantic.TypeAdapter(Recipe).validate_python(dict(mapping))
    except pydantic.ValidationError as error:
        faults += [fault(detail) for detail in error.errors()]
    if recipe is not None:
        faults += list(faults_of(recipe, check_plugins))
    if recipe is None or faults:
        raise RecipeError("the recipe can't be run:\n" + "\n".join(f"  {fault}" for fault in faults))
    return recipe


def read_file(name: str) -> dict[str, Any]:
    """A recipe's mapping: a path, or the name of a shipped one (`demo` for `pipelines/demo.yaml`)."""
    path = Path(name)
    shipped = [folder / f"{name}.yaml" for folder in shipped_folders("pipelines")]
    found = next((place for place in (path, *shipped) if place.is_file()), None)
    if found is None:
        known = {p.stem for folder in shipped_folders("pipelines") for p in folder.glob("*.yaml")}
        raise UnknownName("recipe", name, known)
    try:
        mapping = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{found} is not YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise RecipeError(f"{found} must hold a mapping of sections (found {type(mapping).__name__}).")
    return typing.cast(dict[str, Any], mapping)


_WHOLE: Final = ("use", "model")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section. `features`, whose fields exclude each other, and a
    plug-in section with another `use` or another LLM's model replace what was there."""
    merged = dict(base)
    for key, value in over.items():
        before = None if key == "features" else merged.get(key)
        same_plugin = (
            not isinstance(value, Mapping)
            or not isinstance(before, Mapping)
            or all(value[name] == before[name] for name in _WHOLE if name in value and name in before)
        )
        if isinstance(value, Mapping) and isinstance(before, Mapping) and same_plugin:
            merged[key] = merge(typing.cast(Mapping[str, Any], before), typing.cast(Mapping[str, Any], value))
        else:
            merged[key] = value
    return merged


def setting(text: str) -> dict[str, Any]:
    """`sampling.n_shown=20` -> {"sampling": {"n_shown": 20}}; the value is YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"--set {text}: expected SECTION.FIELD=VALUE, e.g. --set sampling.n_shown=20.")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: '{value}' is not YAML: {error}") from error
    for part in reversed(name.split(".")):
        parsed = {part: parsed}
    return typing.cast(dict[str, Any], parsed)


def to_mapping(recipe: Recipe, *, defaults: bool = True) -> dict[str, Any]:
    """Plain data that `parse` takes; without `defaults` only what was set."""
    adapter = pydantic.TypeAdapter(Recipe)
    return adapter.dump_python(recipe, mode="json", exclude_defaults=not defaults)


_VALUES: Final = ("seed", "replica", "headline")
"""What is no section."""


def check_shape(mapping: Mapping[str, Any]) -> None:
    """Raises RecipeError where a section is no mapping, before anybody looks into it."""
    faults: list[str] = []
    hints = typing.get_type_hints(Recipe)
    for name, section in mapping.items():
        is_off = name == "controls" and none_if_off(section) is None
        if name in hints and name not in _VALUES and not is_off and not isinstance(section, Mapping | None):
            faults.append(f"{name}: must be a section of fields (found {section!r})")
        elif name in ("dictionaries", "explainers", "scorers"):
            entries = typing.cast(Mapping[str, Any], section or {})
            faults += [
                f"{name}.{inner}: must be a section of fields (found {entry!r})"
                for inner, entry in entries.items()
                if not isinstance(entry, Mapping)
            ]
    if faults:
        raise RecipeError("the recipe can't be run:\n" + "\n".join(f"  {fault}" for fault in faults))


def over_default_plugins(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Explainers or scorers that set an option without saying what they use change the default ones."""
    mapping = dict(mapping)
    for kind, defaults in (("explainers", default_explainers()), ("scorers", default_scorers())):
        sections = mapping.get(kind) or {}
        if any("use" not in section for section in sections.values()):
            mapping[kind] = merge(defaults, sections)
    return mapping


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    plain = pydantic.TypeAdapter(Recipe).dump_python(recipe, mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
