"""The corpus' part of caching: documents -> token rows, once a run, whatever dictionaries read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.rows import Rows, make_rows, save_rows
from autointerp.errors import CorpusError, ModelError
from autointerp.journal import Part
from autointerp.portion import is_front
from autointerp.progress import Progress, Stop
from autointerp.run import ALL_ROWS, Run
from autointerp.subject.corpus import documents, require_documents

_DOCUMENTS_AT_ONCE: Final = 256


def read_corpus(run: Run, tokenizer: Any, progress: Progress, stop: Stop) -> None:
    """Rows are made from the first document on; shards that are there already are passed over."""
    recipe, journal = run.recipe, run.rows()
    assert recipe.corpus is not None and recipe.cache.context_length is not None
    bos = _bos(tokenizer) if recipe.cache.prepend_bos else None
    progress.begin("read corpus", recipe.cache.n_tokens, "tokens")
    totals = {"n_rows": 0, "n_tokens": 0}  # of the whole corpus, whoever keeps the rows
    used: set[int] = set()  # a few documents are enough to know that there is more than one

    def on_shard(first_row: int, rows: Rows) -> None:
        stop.check()
        n_tokens = int(rows["length"].sum()) - (bos is not None) * len(rows)
        number = first_row // run.rows_per_shard
        is_kept = run.portion.takes(number) or is_front(totals["n_tokens"], first_row)
        used.update(np.unique(rows["document"])[:2].tolist())
        totals["n_rows"] += len(rows)
        totals["n_tokens"] += n_tokens
        unit = f"{first_row:09d}"
        if is_kept and unit not in journal.read(unit):
            with Part(journal, unit) as part:
                seal = part.attach(".npy", lambda path: save_rows(path, rows))
                record = {"first_row": first_row, "n_rows": len(rows), "n_tokens": n_tokens}
                part.append(unit, record | seal)
        progress.advance(n_tokens)

    make_rows(
        _tokenised(documents(recipe.corpus), tokenizer, stop),
        context_length=recipe.cache.context_length,
        bos=bos,
        rows_per_shard=run.rows_per_shard,
        n_tokens=recipe.cache.n_tokens,
        on_shard=on_shard,
    )
    require_documents(len(used), recipe.corpus)
    if not totals["n_rows"]:
        raise CorpusError(f"{recipe.corpus.path}: no document holds a single token.")
    if ALL_ROWS not in journal.read(ALL_ROWS):
        with Part(journal, ALL_ROWS) as part:
            part.append(ALL_ROWS, dict(totals))
    progress.end()


def _bos(tokenizer: Any) -> int:
    for name in ("bos_token_id", "eos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    raise ModelError(
        "the dictionary expects contexts to begin with BOS, but the model's tokenizer has neither a BOS nor "
        "an EOS token. Say how it was trained: --set cache.prepend_bos=false."
    )


def _tokenised(source: Iterator[Any], tokenizer: Any, stop: Stop) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(document id as a number, token ids), in batches for the tokenizer's sake."""
    batch: list[Any] = []

    def flush() -> Iterator[tuple[int, NDArray[np.uint32]]]:
        stop.check()
        # The corpus is data: its "<|endoftext|>" is text, not the token that ends a document.
        texts = [document.text for document in batch]
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for document, token_ids in zip(batch, encoded["input_ids"], strict=True):
            yield int(document.id, 16), np.asarray(token_ids, np.uint32)
        batch.clear()

    for document in source:
        batch.append(document)
        if len(batch) >= _DOCUMENTS_AT_ONCE:
            yield from flush()
    if batch:
        yield from flush()
