"""Is a run's folder still what was written? Every file is read once, in pieces; nothing is changed.

A binary file is compared with the seal in its part's header, a journal line by line. What a kill leaves (a
part without a record, a file whose part never came to say so) harms nobody and is listed apart.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from autointerp.activations.passes import Pass
from autointerp.errors import JournalCorrupt, RunError
from autointerp.files import holds, read_sealed_json, seal_of
from autointerp.journal import MADE_FROM, Journal, lines_of, parse_line
from autointerp.progress import Progress, Silent
from autointerp.run import ALL_ROWS, Run
from autointerp.types import Json, digest

STAGES: Final = (
    "neuronpedia", "rows", "cache", "top-up", "directions", "sample", "intervene", "explain", "probe", "score",
    "control", "requests", "usage", "failed",
)  # fmt: skip
"""Folders of journals, in the order of the line."""

MANIFEST: Final = "manifest.json"
"""Of a dictionary's cache (`stages/frozen.py`)."""
_OF_SHARDS: Final = ("rows", "cache", "top-up")

_OF_A_PART: Final = re.compile(r"(.+\.\d{4})\.(\w+)")
_PARTIAL: Final = re.compile(r"\..+\.\d+\.tmp")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was written."""

    path: Path
    text: str
    """What is wrong with it, to be read behind its name."""
    part: Path | None = None
    """The part to be made anew; None where there is none any more."""
    lines: tuple[int, ...] = ()
    """Where only these lines of a part are spoiled, counted from 1."""


@dataclass(slots=True)
class Verified:
    """What was found in a run's folder."""

    n_files: int = 0
    n_bytes: int = 0
    faults: list[Fault] = field(default_factory=list[Fault])
    leftovers: list[Path] = field(default_factory=list[Path])
    """Files of a kill, which nothing reads."""
    n_to_make: int = 0
    """Shards that no process has made yet."""


def verify(run: Run, progress: Progress | None = None) -> Verified:
    """Reads everything. Raises RunBusy where a process is at work, whose files are not all whole."""
    progress = progress or Silent()
    with run.lock() if os.access(run.path, os.W_OK) else contextlib.nullcontext():
        files = sorted(path for stage in STAGES for path in (run.path / stage).rglob("*") if path.is_file())
        progress.begin("verify", sum(path.stat().st_size for path in files), "bytes")
        look = _Look(run, progress)
        try:
            for folder in dict.fromkeys(path.parent for path in files):
                look.at_folder(folder, [path for path in files if path.parent == folder])
        finally:
            progress.end()
        if not run.is_packed:
            look.for_shards()
    order = {stage: number for number, stage in enumerate(STAGES)}
    look.found.faults.sort(key=lambda f: (order[f.path.relative_to(run.path).parts[0]], f.path))
    return look.found


