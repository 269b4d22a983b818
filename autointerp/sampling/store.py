"""The window store: every window of a unit's samples, with its tokens and activations, in one parquet
file beside the unit's part. Later stages need neither the corpus nor the shards.

    feature      string, in a dictionary in the order of the windows
    split        shown, select or heldout
    document     u64
    position     i32, of the first token in its document; -1 is the BOS before it
    length       u16, tokens of the window
    band         i16, null behind active windows
    stratum      null in active windows
    token_low    the tokens' ids, 0 behind the last: the lower 16 bits of each, little-endian, ...
    token_high   ... and the upper 8: written in a fifth of the time of a list, and smaller
    fired        list of u16, places in the window
    activations  list of f32, what fired there
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from autointerp.errors import RunError
from autointerp.files import write_sealed
from autointerp.sampling.sample import Sampled
from autointerp.sampling.selected import STRATA, Selected
from autointerp.sampling.text import SPLITS, Ints, SplitName
from autointerp.splits import Heldout, Select, Shown
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Json, Window


def save_windows(path: Path, sampled: Sampled, which: slice) -> Json:
    """Writes the windows of these of the samples; the file's seal. Raises DiskFull."""
    content = pa.BufferOutputStream()
    pq.write_table(
        _table(sampled, which),
        content,
        compression="zstd",
        row_group_size=2**20,
        write_statistics=False,
        use_dictionary=cast(Any, ["feature", "split", "band", "stratum", "fired.list.element"]),
    )
    return write_sealed(path, memoryview(content.getvalue()))


def _table(sampled: Sampled, which: slice) -> Any:
    samples = sampled.samples[which]
    first = which.start or 0
    low, high = np.searchsorted(sampled.windows.group, [first, first + len(samples)])
    windows = sampled.windows[slice(int(low), int(high))]
    row, start = windows.places.row, windows.places.start
    is_active = windows.stratum < 0
    rows = sampled.text.rows
    names = _names([sample.feature for sample in samples])
    fired_offsets, fired, activations = _fired_lists(sampled, windows)
    ids = rows.tokens(row, start, int(windows.places.length.max(initial=1)))
    ids[ids < 0] = 0
    return pa.table(
        {
            "feature": pa.DictionaryArray.from_arrays(_numbers(windows.group - first, "i4"), names),
            "split": pa.DictionaryArray.from_arrays(_numbers(windows.split, "i1"), _names(SPLITS)),
            "document": _numbers(rows.document[row], "u8"),
            "position": _numbers(rows.in_document(row, start), "i4"),
            "length": _numbers(windows.places.length, "u2"),
            "band": _numbers(windows.band, "i2", is_active),
            "stratum": pa.DictionaryArray.from_arrays(
                _numbers(windows.stratum, "i1", ~is_active), _names(STRATA)
            ),
            "token_low": _blobs(ids.astype("<u2")),
            "token_high": _blobs((ids >> 16).astype(np.uint8)),
            "fired": _lists(fired_offsets, _numbers(fired, "u2")),
            "activations": _lists(fired_offsets, _numbers(activations, "f4")),
        }
    )


_ARROW: Final = {
    "i1": pa.int8(), "i2": pa.int16(), "i4": pa.int32(), "u2": pa.uint16(), "u8": pa.uint64(), "f4": pa.float32()
}  # fmt: skip


def _numbers(values: NDArray[Any], kind: str, valid: NDArray[np.bool_] | None = None) -> Any:
    """A column over the memory of an array. `pa.array` would do, but it loads pandas: a second."""
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    content = pa.py_buffer(np.ascontiguousarray(values, f"<{kind}"))
    return pa.Array.from_buffers(_ARROW[kind], len(values), [bits, content])


def _names(names: Sequence[str]) -> Any:
    content = [name.encode() for name in names]
    offsets = np.concatenate([[0], np.cumsum([len(name) for name in content])]).astype(np.int32)
    return pa.StringArray.from_buffers(len(names), pa.py_buffer(offsets), pa.py_buffer(b"".join(content)))


def _lists(offsets: Ints, values: Any) -> Any:
    return pa.ListArray.from_arrays(_numbers(offsets, "i4"), values)


