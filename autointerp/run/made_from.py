"""What identifies parts of a recipe in what is made with them: a section, a plug-in, an LLM."""

from __future__ import annotations

import dataclasses
from typing import Any

from autointerp.errors import RecipeError
from autointerp.evidence import needs_explanation
from autointerp.sections import FALLBACK, PluginSection, fallback_of, instance
from autointerp.types import Json


def of_section(section: Any, *without: str) -> Json:
    """Its fields but for those named."""
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in without}


def of_plugin(plugin: Any, section: PluginSection, prompts: dict[str, str]) -> Json:
    """Name, version, digests of its prompts, and options: but for those added later that are at their defaults,
    so that results from before stand."""
    added: Json = getattr(plugin, "added", {})
    options = dataclasses.asdict(plugin).items()
    return {
        "use": section["use"],
        "version": plugin.version,
        "options": {name: value for name, value in options if name not in added or value != added[name]},
        "prompts": prompts,
    }


def of_llm(section: PluginSection) -> Json:
    """Backend, version and identity, and those of its fallback."""
    backend = instance("llm", section)
    # A backend that says whom it answers as is not told from it: `batch` asks what `openai` would.
    use = getattr(backend, "answers_as", section["use"])
    said = {"use": use, "version": backend.version} | dataclasses.asdict(backend.identity())
    other = fallback_of(section)
    return said if other is None else said | {FALLBACK: of_llm(other)}


def scores_features(section: PluginSection) -> bool:
    """Whether a scorer needs no explanation; one whose code is not here counts as one that does."""
    try:
        return not needs_explanation(instance("scorers", section))
    except RecipeError:
        return False
