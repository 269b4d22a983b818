"""Answers made by any means at all, taken into a run: `autointerp llm answers`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from autointerp.errors import AnswersError
from autointerp.files import disk_errors, write_atomically
from autointerp.llm.batch_answers import IMPORTED, Answers, Taken, all_requests, rows_of
from autointerp.llm.batch_requests import keys_of, open_to_answers
from autointerp.llm.server_errors import Server
from autointerp.types import Json


def import_answers(folder: Path, files: Sequence[Path]) -> list[Taken]:
    """Copies what the files answer of a run's requests into its batch folder; what was in each file.

    The caller holds the run's lock. Raises AnswersError, before anything is kept, and DiskFull.
    """
    asked, answers = all_requests(folder), Answers(Server("the batch", "", "", ""))
    if not asked:
        raise AnswersError(
            f"{folder} holds no requests, so there is nothing to answer: run `autointerp explain` with "
            f"--llm batch:MODEL first."
        )
    for _ in answers.load(folder):
        pass
    refusing: dict[str, Json] = {}
    target = folder / IMPORTED / f"{len(list((folder / IMPORTED).glob('*.jsonl'))) + 1:04d}.jsonl"
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out:

                def keep(row: Json) -> None:
                    out.write(orjson.dumps(row) + b"\n")

                def refuse(row: Json) -> None:
                    refusing.setdefault(row["custom_id"], row)

                taken = [_take(answers, path, asked.holds, keep, refuse) for path in files]
                out.flush()
                os.fsync(out.fileno())
            if any(one.n_new for one in taken):
                partial.replace(target)
            _keep_refusals(folder, refusing)
    finally:
        partial.unlink(missing_ok=True)
    return taken


def _keep_refusals(folder: Path, refusing: Mapping[str, Json]) -> None:
    """Rows that refuse a setting go beside the requests that they were made of: what is learned of them belongs to
    these alone, not to what is asked without it. Each once, however often it is imported."""
    for file in open_to_answers(folder) if refusing else ():
        known = {row["custom_id"] for _, row in rows_of(file.errors)} if file.errors.is_file() else set[str]()
        rows = [refusing[key] for key in keys_of(file.path) if key in refusing and key not in known]
        if rows:
            before = file.errors.read_bytes() if file.errors.is_file() else b""
            write_atomically(file.errors, before + b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _take(
    answers: Answers,
    path: Path,
    is_asked: Callable[[str], bool],
    keep: Callable[[Json], None],
    refuse: Callable[[Json], None],
) -> Taken:
    try:
        taken = answers.take(path, is_asked, keep, refuse)
    except OSError as error:
        raise AnswersError(f"{path} can't be read: {error.strerror}.") from error
    if taken.n_unknown == taken.n_rows:
        what = (
            f"none of its {taken.n_rows:,} rows answers a request"
            if taken.n_rows
            else "it is empty, and answers nothing"
        )
        raise AnswersError(
            f"{path}: {what} of this run. The custom_id of an answer is that of its request, and the "
            f"requests are in the run's batch/*/requests-*.jsonl. Is it another run's?"
        )
    return taken
