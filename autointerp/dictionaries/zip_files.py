"""Zip archives (.pt and .npz files are such), opened with distrust."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from autointerp import distant
from autointerp.dictionaries.checkpoint import file_size, first_bytes, first_line, shortened
from autointerp.errors import CheckpointError

MAX_MEMBERS: Final = 100_000
PACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
FREELY_UNPACKED: Final = 64 * 2**20
"""A compressed member may unpack to so many bytes, or to MAX_RATIO times its own if that is more. Zeros shrink
a thousandfold, a bias of zeros is small; weights hardly shrink at all."""
MAX_RATIO: Final = 20


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip archive does. Raises CheckpointError as `first_bytes`."""
    return first_bytes(path).startswith(b"PK\x03\x04")


@contextmanager
def opened(path: Path) -> Generator[zipfile.ZipFile]:
    """The archive, in whose members nothing is absurd. Raises CheckpointError, also for what is found wrong
    while it is open."""
    try:
        with distant.opened(path) as file, zipfile.ZipFile(file) as archive:
            _check(path, archive.infolist())
            yield archive
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}.") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{path} is not a whole archive ({first_line(error)}). Copy or download it again."
        ) from error


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise CheckpointError(f"{path} holds {len(members):,} files, too many for a dictionary.")
    if len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"{path} holds two files of one name. Copy or download it again.")
    size = file_size(path)
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in PACKED:
            raise CheckpointError(
                f"{path}: '{shortened(member.filename)}' in it is encrypted, or compressed in a way that "
                "is not read. Save it again without that."
            )
        bound = max(FREELY_UNPACKED, MAX_RATIO * member.compress_size)
        stored = member.compress_type == zipfile.ZIP_STORED
        if member.compress_size > size or member.file_size > (member.compress_size if stored else bound):
            raise CheckpointError(
                f"{path}: '{shortened(member.filename)}' in it has {member.compress_size:,} bytes and says "
                f"that it unpacks to {member.file_size:,}: it is damaged, or made to fill the memory."
            )
