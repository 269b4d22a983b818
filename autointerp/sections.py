"""A plug-in's section of the recipe -> the plug-in. Also for plug-ins that hold others (`explainers/race.py`)."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, Final

import pydantic

from autointerp import plugins
from autointerp.errors import RecipeError

PluginSection = dict[str, Any]
"""`{"use": name, **options}`"""

FALLBACK: Final = "fallback"
"""Beside the options of the LLM that explains: the section of another one, asked where the first refuses. It may
hold one itself."""


def without_fallback(section: PluginSection) -> PluginSection:
    """Of the LLM alone."""
    return {name: value for name, value in section.items() if name != FALLBACK}


def fallback_of(section: PluginSection | None) -> PluginSection | None:
    """The section of the LLM that is asked where the first refuses, if there is one."""
    return None if section is None else section.get(FALLBACK)


def fallbacks_of(section: PluginSection | None) -> dict[str, PluginSection]:
    """The LLMs that are asked in turn where all before refuse: `fallback`, `fallback 2` and so on."""
    found: dict[str, PluginSection] = {}
    while (section := fallback_of(section)) is not None:
        found[f"{FALLBACK} {len(found) + 1}" if found else FALLBACK] = without_fallback(section)
    return found


def instance(kind: plugins.Kind, section: PluginSection) -> Any:
    """The plug-in of a section, made from its options. Raises RecipeError or UnknownName."""
    options = without_fallback(section) if kind == "llm" else dict(section)
    use = options.pop("use", None)
    if not isinstance(use, str):
        raise RecipeError(f"'use' must name one of: {', '.join(plugins.names(kind))}.")
    plugin = plugins.find(kind, use)
    known = typing.get_type_hints(plugin)
    fields = {entry.name: known[entry.name] for entry in dataclasses.fields(plugin)}
    faults = [f"no option '{key}'.{nearest(key, fields)}" for key in options if key not in fields]
    if not faults:
        try:
            return pydantic.TypeAdapter(plugin).validate_python(options)
        except pydantic.ValidationError as error:
            faults = [fault(detail) for detail in error.errors()]
    raise RecipeError("\n".join(faults))


def fault(detail: Any) -> str:
    """One fault that pydantic found, in a line."""
    place = ".".join(str(part) for part in detail["loc"])
    found = repr(detail["input"])
    shown = found if len(found) <= 200 else f"{found[:200]}..."
    return f"{place}: {detail['msg'].lower()} (found {shown})"


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint for a name that isn't known."""
    if not known:
        return " It has none."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else f" There are: {', '.join(known)}."
