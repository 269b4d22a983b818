"""What users give in short, written out as the recipe's sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from autointerp import recipe as recipes
from autointerp.activations.delphi import site_name
from autointerp.dictionaries.checkpoint import is_there
from autointerp.errors import RecipeError
from autointerp.recipe import DictionarySection
from autointerp.resolve import local
from autointerp.run import Run


def sae_sections(texts: list[str]) -> dict[str, Any]:
    """`PATH` or `NAME=PATH`, several -> the recipe's `dictionaries`. What is there is a path, whatever is in it."""
    sections: dict[str, Any] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and recipes.NAME.fullmatch(name)) or is_there(Path(text)):
            name, path = "", text
        sections[name or "auto"] = {"path": local(path)}
    if len(texts) > 1 and len(sections) < len(texts):
        raise RecipeError("several dictionaries need names: --sae NAME=PATH --sae NAME=PATH.")
    return sections


def named(mapping: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """A dictionary that a run already holds goes by its name there, not by `auto`; at another hook it is
    another one."""
    mapping = dict(mapping)
    sections: dict[str, Any] = dict(mapping.get("dictionaries") or {})
    auto = sections.get("auto")
    if auto is not None and not (auto.get("path") and auto.get("hook")):
        same = [name for name, known in run.recipe.dictionaries.items() if _is_same(auto, known)]
        if same:
            mapping["dictionaries"] = {
                (same[0] if name == "auto" else name): section for name, section in sections.items()
            }
    return mapping


def _is_same(auto: Mapping[str, Any], known: DictionarySection) -> bool:
    if auto.get("path"):
        return known.path == local(auto["path"])
    return known.path is None and known.hook == site_name(str(auto.get("hook")))


def with_demo_llm(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """The embedded default needs no key and no GPU: it judges lexically unless told otherwise."""
    sections: Mapping[str, Any] = mapping.get("dictionaries") or {}
    if not sections or any(not isinstance(s, Mapping) or s.get("path") != "demo" for s in sections.values()):
        return mapping
    return recipes.merge(_DEMO, mapping)


_DEMO: Final[dict[str, Any]] = {
    "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
    "cache": {"n_tokens": 300_000},
}
