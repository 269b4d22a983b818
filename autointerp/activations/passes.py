"""Which features of a dictionary are cached.

Where a feature's activation needs the whole width (topk), all are, in one pass over the rows. Where it
doesn't (relu, jumprelu), a run over a few thousand of a million features computes these columns alone, and
asking for more later is another pass over the same rows. A pass's features lie in `columns.*.npy`, whose part
tells its number, written before its first shard; without such a record there is one pass, with every feature.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import RunError
from autointerp.files import write_sealed
from autointerp.journal import Journal, Part

COLUMNS: Final = "columns"
"""Unit of the records that tell of passes; their keys are the passes' numbers."""
WORTH_IT: Final = 0.5
"""From so large a share of the dictionary on, all of it is cached."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the rows."""

    number: int
    """0 for one with every feature, and for what tops that one up (`top_up.py`)."""
    features: NDArray[np.uint32] | None
    """Ascending; None: every one."""

    def key(self, unit: str) -> str:
        """Key of this pass's record of a shard."""
        return f"{unit}:{self.number}" if self.number else unit

    def holds(self, features: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these it has."""
        if self.features is None:
            return np.ones(len(features), bool)
        return np.isin(features, self.features)

    def is_done(self, journal: Journal, units: list[str]) -> bool:
        """Whether each shard of rows has its record."""
        return all(self.key(unit) in journal.read(unit) for unit in units)


def passes_of(journal: Journal) -> list[Pass]:
    """Those begun, by number. A dictionary cached whole has the one pass 0, begun or not. Raises RunError
    where a file that the journal names is missing."""
    return begun(journal) or [Pass(0, None)]


def begun(journal: Journal) -> list[Pass]:
    """Those of which the journal names the features, by number. Raises RunError where a file is missing."""
    found = {int(key): part.with_suffix(".npy") for key, (_, part) in journal.located(COLUMNS).items()}
    if missing := [path for path in found.values() if not path.is_file()]:
        raise RunError(f"{missing[0]} is missing, though a part tells of it: autointerp cache verify.")
    return [Pass(number, np.load(found[number])) for number in sorted(found)]


def put_down(journal: Journal, entry: Pass) -> None:
    """A pass of some features, before its first shard. Raises DiskFull."""
    assert entry.features is not None
    content = io.BytesIO()
    np.save(content, entry.features)
    with Part(journal, COLUMNS) as part:
        seal = part.attach(".npy", lambda path: write_sealed(path, content.getbuffer()))
        part.append(str(entry.number), {"n_features": len(entry.features)} | seal)


def is_covered(journal: Journal, units: list[str], needed: NDArray[np.int64]) -> bool:
    """Whether finished passes hold all of these features."""
    return not len(_not_held(needed, [p for p in passes_of(journal) if p.is_done(journal, units)]))


def passes_to_make(
    journal: Journal, units: list[str], needed: NDArray[np.int64], width: int, *, sliceable: bool
) -> list[Pass]:
    """Passes that must be finished or begun before all of `needed` are there; a new one is put down on
    disk. Passes never share a feature."""
    passes = passes_of(journal)
    is_new = not any(journal.parts(unit) for unit in units)
    if passes[0].features is None and (not sliceable or not is_new or len(needed) >= WORTH_IT * width):
        return [p for p in passes if not p.is_done(journal, units)]
    known = [p for p in passes if p.features is not None]
    unfinished = [p for p in known if p.holds(needed).any() and not p.is_done(journal, units)]
    missing = _not_held(needed, known)
    if not len(missing):
        return unfinished
    number = 1 + max((p.number for p in known), default=0)
    new = Pass(number, np.unique(missing).astype(np.uint32))
    put_down(journal, new)
    return [*unfinished, new]


def _not_held(needed: NDArray[np.int64], passes: list[Pass]) -> NDArray[np.int64]:
    for entry in passes:
        needed = needed[~entry.holds(needed)]
    return needed
