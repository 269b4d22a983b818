"""The corpus' part of caching: documents -> token rows, once a run, whatever dictionaries read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.random_tokens import TokenUrn, drawable, random_documents
from autointerp.activations.rows import START, Mark, Rows, behind, make_rows, row_shards, save_rows
from autointerp.errors import CorpusError
from autointerp.journal import Journal, Part
from autointerp.portion import is_front
from autointerp.progress import Progress, Stop
from autointerp.recipe import Recipe
from autointerp.resolve import hub_of
from autointerp.run import ALL_ROWS, Run
from autointerp.subject.corpus import TWO_DOCUMENTS, documents, refuse_one_document, require_documents
from autointerp.subject.corpus_hub import Hub
from autointerp.subject.corpus_spec import RANDOM, place_of, reference_of
from autointerp.subject.tokenizer import Tokenised, bos_of
from autointerp.types import Json

TokenLists = Iterator[tuple[int, NDArray[np.uint32]]]


def read_corpus(
    run: Run, tokenizer: Any, progress: Progress, stop: Stop, *, least: int = TWO_DOCUMENTS
) -> None:
    """Makes the rows that are missing, of `least` documents. What is made already is read again, for its
    ids, but not tokenised.

    Raises InputErrors, DiskFull, Interrupted.
    """
    recipe, journal = run.recipe, run.rows()
    assert recipe.corpus is not None
    begin = _made_before(journal, START)
    used = _some_documents(journal, begin)
    progress.begin("read corpus", recipe.cache.n_tokens, "tokens", done=begin.n_tokens)

    def on_shard(rows: Rows, before: Mark, end: Mark) -> None:
        number = before.n_rows // recipe.cache.rows_per_shard
        is_kept = run.portion.takes(number) or run.keeps_all_rows
        if is_kept or is_front(before.n_tokens, before.n_rows):
            _save(journal, rows, before, end)
        if len(used) < TWO_DOCUMENTS:
            used.update(np.unique(rows["document"]).tolist())
        progress.advance(end.n_tokens - before.n_tokens)

    end, refused = _read_on(run, tokenizer, begin, recipe.cache.n_tokens, on_shard, stop, least)
    if not end.n_rows:
        raise CorpusError(f"{recipe.corpus.path}: {refused or 'no document holds a single token'}.")
    if len(used) < least and end.n_tokens >= recipe.cache.n_tokens:
        refuse_one_document(recipe.corpus, recipe.cache.n_tokens)
    require_documents(len(used), recipe.corpus, least)
    if refused:
        progress.note(f"{recipe.corpus.path}: {refused}")
    if ALL_ROWS not in journal.read(ALL_ROWS):
        with Part(journal, ALL_ROWS) as part:
            part.append(ALL_ROWS, {"n_rows": end.n_rows, "n_tokens": end.n_tokens})
    progress.end()


def read_more(run: Run, tokenizer: Any, progress: Progress, stop: Stop) -> None:
    """Makes what is missing of the rows that top up the cache, whose own rows are all there.

    Raises InputErrors, DiskFull, Interrupted.
    """
    corpus, n_more, journal = run.recipe.corpus, run.recipe.cache.top_up, run.top_up_rows()
    assert corpus is not None
    last = _made_before(run.rows(), START)
    first = behind(last, list(row_shards(run.rows())))
    begin = _made_before(journal, first)
    progress.begin("read more", n_more, "tokens", done=begin.n_tokens - first.n_tokens)

    def on_shard(rows: Rows, before: Mark, end: Mark) -> None:
        _save(journal, rows, before, end)
        progress.advance(end.n_tokens - before.n_tokens)

    end, refused = _read_on(run, tokenizer, begin, first.n_tokens + n_more, on_shard, stop)
    if end.n_rows == first.n_rows:
        raise CorpusError(
            f"cache.top_up is {n_more:,}, but the corpus '{corpus.path}' ends with the {first.n_tokens:,} tokens "
            f"that the run has read. Leave it out: --top-up 0"
        )
    if refused:
        progress.note(f"{corpus.path}: {refused}")
    note_all_rows(journal, first.n_rows, end.n_rows, end.n_tokens - first.n_tokens)
    progress.end()


def note_all_rows(journal: Journal, first_row: int, stop_row: int, n_tokens: int) -> None:
    """Of rows that top up a cache: that they are all there. Raises DiskFull."""
    if ALL_ROWS not in journal.read(ALL_ROWS):
        record = {"first_row": first_row, "n_rows": stop_row - first_row, "n_tokens": n_tokens}
        with Part(journal, ALL_ROWS) as part:
            part.append(ALL_ROWS, record)


def _read_on(
    run: Run,
    tokenizer: Any,
    begin: Mark,
    n_tokens: int,
    on_shard: Callable[[Rows, Mark, Mark], None],
    stop: Stop,
    least: int = TWO_DOCUMENTS,
) -> tuple[Mark, str | None]:
    """Makes rows behind `begin` until there are `n_tokens` in all; where the corpus stands then, and what
    is to be said of conversations that the chat template refuses. `on_shard(rows, before, behind)` takes
    each shard, with where the corpus stands around it."""
    cache = run.recipe.cache
    assert cache.context_length is not None
    end = begin

    def next_shard(rows: Rows, mark: Mark) -> None:
        nonlocal end
        stop.check()
        on_shard(rows, end, mark)
        end = mark

    source = token_lists(
        run.recipe, tokenizer, stop, hub_of(run.recipe), first=begin.n_documents, least=least
    )
    make_rows(
        source,
        context_length=cache.context_length,
        bos=bos_of(tokenizer) if cache.prepend_bos else None,
        rows_per_shard=cache.rows_per_shard,
        n_tokens=n_tokens,
        on_shard=next_shard,
        begin=begin,
    )
    return end, source.refused() if isinstance(source, Tokenised) else None


def _save(journal: Journal, rows: Rows, before: Mark, end: Mark) -> None:
    """A shard and its record, where it isn't there. Raises DiskFull."""
    unit = f"{before.n_rows:09d}"
    if unit in journal.read(unit):
        return
    record: Json = {
        "first_row": before.n_rows,
        "n_rows": len(rows),
        "n_tokens": end.n_tokens - before.n_tokens,
        "n_documents": end.n_documents,
        "n_rows_of_next": end.n_rows_of_next,
    }
    with Part(journal, unit) as part:
        seal = part.attach(".npy", lambda path: save_rows(path, rows))
        part.append(unit, record | seal)


