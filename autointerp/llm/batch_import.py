"""Answers made by any means at all, taken into a run: `autointerp llm answers`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from autointerp.errors import AnswersError
from autointerp.files import disk_errors
from autointerp.llm.batch_answers import IMPORTED, Answers, Taken, all_requests
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
    finally:
        partial.unlink(missing_ok=True)
    return taken


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
