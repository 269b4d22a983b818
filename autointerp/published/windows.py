"""The window store and vocabulary of a run whose windows come from somebody's files: token texts without ids.

Every distinct text becomes a token of a vocabulary of this run's own. The layout is `sampling/store.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.files import write_sealed
from autointerp.published.delphi_results import Asked
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Json, digest


class Texts:
    """Numbers for token texts, in the order they come."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def ids(self, tokens: Sequence[str]) -> list[int]:
        return [self._ids.setdefault(token, len(self._ids)) for token in tokens]

    def vocabulary(self) -> Vocabulary:
        return Vocabulary([text.encode("utf-8", "replace") for text in self._ids])


def document_of(window: Asked) -> str:
    """Nobody says which document a window is of: the same text is the same document."""
    return digest("published", *window.tokens)[:16]


def save_published(path: Path, windows: Mapping[str, Sequence[Asked]], texts: Texts) -> Json:
    """Of each feature the held-out windows, active ones first; nothing is known of what was shown. The file's
    seal. Raises DiskFull."""
    rows = [(feature, one) for feature, of_one in windows.items() for one in of_one]
    ids = [texts.ids(one.tokens) for _, one in rows]
    longest = max(map(len, ids), default=1)
    table = np.zeros((len(rows), longest), np.uint32)
    for at, row in enumerate(ids):
        table[at, : len(row)] = row
    fired = [[at for at, value in enumerate(one.activations) if value > 0] for _, one in rows]
    columns: dict[str, Any] = {
        "feature": pa.array([feature for feature, _ in rows], pa.string()).dictionary_encode(),
        "split": pa.array(["heldout"] * len(rows), pa.string()).dictionary_encode(),
        "document": pa.array([int(document_of(one), 16) for _, one in rows], pa.uint64()),
        "position": pa.array([0] * len(rows), pa.int32()),
        "length": pa.array([len(one.tokens) for _, one in rows], pa.uint16()),
        "band": pa.array([one.band or 0 if one.truth else None for _, one in rows], pa.int16()),
        "stratum": pa.array(
            [None if one.truth else "random" for _, one in rows], pa.string()
        ).dictionary_encode(),
        "token_low": pa.array([row.tobytes() for row in table.astype("<u2")], pa.binary(2 * longest)),
        "token_high": pa.array([row.tobytes() for row in (table >> 16).astype("u1")], pa.binary(longest)),
        "fired": pa.array(fired, pa.list_(pa.uint16())),
        "activations": pa.array(
            [[one.activations[at] for at in places] for (_, one), places in zip(rows, fired, strict=True)],
            pa.list_(pa.float32()),
        ),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return write_sealed(path, memoryview(sink.getvalue()))
