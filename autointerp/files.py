"""Files that are whole or not there, with a seal that tells whether they are still what was written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from autointerp.errors import DiskFull, TooManyFiles
from autointerp.types import Json

_DIGEST_BYTES: Final = 16
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
