"""Activations that lie in files instead of being computed: found, and fitted to the dictionaries that read
them. Two kinds: a folder of vectors (`activations/dump.py`), and delphi's cache of firings
(`activations/delphi.py`).

Reads configuration, headers and tokens; no torch, no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autointerp.activations.delphi import DelphiCache, Hook, find_delphi, holds_delphi, site_name
from autointerp.activations.dump import Dump
from autointerp.activations.dump_files import find_dump
from autointerp.dictionaries.locate import is_place
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.errors import ActivationsError, CheckpointError, ModelError, RecipeError
from autointerp.recipe import ActivationsSection, CacheSection, DictionarySection, Recipe
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.sites import parse_hook
from autointerp.subject.tokenizer_files import TokenizerFiles, find_tokenizer
from autointerp.types import Site


@dataclass(frozen=True, slots=True)
class DictionaryFound:
    """A dictionary and where it reads the model."""

    spec: DictionarySpec
    site: Site
    site_out: Site | None = None
    """Where a transcoder writes, if that is known."""
    further_sites: tuple[Site, ...] = ()
    """What else a crosscoder reads, in order."""
    biases_of: ModelFiles | None = None
    """The model whose value biases are taken out of what a dictionary `without_value_bias` reads."""

    stated: tuple[Site, ...] = ()
    """What the checkpoint says it reads, where the recipe says another place; else empty."""

    target_is_centred: bool = False
    """Of a transcoder: it was trained to give what it predicts less each token's mean (`centring.py`)."""

    @property
    def place(self) -> str:
        """Where it reads, written as `--hook` takes it: `layers.3`, or `layers.3+layers.5`."""
        return "+".join(map(str, self.inputs))

    @property
    def inputs(self) -> tuple[Site, ...]:
        """What it reads, one vector behind the other."""
        return (self.site, *self.further_sites)

    @property
    def writes(self) -> tuple[Site, ...]:
        """Where a decoder row is added, its parts one behind the other: where the dictionary reads, of a crosscoder
        all of its sites; of a transcoder where it writes. Raises CheckpointError where nobody knows."""
        if not self.spec.is_transcoder:
            return self.inputs
        if self.site_out is None:
            raise CheckpointError(
                f"{self.spec.path} doesn't say where the transcoder writes{self.unread_output}."
            )
        return (self.site_out,)

    @property
    def unread_output(self) -> str:
        """Of a transcoder without a `site_out`: what its checkpoint calls that, for the end of a sentence."""
        hook = self.spec.hook_out
        return "" if hook is None else f" in a way that is understood (it says '{hook}')"

    @property
    def sites(self) -> tuple[Site, ...]:
        """All that must be captured: what it reads and, to check a transcoder, what it predicts."""
        return self.inputs if self.site_out is None else (*self.inputs, self.site_out)


@dataclass(frozen=True, slots=True)
class Named:
    """A dictionary of a run, as far as results depend on it."""

    section: DictionarySection
    identity: str
    width: int


@dataclass(frozen=True, slots=True)
class Files:
    """A run's activations, and the tokenizer that says what their tokens are."""

    activations: Dump | DelphiCache
    tokenizer: TokenizerFiles
    own_documents: bool
    """Each row is a document of its own."""

    @property
    def has_firings(self) -> bool:
        """Whether they are firings already, and no dictionary's weights are needed."""
        return isinstance(self.activations, DelphiCache)

    @property
    def hook(self) -> str | None:
        """Where they were taken, if one place and said."""
        return self.activations.hook if isinstance(self.activations, Dump) else None

    def firings_a_token(self, site: str) -> float | None:
        """Of the hook at a site, where the files hold firings."""
        if isinstance(self.activations, Dump):
            return None
        return self.activations.hooks[site].n_firings / self.activations.n_tokens

    def completed(self, section: ActivationsSection) -> ActivationsSection:
        """With what was found."""
        return ActivationsSection(
            path=local(section.path),
            format="delphi" if self.has_firings else "folder",
            tokenizer=local(self.tokenizer.name),
            documents="rows" if self.own_documents else "files",
        )

    def completed_cache(self, cache: CacheSection) -> CacheSection:
        """With what the files decide. Raises RecipeError where they can't top up."""
        found = self.activations
        n_tokens = found.n_tokens - found.n_rows * found.prepend_bos
        if cache.top_up and self.has_firings:
            raise RecipeError(
                f"cache.top_up is {cache.top_up:,}, but what fires is in {found.folder} already, of every "
                f"feature, and there is nothing to save. Read all of it: --top-up 0 --set "
                f"cache.n_tokens={n_tokens}"
            )
        if cache.top_up and n_tokens <= cache.n_tokens:
            raise RecipeError(
                f"cache.top_up is {cache.top_up:,}, but the {n_tokens:,} tokens of {found.folder} are all "
                f"among the cache.n_tokens ({cache.n_tokens:,}) that are read first. Leave it out: --top-up 0"
            )
        return dataclasses.replace(
            cache,
            context_length=found.context_length,
            prepend_bos=found.prepend_bos,
            n_tokens=min(cache.n_tokens, n_tokens),
        )