class _Look:
    """One walk over a run."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run
        self._progress = progress
        self.found = Verified()
        self._records: dict[Path, dict[str, Json]] = {}
        """By folder and key, of the stages that make shards: these are few."""

    def at_folder(self, folder: Path, files: list[Path]) -> None:
        made_from = self._made_from(folder / MADE_FROM)
        known: set[Path] = set()
        for path in files:
            if path.suffix == ".jsonl":
                known |= self._part(path, made_from)
            elif path.suffix == ".json":
                self._count(path)
            if path.name == MANIFEST:
                self._manifest(path)
        for path in files:
            of_part = _OF_A_PART.fullmatch(path.name)
            if _PARTIAL.fullmatch(path.name) or (of_part and of_part[2] != "jsonl" and path not in known):
                self.found.leftovers.append(path)

    def _count(self, path: Path) -> int:
        size = path.stat().st_size
        self.found.n_files += 1
        self.found.n_bytes += size
        self._progress.advance(size)
        return size

    def _fault(self, path: Path, text: str, part: Path | None = None, lines: tuple[int, ...] = ()) -> None:
        self.found.faults.append(Fault(path, text, part, lines))

    def _made_from(self, path: Path) -> str | None:
        """The digest that the parts of this folder carry; None where that can't be known."""
        if not path.exists():
            return digest(None)
        try:
            content: Any = orjson.loads(path.read_bytes())
            if digest(content["made_from"]) == content["digest"]:
                return content["digest"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            pass  # told below, like a digest of something else
        self._fault(path, "is not what was written: its digest is not that of its content")
        return None

    def _manifest(self, path: Path) -> None:
        try:
            read_sealed_json(path, "")
        except RunError:
            self._fault(path, "is not what was written: its checksum is not that of its content")

    def _part(self, path: Path, made_from: str | None) -> set[Path]:
        """Checks a part and its files; files that need no further look."""
        self._count(path)
        lines = _lines_of(path)
        if len(lines) < 2:
            self.found.leftovers.append(path)
            return set()
        parsed = _parsed(path, lines)
        header = parsed[0]
        if header is not None and made_from is not None and header.get("digest") != made_from:
            header = parsed[0] = None
        spoiled = tuple(number for number, content in enumerate(parsed, start=1) if content is None)
        if spoiled:
            named = f"line {', '.join(map(str, spoiled))}"
            self._fault(path, f"{named}: not what was written there", path, spoiled)
        if path.relative_to(self._run.path).parts[0] in _OF_SHARDS:
            records = self._records.setdefault(path.parent, {})
            records.update({content["key"]: content for content in parsed[1:] if content is not None})
        if header is None:
            return set(path.parent.glob(f"{path.stem}.*"))  # they go where their part goes
        return {self._file(path, suffix, seal) for suffix, seal in header.get("files", {}).items()}

    def _file(self, part: Path, suffix: str, seal: Json) -> Path:
        path = part.with_suffix(suffix)
        if not path.is_file():
            self._fault(path, f"is missing, though {part.name} seals it", part)
            return path
        size = self._count(path)
        if size != seal["bytes"]:
            text = f"holds {size:,} bytes, not the {seal['bytes']:,} that were written"
            self._fault(path, text, part)
        elif seal_of(path) != seal:
            self._fault(path, "is not what was written: bits flipped, its checksum differs", part)
        return path

    def for_shards(self) -> None:
        """Shards that no part tells of: lost, where something is made from them; else still to be made."""
        run = self._run
        self._for_shards_of(run.rows(), run.cache, Pass(0, None))
        if run.recipe.cache.top_up:
            self._for_shards_of(run.top_up_rows(), run.top_up, None)

    def _for_shards_of(
        self, rows: Journal, shards_of: Callable[[str], Journal], unnamed: Pass | None
    ) -> None:
        """`shards_of` a dictionary on `rows`; `unnamed`: the pass that there is where none is named."""
        run, known = self._run, self._records.get(rows.folder, {})
        if ALL_ROWS not in known:
            return
        units = run.units_of(known[ALL_ROWS]["n_rows"], known[ALL_ROWS].get("first_row", 0))
        own = [unit for number, unit in enumerate(units) if run.portion.takes(number)]
        self._lost(rows.folder, [unit for unit in own if unit not in known])
        for dictionary in run.recipe.dictionaries:
            folder = shards_of(dictionary).folder
            records = self._records.get(folder, {})
            numbers = sorted(int(key) for key, record in records.items() if record.get("n_features"))
            passes = [Pass(number, None) for number in numbers] or ([unnamed] if unnamed else [])
            for entry in passes:
                missing = [unit for unit in own if entry.key(unit) not in records]
                # Samples are made behind the first pass; a later one may not have come to its end yet.
                if entry is passes[0] and run.sample(dictionary).units():
                    self._lost(folder, missing)
                else:
                    self.found.n_to_make += len(missing)

    def _lost(self, folder: Path, units: list[str]) -> None:
        spoiled = {fault.part.name.split(".")[0] for fault in self.found.faults if fault.part}
        for unit in units:
            if unit not in spoiled:
                self._fault(folder / f"{unit}.0001.jsonl", "is missing, and no other part has its record")


def _lines_of(path: Path) -> list[bytes]:
    """Whole lines, and a last one whose newline is another byte now: nothing torn ends so."""
    lines, tail = lines_of(path), path.read_bytes().rpartition(b"\n")[2]
    return [*lines, tail] if holds(tail[:-1]) else lines


def _parsed(path: Path, lines: list[bytes]) -> list[Json | None]:
    """Each line of a part; None where it is not what was written. All lines are sealed, or none is: parts from
    before there were seals."""
    is_whole = [holds(line) for line in lines]
    is_sealed = any(whole is not None for whole in is_whole)
    parsed: list[Json | None] = []
    for number, (line, whole) in enumerate(zip(lines, is_whole, strict=True), start=1):
        try:
            parsed.append(parse_line(path, number, line) if whole or not is_sealed else None)
        except JournalCorrupt:
            parsed.append(None)
    return parsed
