"""What may be charged for and stands in no journal yet: on disk before it is sent, so that a kill can't hide it.

A run with a budget keeps one small file with a slot for each try in flight: whose it is, and the most that it can
cost. A slot is taken before the try is sent and free again when what it used stands in the usage journal. So what
a killed process leaves taken counts as spent, at its bound (`stages/cut_off.py`), and what a server has taken into
a batch stays set aside until it is asked for again.

Taking and freeing a slot is one write of 64 bytes each and no fsync: a killed process loses nothing that it has
written. A machine that loses power may.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autointerp.errors import RunError
from autointerp.files import disk_errors, write_atomically

FILE: Final = "in_flight.bin"
"""In a run's folder, from the first request under a budget to the last one."""
_HEAD: Final = struct.Struct("<32s16s16x")
_MAGIC: Final = b"autointerp: what is in flight"
_SLOT: Final = struct.Struct("<16sddB31x")
"""Name, US dollars, tokens, state. 64 slots fill a page, and none lies in two: it is written whole or not."""
_FREE, _SENT, _AWAITED = range(3)
_EMPTY: Final = bytes(_SLOT.size)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A request that nothing is known of but that it was to be sent."""

    name: str
    """As a request journal calls it."""
    cost: float
    """US dollars, at most."""
    n_tokens: float
    """At most."""
    is_awaited: bool
    """Its answer is to come by other means (`Pending`)."""
    place: str
    """No other slot of any process is called so."""

    def packed(self, state: int) -> bytes:
        return _SLOT.pack(bytes.fromhex(self.name), self.cost, self.n_tokens, state)


def unfinished(path: Path) -> list[Unfinished]:
    """What the last process left. Raises RunError for a file that is none of ours."""
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        return []
    if len(content) < _HEAD.size or not content.startswith(_MAGIC):
        raise RunError(
            f"{path} is not what was written there: {content[:40]!r}. It held what requests in flight may have "
            f"cost when a process of this run was killed; delete it to go on without counting that."
        )
    _, whose = _HEAD.unpack_from(content)
    found: list[Unfinished] = []
    n_slots = (len(content) - _HEAD.size) // _SLOT.size
    for number in range(n_slots):
        name, cost, n_tokens, state = _SLOT.unpack_from(content, _HEAD.size + number * _SLOT.size)
        if state != _FREE:
            place = f"{whose.hex()}/{number}"
            found.append(Unfinished(name.hex(), cost, n_tokens, state == _AWAITED, place))
    return found


def begin(path: Path, awaited: Iterable[Unfinished]) -> None:
    """A file that holds these alone, whatever it held before. Raises DiskFull."""
    slots = b"".join(one.packed(_AWAITED) for one in awaited)
    write_atomically(path, _HEAD.pack(_MAGIC, os.urandom(16)) + slots)


class Slots:
    """One process's slots. Raises DiskFull where one can't be written."""

    def __init__(self, path: Path, awaited: dict[str, tuple[int, Unfinished]]) -> None:
        self.awaited = awaited
        """What earlier processes were promised an answer to, by name, each with its slot."""
        self._path = path
        self._fd = os.open(path, os.O_WRONLY)
        self._free: list[int] = []
        self._n = len(awaited)
        self._n_taken = self._n

    @classmethod
    def opened(cls, path: Path) -> Slots:
        """Goes on with what is awaited; what was sent and not answered is to be counted before."""
        awaited = [one for one in unfinished(path) if one.is_awaited]
        begin(path, awaited)
        return cls(path, {one.name: (slot, one) for slot, one in enumerate(awaited)})

    def take(self, name: str, cost: float, n_tokens: float) -> int:
        """A slot for a try that is to be sent now."""
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._n = self._n, self._n + 1
        self._n_taken += 1
        self._write(slot, _SLOT.pack(bytes.fromhex(name), cost, n_tokens, _SENT))
        return slot

    def wait(self, slot: int, name: str, cost: float, n_tokens: float) -> None:
        """Its answer is to come by other means."""
        self._write(slot, _SLOT.pack(bytes.fromhex(name), cost, n_tokens, _AWAITED))

    def disown(self, name: str) -> None:
        """Another answer to this was paid for: what the awaited one costs is told by nobody."""
        if (found := self.awaited.pop(name, None)) is not None:
            self._write(found[0], found[1].packed(_SENT))

    def free(self, slot: int) -> None:
        """What it stood for stands in a journal, or costs nothing."""
        self._write(slot, _EMPTY)
        self._free.append(slot)
        self._n_taken -= 1

    def close(self) -> None:
        os.close(self._fd)
        if not self._n_taken:
            self._path.unlink(missing_ok=True)

    def _write(self, slot: int, content: bytes) -> None:
        with disk_errors(self._path):
            os.pwrite(self._fd, content, _HEAD.size + slot * _SLOT.size)
