"""Any place of a split: what `random` and `graded` windows are drawn from.

Of a capped feature whole rows were dropped, and of those kept the strongest half stand for themselves while
the others stand for many (`activations/cap.py`). So rows are drawn among those that are known, in proportion
to what they stand for: what is drawn looks as if nothing had been dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.firings import Firings
from autointerp.sampling.choose import ONE
from autointerp.sampling.contrast import TRIES, Slots
from autointerp.sampling.text import Ints
from autointerp.sampling.windows import Places


@dataclass(frozen=True, slots=True)
class AnyPlace:
    """`random` and `graded`: at the twin's position and of its length."""

    rows: Ints
    """Of the split, ascending."""
    capped: Mapping[int, _Standing]
    """By feature (which of the P); every row stands for itself in all others."""

    tries: ClassVar[int] = TRIES

    @classmethod
    def of(cls, rows: Ints, firings: Firings, context_length: int) -> AnyPlace:
        """`rows` of the split, ascending; `firings` of P features."""
        capped = np.flatnonzero(np.diff(firings.dropped_offsets)).tolist()
        return cls(rows, {group: _Standing.of(rows, firings, group, context_length) for group in capped})

    def can(self, n_groups: int) -> NDArray[np.bool_]:
        can = np.full(n_groups, len(self.rows) > 0)
        for group, standing in self.capped.items():
            can[group] = standing.total > 0
        return can

    def __call__(self, slots: Slots, attempt: int) -> Places:
        hashes = slots.hashes(attempt)
        row = self.rows[draw.below(hashes, len(self.rows))]
        for group in np.unique(slots.group).tolist() if self.capped else ():
            if (standing := self.capped.get(group)) is not None:
                at = np.flatnonzero(slots.group == group)
                row[at] = standing.row(self.rows, hashes[at])
        return Places(row, slots.twin.start, slots.twin.length)


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the rows of a split stand for, of one capped feature: rows without a firing for themselves, dropped
    ones for nothing. Memory: as much as the feature's rows in `Firings`, however many rows the split has."""

    silent_before: Ints
    """[K], of each row in which it fires: how many rows of the split without a firing stand before it."""
    n_silent: int
    """Rows of the split without a firing."""
    kept: Ints
    """[M], rows of which the firings are known."""
    ends: Ints
    """[M], cumulative, what these stand for, in parts of `ONE`."""

    @classmethod
    def of(cls, rows: Ints, firings: Firings, group: int, context_length: int) -> _Standing:
        piece = slice(int(firings.offsets[group]), int(firings.offsets[group + 1]))
        kept, first = np.unique(firings.tokens[piece] // context_length, return_index=True)
        parts = np.rint(firings.weights[piece][first].astype(np.float64) * ONE).astype(np.int64)
        lost = slice(int(firings.dropped_offsets[group]), int(firings.dropped_offsets[group + 1]))
        number, is_inside = _places_among(rows, kept)
        number_lost, is_inside_lost = _places_among(rows, firings.dropped_rows[lost])
        fires = np.sort(np.concatenate([number[is_inside], number_lost[is_inside_lost]]))
        return cls(
            silent_before=fires - np.arange(len(fires)),
            n_silent=len(rows) - len(fires),
            kept=kept[is_inside],
            ends=np.cumsum(parts[is_inside]),
        )

    @property
    def total(self) -> int:
        """What all rows stand for, in parts of `ONE`."""
        return self.n_silent * ONE + (int(self.ends[-1]) if len(self.ends) else 0)

    def row(self, rows: Ints, hashes: draw.Hashes) -> Ints:
        """One for each hash; `rows` of the split. `total` must be above 0."""
        part = (draw.unit_interval(hashes) * self.total).astype(np.int64)
        row = np.empty(len(part), np.int64)
        is_silent = part < self.n_silent * ONE
        number = part[is_silent] // ONE
        row[is_silent] = rows[number + np.searchsorted(self.silent_before, number, side="right")]
        rest = part[~is_silent] - self.n_silent * ONE
        row[~is_silent] = self.kept[np.searchsorted(self.ends, rest, side="right")]
        return row


def _places_among(rows: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each stands among `rows` (ascending), and whether it does."""
    at = np.searchsorted(rows, wanted)
    return at, rows[np.minimum(at, len(rows) - 1)] == wanted if len(rows) else np.zeros(len(wanted), bool)
