"""Whether what explainers and scorers declare that they need can be had from what the recipe points to.

Checked before anything starts, but for what an LLM can do: that is known when it is connected
(`stages/abilities.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

from autointerp.errors import RecipeError
from autointerp.evidence import NEEDS, needs_of
from autointerp.recipe import instance
from autointerp.resolve import Resolved
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
    if faults:
        raise RecipeError("the recipe can't be run:\n" + "\n".join(f"  {fault}" for fault in faults))


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
    if "select" in needs and not resolved.recipe.sampling.n_select:
        yield (
            "it needs windows to choose between explanations by, and sampling.n_select is 0. Set it, e.g. --set "
            "sampling.n_select=20"
        )
    for need, stage in (("effects", "intervene"), ("probe", "probe")):
        if need in needs:
            yield f"it needs what the {stage} stage records, and this recipe has no such stage. Leave it out"


def without_directions(resolved: Resolved, dictionary: str) -> str | None:
    """Why nothing will be known of the tokens that a dictionary's features promote, as far as names and sites tell;
    else None."""
    found = resolved.dictionaries.get(dictionary)
    if found is None:
        return "the recipe names no weights of it"
    if resolved.model is None:
        return "the activations come from files, and the model's weights are not here"
    site = found.site_out if found.spec.is_transcoder else found.inputs[-1]
    if site is None:
        return "the checkpoint doesn't say where the transcoder writes"
    return without_vocabulary(resolved.model.architecture.model_type, site)
