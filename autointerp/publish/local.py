"""What names a place on this machine says nothing to others, and is nobody's business: it stays here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from autointerp.recipe import Recipe, to_mapping
from autointerp.types import Json

_LOCAL: Final = re.compile(r"(?:~?/[\w.-]|~\w+/|\.{1,2}/|[A-Za-z]:[\\/]|file:).*", re.DOTALL)
_ADDRESSES: Final = frozenset({"base_url", "api_key_env"})


def public(text: str) -> str:
    """The last part of a path of this machine (`/data/llama@1` -> `llama@1`); other text as it is."""
    if not _LOCAL.fullmatch(text):
        return text
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] or "local"


def without_places(value: Any) -> Any:
    """JSON of settings without paths of this machine, and without servers' addresses."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, Mapping):
        return {str(key): without_places(one) for key, one in value.items() if key not in _ADDRESSES}
    if isinstance(value, list | tuple):
        return [without_places(one) for one in value]
    return value


def public_recipe(recipe: Recipe) -> Json:
    """The recipe as a mapping. What changes no result is left out: it tells of machines."""
    mapping: Json = without_places(to_mapping(recipe))
    mapping.pop("resources", None)
    return mapping
