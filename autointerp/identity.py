"""What names a set of files: a fingerprint that costs a few hundred milliseconds, whatever they weigh."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from autointerp.distant import may_be_read_whole, opened, size_of
from autointerp.errors import InputError

UNKNOWN: Final = ""
"""The identity of files of which only parts may be read. No run takes it: it reads them whole."""
WHOLE_UP_TO: Final = 64 * 2**20
"""Bytes. Files up to this size are read whole, longer ones in samples."""
HEAD: Final = 64 * 2**10
"""Bytes read from the start of a long file, where safetensors keep names, types and shapes."""
N_SAMPLES: Final = 16
SAMPLE: Final = 2**20
"""Bytes a sample, 16 of them at even distances, the last one at the very end of the file."""


def fingerprint(files: Sequence[Path]) -> str:
    """32 hex characters that name these files: blake2b over the name, size and content of each.

    Of a file over 64 MiB the content is its first 64 KiB and 16 samples of 1 MiB. Training moves every
    tensor, so samples tell two checkpoints apart; they would miss a change made by hand in between.
    The files' order and folders don't matter, so that a moved or copied checkpoint keeps its identity.
    UNKNOWN where one is distant and not to be read `in_full`. Raises InputError where a file can't be read.
    """
    if not all(may_be_read_whole(path) for path in files):
        return UNKNOWN
    parts = sorted(_of_file(path) for path in files)
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _of_file(path: Path) -> bytes:
    content = hashlib.blake2b(digest_size=32)
    try:
        size = size_of(path)
        with opened(path) as file:
            for piece in _pieces(file, size):
                content.update(piece)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    named = f"{path.name}\0{size}\0".encode() + content.digest()
    return hashlib.blake2b(named, digest_size=32).digest()


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    if size <= WHOLE_UP_TO:
        while piece := file.read(SAMPLE):
            yield piece
        return
    yield file.read(HEAD)
    for number in range(N_SAMPLES):
        file.seek((size - SAMPLE) * number // (N_SAMPLES - 1))
        yield file.read(SAMPLE)
