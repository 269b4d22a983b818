"""What all features of a dictionary share: the rows, the split of their documents, what nobody looked at."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.rows import RowStore

Ints = NDArray[np.int64]

SplitName = Literal["shown", "select", "heldout"]
SPLITS: Final[tuple[SplitName, ...]] = ("shown", "select", "heldout")


class Text:
    """The rows as sampling sees them: columns over all R rows, a few bytes a row."""

    def __init__(
        self,
        rows: RowStore,
        masked: Ints,
        *,
        seed: int,
        first: int,
        shares: tuple[float, float, float],
    ) -> None:
        """`masked`: tokens nobody looked at, ascending. `first`: the first position of a row that a window
        may use (1 where position 0 is masked). `shares`: of documents, for each split."""
        self.rows = rows
        self.masked = masked
        self.seed = seed
        self.first = first
        self.context_length = rows.context_length
        self.length = rows.length
        row = np.arange(rows.n_rows)
        self._item = draw.pair(rows.document, rows.in_document(row, np.zeros_like(row)))
        self.split = split_of(rows.document, seed, shares)
        """[R], 0 shown, 1 select, 2 heldout."""
        self.rows_of = [np.flatnonzero(self.split == number) for number in range(len(SPLITS))]
        self._row_has_masked = np.zeros(rows.n_rows, bool)
        if len(masked):
            self._row_has_masked[masked // self.context_length] = True
        documents, self.document = np.unique(rows.document, return_inverse=True)
        """[R], documents numbered."""
        self.n_documents = len(documents)
        self.n_tokens = int(np.maximum(rows.length - first, 0).sum()) - len(masked)
        """Tokens looked at."""

    def items(self, row: Ints, position: Ints) -> NDArray[np.uint64]:
        """What names each token for ever: its document and its position in it."""
        return draw.along(self._item[row], position)

    def touches_masked(self, row: Ints, start: Ints, length: Ints) -> NDArray[np.bool_]:
        """Which places hold a token that nobody looked at; those behind a row's end hold none."""
        touched = self._row_has_masked[row]
        at = np.flatnonzero(touched)
        if len(at):
            begin = row[at] * self.context_length + start[at]
            next_one = np.append(self.masked, np.iinfo(np.int64).max)[np.searchsorted(self.masked, begin)]
            touched[at] = next_one < begin + length[at]
        return touched


def split_of(
    documents: NDArray[np.uint64], seed: int, shares: tuple[float, float, float]
) -> NDArray[np.int8]:
    """Split of each document, 0 shown, 1 select, 2 heldout: a keyed hash of its id."""
    where = draw.unit_interval(draw.mix(draw.key(seed, "split"), documents))
    edges = np.cumsum(shares) / sum(shares)
    return np.searchsorted(edges[:-1], where, side="right").astype(np.int8)
