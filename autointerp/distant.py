"""Files that are not on this machine, opened like those that are and read in parts.

An empty file stands for each, so that code which goes by names finds it. Who opens one by other ways than `opened`
and `size_of` finds an empty file, never wrong content.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from autointerp.errors import CheckpointError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK: Final = 16 * 2**10
"""Bytes. Parts begin and end at multiples of it and are kept: the header of a dictionary is in the first one."""
SMALL: Final = 2**20
"""Bytes. A file up to this size comes whole with the first read: it costs no more than a request does."""
MAX_READ: Final = 80 * 2**20
"""Bytes of a file. Names and shapes need 8 MiB at most, an identity 64; a zip archive can claim that its table of
contents is as long as itself."""


class NotInParts(Exception):
    """Its server gives no parts of a file, or no sizes; the whole can still be had."""


class NotReached(Exception):
    """The server can't be reached, or refuses: then the whole can't be had either. Not a CheckpointError, which a
    reader that is asked whether it recognises a place takes for a no."""


@dataclass(slots=True, eq=False)
class Distant:
    """A file that lies elsewhere."""

    name: str
    size: int
    fetch: Callable[[int, int], bytes]
    """(first byte, the byte behind the last) -> just these bytes. Raises NotInParts, NotReached."""
    in_full: bool
    """Whether all of it may be read, as an identity needs; else only what says names and shapes."""
    _blocks: dict[int, bytes] = field(default_factory=dict[int, bytes])

    @property
    def is_read_in_part(self) -> bool:
        return bool(self._blocks) and not self.in_full

    def read(self, start: int, n_bytes: int) -> bytes:
        """Fewer bytes at the end of the file. Raises as `fetch`, and CheckpointError beyond MAX_READ."""
        end = min(start + n_bytes, self.size)
        if start >= end:
            return b""
        first, stop = start // BLOCK, -(-end // BLOCK)
        missing = [number for number in range(first, stop) if number not in self._blocks]
        if missing:
            whole = self.size <= SMALL
            self._get(0 if whole else missing[0], -(-self.size // BLOCK) if whole else missing[-1] + 1)
        held = b"".join(self._blocks[number] for number in range(first, stop))
        return held[start - first * BLOCK : end - first * BLOCK]

    def _get(self, first: int, stop: int) -> None:
        if (len(self._blocks) + stop - first) * BLOCK > MAX_READ:
            raise CheckpointError(
                f"{self.name}: to say what is in it, more than {MAX_READ / 1e6:.0f} MB of its {self.size:,} bytes "
                "would have to be fetched, which no dictionary needs. Is it another file, or damaged?"
            )
        content = self.fetch(first * BLOCK, min(stop * BLOCK, self.size))
        for number in range(first, stop):
            self._blocks[number] = content[(number - first) * BLOCK : (number - first + 1) * BLOCK]


_FILES: ContextVar[Mapping[Path, Distant]] = ContextVar("_FILES")


@contextmanager
def standing_in(files: Mapping[Path, Distant]) -> Generator[None]:
    """While it is open, `opened` and `size_of` of a path in `files` are of the distant file."""
    before = _FILES.set(files)
    try:
        yield
    finally:
        _FILES.reset(before)


def opened(path: Path) -> BinaryIO:
    """For reading. Raises OSError."""
    distant = _distant(path)
    if distant is None:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Reader(distant), BLOCK))


def size_of(path: Path) -> int:
    """Bytes. Raises OSError."""
    distant = _distant(path)
    return path.stat().st_size if distant is None else distant.size


def may_be_read_whole(path: Path) -> bool:
    distant = _distant(path)
    return distant is None or distant.in_full


def _distant(path: Path) -> Distant | None:
    return _FILES.get({}).get(path)


class _Reader(io.RawIOBase):
    def __init__(self, distant: Distant) -> None:
        self._distant = distant
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._distant.size}[whence]
        if start + offset < 0:
            raise ValueError(f"byte {start + offset} of a file")
        self._place = start + offset
        return self._place

    def readall(self) -> bytes:
        """At once: block by block each would be a request."""
        content = self._distant.read(self._place, self._distant.size - self._place)
        self._place += len(content)
        return content

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        content = self._distant.read(self._place, len(view))
        view[: len(content)] = content
        self._place += len(content)
        return len(content)
