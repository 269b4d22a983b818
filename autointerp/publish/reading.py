"""Published tables, read unit by unit and checked: they come from outside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.errors import FeatureError, PublishedError
from autointerp.journal import unit_of_feature
from autointerp.publish.manifest import Manifest, sha256_of
from autointerp.publish.schema import TableName, schema_of
from autointerp.types import FeatureId

_ROWS: Final = 1_024


class Units:
    """One table of one dictionary, as pieces of a unit each. Memory: one unit's rows."""

    def __init__(
        self, folder: Path, manifest: Manifest, dictionary: str, table: TableName, scorers: list[str]
    ) -> None:
        self._files = [folder / name for name in manifest.of_table(dictionary, table)]
        self._dictionary, self._schema = dictionary, schema_of(table, scorers, manifest.schema)
        self._pieces = self._read()
        self._next: tuple[str, Any] | None = next(self._pieces, None)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """(unit, its rows as a pyarrow.Table), ascending. Raises PublishedError."""
        while (piece := self._next) is not None:
            self._next = next(self._pieces, None)
            yield piece

    def of(self, unit: str) -> Any:
        """The rows of a unit, asked for in ascending order; a table without rows where there are none."""
        if self._next is None or self._next[0] != unit:
            return self._schema.empty_table()
        return next(iter(self))[1]

    def check_read(self) -> None:
        """Raises PublishedError where rows are left that nobody asked for."""
        if self._next is not None:
            raise PublishedError(
                f"{self._files[0].parent} has rows of features {self._next[0]} and on that its explanations don't "
                f"have. The set is not whole: download it again."
            )

    def _read(self) -> Iterator[tuple[str, Any]]:
        unit, held = "", list[Any]()
        for name, rows in self._slices():
            if name < unit:
                raise PublishedError(
                    f"{self._files[0].parent}: rows are not in order of features, as autointerp writes them."
                )
            if name > unit and held:
                yield unit, pa.Table.from_batches(held)
                held = []
            unit = name
            held.append(rows)
        if held:
            yield unit, pa.Table.from_batches(held)

    def _slices(self) -> Iterator[tuple[str, Any]]:
        for path in self._files:
            try:
                file = pq.ParquetFile(path)
                if not file.schema_arrow.equals(self._schema, check_metadata=False):
                    raise PublishedError(
                        f"{path} has other columns than a published run's. It has: "
                        f"{', '.join(file.schema_arrow.names)}."
                    )
                for batch in file.iter_batches(_ROWS):
                    # Validated, since text from outside may be no UTF-8.
                    batch.validate(full=True)
                    yield from self._by_unit(batch)
            except (OSError, pa.ArrowException) as error:
                raise PublishedError(f"{path} can't be read ({error}). Download it again.") from error

    def _by_unit(self, batch: Any) -> Iterator[tuple[str, Any]]:
        features = batch.column("feature").dictionary_encode()
        units = [self._unit_of(name) for name in features.dictionary.to_pylist()]
        at = np.array([int(unit) for unit in units])[features.indices.to_numpy(zero_copy_only=False)]
        edges = [0, *(np.flatnonzero(np.diff(at)) + 1).tolist(), len(at)]
        for begin, end in pairwise(edges):
            yield f"{at[begin]:09d}", batch.slice(begin, end - begin)

    def _unit_of(self, name: str) -> str:
        try:
            feature = FeatureId.parse(name)
        except FeatureError as error:
            raise PublishedError(f"{self._files[0].parent}: {error}") from error
        if feature.dictionary != self._dictionary:
            raise PublishedError(
                f"{self._files[0].parent} has a row of {name}, another dictionary's feature."
            )
        return unit_of_feature(feature.index)


def check_whole(folder: Path, manifest: Manifest) -> None:
    """Raises PublishedError where a file is missing, or is not the one that the manifest names."""
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise PublishedError(
                f"{path} is missing, though manifest.json names it. Download it too, or publish again."
            )
        if path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
            raise PublishedError(
                f"{path} is not the file that manifest.json names (its content differs). It may just be "
                f"changing: try again in a minute, or give the revision of a whole set (hub:ORG/NAME@REVISION)."
            )
