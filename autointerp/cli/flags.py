"""From flags to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def files_given(activations: str | None, delphi_cache: str | None) -> dict[str, Any]:
    """The recipe's section `activations`; empty where there is none."""
    from autointerp.errors import RecipeError
    from autointerp.resolve import local

    if activations and delphi_cache:
        raise RecipeError("--activations and --delphi-cache exclude each other: give one of them.")
    path = activations or delphi_cache
    return {"path": local(path), "format": "folder" if activations else "delphi"} if path else {}


def mapping_of(
    recipe: str | None,
    sae: list[str] | None,
    hook: str | None,
    model: str | None,
    corpus: str | None,
    files: dict[str, Any],
) -> dict[str, Any]:
    from autointerp.errors import RecipeError
    from autointerp.recipe import check_shape, merge, read_file
    from autointerp.resolve import local
    from autointerp.shorthand import sae_sections

    mapping: dict[str, Any] = read_file(recipe) if recipe else {}
    check_shape(mapping)
    over: dict[str, Any] = {}
    if sae:
        mapping.pop("dictionaries", None)
        over["dictionaries"] = sae_sections(sae)
    if hook:
        sections = over.get("dictionaries") or mapping.get("dictionaries")
        if not sections and files.get("format") == "delphi":
            sections = {"auto": dict[str, Any]()}
        if not sections:
            raise RecipeError("--hook says where a dictionary reads: give the dictionary too, --sae PATH.")
        over["dictionaries"] = {name: section | {"hook": hook} for name, section in sections.items()}
    if model:
        over["model"] = {"path": local(model)}
    if corpus:
        over["corpus"] = {"path": local(corpus)}
    if files:
        over["activations"] = files
    return merge(mapping, over)


def with_choices(
    mapping: dict[str, Any],
    n_features: int | None,
    features: str | None,
    first: int | None,
    llm: str | None,
    explainer_llm: str | None,
    judge_llm: str | None,
) -> dict[str, Any]:
    from autointerp.errors import RecipeError
    from autointerp.recipe import merge
    from autointerp.stages.llms import llm_section

    over: dict[str, Any] = {}
    if sum(choice is not None for choice in (n_features, features, first)) > 1:
        raise RecipeError("--n-features, --features and --first exclude each other: give one of them.")
    if n_features is not None or features is not None or first is not None:
        ids = None if features is None else _feature_list(features)
        over["features"] = {"n": n_features, "first": first, "ids": ids}
    roles = {"explainer": explainer_llm or llm, "judge": judge_llm or llm}
    over["llms"] = {role: llm_section(text) for role, text in roles.items() if text}
    return merge(mapping, over)


def with_plugins(
    mapping: dict[str, Any],
    explainer: list[str] | None,
    scorer: list[str] | None,
    settings: list[str] | None,
) -> dict[str, Any]:
    from autointerp.recipe import merge, setting

    for section, names in (("explainers", explainer), ("scorers", scorer)):
        if names:
            mapping.pop(section, None)
            mapping[section] = {name.rpartition(":")[2].lower(): {"use": name} for name in names}
    for text in settings or []:
        mapping = merge(mapping, setting(text))
    return mapping


def with_top_up(mapping: dict[str, Any], n_tokens: int | None) -> dict[str, Any]:
    from autointerp.recipe import merge

    return mapping if n_tokens is None else merge(mapping, {"cache": {"top_up": n_tokens}})


def with_limits(
    mapping: dict[str, Any], max_cost: float | None, max_tokens: int | None, reuse_requests: str | None
) -> dict[str, Any]:
    from autointerp.recipe import merge

    given = {"max_cost": max_cost, "max_tokens": max_tokens, "reuse_requests": reuse_requests}
    return merge(mapping, {"resources": {name: most for name, most in given.items() if most is not None}})


def with_shard(mapping: dict[str, Any], folder: Path, shard: str | None) -> tuple[dict[str, Any], Path]:
    """A portion has a folder of its own inside the run's, which `merge` fills."""
    from autointerp.portion import Portion
    from autointerp.recipe import merge

    if shard is None:
        return mapping, folder
    return merge(mapping, {"resources": {"shard": shard}}), folder / Portion.parse(shard).folder


def _feature_list(text: str) -> list[str]:
    from autointerp.errors import RecipeError

    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"--features {text}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"--features {text}: the file is not UTF-8 text ({error.reason}).") from error
    return [part.strip() for line in text.splitlines() for part in line.split(",") if part.strip()]


def run_name(sae: list[str] | None, mapping: dict[str, Any]) -> str:
    import re

    sections = mapping.get("dictionaries") or {}
    paths = [s["path"] for s in (*sections.values(), mapping.get("activations") or {}) if s.get("path")]
    named = sae[0] if sae else str(paths[0]) if paths else "run"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(named.rpartition("=")[2]).name or named).strip("-.")
    return name or "run"
