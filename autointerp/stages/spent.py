"""What a run's LLM requests took, summed over its usage journals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from autointerp.journal import Journal
from autointerp.llm.protocol import Usage
from autointerp.llm.replay import REUSED
from autointerp.llm.spending import Spent
from autointerp.run import Run

USAGE: Final = "usage"
_FIELDS: Final = [field.name for field in dataclasses.fields(Usage)]


def spent(run: Run) -> dict[str, Spent]:
    """By what asked (`explain/layers.2/plain`, `preflight`), in the order of names. Memory: one unit's
    records."""
    by_place = {place: _of(run, place) for place in _places(run.path / USAGE)}
    return {place: total for place, total in by_place.items() if total.n_requests or total.n_reused}


def spent_in_all(run: Run) -> Spent:
    total = Spent()
    for part in spent(run).values():
        total.add(part)
    return total


def _places(folder: Path) -> list[str]:
    return sorted({path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl")})


def _of(run: Run, place: str) -> Spent:
    total = Spent()
    for record in Journal(run.path / USAGE / place, None).records():
        if record.get(REUSED):
            total.n_reused += 1
        else:
            total.add(Usage(**{name: record[name] for name in _FIELDS if name in record}))
    return total
