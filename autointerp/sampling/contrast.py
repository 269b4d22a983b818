"""What active windows are set against: silent windows by stratum, or weak ones.

Every window to be found has a *slot*; a stratum proposes a place for it by keyed hash, again and again, until
one is good: known to be silent, apart from all other windows of the feature's split, and without a run of
tokens that was shown before. What a slot gets depends on slots of smaller number alone, so a larger n
contains the smaller.

Shape letters: P features, S slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.sampling.silence import overlaps_earlier
from autointerp.sampling.text import Ints
from autointerp.sampling.windows import Places

TRIES: Final = 64
"""Places tried for one slot before it is given up."""
FEW_TRIES: Final = 16
"""The same where there are few places to choose from, which all slots try in turn."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Windows to be found, by feature and number."""

    group: Ints
    """[S], which of the P features."""
    number: Ints
    """[S], counted in each feature from 0."""
    twin: Places
    """[S], an active window of the same feature and split."""
    keys: draw.Hashes
    """[S], of the feature, stratum and split."""

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, chosen: Ints) -> Slots:
        return Slots(self.group[chosen], self.number[chosen], self.twin[chosen], self.keys[chosen])

    def hashes(self, attempt: int) -> draw.Hashes:
        """[S], one for each slot and attempt."""
        return draw.mix(self.keys, (self.number * TRIES + attempt).astype(np.uint64))


class Proposals(Protocol):
    """A stratum."""

    tries: ClassVar[int]
    """Places tried for one slot before it is given up; where they are drawn by hash, at most `TRIES`."""

    def can(self, n_groups: int) -> NDArray[np.bool_]:
        """[P]: for which features there is anything to propose."""
        ...

    def __call__(self, slots: Slots, attempt: int) -> Places:
        """A place for each slot; a negative row is none."""
        ...


@dataclass(frozen=True, slots=True)
class Placed:
    """Windows of one split."""

    group: Ints
    places: Places

    @classmethod
    def of(cls, *pieces: Placed) -> Placed:
        """All of them, in this order."""
        return cls(
            np.concatenate([piece.group for piece in pieces]),
            Places(
                np.concatenate([piece.places.row for piece in pieces]),
                np.concatenate([piece.places.start for piece in pieces]),
                np.concatenate([piece.places.length for piece in pieces]),
            ),
        )

    def of_groups(self, wanted: NDArray[np.bool_]) -> Placed:
        at = np.flatnonzero(wanted[self.group])
        return Placed(self.group[at], self.places[at])


def slots_of(active: Placed, hashes: draw.Hashes, n: int, keys: draw.Hashes) -> Slots:
    """n slots for each feature that has active windows in a split; the twins are these windows in order of
    hash, round and round. `active` by feature; `keys` [P]."""
    n_groups = len(keys)
    count = np.bincount(active.group, minlength=n_groups)
    able = np.flatnonzero(count)
    group = np.repeat(able, n)
    number = np.tile(np.arange(n), len(able))
    by_hash = draw.by_cell(active.group, hashes)
    starts = np.cumsum(count) - count
    twin = by_hash[starts[group] + number % count[group]] if len(group) else group
    return Slots(group, number, active.places[twin], keys[group])


def fill(
    slots: Slots,
    propose: Proposals,
    is_good: Callable[[Slots, Places], NDArray[np.bool_]],
    taken: Placed,
    n_groups: int,
) -> Places:
    """A place for each slot; its row is -1 where none was found.

    `is_good(slots, places)` judges places one by one. `taken`: windows that none may overlap.
    """
    found = Places(np.full(len(slots), -1, np.int64), slots.twin.start.copy(), slots.twin.length.copy())
    able = pending = np.flatnonzero(propose.can(n_groups)[slots.group])
    for attempt in range(propose.tries):
        if not len(pending):
            break
        asked = slots[pending]
        places = propose(asked, attempt)
        good = np.flatnonzero(is_good(asked, places))
        at = pending[good]
        found.row[at], found.start[at] = places.row[good], places.start[good]
        found.length[at] = places.length[good]
        _drop_overlapping(slots, found, at, taken, n_groups)
        # Also a slot that had a place and lost it to one of smaller number.
        pending = able[found.row[able] < 0]
    return found


def _drop_overlapping(slots: Slots, found: Places, new: Ints, taken: Placed, n_groups: int) -> None:
    """Unsets, in place, what overlaps something taken or a slot of smaller number."""
    touched = np.zeros(n_groups, bool)
    touched[slots.group[new]] = True
    before = taken.of_groups(touched)
    at = np.flatnonzero(touched[slots.group] & (found.row >= 0))
    together = Placed.of(before, Placed(slots.group[at], found[at]))
    row = together.places.row
    key = together.group * (int(row.max(initial=0)) + 1) + row
    start = together.places.start
    lost = overlaps_earlier(key, start, start + together.places.length)[len(before.group) :]
    found.row[at[lost]] = -1