def find_files(recipe: Recipe, section: ActivationsSection) -> Files:
    """Raises ActivationsError, ModelError or RecipeError."""
    folder = Path(section.path).expanduser()
    cache = recipe.cache
    if section.format == "delphi" or (section.format == "auto" and holds_delphi(folder)):
        found: Dump | DelphiCache = find_delphi(folder, cache.prepend_bos)
        if cache.context_length not in (None, found.context_length):
            raise RecipeError(
                f"cache.context_length is {cache.context_length}, but the rows of {folder} have "
                f"{found.context_length} tokens. Leave it out."
            )
    else:
        found = find_dump(folder, cache.context_length, cache.prepend_bos)
    own_documents = not (isinstance(found, Dump) and found.has_documents)
    if section.documents == "files" and own_documents:
        raise ActivationsError(
            f"{folder} doesn't say of which document each row is ('documents' and 'positions'), as "
            f"activations.documents=files asks. With 'rows' each row is a document of its own."
        )
    name = section.tokenizer or recipe.model.path or found.model
    if name is None:
        raise ModelError(
            f"which tokenizer made the tokens in {folder}? Nothing there says: use --model (of a folder, "
            f"only the tokenizer's files are needed)."
        )
    tokenizer = find_tokenizer(name, recipe.model.revision)
    return Files(found, tokenizer, own_documents or section.documents == "rows")


def fitted(
    recipe: Recipe, activations: Dump | DelphiCache, weights: Mapping[str, DictionaryFound]
) -> dict[str, Named]:
    """The run's dictionaries by name. `weights`: those that were given with a path, in the recipe's order.

    Raises CheckpointError and RecipeError where they and the files don't belong together.
    """
    given = iter(weights.items())
    pairs: list[tuple[str, DictionaryFound | None, DictionarySection]] = [
        (*next(given), section) if section.path else (name, None, section)
        for name, section in recipe.dictionaries.items()
    ]
    if isinstance(activations, DelphiCache):
        return _hooks(activations, pairs)
    if not weights or len(weights) < len(pairs):
        raise RecipeError(
            f"{activations.folder} holds vectors, and no dictionary is named to encode them: give one with "
            f"--sae PATH."
        )
    named: dict[str, Named] = {}
    first = next(iter(weights.values()))
    for name, found, section in pairs:
        assert found is not None
        _check_fit(activations, name, found, first)
        complete = DictionarySection(section.path and local(section.path), found.place)
        named[name] = Named(complete, found.spec.identity, found.spec.width)
    return named


def _check_fit(dump: Dump, name: str, found: DictionaryFound, first: DictionaryFound) -> None:
    if found.spec.d_in != dump.d_in:
        raise CheckpointError(
            f"dictionary '{name}' ({found.spec.path}) reads vectors of {found.spec.d_in} numbers, but those "
            f"in {dump.folder} have {dump.d_in}. Are they of its model and site?"
        )
    if found.further_sites:
        raise CheckpointError(
            f"dictionary '{name}' reads {found.place}, but {dump.folder} holds the vectors of one site."
        )
    if dump.hook is not None and parse_hook(dump.hook) != found.site:
        raise CheckpointError(
            f"dictionary '{name}' reads {found.site}, but config.json says that the vectors in {dump.folder} "
            f"are of {dump.hook}. If that is the same place, say so: --hook {dump.hook}"
        )
    if found.site != first.site:
        raise CheckpointError(
            f"{dump.folder} holds the vectors of one site, but the dictionaries read {first.site} and "
            f"{found.site}. Make a run for each."
        )


def _hooks(
    cache: DelphiCache, pairs: list[tuple[str, DictionaryFound | None, DictionarySection]]
) -> dict[str, Named]:
    """Those asked for, all where none is."""
    if not pairs:
        return {
            site: Named(DictionarySection(hook=site), hook.identity, hook.width)
            for site, hook in cache.hooks.items()
        }
    named: dict[str, Named] = {}
    for name, found, section in pairs:
        hook = _hook(cache, str(found.site) if found else section.hook or name)
        if found is not None and found.spec.width != hook.width:
            raise CheckpointError(
                f"dictionary '{name}' ({found.spec.path}) has {found.spec.width:,} features, but the cache "
                f"of {hook.name} in {cache.folder} has {hook.width:,} latents. Is it the one that was cached?"
            )
        name = hook.site if name == "auto" else name
        if name in named:
            raise RecipeError(f"two dictionaries are called '{name}': name them in the recipe.")
        complete = DictionarySection(section.path and local(section.path), hook.site)
        named[name] = Named(complete, hook.identity, hook.width)
    return named


def _hook(cache: DelphiCache, wanted: str) -> Hook:
    """By site or by delphi's name, in any spelling; `auto` where there is one."""
    for hook in cache.hooks.values():
        if wanted in (hook.site, hook.name) or site_name(wanted) == hook.site:
            return hook
    if wanted == "auto" and len(cache.hooks) == 1:
        return next(iter(cache.hooks.values()))
    raise RecipeError(
        f"{cache.folder} has no cache of '{wanted}'. It has: {', '.join(cache.hooks)}. Choose with --hook."
    )


def local(path: str) -> str:
    """A path that exists here is kept absolute, so that a run resumes from any folder; other names (hub
    ids, `demo`, `stdlib`, `neurons`) stay. Links are not followed: in the hub's cache a file's own name says
    nothing."""
    is_name = path in ("demo", "stdlib", "neurons", "experts")
    return path if is_name or not is_place(Path(path)) else str(Path(path).absolute())
