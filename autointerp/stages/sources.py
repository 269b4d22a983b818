"""Where a run's rows and activations come from: documents through the subject model, or files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from autointerp.activations.collected import Kept
from autointerp.activations.delphi import DelphiCache
from autointerp.activations.delphi_firings import DelphiFirings
from autointerp.activations.dump import Dump
from autointerp.activations.passes import Pass
from autointerp.activations.rows import Rows, RowShard, save_rows
from autointerp.activations.vectors import FromDump, FromModel
from autointerp.errors import ActivationsError
from autointerp.fits import density
from autointerp.journal import Journal, Part
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import ALL_ROWS, Run
from autointerp.sources import DictionaryFound, Files
from autointerp.stages.frozen import Frozen
from autointerp.stages.rows import note_all_rows, read_corpus, read_more
from autointerp.subject.corpus import TWO_DOCUMENTS
from autointerp.subject.model import Subject
from autointerp.subject.pretrained import Dtype
from autointerp.subject.tokenizer import load_tokenizer
from autointerp.subject.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Source:
    """Rows, and what a dictionary reads on them."""

    tokenizer: Any
    """transformers' fast tokenizer."""
    make_rows: Callable[[Run, Progress, Stop], None]
    make_more_rows: Callable[[Run, Progress, Stop], None]
    """Those that top up a cache."""
    vectors: FromModel | FromDump | None
    """None: the files hold firings, and there is nothing to encode."""
    dtype: Dtype
    """Of the vectors."""


def open_source(
    run: Run,
    resolved: Resolved,
    device: str,
    frozen: Frozen | None,
    progress: Progress,
    *,
    least: int = TWO_DOCUMENTS,
) -> Source:
    """Loads what is needed; the rows must be of `least` documents. Raises InputErrors."""
    if resolved.files is not None:
        return _from_files(run, resolved.files, device, least)
    assert resolved.model is not None
    progress.note(f"loading {run.recipe.model.path} ...")
    subject = Subject.load(
        resolved.model,
        dtype=frozen.dtype if frozen else run.recipe.model.dtype,
        device=device,
        device_map=run.recipe.resources.device_map,
        n_layers=_layers_needed(resolved.dictionaries.values()),
    )
    return Source(
        tokenizer=subject.tokenizer,
        make_rows=lambda run, progress, stop: read_corpus(
            run, subject.tokenizer, progress, stop, least=least
        ),
        make_more_rows=lambda run, progress, stop: read_more(run, subject.tokenizer, progress, stop),
        vectors=FromModel(subject),
        dtype=cast(Dtype, str(subject.dtype).removeprefix("torch.")),
    )


def _layers_needed(dictionaries: Collection[DictionaryFound]) -> int | None:
    """None: all."""
    if any(found.spec.needs_gradient for found in dictionaries):
        return None
    return 1 + max(site.layer for found in dictionaries for site in found.sites)


def _from_files(run: Run, files: Files, device: str, least: int) -> Source:
    found = files.activations
    is_dump = isinstance(found, Dump)
    return Source(
        tokenizer=load_tokenizer(files.tokenizer),
        make_rows=partial(_rows_from_files, files, least),
        make_more_rows=partial(_more_rows_from_files, files),
        vectors=FromDump(found, torch.device(device), run.first_position) if is_dump else None,
        dtype=cast(Dtype, found.dtype) if is_dump else "auto",
    )


# --- rows ----------------------------------------------------------------------------------------------


def _rows_from_files(files: Files, least: int, run: Run, progress: Progress, stop: Stop) -> None:
    """Whole rows until `cache.n_tokens` are reached; shards that are there already are passed over.

    Raises ActivationsError for tokens that the tokenizer doesn't have, and for fewer than `least` (1 or 2)
    documents.
    """
    journal, found = run.rows(), files.activations
    used: set[int] = set()
    n_rows = n_tokens = 0
    progress.begin("read rows", run.recipe.cache.n_tokens, "tokens")
    for rows, n_new in _shards_from_files(files, run, journal, 0, run.recipe.cache.n_tokens, stop):
        used.update(np.unique(rows["document"])[:2].tolist())
        n_rows, n_tokens = n_rows + len(rows), n_tokens + n_new
        progress.advance(n_new)
    if len(used) < least:
        raise ActivationsError(
            f"{found.folder} holds a single document, and explanations must be tested on other documents "
            f"than they were made from. If its rows are of several, give 'documents', or set "
            f"activations.documents=rows."
        )
    with Part(journal, ALL_ROWS) as part:
        part.append(ALL_ROWS, {"n_rows": n_rows, "n_tokens": n_tokens})
    progress.end()
    if files.own_documents and least > 1:
        progress.note(
            "each row is a document of its own: neighbouring rows of one text are not kept apart between "
            "explaining and scoring"
        )


