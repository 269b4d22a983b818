"""Answers made by any means at all, taken into a run: `autointerp llm answers`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    target = folder / IMPORTED / f"{len(list((folder / IMPORTED).glob('*.jsonl'))) + 1:04d}.jsonl"
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out:

                def keep(row: Json) -> None:
                    out.write(orjson.dumps(row) + b"\n")

                taken = [_take(answers, path, asked.holds, keep) for path in files]
                out.flush()
                os.fsync(out.fileno())
            if any(one.n_new for one in taken):
                partial.replace(target)
            _keep_refusals(folder, zip(files, taken, strict=True))
    finally:
        partial.unlink(missing_ok=True)
    return taken


def _keep_refusals(folder: Path, taken: Iterable[tuple[Path, Taken]]) -> None:
    """Rows that refuse a setting go beside the requests that they were made of: what is learned of them belongs to
    these alone, not to what is asked without it."""
    refusing = {row["custom_id"]: row for path, one in taken if one.settings for row in _refusing(path, one)}
    for file in open_to_answers(folder) if refusing else ():
        rows = [refusing[key] for key in keys_of(file.path) if key in refusing]
        if rows:
            before = file.errors.read_bytes() if file.errors.is_file() else b""
            write_atomically(file.errors, before + b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _refusing(path: Path, taken: Taken) -> Iterator[Json]:
    return (row for _, row in rows_of(path) if row["custom_id"] in taken.settings)


def _take(
    answers: Answers, path: Path, is_asked: Callable[[str], bool], keep: Callable[[Json], None]
) -> Taken:
    try:
        taken = answers.take(path, is_asked, keep)
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
