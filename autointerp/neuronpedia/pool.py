"""Published windows of many features -> token rows and firings, as sampling takes them.

A text is one row, whoever listed it; what a feature does on it is known where the feature listed it, and else
not. Of the rows of others a feature gets those as silent that share no run of tokens with a row of its own, and
none at all where it fires too often for that (`assumed_silent`). Shape letters: P features, R rows, C tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.firing_store import FiringStore
from autointerp.activations.firings import Firings
from autointerp.activations.histogram import histograms
from autointerp.activations.rows import RowShard, RowStore, row_dtype, save_rows
from autointerp.errors import PublishedError
from autointerp.neuronpedia.reading import Published
from autointerp.neuronpedia.spelling import bytes_of
from autointerp.sampling.runs import runs
from autointerp.subject.corpus import document_id
from autointerp.subject.vocabulary import Vocabulary

LEAST_SILENT: Final = 0.9
"""Others' windows count as silent where a feature is, of so many random ones, silent on all tokens."""
BOS: Final = frozenset({"<bos>", "<s>", "<|endoftext|>", "<|begin_of_text|>", "[CLS]"})
"""In front of a window they are no text, and activations there are unlike any other."""
_NOT_TEXT: Final = "\ufffd".encode()
_MOST_TEXTS: Final = 2**24
"""A window store has three bytes for a token."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def assumed_silent(frac_nonzero: float | None, n_tokens: int) -> float | None:
    """Probability that a feature which fires on this share of tokens fires on none of n; None where nobody says."""
    return None if frac_nonzero is None or frac_nonzero < 0 else (1.0 - min(frac_nonzero, 1.0)) ** n_tokens


class TokenTexts:
    """A number for every token text, in the order they come: Neuronpedia publishes no ids."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._table: list[bytes] = []
        self.n_sequences = 0
        self.n_spelled = 0
        """Sequences, of all, whose bytes were spelled."""

    def ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """Raises PublishedError where there are more than a window store can number."""
        found, was_spelled = bytes_of(tokens)
        self.n_sequences += 1
        self.n_spelled += was_spelled
        return tuple(self._number(one.replace(b"\0", _NOT_TEXT)) for one in found)

    def _number(self, token: bytes) -> int:
        if token not in self._ids:
            if len(self._table) == _MOST_TEXTS:
                raise PublishedError(
                    f"the files hold more than {_MOST_TEXTS:,} different token texts: import fewer of them."
                )
            self._ids[token] = len(self._table)
            self._table.append(token)
        return self._ids[token]

    def text(self, ids: Iterable[int]) -> str:
        return b"".join(self._table[one] for one in ids).decode("utf-8", "replace")

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self._table)


@dataclass(slots=True)
class Counts:
    """Where each published window went."""

    n_windows: int = 0
    n_repeated: int = 0
    """Whose text is another's of the same feature: one window is made of them."""
    n_silent: int = 0
    """In which the feature fires nowhere."""
    n_empty: int = 0
    """Nothing but a token in front of the text."""
    n_at_front: int = 0
    """Firings on such a token, which nobody looks at."""

    def add(self, other: Counts) -> None:
        self.n_windows += other.n_windows
        self.n_repeated += other.n_repeated
        self.n_silent += other.n_silent
        self.n_empty += other.n_empty
        self.n_at_front += other.n_at_front


@dataclass(slots=True)
class _Row:
    ids: tuple[int, ...]
    document: str
    values: dict[int, Floats] = field(default_factory=dict[int, Floats])
    """By feature that lists it; of two lists the larger value of each token."""


def _rows_of(features: Sequence[Published], texts: TokenTexts) -> tuple[list[_Row], Counts]:
    """Sorted by text, so that the order of files changes nothing."""
    rows: dict[tuple[int, ...], _Row] = {}
    counts = Counts()
    for feature in features:
        for one in feature.activations:
            tokens, values = cast(list[str], one["tokens"]), np.array(one["values"], np.float32)
            counts.n_windows += 1
            if tokens[0] in BOS:
                counts.n_at_front += int(values[0] > 0)
                tokens, values = tokens[1:], values[1:]
            if not tokens:
                counts.n_empty += 1
                continue
            ids = texts.ids(tokens)
            row = rows.get(ids) or rows.setdefault(ids, _Row(ids, document_id(texts.text(ids))))
            before = row.values.get(feature.index)
            counts.n_repeated += before is not None
            counts.n_silent += int(values.max() <= 0)
            row.values[feature.index] = values if before is None else np.maximum(values, before)
    return sorted(rows.values(), key=lambda row: (row.document, row.ids)), counts


