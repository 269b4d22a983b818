"""Published windows -> a unit's window store (`sampling/store.py`), and what stands for windows that are not there.

Tokens whose text was not published become one token of the vocabulary's end, a dot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from autointerp.files import write_sealed
from autointerp.publish.schema import EXAMPLES
from autointerp.types import Json

HIDDEN: Final = "·"
"""Stands for the text of a token that was not published."""


def save_examples(path: Path, rows: Any, hidden: int) -> Json:
    """Writes the rows of the table `examples` as a store; the file's seal. `hidden`: id of the token that stands
    for text that is not there. Raises DiskFull."""
    rows = rows.combine_chunks()
    ids, activations = (_list(rows, name) for name in ("token_ids", "activations"))
    lengths = np.diff(ids.offsets.to_numpy())
    width = int(lengths.max(initial=1))
    table_NT = np.zeros((len(lengths), width), np.uint32)
    table_NT[np.arange(width) < lengths[:, None]] = ids.values.fill_null(hidden).to_numpy()
    values = activations.values.to_numpy()
    begins = activations.offsets.to_numpy()
    fired = np.flatnonzero(values)
    window = np.searchsorted(begins, fired, side="right") - 1
    counts = np.bincount(window, minlength=len(lengths))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    content = pa.BufferOutputStream()
    columns = {
        "feature": rows["feature"].dictionary_encode(),
        "split": rows["split"].dictionary_encode(),
        "document": pa.array([int(text, 16) for text in rows["document"].to_pylist()], pa.uint64()),
        "position": rows["position"],
        "length": pa.array(lengths.astype(np.uint16)),
        "band": rows["band"],
        "stratum": rows["stratum"].dictionary_encode(),
        "token_low": _blobs(table_NT.astype("<u2")),
        "token_high": _blobs((table_NT >> 16).astype(np.uint8)),
        "fired": pa.ListArray.from_arrays(offsets, pa.array((fired - begins[window]).astype(np.uint16))),
        "activations": pa.ListArray.from_arrays(offsets, pa.array(values[fired])),
    }
    pq.write_table(pa.table(columns), content, compression="zstd")
    return write_sealed(path, memoryview(content.getvalue()))


def _list(rows: Any, name: str) -> Any:
    """A list column whose offsets begin at 0."""
    column = rows[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return pc.take(column, pa.array(np.arange(len(column)))) if column.offset else column


def _blobs(values: Any) -> Any:
    kind = pa.binary(values.shape[1] * values.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def from_trials(scores: Mapping[str, Sequence[Json]]) -> Any:
    """Rows of `examples` for a unit whose windows were not published: of each held-out window what the trials of
    its feature's scores say of it. `scores`: records by feature."""
    rows = [row for feature, records in scores.items() for row in _windows_of(feature, records)]
    return pa.Table.from_pylist(rows, EXAMPLES)


def _windows_of(feature: str, records: Sequence[Json]) -> Iterator[Json]:
    known: dict[int, Json] = {}
    for record in records:
        trials: Json = record["trials"]
        windows: list[int] = trials.get("window") or []
        for at, window in enumerate(windows):
            of_window = {name: column[at] for name, column in trials.items() if name != "kind"}
            known.setdefault(window, of_window)
    last_active = max((at for at, one in known.items() if one["band"] is not None), default=-1)
    for number in range(max(known, default=-1) + 1):
        one = known.get(number, {})
        length = max(one.get("length") or 1, (one.get("offset") or 0) + 1)
        activations = [0.0] * length
        if one.get("maximum"):
            activations[one.get("offset") or 0] = one["maximum"]
        is_active = number <= last_active
        yield {
            "feature": feature,
            "split": "heldout",
            "number": number,
            "band": one.get("band", 0) if is_active else None,
            "stratum": None if is_active else one.get("stratum") or "random",
            "token_ids": [None] * length,
            "activations": activations,
            "document": one.get("document", "").ljust(16, "0"),
            "position": 0,
        }
