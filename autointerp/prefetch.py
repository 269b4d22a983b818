"""Prefetch: on a machine with a network, everything that a run on one without will read.

Dictionaries and the model (weights, tokenizer, configuration) go into Hugging Face's cache, where the run finds
them; of a dataset exactly the rows that the run's tokens need are copied (`subject/corpus_hub.py`). Run again,
or killed and run again, it fetches what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from autointerp import recipe as recipes
from autointerp.activations.rows import SHORTEST_TAIL, Mark, Rows, make_rows
from autointerp.dictionaries.checkpoint import layer_in
from autointerp.dictionaries.locate import is_place
from autointerp.errors import RecipeError
from autointerp.progress import Progress, Silent, Stop
from autointerp.recipe import Recipe
from autointerp.resolve import Resolved, hub_of, resolve
from autointerp.stages.rows import token_lists
from autointerp.subject.corpus import N_FIRST, documents
from autointerp.subject.corpus_hub import Content, Copy, Hub, is_offline
from autointerp.subject.corpus_spec import RANDOM, CorpusSpec, place_of, reference_of
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.tokenizer import bos_of, load_tokenizer
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Prefetched:
    """One thing that a run needs."""

    what: str
    """`model`, `dictionary NAME`, `corpus`."""
    name: str
    """As the recipe has it."""
    place: Path | None
    """Where it lies now; None for what needs no file."""
    n_bytes: int
    is_local: bool
    """It was here before and stays where it is: the run must be able to read that place."""


def prefetch(
    mapping: Mapping[str, Any], progress: Progress | None = None, stop: Stop | None = None
) -> list[Prefetched]:
    """Fetches what the recipe of these sections needs and isn't here. Raises AutointerpErrors, Interrupted."""
    recipes.check_shape(mapping)
    resolved = resolve(recipes.parse(recipes.over_default_plugins(mapping)))
    model = resolved.model
    if model is None:
        raise RecipeError(
            "this recipe reads activations from files, which no hub has: copy that folder to where the run is "
            "to be, and the tokenizer's files with it."
        )
    got = [_dictionary(resolved, name) for name in resolved.dictionaries]
    spec = _texts_of(resolved)
    place = place_of(spec)
    copying = place.kind == "hub" and not place.files
    if is_offline() and (copying or model.commit is not None or not all(d.is_local for d in got)):
        raise RecipeError(
            "HF_HUB_OFFLINE is set, and prefetch is the part that needs the network. Unset it here; set it "
            "where the run is to be."
        )
    model.with_weights()
    folder = model.with_tokenizer()
    got.append(_found("model", model.name, folder, is_local=model.commit is None))
    if copying:
        got.append(_copied(resolved, model, spec, progress or Silent(), stop or Stop()))
    else:
        got.append(_local_corpus(spec))
    return got


def _dictionary(resolved: Resolved, name: str) -> Prefetched:
    path, spec = cast(str, resolved.recipe.dictionaries[name].path), resolved.dictionaries[name].spec
    place, _ = layer_in(spec.path)
    if not place.exists():  # the model's own units, or random directions
        return Prefetched(f"dictionary {name}", path, None, 0, is_local=True)
    is_local = (
        path == "demo" or is_place(Path(path)) or spec.format == path
    )  # a function's name is its format
    return _found(f"dictionary {name}", path, place, is_local=is_local)


def _found(what: str, name: str, place: Path, *, is_local: bool) -> Prefetched:
    files = [place] if place.is_file() else [path for path in place.iterdir() if path.is_file()]
    return Prefetched(what, name, place, sum(path.stat().st_size for path in files), is_local)


# --- the corpus ----------------------------------------------------------------------------------------


def _texts_of(resolved: Resolved) -> CorpusSpec:
    """The corpus; of random tokens what they are drawn as often as in, if that is said."""
    spec = cast(CorpusSpec, resolved.recipe.corpus)
    return (reference_of(spec) or spec) if place_of(spec).kind == RANDOM else spec


def _local_corpus(spec: CorpusSpec) -> Prefetched:
    files = place_of(spec).files
    n_bytes = sum(path.stat().st_size for path in files)
    return Prefetched("corpus", spec.path, Path(spec.path) if files else None, n_bytes, is_local=True)


def _copied(
    resolved: Resolved, model: ModelFiles, spec: CorpusSpec, progress: Progress, stop: Stop
) -> Prefetched:
    recipe = resolved.recipe
    hub = hub_of(recipe)
    copy = Copy(hub.folder(), spec, hub.commit(spec))
    need = _need(resolved)
    if not copy.is_enough_for(need):
        with _growing(hub.copies, copy) as growing:
            _read(recipe, load_tokenizer(model), growing, progress, stop)
        with _growing(hub.copies, copy) as growing:
            for _ in islice(documents(spec, growing), N_FIRST):  # what every run looks at before it starts
                stop.check()
        copy.note_enough_for(need)
    copy.make_current()
    return Prefetched("corpus", spec.path, copy.folder, copy.n_bytes, is_local=False)


def _need(resolved: Resolved) -> Json:
    """What decides how many documents a run reads."""
    recipe = resolved.recipe
    return {
        "model": resolved.identities.model,
        "corpus": dataclasses.asdict(cast(CorpusSpec, recipe.corpus)),
        "n_tokens": recipe.cache.n_tokens,
        "context_length": recipe.cache.context_length,
        "prepend_bos": recipe.cache.prepend_bos,
    } | ({"top_up": recipe.cache.top_up} if recipe.cache.top_up else {})


def _read(recipe: Recipe, tokenizer: Any, hub: Hub, progress: Progress, stop: Stop) -> None:
    """Reads as much of the corpus as the run will, through `hub`, and keeps nothing of it."""
    cache = recipe.cache
    assert recipe.corpus is not None and cache.context_length is not None
    source = token_lists(recipe, tokenizer, stop, hub)
    if place_of(recipe.corpus).kind == RANDOM:
        return  # its reference has been counted
    progress.begin("prefetch corpus", cache.n_tokens + cache.top_up, "tokens")
    done = 0

    def on_shard(_rows: Rows, mark: Mark) -> None:
        nonlocal done
        progress.advance(mark.n_tokens - done)
        done = mark.n_tokens

    # What tops up begins in the document at which the first rows end; here behind it, which is not less, but for
    # a tail too short to be kept, in whose place further documents are read.
    for n_tokens in (cache.n_tokens, cache.top_up, SHORTEST_TAIL if cache.top_up else 0):
        done = 0
        make_rows(
            source,
            context_length=cache.context_length,
            bos=bos_of(tokenizer) if cache.prepend_bos else None,
            rows_per_shard=64,
            n_tokens=n_tokens,
            on_shard=on_shard,
        )
    progress.end()


@dataclass(frozen=True, slots=True)
class _Growing(Hub):
    """The hub, every row that is read copied on the way."""

    copy: Copy | None = None
    opened: list[Generator[Content]] = field(default_factory=list[Generator[Content]])

    def contents(self, spec: CorpusSpec) -> Iterator[Content]:
        assert self.copy is not None
        self.opened.append(self.copy.growing())
        return self.opened[-1]


@contextmanager
def _growing(copies: Path | None, copy: Copy) -> Generator[_Growing]:
    """What was read last is on disk when this ends, whatever ends it."""
    hub = _Growing(copies, copy)
    try:
        yield hub
    finally:
        for contents in hub.opened:
            contents.close()
