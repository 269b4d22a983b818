"""Journals: what is done, on disk, in a form that no crash can spoil.

    <folder>/made_from.json              the settings these records were made from, and their digest
    <folder>/<unit>.<attempt>.jsonl      a part: one header line, then records that begin with {"key":
    <folder>/<unit>.<attempt>.<kind>     arrays or tables of its own, whole before the header that seals them

A *unit* is a fixed range of work (256 features, one shard of rows). Every process that works on a unit
writes a part of its own, with the first free attempt number; nobody appends to or truncates another's
file. So a torn line can only be the last of its file, and readers pass over it; a bad line anywhere else
is an error that names it. The last field of each line is a checksum of the rest, which `cache verify` looks at and
readers take away; parts from before there were such are read alike. Where two parts hold the same key, the
lowest attempt wins.

`fill.py` has the resumable, bounded, concurrent map on top: it runs what has no record yet.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from autointerp.errors import DiskFull, JournalCorrupt, RecipeChanged, RunError
from autointerp.files import LINE_SEAL, disk_errors, sealed_line, write_atomically
from autointerp.types import Json, digest

SCHEMA: Final = 1
FEATURES_PER_UNIT: Final = 256
_FSYNC_EVERY_S: Final = 5.0
MADE_FROM: Final = "made_from.json"
_KEY_FIRST = b'{"key":'


def unit_of_feature(index: int) -> str:
    """The unit a feature's records go to: a fixed range of the dictionary, whatever else is asked for."""
    return f"{index // FEATURES_PER_UNIT * FEATURES_PER_UNIT:09d}"


# --- one file ------------------------------------------------------------------------------------------


class Part:
    """One process's records of one unit. The file appears with the first record."""

    def __init__(self, journal: Journal, unit: str) -> None:
        self._journal = journal
        self.unit = unit
        self._fd: int | None = None
        self._synced_at = 0.0
        self._files: Json | None = {}  # None behind the header
        self.path: Path | None = None

    def attach(self, suffix: str, save: Callable[[Path], Json]) -> Json:
        """Writes a file beside the part, before the part's first record; its seal, which the header keeps.

        `save(path)` writes the file and returns what `write_sealed` does.
        """
        if self._files is None:
            raise ValueError(f"{self.path} has records already: its files come before them")
        self._files[suffix] = save(self._claim().with_suffix(suffix))
        return self._files[suffix]

    def open(self) -> Path:
        """Claims the first free attempt and writes the header."""
        path = self._claim()
        if self._files is not None:
            header = {
                "schema": SCHEMA,
                "package": self._journal.package,
                "digest": self._journal.digest,
                "unit": self.unit,
                "attempt": int(path.suffixes[-2][1:]),
            }
            files, self._files = self._files, None
            self._write(orjson.dumps(header | ({"files": files} if files else {})))
        return path

    def _claim(self) -> Path:
        if self.path is None:
            self.path, self._fd = self._journal.claim(self.unit)
            self._synced_at = time.monotonic()
        return self.path

    def append(self, key: str, record: Json) -> None:
        """Writes one record; when this returns, no kill of this process can lose it."""
        self.open()
        self._write(orjson.dumps({"key": key} | record, option=orjson.OPT_SERIALIZE_NUMPY))
        if time.monotonic() - self._synced_at > _FSYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Waits until all records are on the disk itself."""
        if self._fd is not None:
            with disk_errors(self.path):
                os.fsync(self._fd)
            self._synced_at = time.monotonic()

    def close(self) -> None:
        if self._fd is not None:
            self.sync()
            os.close(self._fd)
            self._fd = None

    def abandon(self) -> None:
        """Closes without waiting for the disk: after a failed write, when another would fail too."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            raise RunError(f"{self.path} was closed; its unit goes on in a new file with the next run.")
        line = sealed_line(line) + b"\n"
        try:
            with disk_errors(self.path):
                while line:
                    line = line[os.write(self._fd, line) :]
        except DiskFull:
            # A half-written line must stay the last one of its file.
            self.abandon()
            raise

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- one folder ----------------------------------------------------------------------------------------


