"""Whether what explainers and scorers declare that they need can be had from what the recipe points to.

Checked before anything starts, but for what an LLM can do: that is known when it is connected
(`stages/abilities.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final, Literal, cast

from autointerp.errors import CheckpointError, RecipeError, SiteError
from autointerp.evidence import NEEDS, needs_of
from autointerp.recipe import Recipe
from autointerp.resolve import Resolved
from autointerp.sections import instance
from autointerp.subject.sites import locate_to_write
from autointerp.subject.stream import without_vocabulary

_Kind = Literal["explainers", "scorers"]


def check_needs(resolved: Resolved) -> None:
    """Raises RecipeError that lists every need of every explainer and scorer that can't be met."""
    faults = [
        f"{kind}.{name}: {fault}"
        for kind in cast(tuple[_Kind, ...], ("explainers", "scorers"))
        for name, section in getattr(resolved.recipe, kind).items()
        for fault in _faults(kind, needs_of(instance(kind, section)), resolved)
    ]
    faults += _ablating(resolved)
    if faults:
        raise RecipeError("the recipe can't be run:\n" + "\n".join(f"  {fault}" for fault in faults))


HARD_WINDOWS: Final = 20
"""Shown where an explainer needs them and the recipe leaves their number open."""


def with_hard_windows(recipe: Recipe) -> Recipe:
    """The recipe with their number written in, where it is left open."""
    if recipe.sampling.n_shown_hard is not None:
        return recipe
    needed = any(
        "hard" in needs_of(instance("explainers", section)) for section in recipe.explainers.values()
    )
    sampling = dataclasses.replace(recipe.sampling, n_shown_hard=HARD_WINDOWS if needed else 0)
    return dataclasses.replace(recipe, sampling=sampling)


def _faults(kind: _Kind, needs: frozenset[str], resolved: Resolved) -> Iterator[str]:
    for need in sorted(needs.difference(NEEDS[kind])):
        yield f"it declares an unknown need '{need}'. There are: {', '.join(NEEDS[kind])}"
    if "directions" in needs:
        for dictionary in resolved.recipe.dictionaries:
            if (reason := without_directions(resolved, dictionary)) is not None:
                yield (
                    f"it needs the tokens that features promote, and those of '{dictionary}' aren't known: {reason}. "
                    f"Leave it out, or use one that needs windows alone (plain)"
                )
    if "hard" in needs and not resolved.recipe.sampling.n_shown_hard:
        yield (
            "it needs silent windows that look like active ones among those shown, and sampling.n_shown_hard is 0. "
            "Leave that out, or --set sampling.n_shown_hard=20; a run that was sampled without needs another --out"
        )
    if "select" in needs and not resolved.recipe.sampling.n_select:
        yield (
            "it needs windows to choose between explanations by, and sampling.n_select is 0. Set it, e.g. --set "
            "sampling.n_select=20"
        )
    if "effects" in needs:
        for dictionary in resolved.recipe.dictionaries:
            if (reason := without_effects(resolved, dictionary)) is not None:
                yield f"it needs features of '{dictionary}' pushed, which can't be: {reason}. Leave it out"
    if "probe" in needs:
        for dictionary in resolved.recipe.dictionaries:
            if (reason := without_probe(resolved, dictionary)) is not None:
                yield f"it needs texts read by the model, for '{dictionary}', which can't be: {reason}. Leave it out"


def _ablating(resolved: Resolved) -> Iterator[str]:
    if not resolved.recipe.intervention.ablate:
        return
    for name, found in resolved.dictionaries.items():
        why = None
        if found.spec.needs_sequence:
            why = "the tokens before it, which are not encoded again while the model writes on"
        if found.spec.needs_gradient:
            why = "the tokens behind it, which are not there yet while the model writes"
        if why is not None:
            yield (
                f"intervention.ablate is true, and what a feature of '{name}' is at a token depends on {why}. "
                "Leave it out"
            )


def without_probe(resolved: Resolved, dictionary: str) -> str | None:
    """Why the model can't read new texts; None where it can."""
    if resolved.dictionaries.get(dictionary) is None:
        return "the recipe names no weights of it"
    if resolved.model is None or resolved.files is not None:
        return "the activations come from files, and the model is not here"
    return None


def without_effects(resolved: Resolved, dictionary: str) -> str | None:
    """Why the features of a dictionary can't be pushed while the model runs; None where they can."""
    found = resolved.dictionaries.get(dictionary)
    if found is None:
        return "the recipe names no weights of it"
    if resolved.model is None:
        return "the activations come from files, and the model is not here"
    try:
        for site in found.writes:
            locate_to_write(site, resolved.model.architecture.model_type)
    except (SiteError, CheckpointError) as error:
        return str(error).rstrip(".")
    return None


def without_directions(resolved: Resolved, dictionary: str) -> str | None:
    """Why nothing will be known of the tokens that a dictionary's features promote, as far as names and sites tell;
    else None."""
    given = resolved.recipe.activations
    if given is not None and given.is_published:
        return None  # of each feature whose promoted tokens were published; that none were is told one by one
    found = resolved.dictionaries.get(dictionary)
    if found is None:
        return "the recipe names no weights of it"
    if resolved.model is None:
        return "the activations come from files, and the model's weights are not here"
    site = found.site_out if found.spec.is_transcoder else found.inputs[-1]
    if site is None:
        return f"the checkpoint doesn't say where the transcoder writes{found.unread_output}"
    return without_vocabulary(resolved.model.architecture.model_type, site)
