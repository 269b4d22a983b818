"""What a recipe points to: dictionaries, model and corpus found, checked against each other, identified.

Reads configuration and headers, of activations from files also the tokens; no torch, no weights. Everything
the recipe leaves open is filled from the checkpoint, so that the recipe a run keeps is complete.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autointerp.activations.dump import Dump
from autointerp.centring import centred_from_files
from autointerp.dictionaries.locate import reading_rules
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.errors import ModelError, RecipeError
from autointerp.identities import Identities, asked_features
from autointerp.places import check_without_model, described, fitted_to, placed
from autointerp.recipe import ActivationsSection, CacheSection, DictionarySection, Recipe, Resources
from autointerp.sources import DictionaryFound, Files, find_files, fitted, local
from autointerp.subject.corpus import corpus_identity
from autointerp.subject.corpus_hub import Hub
from autointerp.subject.corpus_spec import CorpusSpec
from autointerp.subject.model_files import ModelFiles, find_model

UNKNOWN_CONTEXT: Final = 256
LONGEST_CONTEXT: Final = 1_024


@dataclass(frozen=True, slots=True)
class Resolved:
    """A complete recipe and what it points to."""

    recipe: Recipe
    model: ModelFiles | None
    """None where activations come from files."""
    dictionaries: dict[str, DictionaryFound]
    """Those with weights."""
    identities: Identities
    files: Files | None = None
    """Where activations come from, if not from the model."""

    def firings_a_token(self, dictionary: str) -> float | None:
        """None where nobody knows before the dictionary has run."""
        if self.files is not None and self.files.has_firings:
            return self.files.firings_a_token(self.identities.sites[dictionary])
        if dictionary not in self.dictionaries:
            return None
        spec = self.dictionaries[dictionary].spec
        return spec.k if spec.calibration is None else spec.calibration.k


def resolve(recipe: Recipe) -> Resolved:
    """Raises an InputError or RecipeError that says what doesn't exist, doesn't fit or isn't said."""
    if recipe.activations is not None and recipe.activations.is_published:
        raise RecipeError(
            "activations.format: neuronpedia is of runs that `autointerp import neuronpedia:DIR --out RUN` made, and "
            "goes on in their folder: explain --out RUN."
        )
    if recipe.activations is not None:
        return _from_files(recipe, recipe.activations)
    specs = described(recipe)
    model = _find_model(recipe, specs.values())
    found = placed(recipe, specs, architecture=model.architecture)
    found = {name: fitted_to(model, name, dictionary) for name, dictionary in found.items()}
    corpus = recipe.corpus or _corpus_of(found)
    cache = dataclasses.replace(
        recipe.cache,
        context_length=_context_length(recipe, found, model),
        prepend_bos=_prepend_bos(recipe, found),
    )
    _check_width(recipe, cache)
    complete = dataclasses.replace(
        recipe,
        dictionaries={
            name: DictionarySection(section.path and local(section.path), found[name].place)
            for name, section in zip(found, recipe.dictionaries.values(), strict=True)
        },
        model=dataclasses.replace(recipe.model, path=local(model.name)),
        corpus=dataclasses.replace(
            corpus,
            path=local(corpus.path),
            reference=None if corpus.reference is None else local(corpus.reference),
        ),
        cache=cache,
        resources=_with_folders(recipe.resources),
    )
    identities = Identities(
        model=model.identity,
        corpus=corpus_identity(corpus, hub_of(recipe)),
        dictionaries={name: dictionary.spec.identity for name, dictionary in found.items()},
        widths={name: dictionary.spec.width for name, dictionary in found.items()},
        sites={name: dictionary.place for name, dictionary in found.items()},
        sliceable={name: dictionary.spec.feature_sliceable for name, dictionary in found.items()},
        poles={name: dictionary.spec.n_poles for name, dictionary in found.items()},
        calibrated={name: dictionary.spec.calibration is not None for name, dictionary in found.items()},
        readers=_readers(found),
    )
    for name in found:
        asked_features(complete, identities, name)  # raises for one that doesn't exist
    return Resolved(complete, model, found, identities)


def resolve_published(recipe: Recipe, before: Recipe, identities: Identities) -> Resolved:
    """A recipe that goes on with a run of published windows, where nothing is left to be found. `before`: the run's.

    Raises RecipeError where it asks for something else to be looked at.
    """
    for name in ("dictionaries", "model", "corpus", "activations"):
        if getattr(recipe, name) != getattr(before, name):
            raise RecipeError(
                f"{name}: this run holds windows that were published, without a model to look at others. Leave it as "
                f"it is, or make a run of your own with another --out."
            )
    for name in recipe.dictionaries:
        asked_features(recipe, identities, name)  # raises for one that doesn't exist
    return Resolved(
        dataclasses.replace(recipe, resources=_with_folders(recipe.resources)), None, {}, identities
    )


def hub_of(recipe: Recipe) -> Hub:
    """Where a run reads datasets: the hub, or the copies that `prefetch` made."""
    folder = recipe.resources.prefetch
    return Hub(None if folder is None else Path(folder).expanduser())