def _more_rows_from_files(files: Files, run: Run, progress: Progress, stop: Stop) -> None:
    """As `_rows_from_files`, of the rows behind those until `cache.top_up` tokens are reached."""
    journal, n_more = run.top_up_rows(), run.recipe.cache.top_up
    n_rows = first_row = run.rows().read(ALL_ROWS)[ALL_ROWS]["n_rows"]
    n_tokens = 0
    progress.begin("read more rows", n_more, "tokens")
    for rows, n_new in _shards_from_files(files, run, journal, first_row, n_more, stop):
        n_rows, n_tokens = n_rows + len(rows), n_tokens + n_new
        progress.advance(n_new)
    if n_rows == first_row:
        raise ActivationsError(
            f"cache.top_up is {n_more:,}, but {files.activations.folder} has no row beyond the {first_row:,} "
            f"that the run has read. Leave it out: --top-up 0"
        )
    note_all_rows(journal, first_row, n_rows, n_tokens)
    progress.end()


def _shards_from_files(
    files: Files, run: Run, journal: Journal, first_row: int, most_tokens: int, stop: Stop
) -> Iterator[tuple[Rows, int]]:
    """Each shard from `first_row` on until so many tokens are reached, and how many are new with it; those
    that are missing are written."""
    cache, found = run.recipe.cache, files.activations
    assert cache.context_length is not None
    n_known = len(Vocabulary.load(run.vocabulary))
    n_rows, n_tokens = first_row, 0
    while n_tokens < most_tokens and n_rows < found.n_rows:
        stop.check()
        unit, last = f"{n_rows:09d}", min(n_rows + cache.rows_per_shard, found.n_rows)
        rows = _read(files, n_rows, last, cache.context_length)
        lengths = rows["length"].astype(np.int64) - bool(cache.prepend_bos)
        enough = int(np.searchsorted(np.cumsum(lengths), most_tokens - n_tokens)) + 1
        rows, n_new = rows[:enough], int(lengths[:enough].sum())
        _check_tokens(rows, n_rows, n_known, files)
        if unit not in journal.read(unit):
            with Part(journal, unit) as part:
                seal = part.attach(".npy", partial(save_rows, rows=rows))
                part.append(unit, {"first_row": n_rows, "n_rows": len(rows), "n_tokens": n_new} | seal)
        n_rows, n_tokens = n_rows + len(rows), n_tokens + n_new
        yield rows, n_new


def _read(files: Files, first: int, stop: int, context_length: int) -> Rows:
    if isinstance(files.activations, Dump):
        return files.activations.rows(first, stop, context_length, files.own_documents)
    return files.activations.rows(first, stop)


def _check_tokens(rows: Rows, first_row: int, n_known: int, files: Files) -> None:
    highest = rows["tokens"].max(axis=1)
    if highest.max(initial=0) >= n_known:
        row = int(np.argmax(highest >= n_known))
        raise ActivationsError(
            f"row {first_row + row:,} of {files.activations.folder} holds token {int(highest[row]):,}, but "
            f"the tokenizer of {files.tokenizer.name} has {n_known:,}. Is it the right --model?"
        )


# --- firings -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """One hook's firings on one shard, not read yet."""

    firings: DelphiFirings
    first_row: int
    n_rows: int
    n_tokens: int

    def kept(self) -> Kept:
        """Without vectors nobody knows of sinks. Raises ActivationsError."""
        found = self.firings.read(self.first_row, self.first_row + self.n_rows)
        return Kept(found, np.zeros(0, np.int64), self.n_tokens)


class ReadyFirings:
    """The firings of a run's dictionaries, which delphi cached."""

    def __init__(self, run: Run, cache: DelphiCache, names: list[str], progress: Progress) -> None:
        """Goes through the files of the dictionaries `names` once. Raises ActivationsError."""
        self.passes = {name: (name, Pass(0, None)) for name in names}
        self._first_position = run.first_position
        self._of: dict[str, DelphiFirings] = {}
        n_tokens = cache.n_rows * (cache.context_length - run.first_position)
        for name in names:
            hook = cache.hooks[run.identities.sites[name]]
            of_one = self._of[name] = DelphiFirings(cache, hook, run.first_position)
            l0 = of_one.n_firings / n_tokens
            progress.note(
                f"{name}: {l0:.1f} features a token, as delphi cached them; without "
                f"vectors neither the explained variance nor tokens of massive norm are known"
            )
            if (dense := density(l0, hook.width)) is not None:
                progress.note(f"{name} is {dense}")
            if of_one.n_negative:
                progress.note(f"{name}: {of_one.n_negative:,} negative activations count as silent")

    def shard(self, shard: RowShard, rows: Rows, on_batch: Callable[[int], None]) -> dict[str, Ready]:
        n_tokens = int(np.maximum(rows["length"].astype(np.int64) - self._first_position, 0).sum())
        on_batch(int(rows["length"].sum()))
        return {
            name: Ready(of_one, shard.first_row, shard.n_rows, n_tokens) for name, of_one in self._of.items()
        }
