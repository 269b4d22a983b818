"""The windows that were taken, of many features: columns, and as a record names them.

Shape letters: P features, K windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast, get_args

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.sampling.text import SPLITS, Ints
from autointerp.sampling.windows import Places
from autointerp.types import Stratum, WindowRefs

STRATA: Final = cast(tuple[Stratum, ...], get_args(Stratum))
"""Codes of strata are indices of this; -1 is an active window."""


@dataclass(frozen=True, slots=True)
class Selected:
    """K windows of P features, by feature, split, active ones first, then by stratum."""

    group: Ints
    split: NDArray[np.int8]
    places: Places
    band: NDArray[np.int16]
    """-1 behind active windows."""
    stratum: NDArray[np.int8]
    low: Ints
    high: Ints
    """The feature's firings in the window are firings low to high - 1."""

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, chosen: Ints | NDArray[np.bool_] | slice) -> Selected:
        return Selected(
            self.group[chosen],
            self.split[chosen],
            self.places[chosen],
            self.band[chosen],
            self.stratum[chosen],
            self.low[chosen],
            self.high[chosen],
        )


def gathered(pieces: list[Selected]) -> Selected:
    """All of them in order; pieces that stand first come first within a feature and split."""
    group = np.concatenate([piece.group for piece in pieces])
    split = np.concatenate([piece.split for piece in pieces])
    order = draw.stable(group * len(SPLITS) + split)
    return Selected(
        group[order],
        split[order],
        Places(
            np.concatenate([piece.places.row for piece in pieces])[order],
            np.concatenate([piece.places.start for piece in pieces])[order],
            np.concatenate([piece.places.length for piece in pieces])[order],
        ),
        np.concatenate([piece.band for piece in pieces])[order],
        np.concatenate([piece.stratum for piece in pieces])[order],
        np.concatenate([piece.low for piece in pieces])[order],
        np.concatenate([piece.high for piece in pieces])[order],
    )


def window_refs(selected: Selected, n_groups: int) -> list[tuple[WindowRefs, WindowRefs, WindowRefs]]:
    """[P]: what each feature's record says of its three splits."""
    cell = selected.group * len(SPLITS) + selected.split
    kind = np.where(selected.stratum < 0, selected.band, -1 - selected.stratum)
    is_first = np.ones(len(cell), bool)
    is_first[1:] = (cell[1:] != cell[:-1]) | (kind[1:] != kind[:-1])
    run = np.flatnonzero(is_first)
    sizes = np.diff(run, append=len(cell)).tolist()
    bands = list(zip(kind[run].tolist(), sizes, strict=True))
    codes = np.maximum(selected.stratum[run], 0).tolist()
    strata = list(zip((STRATA[code] for code in codes), sizes, strict=True))
    # Of each split of each feature: where its windows end, its runs, and those of its active windows.
    cells = np.arange(1, n_groups * len(SPLITS) + 1)
    ends = np.searchsorted(cell, cells).tolist()
    run_ends = np.searchsorted(cell[run], cells)
    n_active = np.concatenate([[0], np.cumsum(kind[run] >= 0)])
    run_begins = np.concatenate([[0], run_ends[:-1]])
    active_ends = (run_begins + n_active[run_ends] - n_active[run_begins]).tolist()
    rows, starts = selected.places.row.tolist(), selected.places.start.tolist()
    refs: list[WindowRefs] = []
    begin = run_begin = 0
    for end, run_end, active_end in zip(ends, run_ends.tolist(), active_ends, strict=True):
        of_band, of_stratum = bands[run_begin:active_end], strata[active_end:run_end]
        refs.append(WindowRefs(rows[begin:end], starts[begin:end], of_band, of_stratum))
        begin, run_begin = end, run_end
    return [(refs[at], refs[at + 1], refs[at + 2]) for at in range(0, len(refs), len(SPLITS))]