def _from_files(recipe: Recipe, section: ActivationsSection) -> Resolved:
    """As `resolve`, where no model is needed."""
    files = find_files(recipe, section)
    found = placed(recipe, described(recipe), hook=files.hook)
    if isinstance(files.activations, Dump):
        found = {name: _as_long_as(one, files.activations.d_in) for name, one in found.items()}
    if not files.has_firings:
        check_without_model(found)
        found = centred_from_files(found, files.tokenizer)
    named = fitted(recipe, files.activations, found)
    complete = dataclasses.replace(
        recipe,
        dictionaries={name: one.section for name, one in named.items()},
        activations=files.completed(section),
        cache=files.completed_cache(recipe.cache),
        resources=_with_folders(recipe.resources),
    )
    _check_width(recipe, complete.cache)
    identities = Identities(
        model=files.tokenizer.identity,
        corpus=files.activations.identity,
        dictionaries={name: one.identity for name, one in named.items()},
        widths={name: one.width for name, one in named.items()},
        sites={name: str(one.section.hook) for name, one in named.items()},
        sliceable={name: name in found and found[name].spec.feature_sliceable for name in named},
        poles={name: found[name].spec.n_poles if name in found else 1 for name in named},
        calibrated={
            name: not files.has_firings and found[name].spec.calibration is not None for name in named
        },
        readers={} if files.has_firings else _readers(found),
    )
    for name in named:
        asked_features(complete, identities, name)  # raises for one that doesn't exist
    return Resolved(complete, None, found, identities, files)


def _readers(found: dict[str, DictionaryFound]) -> dict[str, str]:
    rules = {name: reading_rules(dictionary.spec) for name, dictionary in found.items()}
    return {name: said for name, said in rules.items() if said is not None}


def _as_long_as(found: DictionaryFound, d_in: int) -> DictionaryFound:
    """Random directions, for the vectors that a folder holds; what these are of decides whether a basis fits."""
    if found.spec.is_basis:
        return found
    return dataclasses.replace(found, spec=found.spec.sized(d_in))


def _check_width(recipe: Recipe, cache: CacheSection) -> None:
    assert cache.context_length is not None
    if recipe.sampling.width > cache.context_length:
        raise RecipeError(
            f"sampling.width is {recipe.sampling.width}, more than the {cache.context_length} tokens of a "
            f"context: no row holds such a window."
        )


def _with_folders(resources: Resources) -> Resources:
    """With absolute paths of folders that must be there."""
    prompts, other = resources.prompts, resources.reuse_requests
    if prompts is not None and not Path(prompts).is_dir():
        raise RecipeError(f"resources.prompts: there is no folder '{prompts}'.")
    if other is not None and not (Path(other) / "recipe.yaml").is_file():
        raise RecipeError(
            f"resources.reuse_requests: no run lies in '{other}' (there is no recipe.yaml). Name the folder of the "
            f"run whose answers are to be used again."
        )
    return dataclasses.replace(
        resources,
        prompts=None if prompts is None else local(prompts),
        reuse_requests=None if other is None else local(other),
    )


def _find_model(recipe: Recipe, specs: Iterable[DictionarySpec]) -> ModelFiles:
    said = {spec.model for spec in specs} - {None}
    name = recipe.model.path or (said.pop() if len(said) == 1 else None)
    if name is None:
        reason = f"the checkpoints name {sorted(map(str, said))}" if said else "the checkpoint doesn't say"
        raise ModelError(f"which model do these activations come from? {reason.capitalize()}: use --model.")
    try:
        files = find_model(name, recipe.model.revision)
        return files.randomised(recipe.seed) if recipe.model.weights == "random" else files
    except ModelError as error:
        if recipe.model.path:
            raise
        raise ModelError(f"{error} (The checkpoint names this model; --model gives another.)") from error


def _corpus_of(found: dict[str, DictionaryFound]) -> CorpusSpec:
    said = {dictionary.spec.corpus for dictionary in found.values()} - {None}
    if len(said) != 1:
        raise RecipeError(
            "which text shall the model read? The checkpoint doesn't say what it was trained on: use "
            "--corpus FILE, --corpus FOLDER or --corpus ORG/DATASET."
        )
    return CorpusSpec(path=str(said.pop()))


def _context_length(recipe: Recipe, found: dict[str, DictionaryFound], model: ModelFiles) -> int:
    limit = model.architecture.max_positions
    asked = recipe.cache.context_length
    if asked is not None:
        if limit is not None and asked > limit:
            raise ModelError(
                f"cache.context_length is {asked}, but {model.name} takes at most {limit} tokens."
            )
        return asked
    said = [spec.context_length for d in found.values() if (spec := d.spec).context_length]
    length = min([*said, LONGEST_CONTEXT]) if said else UNKNOWN_CONTEXT
    return min(length, limit) if limit else length


def _prepend_bos(recipe: Recipe, found: dict[str, DictionaryFound]) -> bool:
    if recipe.cache.prepend_bos is not None:
        return recipe.cache.prepend_bos
    said = {dictionary.spec.prepend_bos for dictionary in found.values()}
    if len(said) > 1:
        raise RecipeError(
            "the dictionaries disagree whether contexts begin with BOS: set it, --set cache.prepend_bos=true."
        )
    return said.pop()
