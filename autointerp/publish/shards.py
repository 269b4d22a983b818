"""Files of rows: which features each holds, whether one is there already, and writing one.

    data/<dictionary>/<table>-<first feature>.parquet

A file holds a range of features that is kept with the run (`publication.py`), so a run that grows changes the files
of the features that it grew by. Only where a file would hold too many of them ranges are drawn anew. In a file's
footer stands the digest of the records it was made from: what is there with the right one is done.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.files import disk_errors
from autointerp.journal import FEATURES_PER_UNIT
from autointerp.panel import control_places
from autointerp.publish.manifest import Options
from autointerp.publish.rows import MakesRows, Row
from autointerp.publish.schema import QUOTING, SCHEMA, TABLES, TableName
from autointerp.publish.secrets import Guard
from autointerp.run import Run
from autointerp.types import Json, digest

DATA: Final = "data"
FEATURES_PER_FILE: Final = 2_048
"""On average: with 260 windows of 32 tokens each, examples make a file of some 50 MB."""
MOST_FEATURES_PER_FILE: Final = 4 * FEATURES_PER_FILE
"""Above that ranges are drawn anew: every file gets another name and is made again, once for a run that grows four
times as large."""
ROWS_PER_GROUP: Final = 2_000
GROUP_BYTES: Final = 2**26
"""Whichever comes first ends a row group. The hub's viewer reads a group to show a row of it, and gives up where
that is more than 300 MB."""
_ROW_BYTES: Final[dict[TableName, int]] = {
    "explanations": 4_096,
    "scores": 16_384,
    "examples": 1_024,
    "controls": 16_384,
    "effects": 32_768,
}
"""What a row weighs in memory beside its text, roughly."""
_PARTIAL: Final = ".tmp"
_MADE_FROM: Final = b"autointerp.made_from"


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of features of one dictionary: of each table a file."""

    dictionary: str
    first: int
    """Index of the first feature that may be in it."""
    units: tuple[str, ...]
    """Those that have records, ascending."""

    def has_part(self, journal: Path) -> bool:
        """Whether a journal's folder holds something of these units."""
        return any(True for unit in self.units for _ in journal.glob(f"{unit}.*.jsonl"))

    def path(self, table: TableName) -> str:
        """In the dataset."""
        return f"{DATA}/{self.dictionary}/{table}-{self.first:09d}.parquet"


def span_of(run: Run, dictionary: str, kept: int | None, per_file: int = FEATURES_PER_FILE) -> int:
    """Features of the dictionary that a file ranges over: a power of two units that hold at most some `per_file` of
    the features asked for, if these are spread evenly. `kept`: what it was, and stays."""
    span, width = FEATURES_PER_UNIT, run.identities.widths[dictionary]
    n_asked = len(run.asked(dictionary))
    if kept is not None and n_asked * kept <= MOST_FEATURES_PER_FILE * width:
        return kept
    while span < width and n_asked * 2 * span <= per_file * width:
        span *= 2
    return span


def shards(run: Run, dictionary: str, span: int) -> list[Shard]:
    """Ranges of `span` features, ascending. None before anything is sampled."""
    found: dict[int, list[str]] = {}
    for unit in run.existing("sample", dictionary).units():
        found.setdefault(int(unit) // span * span, []).append(unit)
    return [Shard(dictionary, first, tuple(units)) for first, units in sorted(found.items())]


def tables_of(run: Run, shard: Shard, options: Options) -> list[TableName]:
    """Those that may have rows."""
    folder = run.path / "control" / shard.dictionary
    of_stage = {
        "controls": [folder / place for place in control_places(run.path, run.recipe, shard.dictionary)],
        "effects": [run.path / "intervene" / shard.dictionary],
    }
    return [
        table
        for table in TABLES
        if (options.examples or table not in QUOTING)
        and (table not in of_stage or any(map(shard.has_part, of_stage[table])))
    ]


def made_from(run: Run, shard: Shard, options: Json) -> str:
    """A digest of all records of a shard and of what else its rows depend on. `options`: of the publication."""
    of_parts = hashlib.blake2b(digest_size=16)
    folders = [run.path / stage / shard.dictionary for stage in ("sample", "directions", "intervene")]
    folders += [run.path / "explain" / shard.dictionary / name for name in run.recipe.explainers]
    folders += [run.path.joinpath("score", shard.dictionary, *pair) for pair in run.scored()]
    folders += [
        run.path / "control" / shard.dictionary / place
        for place in control_places(run.path, run.recipe, shard.dictionary)
    ]
    for folder in folders:
        for unit in shard.units:
            for part in sorted(folder.glob(f"{unit}.*.jsonl")):
                of_parts.update(f"{part.relative_to(run.path)}\n".encode() + part.read_bytes())
    random: list[Any] = []
    if run.recipe.random_tokens is not None:
        random = run.existing("cache", shard.dictionary).parts(run.recipe.random_tokens.unit)
        random = [part.read_bytes() for part in random]
    names = list(run.recipe.explainers), list(run.recipe.scorers)
    vocabulary = [part.read_bytes() for part in run.rows().parts("vocabulary")]
    return digest(SCHEMA, options, names, of_parts.digest(), random, vocabulary)


def made_from_of(path: Path) -> str | None:
    """What a file that is there was made from; None where it is no such file, or none is there."""
    if not path.is_file():
        return None
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None  # torn by something: it is made anew
    return metadata.get(_MADE_FROM, b"").decode() or None


def is_partial(path: Path) -> bool:
    """Whether it is a file that `write_shard` was killed over."""
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


def n_rows_of(path: Path) -> int:
    return pq.read_metadata(path).num_rows


def write_shard(
    path: Path, table: TableName, schema: Any, rows: Iterable[Row], source: str, guard: Guard, name: str
) -> bool:
    """Whether it was written: not where a secret stands in it, which `guard` keeps. The file is whole or not
    there. Memory: a row group. `source`: its digest; `name`: the file's, in messages. Raises DiskFull."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    is_clean = True
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            marked = schema.with_metadata({_MADE_FROM: source.encode()})
            # Chunks that follow the content are what the hub keeps once, however rows move between files.
            with pq.ParquetWriter(
                partial, marked, compression="zstd", write_page_index=True, use_content_defined_chunking=True
            ) as writer:
                for group in _groups(rows, _ROW_BYTES[table]):
                    for row in group:
                        is_clean &= guard.look(row.text, name, row.name)
                    columns = pa.RecordBatch.from_pylist([row.values for row in group], marked)
                    writer.write_batch(columns, row_group_size=ROWS_PER_GROUP)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if is_clean:
                partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return is_clean


def _groups(rows: Iterable[Row], row_bytes: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    n_bytes = 0
    for row in rows:
        group.append(row)
        n_bytes += row_bytes + 4 * len(row.text)
        if len(group) == ROWS_PER_GROUP or n_bytes >= GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def rows_of(make: MakesRows, shard: Shard) -> Iterator[Row]:
    for unit in shard.units:
        yield from make(unit)
