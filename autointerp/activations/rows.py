"""Token rows: the corpus as the subject model reads it.

A document becomes rows of at most C tokens, BOS in front of each where the dictionary expects it; no row
holds two documents. Rows lie in shards, one structured `.npy` file each, which later stages map into
memory instead of reading.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from autointerp.errors import RunError
from autointerp.files import write_sealed
from autointerp.journal import Journal
from autointerp.types import Json

SHORTEST_TAIL: Final = 16
"""A document's last row is dropped where it would hold fewer tokens than this behind the first row:
what the model does on a fragment without its context says nothing about the text."""

Rows = NDArray[Any]
"""Structured array of `row_dtype(C)`."""


def row_dtype(context_length: int) -> np.dtype[Any]:
    """One row: the document's id, the position in it of the row's first token (BOS not counted), the
    number of tokens (BOS counted), and the token ids [C], zeros behind the last."""
    return np.dtype(
        [("document", "<u8"), ("position", "<u4"), ("length", "<u2"), ("tokens", "<u4", (context_length,))]
    )


def rows_of(document: int, token_ids: NDArray[np.uint32], context_length: int, bos: int | None) -> Rows:
    """Cuts one tokenised document into rows.

    `document`: its id as a number. `bos`: the token put before each row, None for none.
    """
    room = context_length - (bos is not None)
    n_rows = -(-len(token_ids) // room)
    if n_rows > 1 and len(token_ids) - (n_rows - 1) * room < SHORTEST_TAIL:
        n_rows -= 1
    rows = np.zeros(n_rows, row_dtype(context_length))
    for number in range(n_rows):
        piece = token_ids[number * room : (number + 1) * room]
        row = rows[number]
        row["document"], row["position"] = document, number * room
        row["length"] = len(piece) + (bos is not None)
        first = 0
        if bos is not None:
            row["tokens"][0], first = bos, 1
        row["tokens"][first : first + len(piece)] = piece
    return rows


def save_rows(path: Path, rows: Rows) -> Json:
    """The file's seal. Raises DiskFull."""
    content = io.BytesIO()
    np.save(content, rows)
    return write_sealed(path, content.getbuffer())


@dataclass(frozen=True, slots=True)
class RowShard:
    """Where a shard's rows are: `first_row` counts over the whole cache."""

    unit: str
    first_row: int
    n_rows: int
    path: Path

    def read(self) -> Rows:
        """The rows, mapped into memory: only what is looked at is read."""
        return np.load(self.path, mmap_mode="r")


HELD_TOKENS: Final = 2**26
"""So many tokens (256 MB) are held in memory, where they are found in a tenth of the time; of a larger corpus
they stay on disk."""


