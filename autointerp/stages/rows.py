"""The corpus' part of caching: documents -> token rows, once a run, whatever dictionaries read them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.random_tokens import TokenUrn, drawable, random_documents
from autointerp.activations.rows import START, Mark, Rows, make_rows, row_shards, save_rows
from autointerp.errors import CorpusError
from autointerp.journal import Journal, Part
from autointerp.portion import is_front
from autointerp.progress import Progress, Stop
from autointerp.recipe import Recipe
from autointerp.resolve import hub_of
from autointerp.run import ALL_ROWS, Run
from autointerp.subject.corpus import documents, refuse_one_document, require_documents
from autointerp.subject.corpus_hub import Hub
from autointerp.subject.corpus_spec import RANDOM, place_of, reference_of
from autointerp.subject.tokenizer import Tokenised, bos_of
from autointerp.types import Json

TokenLists = Iterator[tuple[int, NDArray[np.uint32]]]

_ENOUGH: Final = 2
"""Documents that are enough to know that there is more than one."""


def read_corpus(run: Run, tokenizer: Any, progress: Progress, stop: Stop) -> None:
    """Makes the rows that are missing. What is made already is read again, for its ids, but not tokenised.

    Raises InputErrors, DiskFull, Interrupted.
    """
    recipe, journal = run.recipe, run.rows()
    assert recipe.corpus is not None and recipe.cache.context_length is not None
    bos = bos_of(tokenizer) if recipe.cache.prepend_bos else None
    begin, used = _made_before(journal)
    end = begin
    progress.begin("read corpus", recipe.cache.n_tokens, "tokens", done=begin.n_tokens)

    def on_shard(rows: Rows, mark: Mark) -> None:
        nonlocal end
        stop.check()
        first_row = mark.n_rows - len(rows)
        unit = f"{first_row:09d}"
        number = first_row // recipe.cache.rows_per_shard
        is_kept = run.portion.takes(number) or is_front(end.n_tokens, end.n_rows)
        if is_kept and unit not in journal.read(unit):
            with Part(journal, unit) as part:
                seal = part.attach(".npy", lambda path: save_rows(path, rows))
                part.append(unit, _record(rows, mark, mark.n_tokens - end.n_tokens) | seal)
        if len(used) < _ENOUGH:
            used.update(np.unique(rows["document"]).tolist())
        progress.advance(mark.n_tokens - end.n_tokens)
        end = mark

    source = token_lists(recipe, tokenizer, stop, hub_of(recipe), first=begin.n_documents)
    make_rows(
        source,
        context_length=recipe.cache.context_length,
        bos=bos,
        rows_per_shard=recipe.cache.rows_per_shard,
        n_tokens=recipe.cache.n_tokens,
        on_shard=on_shard,
        begin=begin,
    )
    refused = source.refused() if isinstance(source, Tokenised) else None
    if not end.n_rows:
        raise CorpusError(f"{recipe.corpus.path}: {refused or 'no document holds a single token'}.")
    if len(used) == 1 and end.n_tokens >= recipe.cache.n_tokens:
        refuse_one_document(recipe.corpus, recipe.cache.n_tokens)
    require_documents(len(used), recipe.corpus)
    if refused:
        progress.note(f"{recipe.corpus.path}: {refused}")
    if ALL_ROWS not in journal.read(ALL_ROWS):
        with Part(journal, ALL_ROWS) as part:
            part.append(ALL_ROWS, {"n_rows": end.n_rows, "n_tokens": end.n_tokens})
    progress.end()


def token_lists(recipe: Recipe, tokenizer: Any, stop: Stop, hub: Hub, *, first: int = 0) -> TokenLists:
    """(document id, token ids) of the documents of a complete recipe's corpus, from number `first` on."""
    corpus, cache = recipe.corpus, recipe.cache
    assert corpus is not None and cache.context_length is not None
    bos = bos_of(tokenizer) if cache.prepend_bos else None
    if place_of(corpus).kind != RANDOM:
        return Tokenised(islice(documents(corpus, hub), first, None), tokenizer, bos, stop)
    reference = reference_of(corpus)
    if reference is None:
        urn = TokenUrn.uniform(drawable(tokenizer))
    else:
        urn = TokenUrn.unigram(
            drawable(tokenizer), Tokenised(documents(reference, hub), tokenizer, bos, stop)
        )
    return random_documents(
        urn, length=cache.context_length - (bos is not None), seed=recipe.seed, first=first
    )


def _record(rows: Rows, mark: Mark, n_tokens: int) -> Json:
    return {
        "first_row": mark.n_rows - len(rows),
        "n_rows": len(rows),
        "n_tokens": n_tokens,
        "n_documents": mark.n_documents,
        "n_rows_of_next": mark.n_rows_of_next,
    }


def _made_before(journal: Journal) -> tuple[Mark, set[int]]:
    """Where the corpus stands behind the shards that are there without a gap, and some documents in them.

    A gap comes of a shard that somebody deleted: all behind it is made again, what is there is kept.
    """
    mark, used = START, set[int]()
    for unit in filter(str.isdigit, journal.units()):
        record = journal.read(unit).get(unit)
        if record is None or record["first_row"] != mark.n_rows:
            break
        mark = Mark(
            n_rows=mark.n_rows + record["n_rows"],
            n_tokens=mark.n_tokens + record["n_tokens"],
            n_documents=record["n_documents"],
            n_rows_of_next=record["n_rows_of_next"],
        )
    for shard in row_shards(journal):
        if len(used) >= _ENOUGH or shard.first_row >= mark.n_rows:
            break
        used.update(np.unique(shard.read()["document"]).tolist())
    return mark, used