class Pool:
    """Rows and firings of a block of features."""

    def __init__(
        self, features: Sequence[Published], texts: TokenTexts, folder: Path, *, width: int, overlap: int
    ) -> None:
        """`folder`: where the rows may lie while the pool is used. `width`: of the windows to be cut; `overlap`:
        so many tokens in a row that two rows share are the same place."""
        found, self.counts = _rows_of(features, texts)
        length = max((len(row.ids) for row in found), default=1)
        rows = np.zeros(len(found), row_dtype(length))
        for at, row in enumerate(found):
            rows[at]["document"], rows[at]["length"] = int(row.document, 16), len(row.ids)
            rows[at]["tokens"][: len(row.ids)] = row.ids
        path = folder / "rows.npy"
        save_rows(path, rows)
        self.rows = RowStore([RowShard("0", 0, len(found), path)], bos=False)
        own: dict[int, list[int]] = {feature.index: [] for feature in features}
        fired: dict[int, list[tuple[int, float]]] = {feature.index: [] for feature in features}
        for at, row in enumerate(found):
            for index, values in row.values.items():
                own[index].append(at)
                places = np.flatnonzero(values > 0).tolist()
                fired[index] += [(at * length + place, float(values[place])) for place in places]
        p_silent = {
            feature.index: assumed_silent(feature.neuron.get("frac_nonzero"), width) for feature in features
        }
        shared = _Shared(rows, overlap)
        self.own = {index: frozenset(places) for index, places in own.items()}
        """Rows that a feature lists: what it does there is known."""
        self.fires = {
            index: frozenset(token // length for token, _ in of_one) for index, of_one in fired.items()
        }
        """Rows in which it fires."""
        self.p_silent = p_silent
        self.firings = _PoolFirings(length, len(found), fired, self.own, p_silent, shared)


class _Shared:
    """Which rows share a run of tokens."""

    def __init__(self, rows: NDArray[Any], n: int) -> None:
        hashes_RC = runs(rows["tokens"].astype(np.int32), rows["length"].astype(np.int64), n)
        row, place = np.nonzero(hashes_RC)
        order = np.lexsort((row, hashes := hashes_RC[row, place]))
        hashes, row = hashes[order], row[order]
        begins = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])) if len(hashes) else row
        ends = np.append(begins[1:], len(hashes))
        several = row[begins] != row[np.maximum(ends - 1, 0)] if len(hashes) else begins
        self._groups = [
            np.unique(row[begin:end])
            for begin, end in zip(begins[several].tolist(), ends[several].tolist(), strict=True)
        ] if len(hashes) else []  # fmt: skip
        self._of_row: dict[int, list[int]] = {}
        for number, group in enumerate(self._groups):
            for at in group.tolist():
                self._of_row.setdefault(at, []).append(number)

    def with_any(self, rows: Iterable[int]) -> set[int]:
        """Rows that share a run with one of these."""
        numbers = {number for row in rows for number in self._of_row.get(row, ())}
        return {at for number in numbers for at in self._groups[number].tolist()}


class _PoolFirings(FiringStore):
    """What the features of a pool do on its rows. A row of which nobody knows it is one whose firings were dropped:
    nothing in it counts as silent."""

    def __init__(
        self,
        context_length: int,
        n_rows: int,
        fired: dict[int, list[tuple[int, float]]],
        own: dict[int, frozenset[int]],
        p_silent: dict[int, float | None],
        shared: _Shared,
    ) -> None:
        super().__init__([], context_length)
        self._n_rows, self._fired, self._own = n_rows, fired, own
        self._p_silent, self._shared = p_silent, shared

    def _unknown(self, index: int) -> Ints:
        own, p_silent = self._own[index], self._p_silent[index]
        if p_silent is None or p_silent < LEAST_SILENT:
            return np.setdiff1d(np.arange(self._n_rows), np.array(sorted(own), np.int64))
        return np.array(sorted(self._shared.with_any(own) - own), np.int64)

    def read_these(self, features: Ints) -> Firings:
        pairs = [sorted(self._fired[index]) for index in features.tolist()]
        unknown = [self._unknown(index) for index in features.tolist()]
        tokens = np.array([token for of_one in pairs for token, _ in of_one], np.int64)
        values = np.array([value for of_one in pairs for _, value in of_one], np.float32)
        counts = np.array([len(of_one) for of_one in pairs], np.int64)
        group = np.repeat(np.arange(len(pairs)), counts)
        length = self.context_length
        return Firings(
            features=features.astype(np.uint32),
            offsets=_offsets(counts),
            tokens=tokens,
            values=values,
            weights=np.ones(len(values), np.float32),
            dropped_offsets=_offsets(np.array([len(rows) for rows in unknown], np.int64)),
            dropped_rows=np.concatenate([*unknown, np.zeros(0, np.int64)]),
            n_fired=counts,
            n_rows=np.array([len({token // length for token, _ in of_one}) for of_one in pairs], np.int64),
            total=np.bincount(group, values, minlength=len(pairs)).astype(np.float64),
            histogram=histograms(group, values, len(pairs)),
        )


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
