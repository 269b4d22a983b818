"""Which of several copies of a model gets a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

LIKE_N_CHARACTERS: Final = 200
"""Beginning of the last turn that prompts about one thing share (an explanation and its windows)."""
AHEAD: Final = 16
"""Requests by which a copy may be busier than the idlest before others get its prompts."""


class Copy(Protocol):
    """One of them."""

    @property
    def is_down(self) -> bool: ...

    @property
    def n_waiting(self) -> int:
        """Requests that it has and has not answered."""
        ...


C = TypeVar("C", bound=Copy)


def place_of(turns: Sequence[str], copies: Sequence[C], failed: C | None = None) -> C:
    """Prompts that begin alike go to one copy, whose prefix cache has their beginning, unless that one has
    much more to do than others; one that is down gets none while others are up, nor does the one that has just
    `failed` at this prompt."""
    if len(copies) == 1:
        return copies[0]
    up = [copy for copy in copies if not copy.is_down]
    living = [copy for copy in up if copy is not failed] or up or copies
    beginning = "\0".join([*turns[:-1], turns[-1][:LIKE_N_CHARACTERS]]).encode()
    place = int.from_bytes(hashlib.blake2b(beginning, digest_size=8).digest()) % len(living)
    idlest = min(living, key=lambda copy: copy.n_waiting)
    return idlest if living[place].n_waiting > idlest.n_waiting + AHEAD else living[place]
