"""The window store: every window of a unit's samples, with its tokens and activations, in one parquet
file beside the unit's part. Later stages need neither the corpus nor the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.activations.rows import RowStore
from autointerp.errors import RunError
from autointerp.files import write_sealed
from autointerp.sampling.sample import SPLITS, Sampled
from autointerp.sampling.windows import Places
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Heldout, Json, Select, Shown, Window

_SCHEMA: Final = pa.schema(
    [
        ("feature", pa.string()),
        ("split", pa.string()),
        ("document", pa.uint64()),
        ("position", pa.int32()),  # -1 is the BOS before a document
        ("band", pa.int16()),  # null in silent windows
        ("stratum", pa.string()),  # null in active windows
        ("token_ids", pa.list_(pa.uint32())),
        ("fired", pa.list_(pa.uint16())),  # places in the window
        ("activations", pa.list_(pa.float32())),  # what fired there
    ]
)


def save_windows(path: Path, samples: list[Sampled], rows: RowStore) -> Json:
    """Writes the windows of these samples; the file's seal. Raises DiskFull."""
    table = pa.Table.from_pylist([row for sample in samples for row in _rows_of(sample, rows)], _SCHEMA)
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd", row_group_size=16_384)
    return write_sealed(path, memoryview(content.getvalue()))


def _rows_of(sampled: Sampled, rows: RowStore) -> Iterator[dict[str, Any]]:
    for name in SPLITS:
        split = sampled.splits[name]
        for places, bands in ((split.active, split.band.tolist()), (split.silent, None)):
            positions = rows.in_document(places.row, places.start)
            ids = rows.tokens(places.row, places.start, int(places.length.max(initial=0)))
            for at in range(len(places)):
                fired, activations = _fired(sampled, places, at, rows.context_length)
                yield {
                    "feature": sampled.sample.feature,
                    "split": name,
                    "document": int(rows.document[places.row[at]]),
                    "position": int(positions[at]),
                    "band": bands[at] if bands else None,
                    "stratum": None if bands else "random",
                    "token_ids": ids[at, : places.length[at]],
                    "fired": fired,
                    "activations": activations,
                }


def _fired(sampled: Sampled, places: Places, at: int, context_length: int) -> tuple[Any, Any]:
    begin = places.row[at] * context_length + places.start[at]
    low, high = np.searchsorted(sampled.tokens, [begin, begin + places.length[at]])
    return sampled.tokens[low:high] - begin, sampled.values[low:high]


class Windows:
    """What a unit's store holds, by feature."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        """Raises RunError where the file is missing."""
        if not path.is_file():
            raise RunError(
                f"{path} is missing, though {path.stem} calls its features sampled. "
                f"Delete {path.with_suffix('.jsonl')} too, and they are sampled anew."
            )
        self._vocabulary = vocabulary
        self._by_feature: dict[str, list[dict[str, Any]]] = {}
        for row in pq.read_table(path).to_pylist():
            self._by_feature.setdefault(row["feature"], []).append(row)

    def shown(self, feature: str) -> Shown:
        return Shown(*self._split(feature, "shown"))

    def select(self, feature: str) -> Select:
        return Select(*self._split(feature, "select"))

    def heldout(self, feature: str) -> Heldout:
        return Heldout(*self._split(feature, "heldout"))

    def _split(self, feature: str, name: str) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
        rows = [row for row in self._by_feature.get(feature, []) if row["split"] == name]
        windows = [self._window(row) for row in rows]
        return (
            tuple(window for window in windows if window.stratum is None),
            tuple(window for window in windows if window.stratum is not None),
        )

    def _window(self, row: dict[str, Any]) -> Window:
        activations = [0.0] * len(row["token_ids"])
        for place, value in zip(row["fired"], row["activations"], strict=True):
            activations[place] = value
        return Window(
            document=f"{row['document']:016x}",
            position=row["position"],
            token_ids=tuple(row["token_ids"]),
            texts=self._vocabulary.pieces(row["token_ids"]),
            activations=tuple(activations),
            band=row["band"],
            stratum=row["stratum"],
        )
