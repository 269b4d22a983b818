"""A model that a backend loads itself: a folder, or a hub id."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from autointerp.errors import RecipeError
from autointerp.identity import fingerprint
from autointerp.llm import engine_pids
from autointerp.llm.protocol import LLMIdentity, Place
from autointerp.types import digest

_KINDS: Final = (".json", ".jinja", ".model", ".txt", ".safetensors", ".gguf", ".bin")
"""Files that say what a model answers."""


def check(model: str) -> None:
    """Raises RecipeError for what is written as a path and is not there."""
    if re.match(r"[./~]", model) and not located(model).exists():
        raise RecipeError(f"model: there is no folder '{model}'")


def located(model: str) -> Path:
    """Where a folder is; what a hub id gives is no path that exists."""
    return Path(model).expanduser()


def identity(
    model: str, revision: str, changed: Sequence[object] = (), plain: Sequence[object] = ()
) -> LLMIdentity:
    """Model and revision; of a folder its name and a fingerprint of its files. Behind a `+` the digest of
    `changed`, the options that change answers, where they are not `plain`."""
    path = located(model)
    if path.exists():
        model, revision = path.resolve().name, _fingerprint(path.resolve())
    if list(changed) != list(plain):
        revision = f"{revision}+{digest(list(changed))[:8]}"
    return LLMIdentity(model, revision)


@functools.lru_cache(maxsize=8)
def _fingerprint(path: Path) -> str:
    # Parts of an embedder lie in folders of their own.
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _KINDS]
    return fingerprint(files)[:12]


def log_of(model: str, place: Place, *, beginning: str, end: str = "") -> Path:
    """The file that an engine's own words go to."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip("-.")[-80:]
    return (place.folder or engine_pids.folder()) / f"{beginning}-{name}{end}.log"
