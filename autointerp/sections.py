"""A plug-in's section of the recipe -> the plug-in. Also for plug-ins that hold others (`explainers/race.py`)."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

import pydantic

from autointerp import plugins
from autointerp.errors import RecipeError

PluginSection = dict[str, Any]
"""`{"use": name, **options}`"""


def instance(kind: plugins.Kind, section: PluginSection) -> Any:
    """The plug-in of a section, made from its options. Raises RecipeError or UnknownName."""
    options = dict(section)
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
    return f"{place}: {detail['msg'].lower()} (found {detail['input']!r})"


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint for a name that isn't known."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else f" There are: {', '.join(known)}."
