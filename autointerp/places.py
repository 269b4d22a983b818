"""Where a recipe's dictionaries read and write the model, and whether they fit there.

What a checkpoint calls a place may hang on the model's family, so that names are read again with the model.
"""

from __future__ import annotations

import dataclasses

from autointerp.centring import centred
from autointerp.dictionaries.locate import find_dictionary
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.errors import CheckpointError, RecipeError, SiteError
from autointerp.recipe import Recipe
from autointerp.sources import DictionaryFound
from autointerp.subject.architecture import Architecture
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.sites import (
    BEHIND_GAIN,
    check_site,
    locate,
    parse_hook,
    read_again,
    width_at,
)
from autointerp.types import Site


def described(recipe: Recipe) -> dict[str, DictionarySpec]:
    """Those with weights, by their names in the recipe. Raises CheckpointError."""
    return {
        name: find_dictionary(section.path)
        for name, section in recipe.dictionaries.items()
        if section.path is not None
    }


def placed(
    recipe: Recipe,
    specs: dict[str, DictionarySpec],
    *,
    architecture: Architecture | None = None,
    hook: str | None = None,
) -> dict[str, DictionaryFound]:
    """Where they read, and what they are called. `architecture`: the model's, None where activations come from
    files. `hook`: where one reads that doesn't say. Raises SiteError, CheckpointError, RecipeError."""
    found: dict[str, DictionaryFound] = {}
    model_type = None if architecture is None else architecture.model_type
    for name, spec in specs.items():
        asked = recipe.dictionaries[name].hook
        given = [parse_hook(text, model_type) for text in asked.split("+")] if asked else []
        site = given[0] if given else _said(spec, architecture)
        if site is None and hook:
            site = parse_hook(hook)
        if site is None:
            if spec.is_basis:
                example = f"--hook layers.12.{spec.basis}"
                raise CheckpointError(f"which {spec.basis}? Say a layer's with --hook, e.g. {example}.")
            raise CheckpointError(
                f"{spec.path} doesn't say which activations it reads. Say it with --hook, e.g. "
                f"--hook layers.12 (the residual stream after layer 12) or --hook layers.12.mlp."
            )
        further = tuple(given[1:]) if given else _behind_gain(spec, spec.further_sites, architecture)
        if len({site, *further}) <= len(further):
            named = f"--hook {asked}" if given else f"{spec.path}: {site}, {', '.join(map(str, further))}"
            raise RecipeError(f"{named}: each place is read once. Name every one once, with --hook A+B.")
        stated = _all_said(spec, architecture) if given else ()
        stated = () if stated == (site, *further) else stated
        one = DictionaryFound(spec, site, _output(spec, architecture), further, stated=stated)
        name = one.place.replace("+", "-") if name == "auto" else name
        if name in found:
            raise RecipeError(f"two dictionaries are called '{name}': name them, --sae NAME=PATH.")
        found[name] = one
    return found


def _said(spec: DictionarySpec, architecture: Architecture | None) -> Site | None:
    """Where the checkpoint says that it reads. Raises SiteError for a name that is not understood."""
    if architecture is not None:
        site = read_again(spec.site, spec.hook, architecture.model_type)
        return None if site is None else _behind_gain(spec, (site,), architecture)[0]
    return spec.site or (parse_hook(spec.hook) if spec.hook else None)


def _all_said(spec: DictionarySpec, architecture: Architecture | None) -> tuple[Site, ...]:
    """All places where the checkpoint says that it reads; none where it says nothing that is understood."""
    try:
        first = _said(spec, architecture)
    except SiteError:
        return ()
    return () if first is None else (first, *_behind_gain(spec, spec.further_sites, architecture))


def _behind_gain(
    spec: DictionarySpec, sites: tuple[Site, ...], architecture: Architecture | None
) -> tuple[Site, ...]:
    """What names of `hook_normalized` meant where the dictionary was trained."""
    if architecture is None or not (spec.normalized_behind_gain and architecture.has_layer_norm):
        return sites
    return tuple(Site(BEHIND_GAIN.get(site.point, site.point), site.layer) for site in sites)