def token_lists(
    recipe: Recipe, tokenizer: Any, stop: Stop, hub: Hub, *, first: int = 0, least: int = TWO_DOCUMENTS
) -> TokenLists:
    """(document id, token ids) of the documents of a complete recipe's corpus, from number `first` on. It must have
    `least`."""
    corpus, cache = recipe.corpus, recipe.cache
    assert corpus is not None and cache.context_length is not None
    bos = bos_of(tokenizer) if cache.prepend_bos else None
    if place_of(corpus).kind != RANDOM:
        return Tokenised(islice(documents(corpus, hub, least), first, None), tokenizer, bos, stop)
    reference = reference_of(corpus)
    if reference is None:
        urn = TokenUrn.uniform(drawable(tokenizer))
    else:
        urn = TokenUrn.unigram(
            drawable(tokenizer), Tokenised(documents(reference, hub, least), tokenizer, bos, stop)
        )
    return random_documents(
        urn, length=cache.context_length - (bos is not None), seed=recipe.seed, first=first
    )


def _made_before(journal: Journal, first: Mark) -> Mark:
    """Where the corpus stands behind the shards that are there without a gap; `first`: before all of them.

    A gap comes of a shard that somebody deleted: all behind it is made again, what is there is kept.
    """
    mark = first
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
    return mark


def _some_documents(journal: Journal, end: Mark) -> set[int]:
    """Some of the documents that the shards before `end` hold."""
    used = set[int]()
    for shard in row_shards(journal):
        if len(used) >= TWO_DOCUMENTS or shard.first_row >= end.n_rows:
            break
        used.update(np.unique(shard.read()["document"]).tolist())
    return used
