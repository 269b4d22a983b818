"""What a run's LLM requests took, summed over its usage journals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from autointerp.journal import Journal
from autointerp.llm.exchange import Usage
from autointerp.llm.replay import LOST, REUSED
from autointerp.llm.spending import Spent
from autointerp.run import Run

USAGE: Final = "usage"
ELSEWHERE: Final = f"{USAGE}/elsewhere.json"
"""What a run that was imported had taken where it was made."""
_FIELDS: Final = [field.name for field in dataclasses.fields(Usage)]


def spent(run: Run) -> dict[str, Spent]:
    """By what asked (`explain/layers.2/plain`, `preflight`), in the order of names. Memory: one unit's
    records."""
    found = _elsewhere(run.path / ELSEWHERE)
    for place in _places(run.path / USAGE):
        total = of_journal(Journal(run.path / USAGE / place, None))
        if total != Spent():  # tries that were lost count, too, where nothing was answered
            found.setdefault(place, Spent()).add(total)
    return dict(sorted(found.items()))


def _elsewhere(path: Path) -> dict[str, Spent]:
    """None in a run that was made here."""
    if not path.is_file():
        return {}
    return {place: Spent(**total) for place, total in orjson.loads(path.read_bytes()).items()}


def spent_in_all(run: Run) -> Spent:
    return in_all(spent(run))


def in_all(by_place: Mapping[str, Spent]) -> Spent:
    total = Spent()
    for part in by_place.values():
        total.add(part)
    return total


def journals_below(folder: Path) -> list[Journal]:
    return [Journal(folder / place, None) for place in _places(folder)]


def _places(folder: Path) -> list[str]:
    return sorted({path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl")})


def of_journal(journal: Journal) -> Spent:
    """What is noted in one of them."""
    total = Spent()
    for record in journal.records():
        if record.get(REUSED):
            total.n_reused += 1
        else:
            usage = Usage(**{name: record[name] for name in _FIELDS if name in record})
            total.add(usage, is_answer=LOST not in record)
    return total
