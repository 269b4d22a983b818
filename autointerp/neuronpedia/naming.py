"""What a run's dictionaries are called on Neuronpedia: model, source set, source, hook point."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from autointerp.errors import PublishError, SiteError
from autointerp.neuronpedia.kept import kept_source
from autointerp.neuronpedia.layout import DEFAULT_CREATOR, EXPLANATION_TYPES
from autointerp.run import Run
from autointerp.subject.sites import parse_hook
from autointerp.types import Point, digest

_HOOKS: Final[dict[Point, str]] = {
    "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post",
    "attn_in": "hook_attn_in", "attn_out": "hook_attn_out", "z": "attn.hook_z", "mlp_in": "hook_mlp_in",
    "mlp_out": "hook_mlp_out", "neurons": "mlp.hook_post",
}  # fmt: skip
"""TransformerLens' names, which theirs are; other points have none."""
_SHORT: Final[dict[Point, str]] = {
    "resid_pre": "res-pre", "resid_mid": "res-mid", "resid_post": "res", "attn_out": "att", "mlp_out": "mlp",
}  # fmt: skip
_FITS: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user wants things called; None: as the run's identities say."""

    model: str | None = None
    source_set: str | None = None
    sources: Sequence[str] = ()
    """`ID`, or `DICTIONARY=ID`."""
    creator: str = DEFAULT_CREATOR
    kind: str | None = None
    """Type of the explanations, one that is registered there."""


@dataclass(frozen=True, slots=True)
class Names:
    """Of one dictionary."""

    model: str
    source_set: str
    source: str
    """`LAYER-SET`."""
    creator: str
    kind: str
    hook: str | None

    def id(self, *parts: str | int) -> str:
        """The same for the same thing in every export, in the form of theirs."""
        return f"c{digest('neuronpedia', self.model, self.source, *parts)[:24]}"


DEFAULT_KIND: Final = "eleuther_acts_top20"
"""The registered type that is closest to explainers that see marked tokens in windows; notes say which it was."""


def names_of(run: Run, asked: Asked) -> dict[str, Names]:
    """By dictionary. Raises PublishError where a name does not do, or two dictionaries would have one."""
    given = _given(run, asked.sources)
    found = {name: _names(run, name, asked, given.get(name)) for name in run.recipe.dictionaries}
    for name, names in found.items():
        for what, text in (
            ("--model-id", names.model),
            ("--source-set", names.source_set),
            ("--source", names.source),
        ):
            if not _FITS.fullmatch(text):
                raise PublishError(
                    f"'{text}' can't be a name on Neuronpedia (of {name}): lower-case letters, digits, '_', '.' and "
                    f"'-' are. Give another: {what}."
                )
        twin = next(
            (other for other, its in found.items() if other != name and its.source == names.source), None
        )
        if twin is not None:
            raise PublishError(
                f"dictionaries '{name}' and '{twin}' would both be source '{names.source}': name them, --source "
                f"{name}=ID --source {twin}=ID."
            )
    if asked.kind is not None and not asked.kind.strip():
        raise PublishError(f"--type is empty; registered are {', '.join(EXPLANATION_TYPES)}.")
    return found


def _given(run: Run, sources: Sequence[str]) -> dict[str, str]:
    dictionaries = list(run.recipe.dictionaries)
    found: dict[str, str] = {}
    for text in sources:
        name, equals, source = text.rpartition("=")
        if not equals and len(dictionaries) > 1:
            raise PublishError(
                f"--source {text}: of which dictionary? Write e.g. --source {dictionaries[0]}={text}."
            )
        name = name if equals else dictionaries[0]
        if name not in dictionaries:
            raise PublishError(
                f"--source {text}: {run.path} has no '{name}'. It has: {', '.join(dictionaries)}."
            )
        found[name] = source.lower()
    return found


def _names(run: Run, dictionary: str, asked: Asked, source: str | None) -> Names:
    known = kept_source(run, dictionary)
    place, hook, layer = run.identities.sites[dictionary], None, "0"
    short = place
    try:
        site = parse_hook(place.partition("+")[0])
        layer, short = str(site.layer), _SHORT.get(site.point, site.point.replace("_", "-"))
        hook = f"blocks.{site.layer}.{_HOOKS[site.point]}" if site.point in _HOOKS else None
    except SiteError:
        pass  # somebody's own name of it
    model = asked.model or (known["model"] if known else PurePath(run.recipe.model.path or "model").name)
    if known and asked.source_set is None and source is None:
        return _all(asked, model, known["source_set"], known["name"], hook)
    source_set = asked.source_set or (
        source.partition("-")[2].partition("__")[0]
        if source
        else f"{short}-{_size(run.identities.widths[dictionary])}"
    )
    return _all(asked, model, source_set or str(source), source or f"{layer}-{source_set}", hook)


def _all(asked: Asked, model: str, source_set: str, source: str, hook: str | None) -> Names:
    kind = (asked.kind or DEFAULT_KIND).strip()
    return Names(model.lower(), source_set.lower(), source.lower(), asked.creator, kind, hook)


def _size(width: int) -> str:
    """16,384 -> 16k, as sources are named there."""
    return f"{width // 1000}k" if width >= 1000 else str(width)
