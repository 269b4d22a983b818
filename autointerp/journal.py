"""Journals: what is done, on disk, in a form that no crash can spoil.

    <folder>/made_from.json              the settings these records were made from, and their digest
    <folder>/<unit>.<attempt>.jsonl      a part: one header line, then records that begin with {"key":

A *unit* is a fixed range of work (256 features, one shard of rows). Every process that works on a unit
writes a part of its own, with the next free attempt number; nobody appends to or truncates another's
file. So a torn line can only be the last of its file, and readers pass over it; a bad line anywhere else
is an error that names it. Where two parts hold the same key, the lowest attempt wins.

`fill.py` has the resumable, bounded, concurrent map on top: it runs what has no record yet.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from autointerp.errors import DiskFull, JournalCorrupt, RecipeChanged, RunError
from autointerp.types import Json, digest

SCHEMA: Final = 1
FEATURES_PER_UNIT: Final = 256
_FSYNC_EVERY_S: Final = 5.0
_MADE_FROM = "made_from.json"
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
        self.path: Path | None = None

    def open(self) -> Path:
        """Claims the next free attempt and writes the header."""
        if self.path is None:
            self.path, self._fd = self._journal.claim(self.unit)
            attempt = int(self.path.suffixes[-2][1:])
            self._write(
                orjson.dumps(
                    {
                        "schema": SCHEMA,
                        "package": self._journal.package,
                        "digest": self._journal.digest,
                        "unit": self.unit,
                        "attempt": attempt,
                    }
                )
            )
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
        line += b"\n"
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


class disk_errors:  # noqa: N801  reads as a statement
    """Turns a write that found no room into DiskFull; other errors pass."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, OSError) and error.errno in full:
            raise DiskFull(
                f"no room left for {self._path} ({error.strerror}). Everything written before is intact: "
                f"free some space and start again, the run goes on where it stopped."
            ) from error


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """The file has the old content or the new one, never something between. Raises DiskFull.

    Arrays and tables come here as bytes too: numpy, safetensors and pyarrow each have a way of their own
    to say that the disk is full, and none of them waits until the bytes are on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_sealed(path: Path, content: bytes | memoryview) -> Json:
    """Writes atomically; what a record says of the file, so that `cache verify` can tell whether it is
    still what was written: {"bytes": size, "checksum": blake2b}. Raises DiskFull."""
    write_atomically(path, content)
    return {"bytes": len(content), "checksum": hashlib.blake2b(content, digest_size=16).hexdigest()}


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
        self._made_from = made_from

    @classmethod
    def existing(cls, folder: Path) -> Journal:
        """A journal to read from, whatever made it: the plug-ins that did need not be there."""
        path = folder / _MADE_FROM
        return cls(folder, orjson.loads(path.read_bytes())["made_from"] if path.exists() else None)

    def check(self) -> None:
        """Raises RecipeChanged where the folder holds records made from other settings."""
        path = self.folder / _MADE_FROM
        if self._made_from is None or not path.exists():
            return
        before: Json = orjson.loads(path.read_bytes())
        if before["digest"] == self.digest:
            return
        lines = differences(before["made_from"], orjson.loads(orjson.dumps(self._made_from)))
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
        """Creates the next part of a unit for this process alone; the path and an open descriptor."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._made_from is not None and not (self.folder / _MADE_FROM).exists():
            content = {"digest": self.digest, "made_from": self._made_from}
            write_atomically(self.folder / _MADE_FROM, orjson.dumps(content, option=orjson.OPT_INDENT_2))
        attempt = 1 + max((int(path.suffixes[-2][1:]) for path in self.parts(unit)), default=0)
        while True:
            path = self.folder / f"{unit}.{attempt:04d}.jsonl"
            try:
                with disk_errors(path):
                    return path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            except FileExistsError:
                attempt += 1

    def read(self, unit: str) -> dict[str, Json]:
        """The records of a unit by key."""
        return {key: record for key, (record, _) in self.located(unit).items()}

    def located(self, unit: str) -> dict[str, tuple[Json, Path]]:
        """The records of a unit by key, each with the part it stands in. Raises JournalCorrupt."""
        found: dict[str, tuple[Json, Path]] = {}
        for path in self.parts(unit):
            for record in self._records_of(path):
                found.setdefault(record["key"], (record, path))
        return found

    def records(self) -> Iterator[Json]:
        """All records, unit by unit, in each by key. Memory: one unit's records."""
        for unit in self.units():
            yield from (record for _, record in sorted(self.read(unit).items()))

    def _records_of(self, path: Path) -> Iterator[Json]:
        lines = path.read_bytes().split(b"\n")
        lines.pop()  # what stands behind the last newline: nothing, or a torn record
        if not lines:
            return
        header = _parse(path, 1, lines[0])
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
            if not line.startswith(_KEY_FIRST):
                raise _unreadable(path, number, line)
            yield _parse(path, number, line)


def _parse(path: Path, number: int, line: bytes) -> Json:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _unreadable(path, number, line) from error
    if not isinstance(record, dict):
        raise _unreadable(path, number, line)
    return record


def _unreadable(path: Path, number: int, line: bytes) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path}, line {number}, is not a record: {line[:60]!r}. Something outside autointerp changed the "
        f"file, or the disk is failing. Delete that line to make its record anew, or restore the file."
    )


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """One line a leaf that differs: `sampling.n_shown: was 40, is now 20`."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines: list[str] = []
        for key in sorted({*before, *after}):
            inner = f"{name}.{key}" if name else str(key)
            lines += differences(before.get(key), after.get(key), inner)
        return lines
    return [] if before == after else [f"{name}: was {before!r}, is now {after!r}"]
