"""Settings that a server refuses of requests in files: learned from rows, or from a batch that never began.

What is learned goes into the next files (`left_out.py`). A row that was answered is never asked for again, and a
request that failed for a setting has not used up one of the batches it may go into.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from autointerp.errors import LLMError, LLMStopped
from autointerp.llm.batch_answers import completed
from autointerp.llm.batch_requests import RequestFile, Requests, bodies_of, keys_of
from autointerp.llm.left_out import Learned, fields_of
from autointerp.llm.retries import Passing
from autointerp.llm.server_errors import RefusedSetting, Server
from autointerp.types import Json

Refused: TypeAlias = Mapping[str, tuple[RefusedSetting, int | None]]
"""By setting: what the server says, and of which line of a file (1 the first), where it tells."""


@dataclass(slots=True)
class Outcome:
    """What came of the rows that refuse a setting."""

    stopped: list[LLMError] = field(default_factory=list[LLMError])
    """Why no request can succeed, where nothing can be left out."""
    passing: str = ""
    """Why a setting was not left out, where the server took it of other requests in the same file."""


class Refusals:
    """What the server of one LLM refuses."""

    def __init__(self, learned: Learned, requests: Requests, server: Server) -> None:
        self._learned = learned
        self._requests = requests
        self._server = server

    def of_rows(
        self, file: RequestFile, refused: Mapping[str, RefusedSetting], elsewhere: Set[str] = frozenset()
    ) -> Outcome:
        """`refused` by request: of rows that answer this file. Its requests may be asked again. `elsewhere`: requests
        whose completions stand in other files."""
        outcome = Outcome()
        answered = completed(file.answers, self._server) | elsewhere
        for key, body in bodies_of(file.path):
            if key in answered:
                self._learned.took(body)
        for key, body in bodies_of(file.path):
            if key not in refused:
                continue
            self._requests.note_answer(key)
            try:
                self._learned.check(refused[key], body)
                self._learned.leave_out(refused[key], body)
            except Passing as reason:
                outcome.passing = str(reason)
            except LLMStopped as stopped:
                outcome.stopped = [stopped]
            else:
                self._requests.discount(key)
        return outcome

    def of_file(self, file: RequestFile, refused: Refused) -> None:
        """Nothing of this file was run. Raises Passing where the server took such a setting before, and LLMStopped
        where it can't be left out."""
        for setting, line in refused.values():
            body = _body(file, setting.name, line)
            self._learned.check(setting, body)
            self._learned.leave_out(setting, body)
        for key in keys_of(file.path):
            self._requests.discount(key)


def refused_settings(errors: Sequence[Json], server: Server) -> Refused:
    """Of a batch's errors those that refuse a setting: the first of each."""
    found: dict[str, tuple[RefusedSetting, int | None]] = {}
    for error in errors:
        verdict = server.verdict(400, error, {})
        if isinstance(verdict, RefusedSetting):
            line = error.get("line")
            found.setdefault(verdict.name, (verdict, line if isinstance(line, int) and line > 0 else None))
    return found


def _body(file: RequestFile, name: str, line: int | None) -> Json:
    """Of the request that is meant: that of the line, else the first one with such a field, else the first one."""
    if line is not None and line <= file.n_requests:
        return next(islice(bodies_of(file.path), line - 1, None))[1]
    bodies = (body for _, body in bodies_of(file.path))
    return next((body for body in bodies if name in fields_of(body)), next(bodies_of(file.path))[1])