class Journal:
    """The records of one stage instance, all made from the same settings.

    `made_from` names those settings; they are written beside the first part, and `check` compares. None
    for request and usage journals, whose keys name their content.
    """

    def __init__(self, folder: Path, made_from: Json | None, *, package: str = "") -> None:
        self.folder = folder
        self.package = package
        self.digest = digest(made_from)
        self.made_from = made_from

    @classmethod
    def existing(cls, folder: Path) -> Journal:
        """A journal to read from, whatever made it: the plug-ins that did need not be there."""
        path = folder / MADE_FROM
        return cls(folder, orjson.loads(path.read_bytes())["made_from"] if path.exists() else None)

    def check(self) -> None:
        """Raises RecipeChanged where the folder holds records made from other settings."""
        path = self.folder / MADE_FROM
        if self.made_from is None or not path.exists():
            return
        before: Json = orjson.loads(path.read_bytes())
        if before["digest"] == self.digest:
            return
        lines = differences(before["made_from"], orjson.loads(orjson.dumps(self.made_from)))
        raise RecipeChanged(
            f"{self.folder} was made with other settings:\n"
            + "".join(f"  {line}\n" for line in lines)
            + "Either put them back, or start another run with --out, or delete that folder to make it anew."
        )

    def units(self) -> list[str]:
        """Units that have at least one part, sorted."""
        return sorted({path.name.split(".")[0] for path in self.folder.glob("*.*.jsonl")})

    def parts(self, unit: str) -> list[Path]:
        """Files of a unit, lowest attempt first."""
        return sorted(self.folder.glob(f"{unit}.*.jsonl"))

    def claim(self, unit: str) -> tuple[Path, int]:
        """Creates the first free part of a unit for this process alone; the path and an open descriptor.

        Where a part was set aside its number is free again: what is made anew has its name.
        """
        self.found()
        taken = set(self.parts(unit))
        for attempt in itertools.count(1):
            path = self.folder / f"{unit}.{attempt:04d}.jsonl"
            if path in taken:
                continue
            try:
                with disk_errors(path):
                    return path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            except FileExistsError:
                continue
        raise AssertionError("counting never ends")

    def found(self) -> None:
        """Makes the folder, and says in it what its records are made from."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.made_from is not None and not (self.folder / MADE_FROM).exists():
            content = {"digest": self.digest, "made_from": self.made_from}
            write_atomically(self.folder / MADE_FROM, orjson.dumps(content, option=orjson.OPT_INDENT_2))

    def read(self, unit: str) -> dict[str, Json]:
        """The records of a unit by key."""
        return {key: record for key, (record, _) in self.located(unit).items()}

    def located(self, unit: str) -> dict[str, tuple[Json, Path]]:
        """The records of a unit by key, each with the part it stands in. Raises JournalCorrupt."""
        found: dict[str, tuple[Json, Path]] = {}
        for path in self.parts(unit):
            for record in self.records_of(path):
                found.setdefault(record["key"], (record, path))
        return found

    def records(self) -> Iterator[Json]:
        """All records, unit by unit, in each by key. Memory: one unit's records."""
        for unit in self.units():
            yield from (record for _, record in sorted(self.read(unit).items()))

    def records_of(self, path: Path) -> Iterator[Json]:
        """Those of one part, in its order. Raises JournalCorrupt, and RecipeChanged where it was made otherwise."""
        lines = lines_of(path)
        if not lines:
            return
        header = parse_line(path, 1, lines[0])
        if header.get("schema") != SCHEMA:
            raise JournalCorrupt(
                f"{path} has schema {header.get('schema')!r}; this version of autointerp reads {SCHEMA}."
            )
        if header.get("digest") != self.digest:
            raise RecipeChanged(
                f"{path} was made with other settings (digest {header.get('digest')}, now {self.digest}). "
                f"Delete that file to make its records anew."
            )
        for number, line in enumerate(lines[1:], start=2):
            yield parse_line(path, number, line)


def lines_of(path: Path) -> list[bytes]:
    """A part's whole lines, the header first; what stands behind the last newline is nothing, or torn."""
    return path.read_bytes().split(b"\n")[:-1]


def parse_line(path: Path, number: int, line: bytes) -> Json:
    """The header (number 1) or a record. Raises JournalCorrupt."""
    if number > 1 and not line.startswith(_KEY_FIRST):
        raise _unreadable(path, number, line)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _unreadable(path, number, line) from error
    if not isinstance(record, dict):
        raise _unreadable(path, number, line)
    record.pop(LINE_SEAL, None)
    return record


def _unreadable(path: Path, number: int, line: bytes) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path}, line {number}, is not a record: {line[:60]!r}. Something outside autointerp changed the "
        f"file, or the disk is failing. Delete that line to make its record anew, or restore the file."
    )


def differing(before: Any, after: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """The leaves that differ: (`sampling.n_shown`, 40, 20)."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[tuple[str, Any, Any]] = []
        for key in sorted({*before, *after}):
            inner = f"{name}.{key}" if name else str(key)
            found += differing(before.get(key), after.get(key), inner)
        return found
    return [] if before == after else [(name, before, after)]


def differences(before: Any, after: Any) -> list[str]:
    """One line a leaf that differs: `sampling.n_shown: was 40, is now 20`."""
    return [f"{name}: was {one!r}, is now {two!r}" for name, one, two in differing(before, after)]