def _output(spec: DictionarySpec, architecture: Architecture | None) -> Site | None:
    """Where a transcoder writes; None where nothing is known of it, or not in this family: it reads all the same,
    and only what it predicts can't be compared."""
    if architecture is None:
        return spec.site_out
    try:
        site = read_again(spec.site_out, spec.hook_out, architecture.model_type)
        if site is not None:
            check_site(site, architecture)
    except SiteError:
        return None
    return site


def fitted_to(model: ModelFiles, name: str, dictionary: DictionaryFound) -> DictionaryFound:
    """The dictionary, with what only the model's family says. Raises CheckpointError or SiteError where it
    doesn't fit."""
    dictionary = _sized(dictionary, model)
    if dictionary.spec.n_models > 1:
        raise CheckpointError(
            f"dictionary '{name}' ({dictionary.spec.path}) is a crosscoder of {dictionary.spec.n_models} models, and "
            "a run has one: codes of one model's vectors are not the crosscoder's. Store the vectors of both at that "
            f"site, those of a token one behind the other ({dictionary.spec.d_in} numbers), and read them with "
            "--activations FOLDER."
        )
    for site in dictionary.inputs:
        check_site(site, model.architecture)
    if dictionary.spec.needs_gradient:
        _check_gradient(name, dictionary, model.architecture.model_type)
    width = sum(width_at(site, model.architecture) for site in dictionary.inputs)
    if dictionary.spec.d_in != width:
        raise CheckpointError(
            f"dictionary '{name}' ({dictionary.spec.path}) reads vectors of {dictionary.spec.d_in} numbers, "
            f"but {dictionary.place} of {model.name} has {width}. Is it the right --model and --hook?"
        )
    out = dictionary.site_out
    if out is not None and dictionary.spec.d_out != (width := width_at(out, model.architecture)):
        raise CheckpointError(
            f"dictionary '{name}' ({dictionary.spec.path}) writes vectors of {dictionary.spec.d_out} "
            f"numbers, but {out} of {model.name} has {width}. Is it the right --model?"
        )
    takes_out = dictionary.spec.without_value_bias and any(site.point == "z" for site in dictionary.inputs)
    dictionary = dataclasses.replace(dictionary, biases_of=model if takes_out else None)
    return centred(name, dictionary, model.architecture)


def _check_gradient(name: str, found: DictionaryFound, model_type: str) -> None:
    for site in found.inputs:
        if (rule := locate(site, model_type).rule) is not None:
            raise CheckpointError(
                f"dictionary '{name}' ({found.spec.path}) chooses by gradients of the model's loss "
                f"(gradient_weight), and nothing can be differentiated by '{site}': in a '{model_type}' model no "
                f"module emits it, it is computed ({rule}). Leave gradient_weight out, for the top k of activations "
                "alone."
            )


def check_without_model(found: dict[str, DictionaryFound]) -> None:
    """Raises CheckpointError for a dictionary that needs more of the model than activations."""
    for name, one in found.items():
        if one.spec.needs_gradient:
            raise CheckpointError(
                f"dictionary '{name}' ({one.spec.path}) chooses by gradients of the model's loss (gradient_weight), "
                "which files of activations don't hold. Run it on the model (--model, --corpus), or leave "
                "gradient_weight out, for the top k of activations alone."
            )


def _sized(found: DictionaryFound, model: ModelFiles) -> DictionaryFound:
    """Of neurons or experts, as many as the model has; of random directions, as long as its vectors are. Raises
    SiteError where the site is not theirs."""
    if found.spec.is_sized:
        return found
    if found.spec.is_basis and found.site.point != found.spec.basis:
        place = f"layers.{found.site.layer}.{found.spec.basis}"
        raise SiteError(f"'{found.site}' has no {found.spec.basis}: say --hook {place}.")
    for site in found.inputs:
        check_site(site, model.architecture)
    width = sum(width_at(site, model.architecture) for site in found.inputs)
    if found.spec.is_basis and (found.spec.k or 0) > width:
        raise CheckpointError(
            f"'{found.spec.path}' keeps {found.spec.k:,} of a token's neurons, and {found.site} of {model.name} has "
            f"{width:,}. Write at most neurons:{width}."
        )
    return dataclasses.replace(found, spec=found.spec.sized(width))
