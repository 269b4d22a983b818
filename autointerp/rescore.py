"""All numbers of a run's scores anew, from the trials that lie in its records: no model, corpus or LLM.

For when the numbers are made otherwise than before, by another version. A record's place is its key, and of
two records of one key the older part wins, so new numbers can't be appended: they would lose. They replace the
old ones inside their part. A part is written whole beside the old one and takes its name in one step, so after
a kill each part has its old numbers or its new ones, and to rescore again does what is left. Trials, facts and
everything else that was paid for are carried over as they stand; a line whose numbers don't change keeps its
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from autointerp import __version__
from autointerp.errors import RunError
from autointerp.files import sealed_line, write_atomically
from autointerp.journal import Journal, lines_of, parse_line
from autointerp.progress import Progress, Silent
from autointerp.results import Facts, Metrics
from autointerp.run import SCORE_VERSION, Run
from autointerp.stages.score import measured, stopping_of
from autointerp.trials import of as trials_of
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Change:
    """A record whose numbers, or their status, are others now."""

    key: str
    before: float | None
    after: float | None
    """The headline; None where there is none."""


@dataclass(slots=True)
class Rescored:
    """One explainer and scorer."""

    place: Path
    """Of its journal, relative to the run."""
    n_records: int = 0
    changes: list[Change] = field(default_factory=list[Change])


def rescore(run: Run, *, dry_run: bool = False, progress: Progress | None = None) -> list[Rescored]:
    """What changed, or with `dry_run` what would. Raises RunBusy, DiskFull, JournalCorrupt; RunError where scores
    are of an earlier version, before anything is written, and where a record lacks its trials: parts before it
    have their new numbers then."""
    progress = progress or Silent()
    with run.lock():
        journals = list(_journals(run))
        progress.begin("rescore", len(journals), "journals")
        try:
            found: list[Rescored] = []
            for journal in journals:
                found.append(_rescored(run, journal, dry_run=dry_run))
                progress.advance()
            return found
        finally:
            progress.end()


def _journals(run: Run) -> Iterator[Journal]:
    parts = [part for stage in ("score", "control") for part in (run.path / stage).rglob("*.jsonl")]
    for folder in sorted({part.parent for part in parts}):
        journal = Journal.existing(folder)
        version = (journal.made_from or {}).get("version", "1")
        if version != SCORE_VERSION:
            raise RunError(
                f"{folder} was written by a version of autointerp that kept other things in a score (version "
                f"{version}; this one reads {SCORE_VERSION}), too few to make all numbers from. {_way_on(run)}"
            )
        yield journal


def _way_on(run: Run) -> str:
    """Scores that can't be made again are not to be deleted: a pack and an import lack what they were made from."""
    if run.is_packed:
        return "Leave it as it is, and import or pack anew what it was made from, with this version."
    return (
        f"Delete that folder and resume: replies that were paid for are in {run.path / 'requests'} and are not "
        f"asked again."
    )


def _rescored(run: Run, journal: Journal, *, dry_run: bool) -> Rescored:
    found = Rescored(journal.folder.relative_to(run.path))
    for unit in journal.units():
        for part in journal.parts(unit):
            if lines_of(part):
                _rescore_part(run, journal, part, found, dry_run=dry_run)
    return found


def _rescore_part(run: Run, journal: Journal, part: Path, found: Rescored, *, dry_run: bool) -> None:
    header, *lines = lines_of(part)
    n_before = len(found.changes)
    for number, record in enumerate(journal.records_of(part)):
        found.n_records += 1
        new = _anew(run, part, record)
        if new != record:
            found.changes.append(Change(record["key"], _headline(record), _headline(new)))
            lines[number] = orjson.dumps(new)
    if len(found.changes) > n_before and not dry_run:
        first = orjson.dumps(parse_line(part, 1, header) | {"package": __version__})
        write_atomically(part, b"".join(sealed_line(line) + b"\n" for line in (first, *lines)))


def _anew(run: Run, part: Path, record: Json) -> Json:
    """The record with its numbers made again; one that ended without trials stays as it is."""
    if record["status"] == "bad_request":
        return record
    if "trials" not in record or "facts" not in record:
        raise RunError(
            f"{part}: the score of {record['key']} is stored without its trials, so its numbers can't be made "
            f"anew. Rescore the run that it was taken from."
        )
    facts = Facts(**record["facts"])
    trials = trials_of(record["trials"])
    status, metrics, reason = measured(trials, facts, run.recipe.headline)
    numbers: Json = {"status": status, "metrics": metrics, "reason": reason}
    if (sequential := stopping_of(trials)) is not None:
        numbers["sequential"] = sequential
    return record | orjson.loads(orjson.dumps(numbers))


def _headline(record: Json) -> float | None:
    value = Metrics.of(record["metrics"]).value if record["metrics"] else None
    return None if value is None else value.value