def _blobs(values: NDArray[Any]) -> Any:
    """Rows [N, ...] as Arrow binaries of one size, without a copy."""
    kind = pa.binary(values.shape[1] * values.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _fired_lists(sampled: Sampled, windows: Selected) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Offsets, places in the window and values of what fires in each window."""
    counts = windows.high - windows.low
    offsets = np.concatenate([[0], np.cumsum(counts)])
    at = np.repeat(windows.low - offsets[:-1], counts) + np.arange(offsets[-1])
    begin = windows.places.row * sampled.text.context_length + windows.places.start
    fired = sampled.firings.tokens[at] - np.repeat(begin, counts)
    return offsets, fired, sampled.firings.values[at]


# --- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Lists:
    """A list column as two arrays."""

    offsets: NDArray[np.int32]
    values: NDArray[Any]

    @classmethod
    def of(cls, column: Any) -> _Lists:
        chunk = column.combine_chunks()
        return cls(chunk.offsets.to_numpy(), chunk.values.to_numpy())


class Windows:
    """What a unit's store holds, by feature. Columns stay arrays; a window is built when asked for."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        """Raises RunError where the file is missing."""
        if not path.is_file():
            raise RunError(
                f"{path} is missing, though {path.stem} calls its features sampled. "
                f"Delete {path.with_suffix('.jsonl')} too, and they are sampled anew."
            )
        self._vocabulary = vocabulary
        self._last_heldout: tuple[str, Heldout] | None = None
        table = pq.read_table(path)
        features = table["feature"].combine_chunks()
        group = features.indices.to_numpy()
        names: list[str] = features.dictionary.to_pylist()
        split = _codes(table["split"], list(SPLITS))
        # Windows of one feature and split are neighbours, the active ones first.
        cell = group.astype(np.int64) * len(SPLITS) + split
        edges = [*np.flatnonzero(np.diff(cell, prepend=-1)).tolist(), len(cell)]
        self._pieces = {(names[group[at]], SPLITS[split[at]]): slice(at, end) for at, end in pairwise(edges)}
        self._document: NDArray[np.uint64] = table["document"].to_numpy()
        self._position: NDArray[np.int32] = table["position"].to_numpy()
        self._band: NDArray[np.int16] = table["band"].fill_null(-1).to_numpy()
        self._stratum = _codes(table["stratum"], list(STRATA))
        self._length: NDArray[np.uint16] = table["length"].to_numpy()
        low, high = (
            _blob_rows(table[name], kind) for name, kind in (("token_low", "<u2"), ("token_high", "u1"))
        )
        self._token_ids = low.astype(np.int32) | (high.astype(np.int32) << 16)
        self._fired = _Lists.of(table["fired"])
        self._activations = _Lists.of(table["activations"])

    def shown(self, feature: str) -> Shown:
        return Shown(*self._of(feature, "shown"))

    def select(self, feature: str) -> Select:
        return Select(*self._of(feature, "select"))

    def heldout(self, feature: str) -> Heldout:
        # The scorers of a feature ask for the same, one right behind the other.
        if self._last_heldout is None or self._last_heldout[0] != feature:
            self._last_heldout = feature, Heldout(*self._of(feature, "heldout"))
        return self._last_heldout[1]

    def cells(self, feature: str, split: SplitName) -> list[str | int | None]:
        """Of each window of a split, in order: an active one's band, of another its stratum."""
        these = self._pieces.get((feature, split), slice(0, 0))
        codes, bands = self._stratum[these].tolist(), self._band[these].tolist()
        return [_STRATUM_OF[code] or _band(band) for code, band in zip(codes, bands, strict=True)]

    def windows(self, feature: str, split: SplitName, at: Sequence[int]) -> list[Window]:
        """Those at these places of a split, ascending."""
        these = self._pieces.get((feature, split), slice(0, 0))
        return list(self._windows(np.asarray(at, np.intp) + these.start))

    def mass_by_band(self, feature: str, n_bands: int) -> list[float]:
        """Share of the feature's activation that lies in each band of its active windows, strongest first.

        Bands hold equally many windows, so a band's share goes as the mean of its windows' summed activations.
        It is estimated from those of `select` and `heldout`, which are drawn at random within their band; a
        band without any has the share 0. Empty where nothing is known.
        """
        sums, counts = np.zeros(n_bands), np.zeros(n_bands)
        for split in ("select", "heldout"):
            these = self._pieces.get((feature, split), slice(0, 0))
            is_active = self._stratum[these] < 0
            band = self._band[these][is_active]
            offsets = self._fired.offsets[these.start : these.stop + 1]
            total = np.concatenate([[0.0], np.cumsum(self._activations.values[offsets[0] : offsets[-1]])])
            mass = np.diff(total[offsets - offsets[0]])[is_active]
            sums += np.bincount(band, mass, minlength=n_bands)
            counts += np.bincount(band, minlength=n_bands)
        means = sums / np.maximum(counts, 1)
        return (means / means.sum()).tolist() if means.sum() > 0 else []

    def _of(self, feature: str, split: SplitName) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
        """Active windows, and those they are set against."""
        these = self._pieces.get((feature, split), slice(0, 0))
        windows = tuple(self._windows(np.arange(these.start, these.stop)))
        n_active = int((self._stratum[these] < 0).sum())
        return windows[:n_active], windows[n_active:]

    def _windows(self, at: NDArray[np.intp]) -> Iterator[Window]:
        # Column by column, so that Python's own loop has next to nothing left to do a window.
        ids, length = self._token_ids[at], self._length[at]
        lengths = length.tolist()
        documents = self._document[at].astype(">u8").tobytes().hex()
        return map(
            Window,
            [documents[at : at + 16] for at in range(0, len(documents), 16)],
            self._position[at].tolist(),
            _rows_of(ids, lengths),
            self._vocabulary.pieces_of_rows(ids, length),
            self._activations_of(at, lengths),
            map(_band, self._band[at].tolist()),
            [_STRATUM_OF[code] for code in self._stratum[at].tolist()],
        )

    def _activations_of(self, at: NDArray[np.intp], lengths: list[int]) -> Iterator[tuple[float, ...]]:
        if not len(at):
            return
        begins, ends = self._fired.offsets[at], self._fired.offsets[at + 1]
        first = int(begins[0])
        fired = slice(first, int(ends[-1]))
        places: list[int] = self._fired.values[fired].tolist()
        values: list[float] = self._activations.values[fired].tolist()
        edges = zip((begins - first).tolist(), (ends - first).tolist(), strict=True)
        for length, (begin, end) in zip(lengths, edges, strict=True):
            if begin == end:
                yield _silence(length)
                continue
            activations = [0.0] * length
            for number in range(begin, end):
                activations[places[number]] = values[number]
            yield tuple(activations)


def _band(code: int) -> int | None:
    return None if code < 0 else code


def _rows_of(ids: NDArray[np.int32], lengths: list[int]) -> list[tuple[int, ...]]:
    """Each row's first ids. `struct` makes tuples of a buffer without lists on the way."""
    width = ids.shape[1]
    rows = struct.iter_unpack(f"<{width}i", ids.astype("<i4").tobytes()) if width else iter([()] * len(ids))
    return [row if n == width else row[:n] for row, n in zip(rows, lengths, strict=True)]


_STRATUM_OF: Final = (*STRATA, None)
"""By code; the last is that of -1, an active window."""


@lru_cache(maxsize=1024)
def _silence(length: int) -> tuple[float, ...]:
    return (0.0,) * length


def _blob_rows(column: Any, kind: str) -> NDArray[Any]:
    """What `_blobs` was given."""
    chunk = column.combine_chunks()
    if not len(chunk):
        return np.zeros((0, 0), kind)
    values = np.frombuffer(chunk.buffers()[1], kind).reshape(
        -1, chunk.type.byte_width // np.dtype(kind).itemsize
    )
    return values[chunk.offset : chunk.offset + len(chunk)]


def _codes(column: Any, names: list[str]) -> NDArray[np.int8]:
    """A column of names -> their places in `names`, -1 for null."""
    encoded = column.combine_chunks()
    numbers = np.array([names.index(name) for name in encoded.dictionary.to_pylist()], np.int8)
    at = encoded.indices.fill_null(-1).to_numpy()
    return np.where(at < 0, -1, numbers[at] if len(numbers) else -1).astype(np.int8)
