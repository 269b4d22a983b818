"""Folder + name -> class.

A plug-in is a file: `scorers/detection.py` holds the class `Detection`, `llm/openai.py` the class
`Openai`, and adding one is adding that file. `package.module:Class` reaches code outside this package.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import pkgutil
import re
from typing import Any, Literal

from autointerp.errors import RecipeError, UnknownName

Kind = Literal["explainers", "scorers", "llm", "dictionaries"]
SINGULAR: dict[Kind, str] = {
    "explainers": "explainer",
    "scorers": "scorer",
    "llm": "LLM backend",
    "dictionaries": "dictionary format",
}


def find(kind: Kind, name: str) -> type[Any]:
    """The plug-in class called `name`. Raises UnknownName, or RecipeError for a bad `module:Class`."""
    if ":" in name:
        return _outside(name)
    if name not in names(kind):
        raise UnknownName(SINGULAR[kind], name, names(kind))
    return _class_in(f"autointerp.{kind}.{name}")


def names(kind: Kind) -> list[str]:
    """The shipped plug-ins of a kind: the modules of its folder that hold a class of their own name."""
    package = importlib.import_module(f"autointerp.{kind}")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return [name for name in sorted(modules) if _holds_class(f"autointerp.{kind}.{name}")]


def summary(kind: Kind, name: str) -> str:
    """First line of the plug-in's docstring."""
    return (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]


def class_name(module: str) -> str:
    """`example_embedding` -> `ExampleEmbedding`."""
    return "".join(part.capitalize() for part in module.split("_"))


def _class_in(module: str) -> type[Any]:
    return getattr(importlib.import_module(module), class_name(module.rpartition(".")[2]))


@functools.cache
def _holds_class(module: str) -> bool:
    """Looks at the source, once a process: listing what there is must import neither torch nor an LLM engine."""
    spec = importlib.util.find_spec(module)
    loader = None if spec is None else spec.loader
    source = loader.get_source(module) if isinstance(loader, importlib.abc.InspectLoader) else None
    name = class_name(module.rpartition(".")[2])
    return source is not None and re.search(rf"^class {name}\b", source, re.MULTILINE) is not None


def _outside(name: str) -> type[Any]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise RecipeError(f"use: {name}: write package.module:Class.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise RecipeError(f"use: {name}: no module '{module}' can be imported ({error}).") from error
    except AttributeError as error:
        raise RecipeError(f"use: {name}: module '{module}' has nothing called '{attribute}'.") from error
    if not inspect.isclass(found) or not dataclasses.is_dataclass(found):
        raise RecipeError(f"use: {name}: '{attribute}' is not a dataclass, which a plug-in must be.")
    return found
