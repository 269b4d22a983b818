"""Makes anew what `verify` found spoiled, and nothing else.

What is spoiled goes to `<run>/set-aside/`, never away. Shards and samples are then missing like those of a
run that was killed, and the line makes them: the same bytes under the same names. A journal of what an LLM
said loses only its spoiled lines: the rest was paid for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from autointerp import __version__
from autointerp.activations.passes import COLUMNS, begun
from autointerp.errors import JournalCorrupt, RunError
from autointerp.files import carry, disk_errors, sealed_line, write_atomically
from autointerp.journal import MADE_FROM, SCHEMA, Journal, lines_of, parse_line
from autointerp.pipeline import Stage, run_line
from autointerp.progress import Progress, Stop
from autointerp.resolve import resolve
from autointerp.run import Run
from autointerp.types import Json
from autointerp.verify import MANIFEST, STAGES, Fault, Verified

SET_ASIDE: Final = "set-aside"
_OF_THE_CACHE: Final = {"rows", "cache", "top-up"}
_MADE_HERE: Final = (*_OF_THE_CACHE, "sample")
"""Stages whose parts go whole, because they are made anew here; the others keep their good lines, and what
is missing then is for `resume`."""


@dataclass(slots=True)
class Repaired:
    """What was done."""

    moved: dict[Path, Path] = field(default_factory=dict[Path, Path])
    """Each file that was spoiled or left over, and where it lies now."""

    def not_as_before(self) -> list[Path]:
        """Parts that were made anew whose files are not the bytes that were written first."""
        return [
            part
            for part, aside in self.moved.items()
            if part.suffix == ".jsonl"
            and part.is_file()
            and (before := _seals(aside))
            and before != _seals(part)
        ]


def _seals(part: Path) -> Json | None:
    lines = lines_of(part)
    try:
        return parse_line(part, 1, lines[0]).get("files") if lines else None
    except JournalCorrupt:
        return None


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Results that were made from a file which is spoiled now, and perhaps was then."""

    folder: Path
    n_records: int


def doubtful(run: Run, faults: list[Fault]) -> list[Doubtful]:
    """Journals behind the first spoiled stage of each dictionary. Whether a result was made before its
    source was spoiled can't be seen: bits flip without leaving a date."""
    found: list[Doubtful] = []
    for dictionary in run.recipe.dictionaries:
        of_this = [run.path / place for place in ("rows", "top-up/rows", f"top-up/cache/{dictionary}")]
        of_this += [run.path / stage / dictionary for stage in STAGES]
        spoiled = {
            fault.path.relative_to(run.path).parts[0]
            for fault in faults
            if any(fault.path.is_relative_to(place) for place in of_this)
        }
        made_here = [STAGES.index(stage) for stage in spoiled if stage in _MADE_HERE]
        if not made_here:
            continue
        for stage in ("cache", "top-up", "sample", "explain", "probe", "score", "control"):
            if STAGES.index(stage) <= min(made_here):
                continue
            inside = run.path / ("top-up/cache" if stage == "top-up" else stage) / dictionary
            for folder in sorted({path.parent for path in inside.rglob("*.jsonl")}):
                n = sum(max(len(lines_of(path)) - 1, 0) for path in folder.glob("*.jsonl"))
                found.append(Doubtful(folder, n))
    return found


def repair(run: Run, found: Verified, progress: Progress, stop: Stop) -> Repaired:
    """Sets aside what is spoiled, and leftovers; makes rows, shards and samples anew.

    Raises InputErrors and RecipeChanged, before anything is moved, where what they are made from is gone
    or changed; while making, what `run_line` raises.
    """
    spoiled = {fault.path.relative_to(run.path).parts[0] for fault in found.faults}
    if run.is_packed and spoiled & set(_MADE_HERE):
        raise RunError(
            f"{run.path} was packed without its cache, so its samples can't be made anew here. Pack the run it "
            f"comes from once more."
        )
    if spoiled & _OF_THE_CACHE:
        Run.of(run.path, resolve(run.recipe)).check()
    repaired = Repaired()
    with run.lock():
        manifests = [fault.path for fault in found.faults if fault.path.name == MANIFEST]
        for path in (*found.leftovers, *manifests):  # who caches next writes another manifest
            _set_aside(run, path, repaired)
        _found_again(run, {fault.path for fault in found.faults if fault.path.name == MADE_FROM}, repaired)
        parts: dict[Path, set[int]] = {}
        for fault in found.faults:
            if fault.part is not None:
                parts.setdefault(fault.part, set()).update(fault.lines)
        for part, lines in parts.items():
            _without_spoiled(run, part, lines, repaired)
        for folder in {part.parent for part in parts if part.name.split(".")[0] == COLUMNS}:
            numbers = {str(entry.number) for entry in begun(Journal.existing(folder))}
            _without_passes(run, folder, numbers, repaired)
            _without_passes(run, run.path / "top-up" / folder.relative_to(run.path), numbers, repaired)
    until: Stage | None = "cache" if spoiled & _OF_THE_CACHE else None
    until = "sample" if "sample" in spoiled else until
    if until is not None:
        run_line(run, until=until, progress=progress, stop=stop)
    return repaired


def _found_again(run: Run, spoiled: set[Path], repaired: Repaired) -> None:
    for path in sorted(spoiled):
        _set_aside(run, path, repaired)
    for journal in run.journals():
        if journal.folder / MADE_FROM in spoiled:
            journal.found()


def _without_spoiled(run: Run, part: Path, lines: set[int], repaired: Repaired) -> None:
    """Sets a part aside; of one that is not made here its good lines stay."""
    kept = [line for number, line in enumerate(lines_of(part), start=1) if number not in lines]
    if part.relative_to(run.path).parts[0] in _MADE_HERE or len(kept) < 2 - (1 in lines):
        for path in sorted(part.parent.glob(f"{part.stem}.*")):
            _set_aside(run, path, repaired)
        return
    aside = _free_place(run, part)
    carry(part, aside)
    repaired.moved[part] = aside
    if 1 in lines:
        kept.insert(0, _header(part))
    write_atomically(part, b"".join(sealed_line(line) + b"\n" for line in kept))


def _without_passes(run: Run, folder: Path, numbers: set[str], repaired: Repaired) -> None:
    """Sets aside what is of other passes than these: nobody knows their features any more."""
    journal = Journal.existing(folder)
    for unit in journal.units():
        for key, (_, part) in journal.located(unit).items():
            number = key if unit == COLUMNS else key.partition(":")[2] or "0"
            if number not in numbers and (unit == COLUMNS or unit.isdigit()):
                for path in sorted(part.parent.glob(f"{part.stem}.*")):
                    _set_aside(run, path, repaired)


def _header(part: Path) -> bytes:
    journal = Journal.existing(part.parent)
    unit, attempt = part.stem.split(".")
    said = {"schema": SCHEMA, "package": __version__, "digest": journal.digest, "unit": unit}
    return orjson.dumps(said | {"attempt": int(attempt)})


def _set_aside(run: Run, path: Path, repaired: Repaired) -> None:
    aside = _free_place(run, path)
    with disk_errors(aside):
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(aside)
    repaired.moved[path] = aside


def _free_place(run: Run, path: Path) -> Path:
    """Where a file goes: its own place under `set-aside/`, numbered where an earlier one lies there."""
    place = run.path / SET_ASIDE / path.relative_to(run.path)
    for number in itertools.count(2):
        if not place.exists():
            break
        place = place.with_name(f"{path.name}.{number}")
    return place
