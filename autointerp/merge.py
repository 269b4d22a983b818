"""Several runs of the same work become one: portions of a cache, or features done by several machines.

    merge([RUN/shard-0-of-2, RUN/shard-1-of-2], RUN)

Parts are taken over whole, with their files, and a part only where it has a record that the target lacks,
and so are requests in batch files, which a server may be at work on; so merging again, or after a kill, does
what is left. Where two runs hold one key with different records, one of them is wrong and nothing says
which: an error that names both. Only what an LLM replied to the same request may differ; the first counts.

Of portions made on GPUs the batch shape may differ, since each process tunes its own, and the last bits of
activations with it: that is noted. Where it must not be, give all of them one `--set
resources.batch_tokens=N`. Portions of another precision or kind of device are refused.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

import orjson

from autointerp.activations.passes import COLUMNS
from autointerp.dictionaries.caveats import CAVEATS
from autointerp.errors import RunError
from autointerp.files import carry, read_sealed_json
from autointerp.journal import MADE_FROM, Journal, differing, lines_of, parse_line
from autointerp.llm.batch import FOLDER as BATCHES
from autointerp.llm.batch_requests import round_digest, round_folders, take_round
from autointerp.llm.left_out import LIMIT, left_out, unite
from autointerp.llm.protocol import Role
from autointerp.lock import locked
from autointerp.progress import Progress, Silent
from autointerp.run import CALIBRATION, CHECK, ENVIRONMENT, PACKED, PUBLICATION, TOKEN_EMBEDDING, Run
from autointerp.sections import fallbacks_of
from autointerp.stages.cut_off import settle
from autointerp.stages.spent import USAGE
from autointerp.types import Json
from autointerp.union import united
from autointerp.verify import STAGES

_MAY_DIFFER: Final = ("requests", "usage", "failed")
"""What an LLM said when, and what it cost: runs need not agree on it."""
_MANIFEST: Final = "manifest.json"
_MENDED: Final = "`autointerp cache verify --repair` on its run sets it aside; then merge again."


@dataclass(slots=True)
class Merged:
    """What a merge did."""

    run: Run
    n_parts: int = 0
    """Taken over by this call."""
    notes: list[str] = field(default_factory=list[str])


def merge(folders: list[Path], out: Path, progress: Progress | None = None) -> Merged:
    """Unites runs in `out`, which may hold some of them, or another part of the same work, already.

    Raises RunNotFound, RunBusy, DiskFull, and RunError where the runs can't be one.
    """
    progress = progress or Silent()
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise RunError(f"--out {out} is one of the runs to merge; give the folder that is to hold them all.")
    sources = [Run.open(folder) for folder in folders]
    with ExitStack() as locks:
        for run in sources:
            locks.enter_context(run.lock())
        locks.enter_context(locked(out))
        before = [Run.open(out)] if (out / "recipe.yaml").is_file() else []
        merged = Merged(Run(out, *united([*before, *sources])))
        for run in sources:
            settle(run)
            run.check()
            _check_made_from(run, merged.run)
        merged.notes += _manifest_notes([*before, *sources])
        todo = [(run, place) for run in sources for place in _places(run)]
        progress.begin("merge", len(todo), "journals")
        try:
            for run, place in todo:
                _take_journal(run, place, merged)
                progress.advance()
        finally:
            progress.end()
        for run in sources:
            _take_batches(run, merged)
        merged.notes += _left_out_notes([*before, *sources])
        unite([run.path for run in (*before, *sources)], out)
        if not (out / ENVIRONMENT).exists():
            carry(sources[0].path / ENVIRONMENT, out / ENVIRONMENT)
        published = [run.path / PUBLICATION for run in sources if (run.path / PUBLICATION).is_file()]
        if published and not (out / PUBLICATION).exists():
            carry(published[0], out / PUBLICATION)
        _settle_packed([*before, *sources], out)
        merged.run.save()  # last: what a killed merge leaves is no run yet, or still the one before
    if not merged.run.is_packed and not merged.run.is_cached_whole():
        what = "rates on random tokens" if merged.run.has_activations() else "shards of the cache"
        merged.notes.append(f"some {what} are in none of these runs: autointerp resume {out} makes them")
    return merged


def _settle_packed(runs: list[Run], out: Path) -> None:
    """Packs make a pack; with the cache of one of them it is a run again."""
    if all(run.is_packed for run in runs):
        carry(runs[-1].path / PACKED, out / PACKED)
    else:
        (out / PACKED).unlink(missing_ok=True)


def _places(run: Run) -> list[Path]:
    """Where a run has journals, relative to it."""
    folders = {part.parent for stage in STAGES for part in (run.path / stage).rglob("*.jsonl")}
    return sorted(folder.relative_to(run.path) for folder in folders)


def _take_batches(run: Run, merged: Merged) -> None:
    """Requests in files, with what came of them: what a server works on is not asked of it again."""
    target = merged.run.path / BATCHES
    known = {round_digest(there) for there in round_folders(target)}
    for source in round_folders(run.path / BATCHES):
        if round_digest(source) not in known:
            take_round(source, target)


def _left_out_notes(runs: list[Run]) -> list[str]:
    """LLMs whose servers did not refuse the same in all runs that asked them."""
    notes: list[str] = []
    for llm in sorted({llm for run in runs for llm in left_out(run.path)}):
        found = {run.path: left_out(run.path).get(llm, []) for run in runs if _has_asked(run, llm)}
        if len({frozenset(names) for names in found.values()}) > 1:
            both = {name for names in found.values() for name in names} >= LIMIT
            which = f", but for the two names of a limit ({', '.join(sorted(LIMIT))})" if both else ""
            each = "; ".join(f"{path}: {', '.join(names) or 'nothing'}" for path, names in found.items())
            notes.append(
                f"the server of {llm} refused not the same in all runs ({each}). What is asked from now on goes "
                f"without all of it{which}; scores say what they went without"
            )
    return notes


def _has_asked(run: Run, llm: str) -> bool:
    """Its plug-in need not be there: an LLM is called by its model, and behind an @ a revision."""
    named = [getattr(run.recipe.llms, role) for role in get_args(Role)]
    sections = [section for section in (*named, *fallbacks_of(run.recipe.llms.explainer).values()) if section]
    is_named = any(llm.rpartition("@")[0] == one.get("model") or llm == one.get("model") for one in sections)
    return is_named and any((run.path / USAGE).rglob("*.jsonl"))


# --- what must agree -----------------------------------------------------------------------------------


def _check_made_from(run: Run, merged: Run) -> None:
    """Raises RunError for the first journal that was made from something else than in the merged run."""
    known = {journal.folder.relative_to(merged.path): journal for journal in merged.journals()}
    for place in _places(run):
        there = Journal.existing(run.path / place)
        if place in known and there.digest != known[place].digest:
            after = orjson.loads(orjson.dumps(known[place].made_from))
            lines = [f"  {n}: {a!r} there, {b!r} here\n" for n, a, b in differing(there.made_from, after)]
            raise RunError(
                f"{there.folder} was made from something else than {known[place].folder} is to be:\n"
                + "".join(lines)
                + "Merge runs of the same settings, or give this one an --out of its own."
            )


def _manifest_notes(runs: list[Run]) -> list[str]:
    """What is not quite the same of the processes that cached. Raises RunError where it is too little so."""
    notes: dict[str, None] = {}
    first: dict[str, tuple[Path, Json]] = {}
    for run in runs:
        for dictionary in run.recipe.dictionaries:
            path = run.cache(dictionary).folder / _MANIFEST
            if not path.is_file():
                continue
            frozen: Json = read_sealed_json(path, _MENDED)
            before_at, before = first.setdefault(dictionary, (path, frozen))
            for name in ("dtype", "device"):
                if frozen[name] != before[name]:
                    raise RunError(
                        f"{path} says {name} {frozen[name]}, {before_at} says {before[name]}: activations of "
                        f"different {'precision' if name == 'dtype' else 'devices'} are not one cache. Make "
                        f"all portions alike: --set "
                        + (
                            f"model.dtype={before[name]}"
                            if name == "dtype"
                            else f"resources.device={before[name]}"
                        )
                    )
            for name in ("batch_tokens", "torch"):
                if frozen[name] != before[name]:
                    notes[
                        f"{dictionary}: {name} is {before[name]} in one portion and {frozen[name]} in another, "
                        f"so the last bits of activations depend on the portion"
                    ] = None
    return list(notes)


# --- taking over ---------------------------------------------------------------------------------------


def _take_journal(run: Run, place: Path, merged: Merged) -> None:
    source, target = run.path / place, merged.run.path / place
    for name in (MADE_FROM, _MANIFEST):
        if (source / name).is_file() and not (target / name).exists():
            carry(source / name, target / name)
    there, here = Journal.existing(source), Journal.existing(target)
    for unit in there.units():
        known, taken = here.located(unit), dict[Path, None]()
        for key, (record, part) in there.located(unit).items():
            if key not in known:
                taken[part] = None
            elif not (_is_same(record, known[key][0]) or _tolerated(place, key, merged, part)):
                raise RunError(_conflict(key, part, known[key][1], unit))
        for part in sorted(taken):
            _take_part(part, here, unit)
            merged.n_parts += 1


def _is_same(one: Json, other: Json) -> bool:
    """But for sentences about a dictionary, which other versions of this program may put otherwise."""
    return all(one.get(name) == other.get(name) for name in one.keys() | other.keys() if name != CAVEATS)


def _tolerated(place: Path, key: str, merged: Merged, part: Path) -> bool:
    """Whether two runs may say different things under one key."""
    if place.parts[0] in _MAY_DIFFER:
        return True
    if key == TOKEN_EMBEDDING:  # of the same model, which the digest says
        merged.notes.append(
            f"{part} differs from that of another portion: machines round its last bits differently; the "
            f"first counts"
        )
        return True
    if key != CHECK:
        return False
    frozen = part.parent / _MANIFEST
    if not frozen.is_file() or read_sealed_json(frozen, _MENDED)["device"] == "cpu":
        return False
    merged.notes.append(
        f"{part} differs from that of another portion: GPUs round differently; the first counts"
    )
    return True


def _conflict(key: str, one: Path, other: Path, unit: str) -> str:
    why = f"{one} and {other} hold different records of '{key}', and nothing says which is right. "
    if unit == CALIBRATION:
        return why + (
            "They calibrated a dictionary to thresholds that differ in their last bits, as devices of different "
            "kinds do, so what fires depends on the portion. Put the files calibration.* of one portion's cache "
            "into the others' before they cache, and cache these again."
        )
    if unit == COLUMNS:
        return why + (
            "They cached different features of an elementwise dictionary. Ask for the same features in all "
            "portions; or cache the features of all in one run, pack it for each machine, and merge the packs."
        )
    return why + "Set one of them aside, with its file if it has one, and merge again."


def _take_part(part: Path, here: Journal, unit: str) -> None:
    """A part and its files, under the next attempt's name: the files first, so that the part tells no lie."""
    attempt = 1 + max((int(path.suffixes[-2][1:]) for path in here.parts(unit)), default=0)
    target = here.folder / f"{unit}.{attempt:04d}.jsonl"
    header = parse_line(part, 1, lines_of(part)[0])
    for suffix, seal in header.get("files", {}).items():
        file = part.with_suffix(suffix)
        if not file.is_file() or file.stat().st_size != seal["bytes"]:
            raise RunError(
                f"{file} is missing or not whole. `autointerp cache verify --repair` on its run makes it anew; "
                f"then merge again."
            )
        carry(file, target.with_suffix(suffix))
    carry(part, target)
