"""Who runs our engines: files that name their processes, so that one left behind can be named.

A file lies in a folder of the user's own for as long as its engine lives. A process is known by its number
and its start time, so that a number which somebody else has got by now is not taken for ours.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import orjson

from autointerp.errors import LLMStopped
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine."""

    pid: int
    start: int
    """Clock ticks after the machine started."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """An engine whose parent is gone."""

    processes: tuple[Process, ...]
    """Those of them that still run."""
    model: str


def folder() -> Path:
    """The user's own folder. Raises LLMStopped where somebody else has made it."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    place = Path(base) / f"autointerp-{os.getuid()}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise LLMStopped(f"{place} belongs to another user. Set XDG_RUNTIME_DIR to a folder of your own.")
    return place


def record(pid: int, model: str) -> Path:
    """Writes down the engine whose session `pid` leads, with all its processes of now; the file."""
    content: Json = {"parent": _process(os.getpid()), "model": model, "processes": of_session(pid)}
    file = folder() / f"engine-{pid}.json"
    partial = file.with_suffix(".new")
    partial.write_bytes(orjson.dumps(content))
    partial.rename(file)
    return file


def orphans() -> list[Orphan]:
    """Engines that outlived their parents. Files of those that ended are removed."""
    found: list[Orphan] = []
    for file in sorted(folder().glob("engine-*.json")):
        try:
            content: Json = orjson.loads(file.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):  # removed by its owner just now
            continue
        if _is_alive(Process(**content["parent"])):
            continue
        alive = tuple(p for entry in content["processes"] if _is_alive(p := Process(**entry)))
        if alive:
            found.append(Orphan(alive, content["model"]))
        else:
            file.unlink(missing_ok=True)
    return found


def _is_alive(process: Process) -> bool:
    return _process(process.pid) == process


def of_session(leader: int) -> list[Process]:
    """The living processes of the session that `leader` leads, or led."""
    pids = (int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit())
    processes = ((_process(pid), _stat(pid)) for pid in pids)
    return [process for process, stat in processes if process and stat and int(stat[3]) == leader]


def _process(pid: int) -> Process | None:
    """None where there is none, or one that has ended and waits for its parent to notice."""
    stat = _stat(pid)
    return None if stat is None or stat[0] in "ZX" else Process(pid, int(stat[19]))


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, ...; start is the 20th."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
