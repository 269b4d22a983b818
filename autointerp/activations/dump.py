"""A folder of activations that somebody took elsewhere: for models too big to run here.

The folder holds, for one site of one model, files of either kind, read in order of name:

    NAME.safetensors                  tensors `activations`, `tokens`, and those below that there are
    activations-NAME.npy, tokens-NAME.npy, and `lengths-NAME.npy`, ... beside them

    activations [R, T, D] or [N, D]   float16, bfloat16 (safetensors only) or float32
    tokens      [R, T]    or [N]      token ids, whole numbers; BOS where the model saw one
    lengths     [R]                   optional: tokens of each row; [R, T] then are padded behind, [N] are
                                      rows one behind the other
    documents   [R]                   optional: of which document each row is, 64 bits that name its text
    positions   [R]                   with documents: how many of its document's tokens come before the row

R rows of at most T tokens, N tokens in all, D numbers a token. A row is what the model read at once. [N]
without lengths is cut every `context_length` tokens. `config.json` beside them may say `context_length`,
`hook` (any spelling that `parse_hook` knows), `model` (whose tokenizer it was) and `prepend_bos`.

Without `documents` each row is a document of its own, named by its tokens. Rows of one text may then be
shown to the explainer and held out for the scorer: weaker, and scores say so.

Shape letters as above; K some rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.rows import Rows, row_dtype
from autointerp.activations.stored import Stored
from autointerp.errors import ActivationsError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DumpFile:
    """One file, or one group of `.npy` files."""

    name: str
    activations: Stored
    tokens: Stored
    a_row: dict[str, Stored]
    """Those of `lengths`, `documents` and `positions` that there are, [R] each."""
    row_length: int | None
    """Tokens from a row's begin to the next row's; None where `lengths` says."""

    @property
    def paths(self) -> list[Path]:
        return list(
            dict.fromkeys(part.path for part in (self.activations, self.tokens, *self.a_row.values()))
        )

    @property
    def n_tokens(self) -> int:
        """What is stored, padding included."""
        return int(np.prod(self.tokens.shape))

    @property
    def n_rows(self) -> int:
        if "lengths" in self.a_row:
            return self.a_row["lengths"].shape[0]
        assert self.row_length is not None
        return -(-self.n_tokens // self.row_length)

    def lengths(self, rows: Ints) -> Ints:
        """Tokens of these rows."""
        if "lengths" in self.a_row:
            return self.a_row["lengths"].flat()[rows].astype(np.int64)
        assert self.row_length is not None
        return np.minimum(self.row_length, self.n_tokens - rows * self.row_length)

    def begins(self, rows: Ints) -> Ints:
        """Where each of these rows begins among all of the file's tokens."""
        if self.row_length is not None:
            return rows * self.row_length
        lengths = self.lengths(np.arange(self.n_rows))
        return (np.cumsum(lengths) - lengths)[rows]


@dataclass(frozen=True, slots=True)
class Dump:
    """A folder of them, checked as far as headers and lengths say."""

    folder: Path
    files: tuple[DumpFile, ...]
    context_length: int
    """Tokens of the longest row."""
    d_in: int
    dtype: str
    hook: str | None
    model: str | None
    prepend_bos: bool
    has_documents: bool
    n_tokens: int
    """Tokens of all rows, BOS counted, padding not."""
    identity: str

    @property
    def n_rows(self) -> int:
        return sum(file.n_rows for file in self.files)

    def rows(self, first: int, stop: int, context_length: int, own_documents: bool) -> Rows:
        """Rows [first, stop) over all files, of `row_dtype(context_length)`.

        `own_documents`: each row is a document of its own. Raises ActivationsError for a length that can't
        be.
        """
        made = [
            _rows(file, low, high, context_length, own_documents) for file, low, high in self._of(first, stop)
        ]
        return np.concatenate(made) if made else np.zeros(0, row_dtype(context_length))

    def _of(self, first: int, stop: int) -> Iterator[tuple[DumpFile, int, int]]:
        before = 0
        for file in self.files:
            low, high = max(first - before, 0), min(stop - before, file.n_rows)
            if low < high:
                yield file, low, high
            before += file.n_rows

    def vectors(self, rows: Ints, longest: int) -> NDArray[Any]:
        """[K, longest, D]: activations of these rows, counted over all files, as `Stored.flat` gives them;
        zeros behind a row's end. Memory: what is returned."""
        kind = np.uint16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
        vectors = np.zeros((len(rows), longest, self.d_in), kind)
        before = 0
        for file in self.files:
            mine = np.flatnonzero((rows >= before) & (rows < before + file.n_rows))
            if len(mine):
                inside = rows[mine] - before
                lengths = np.minimum(file.lengths(inside), longest)
                stored = file.activations.flat(self.d_in)
                for at, begin, length in zip(mine, file.begins(inside), lengths, strict=True):
                    vectors[at, :length] = stored[begin : begin + length]
            before += file.n_rows
        return vectors


def _rows(file: DumpFile, first: int, stop: int, context_length: int, own_documents: bool) -> Rows:
    numbers = np.arange(first, stop)
    lengths, begins = file.lengths(numbers), file.begins(numbers)
    rows = np.zeros(stop - first, row_dtype(context_length))
    rows["length"] = lengths
    columns = np.arange(context_length)
    inside = columns < lengths[:, None]
    stored = file.tokens.flat()
    tokens = stored[np.where(inside, begins[:, None] + columns, 0)]
    if tokens[inside].size and (int(tokens[inside].min()) < 0 or int(tokens[inside].max()) >= 2**32):
        worst = int(np.argmax(((tokens < 0) | (tokens >= 2**32)) & inside))
        raise ActivationsError(
            f"{file.tokens} holds {int(tokens.flat[worst])} in row {first + worst // context_length}, which "
            f"is no token id. Give padding behind a row's end by its length, in 'lengths'."
        )
    rows["tokens"] = np.where(inside, tokens, 0)
    if own_documents:
        rows["document"] = [row_document(row["tokens"][: row["length"]]) for row in rows]
    else:
        rows["document"] = file.a_row["documents"].flat()[first:stop].astype(np.uint64)
        rows["position"] = file.a_row["positions"].flat()[first:stop]
    return rows


def row_document(tokens: NDArray[np.uint32]) -> int:
    """The id of a row that is a document of its own: blake2b of its tokens, little-endian, 64 bits."""
    content = np.ascontiguousarray(tokens, "<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
