"""Files that are whole or not there, with a seal that tells whether they are still what was written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, Final

import orjson

from autointerp.errors import DiskFull, RunError, TooManyFiles
from autointerp.types import Json, digest

_DIGEST_BYTES: Final = 16
LINE_SEAL: Final = "crc32"
"""The last field of a journal's lines, which no record has of its own."""
_LINE_SEAL_BYTES: Final = len(f',"{LINE_SEAL}":"00000000"}}')
_CHECKSUM: Final = "checksum"
TOO_MANY: Final = (errno.EMFILE, errno.ENFILE)
"""Of an OSError: no more files can be opened, by this process or on this machine."""


class disk_errors:  # noqa: N801  reads as a statement
    """Turns a write that found no room into DiskFull, and a file too many into TooManyFiles; other errors pass."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and error.errno in TOO_MANY:
            raise TooManyFiles from error
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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
    checksum = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
    return {"bytes": len(content), "checksum": checksum}


def seal_of(path: Path) -> Json:
    """The seal of what a file holds now. Memory: a quarter of a megabyte, whatever the file weighs."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
        return {"bytes": file.tell(), "checksum": digest.hexdigest()}


def sealed_line(line: bytes) -> bytes:
    """A JSON object on a line, with the checksum of the rest as its last field; one that has it stays."""
    if holds(line) is not None:
        return line
    return b'%b,"%b":"%08x"}' % (line[:-1], LINE_SEAL.encode(), zlib.crc32(line))


def holds(line: bytes) -> bool | None:
    """Whether a line is still what was sealed; None where it has no seal."""
    body, seal = line[:-_LINE_SEAL_BYTES], line[-_LINE_SEAL_BYTES:]
    if not seal.startswith(b',"%b":"' % LINE_SEAL.encode()):
        return None
    return seal == sealed_line(body + b"}")[len(body) :]


def sealed_json(content: Json) -> bytes:
    """For people to read, with the digest of its content: `read_sealed_json` compares."""
    return orjson.dumps(content | {_CHECKSUM: digest(content)}, option=orjson.OPT_INDENT_2)


def read_sealed_json(path: Path, way_on: str) -> Json:
    """What `sealed_json` was given. Raises RunError, which ends in `way_on`, where it is not that; files from
    before there were seals are read without."""
    try:
        content: Any = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise RunError(f"{path} is not what was written there: {error}. {way_on}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not what was written there: a {type(content).__name__}. {way_on}")
    checksum: object = content.pop(_CHECKSUM, None)
    if checksum not in (None, digest(content)):
        raise RunError(f"{path} is not what was written there: its checksum differs. {way_on}")
    return content


def carry(source: Path, target: Path) -> None:
    """`target` is what `source` is: a second name of the same bytes where the file system can, else a copy.
    Atomic. Only for files that nobody writes to again, as all of a run are. Raises DiskFull.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            try:
                os.link(source, partial)
            except OSError:  # another file system, or one without links
                shutil.copy2(source, partial)  # with its times, which say when it was written
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
