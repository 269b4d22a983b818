"""What `cache verify` and its repair say, line by line."""

from __future__ import annotations

from collections.abc import Iterator

from autointerp.repair import SET_ASIDE, Repaired, doubtful
from autointerp.run import Run
from autointerp.verify import Verified


def verified(run: Run, found: Verified) -> Iterator[str]:
    """One line a fault, then what may come of it, then the count."""
    for fault in found.faults:
        yield f"{fault.path.relative_to(run.path)} {fault.text}"
    for path in found.leftovers:
        yield f"{path.relative_to(run.path)} is left of a kill: nothing reads it, it does no harm"
    for doubt in doubtful(run, found.faults):
        yield (
            f"{doubt.folder.relative_to(run.path)} ({doubt.n_records:,} records) may have been made from what "
            f"is spoiled now. To be sure, delete that folder and resume"
        )
    if found.n_to_make:
        yield f"{found.n_to_make:,} shards are still to be made: autointerp resume {run.path}"
    checked = f"{found.n_files:,} files, {found.n_bytes:,} bytes checked"
    yield (
        f"{checked}: {len(found.faults):,} faults" if found.faults else f"{checked}: all as they were written"
    )


def repaired(run: Run, done: Repaired) -> Iterator[str]:
    """Where things went, and what is not as it was."""
    for path, aside in done.moved.items():
        yield f"{path.relative_to(run.path)} -> {aside.relative_to(run.path)}"
    if done.moved:
        yield f"{run.path / SET_ASIDE} can be deleted when nobody wants to look at it"
    for part in done.not_as_before():
        yield (
            f"{part.relative_to(run.path)} is made anew, and not to the bit as before: another device, or "
            f"another version of a library"
        )
