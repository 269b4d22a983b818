"""Where a dictionary comes from, as far as names of files and folders tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from autointerp.errors import SiteError
from autointerp.subject.sites import parse_hook
from autointerp.types import Site


def named(path: Path, pattern: str) -> re.Match[str] | None:
    """Where `pattern` is found in the name of `path` or of a folder that holds it, the innermost first. In the
    hub's cache a repository is a folder `models--org--name`."""
    matches = (re.search(pattern, part) for part in reversed(path.absolute().parts))
    return next((match for match in matches if match), None)


HUB_NAMES: Final = {
    "gpt2-small": "gpt2",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    **{f"qwen3-{size.lower()}": f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")},
}
HUB_OWNERS: Final = {"pythia-": "EleutherAI", "gemma-": "google"}
"""TransformerLens' names of models that are no hub ids, as far as they are common."""


def hub_name(name: str | None) -> str | None:
    """A model's id on the hub, of TransformerLens' name for it."""
    if name is None or "/" in name:
        return name
    owner = next((owner for prefix, owner in HUB_OWNERS.items() if name.startswith(prefix)), None)
    return f"{owner}/{name}" if owner else HUB_NAMES.get(name, name)


def site_of(hook: str | None) -> Site | None:
    """None also for a name that is not understood: the recipe can give another, and else says why."""
    try:
        return parse_hook(hook) if hook else None
    except SiteError:
        return None
