"""A number under each of many digests, in 24 bytes a digest: a dict takes about 150."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

_N_BYTES: Final = 16
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_MERGE_AT: Final = 65_536
"""So many new digests wait in a dict, or an eighth of all, before they are sorted in."""


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


class DigestIndex:
    """Digests are 32 hex characters, as `types.digest` makes them; of several numbers the last one counts."""

    def __init__(self) -> None:
        self._keys: NDArray[np.bytes_] = np.empty(0, f"S{_N_BYTES}")  # [N], ascending
        self._numbers: NDArray[np.int64] = np.empty(0, np.int64)  # [N]
        self._new: dict[bytes, int] = {}

    def get(self, digest: str) -> int | None:
        key = bytes.fromhex(digest)
        if (number := self._new.get(key)) is not None:
            return number
        place = int(np.searchsorted(self._keys, np.bytes_(key)))
        # numpy drops zero bytes at the end of what it hands out
        if place < len(self._keys) and bytes(self._keys[place]).ljust(_N_BYTES, b"\0") == key:
            return int(self._numbers[place])
        return None

    def holds(self, digest: str) -> bool:
        return self.get(digest) is not None

    def __bool__(self) -> bool:
        return bool(len(self._keys) or self._new)

    def set(self, digest: str, number: int) -> None:
        self._new[bytes.fromhex(digest)] = number
        if len(self._new) >= max(_MERGE_AT, len(self._keys) // 8):
            self._merge()

    def _merge(self) -> None:
        # The new ones come first, and of equal keys `unique` keeps the first.
        keys = np.concatenate([np.array(list(self._new), self._keys.dtype), self._keys])
        numbers = np.concatenate([np.array(list(self._new.values()), np.int64), self._numbers])
        self._keys, first = np.unique(keys, return_index=True)
        self._numbers = numbers[first]
        self._new = {}