class RowStore:
    """All rows of a run. Three numbers a row are held, and the tokens up to `HELD_TOKENS`."""

    def __init__(self, shards: list[RowShard], *, bos: bool) -> None:
        """`bos`: whether each row begins with a token that is not the document's."""
        self.shards = shards
        self._bos = int(bos)
        self._mapped = [shard.read() for shard in shards]
        self._first = np.array([shard.first_row for shard in shards], np.int64)
        self.context_length = int(self._mapped[0].dtype["tokens"].shape[0]) if shards else 0
        self.document = self._column("document", np.uint64)
        self.position = self._column("position", np.int64)
        self.length = self._column("length", np.int64)
        self._held: NDArray[np.uint32] | None = None
        if shards and self.n_rows * self.context_length <= HELD_TOKENS:
            self._held = np.concatenate([rows["tokens"] for rows in self._mapped])
        self._shard = np.repeat(
            np.arange(len(shards), dtype=np.uint16), [len(rows) for rows in self._mapped] if shards else 0
        )

    def _column(self, name: str, dtype: type[Any]) -> NDArray[Any]:
        if not self._mapped:
            return np.zeros(0, dtype)
        return np.concatenate([rows[name] for rows in self._mapped]).astype(dtype)

    @classmethod
    def of(cls, journal: Journal, *, bos: bool) -> RowStore:
        """The shards that a journal of rows calls done."""
        return cls(list(row_shards(journal)), bos=bos)

    @property
    def n_rows(self) -> int:
        return len(self.length)

    def in_document(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in rows -> positions in their documents, in tokens."""
        return self.position[rows] + positions - self._bos

    def tokens(self, rows: NDArray[np.int64], starts: NDArray[np.int64], width: int) -> NDArray[np.int32]:
        """Token ids [N, width] of N windows; -1 behind the end of a row."""
        if self._held is not None:
            ids = _windows_in(self._held, rows, starts, width)
        else:
            ids = np.empty((len(rows), width), np.int32)
            for shard, chosen in self._by_shard(rows):
                row = rows[chosen] - self._first[shard]
                ids[chosen] = _windows_in(self._mapped[shard]["tokens"], row, starts[chosen], width)
        room = self.length[rows] - starts
        short = np.flatnonzero(room < width)
        ids[short] = np.where(np.arange(width) < room[short, None], ids[short], -1)
        return ids

    def token_at(self, places: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Token ids [N] at places row * context_length + position."""
        if self._held is not None:
            return self._held.reshape(-1)[places]
        ids = np.empty(len(places), np.uint32)
        rows = places // self.context_length
        positions = places - rows * self.context_length
        for shard, chosen in self._by_shard(rows):
            ids[chosen] = self._mapped[shard]["tokens"][rows[chosen] - self._first[shard], positions[chosen]]
        return ids

    def _by_shard(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(shard, indices of those of `rows` that lie in it)."""
        of_shard = self._shard[rows]
        order = np.argsort(of_shard, kind="stable")  # 16 bits: a radix sort
        counts = np.bincount(of_shard, minlength=len(self.shards))
        ends = np.cumsum(counts)
        for shard in np.flatnonzero(counts).tolist():
            yield shard, order[ends[shard] - counts[shard] : ends[shard]]


def _windows_in(
    tokens: NDArray[np.uint32], rows: NDArray[np.int64], starts: NDArray[np.int64], width: int
) -> NDArray[np.int32]:
    """[N, width] of tokens [R, C]; behind the end of a row anything."""
    length = tokens.shape[1]
    if width <= length and (not len(starts) or int(starts.max()) <= length - width):
        # Whole stretches of memory: four times as fast as token by token.
        return sliding_window_view(tokens, width, axis=1)[rows, starts].view(np.int32)
    columns = np.minimum(starts[:, None] + np.arange(width), length - 1)
    return tokens[rows[:, None], columns].view(np.int32)


def row_shards(journal: Journal) -> Iterator[RowShard]:
    """The done shards in order. Raises RunError where a file that the journal names is missing."""
    for unit in filter(str.isdigit, journal.units()):
        for record, part in journal.located(unit).values():
            path = part.with_suffix(".npy")
            if not path.is_file():
                raise RunError(f"{path} is missing, though {part.name} calls it done. Delete {part} too.")
            yield RowShard(unit, int(record["first_row"]), int(record["n_rows"]), path)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the corpus stands behind the last row of a shard: enough to go on from there."""

    n_rows: int = 0
    n_tokens: int = 0
    """In those rows, BOS not counted."""
    n_documents: int = 0
    """All of whose rows are made."""
    n_rows_of_next: int = 0
    """Rows of the document behind these that are made already: a shard may end inside a document."""


START: Final = Mark()


def behind(end: Mark, shards: list[RowShard]) -> Mark:
    """Where to read on a corpus that was read up to a budget, whose rows `shards` hold and behind which it
    stood at `end`: inside the last document, which the budget may have cut.

    Rows keep the places in their document that they would have without the budget, so what it cut off the
    last row (less than a row) is never read; nor is the rest of a document before the last, which a budget
    leaves only where it would have made a row of fewer than `SHORTEST_TAIL` tokens.
    """
    n_rows_of_last, document = 0, None
    for shard in reversed(shards):
        documents = shard.read()["document"]
        document = documents[-1] if document is None else document
        others = np.flatnonzero(documents != document)
        n_rows_of_last += len(documents) - (int(others[-1]) + 1 if len(others) else 0)
        if len(others):
            break
    return Mark(end.n_rows, end.n_tokens, end.n_documents - 1, n_rows_of_last)


def make_rows(
    token_lists: Iterator[tuple[int, NDArray[np.uint32]]],
    *,
    context_length: int,
    bos: int | None,
    rows_per_shard: int,
    n_tokens: int,
    on_shard: Callable[[Rows, Mark], None],
    begin: Mark = START,
) -> None:
    """Packs (document id, token ids) into shards of `rows_per_shard` rows until `n_tokens` corpus tokens
    (BOS not counted) are reached; `on_shard(rows, where the corpus stands behind them)` takes each as it
    fills.

    `begin`: to go on behind a shard, its mark; `token_lists` then begins with document `n_documents`.
    """
    shard = np.zeros(rows_per_shard, row_dtype(context_length))
    room = context_length - (bos is not None)
    taken, n_rows = begin.n_tokens, begin.n_rows
    n_documents, done_already = begin.n_documents, begin.n_rows_of_next
    used = 0
    while taken < n_tokens and (following := next(token_lists, None)) is not None:
        document, token_ids = following
        # What is made already of this document lies before its row `done_already`, and is counted.
        rows = rows_of(document, token_ids[: done_already * room + n_tokens - taken], context_length, bos)
        for number, row in enumerate(rows[done_already:], start=done_already + 1):
            taken += int(row["length"]) - (bos is not None)
            shard[used] = row
            used += 1
            if used == rows_per_shard:
                n_rows, used = n_rows + used, 0
                whole = number == len(rows)
                on_shard(shard.copy(), Mark(n_rows, taken, n_documents + whole, 0 if whole else number))
        n_documents, done_already = n_documents + 1, 0
    if used:
        on_shard(shard[:used].copy(), Mark(n_rows + used, taken, n_documents, 0))
