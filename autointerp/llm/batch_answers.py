"""Answers in files: output and error files in OpenAI's batch format, or of any other means.

A row names its request by `custom_id` and holds a chat completion (`response.body`), an error, or just
{"custom_id": ..., "text": ...}. Rows may stand in any order, be missing, and stand twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import orjson

from autointerp.errors import AnswersError, LLMBadRequest, LLMError, LLMStopped
from autointerp.llm import chat_format
from autointerp.llm.batch_requests import keys_of, request_paths, round_folders
from autointerp.llm.digests import DigestIndex, is_digest
from autointerp.llm.protocol import LLMIdentity
from autointerp.llm.retries import Passing
from autointerp.llm.server_errors import RefusedSetting, Server, error_in, status_of
from autointerp.types import Json

IMPORTED: Final = "imported"
"""Folder of the answers that came through `autointerp llm answers`."""

_OFFSET_BITS: Final = 44
_SUCCESS: Final = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a row says: a chat completion, or that the server will never take the request."""

    body: Json | None
    refusal: LLMBadRequest | None = None


def answer_of(row: Json, server: Server) -> Answer:
    """Raises Passing where asking once more may help, RefusedSetting where it does in another way, and LLMStopped or
    LLMUnavailable."""
    if isinstance(text := row.get("text"), str) and "response" not in row:
        return Answer({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
    response: Json = row.get("response") or {}
    body, status = response.get("body"), response.get("status_code") or 0
    error = row.get("error") or error_in(body) or (body if status not in (0, _SUCCESS) else None)
    if error is None:
        try:
            chat_format.read_reply(body if isinstance(body, dict) else {})
        except chat_format.NotAnAnswer as fault:
            raise Passing(f"an answer can't be read: {fault}") from None
        return Answer(body)
    if isinstance(error, dict) and isinstance(cast(Json, error).get("error"), dict):
        error = cast(Json, error)["error"]  # vLLM's run-batch wraps it once more
    code = str(cast(Json, error).get("code")) if isinstance(error, dict) else ""
    if code.startswith("batch_"):  # batch_expired, batch_cancelled: its turn never came
        raise Passing(f"{code}: {server.shown(str(cast(Json, error).get('message') or ''))}")
    verdict = server.verdict(status if status not in (0, _SUCCESS) else status_of(error), error, {})
    if isinstance(verdict, LLMBadRequest):
        return Answer(None, verdict)
    raise verdict


def rows_of(path: Path) -> Iterator[tuple[int, Json]]:
    """The rows, each with the byte it begins at; a last line that was cut off is none. Raises AnswersError."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row: Any = orjson.loads(line)
                except orjson.JSONDecodeError:
                    if not line.endswith(b"\n"):
                        return
                    raise AnswersError(
                        f"{path}, line {number}, is not JSON: {line[:60]!r}. Answers are one JSON object a line, "
                        f"as OpenAI's batches and `vllm run-batch` write them."
                    ) from None
                yield start, _checked(path, number, row)
            start += len(line)


def completed(path: Path, server: Server) -> set[str]:
    """Names of the requests that a file holds chat completions for; none where it is not there."""
    found: set[str] = set()
    for _, row in rows_of(path) if path.is_file() else ():
        # A text alone, which anybody may have written, doesn't tell what the server takes.
        if "response" in row:
            with contextlib.suppress(Passing, RefusedSetting, LLMError):
                if answer_of(row, server).refusal is None:
                    found.add(row["custom_id"])
    return found


def imported(folder: Path, server: Server) -> set[str]:
    """As `completed`, of all files that were imported."""
    return {key for path in (folder / IMPORTED).glob("*.jsonl") for key in completed(path, server)}


def _checked(path: Path, number: int, row: Any) -> Json:
    if not isinstance(row, dict) or not isinstance(cast(Json, row).get("custom_id"), str):
        raise AnswersError(f"{path}, line {number}, has no custom_id: it doesn't say what it answers.")
    row = cast(Json, row)
    if row.keys().isdisjoint(("response", "error", "text")):
        what = "a request, and this a file of requests" if "body" in row else "no answer"
        raise AnswersError(
            f"{path}, line {number}, is {what}: it holds none of response, error and text. Give the file that "
            f"the answers were written to."
        )
    return row


@dataclass(slots=True)
class Taken:
    """What a file of answers held."""

    n_rows: int = 0
    n_new: int = 0
    n_refused: int = 0
    """Of the new ones: those that say that the server will never take the request."""
    n_known: int = 0
    """Answered before, or twice in this file."""
    n_passing: int = 0
    """Failures that may be over when asked once more."""
    n_unknown: int = 0
    """Answers to nothing that was asked."""
    reason: str = ""
    """The last passing failure."""
    stopped: LLMError | None = None
    """Why no request can succeed, if a row says so."""
    settings: dict[str, RefusedSetting] = field(default_factory=dict[str, RefusedSetting])
    """By request, the setting that the server refuses of it; rows that refuse the same share one."""


class Answers:
    """Where the answer to each request stands. Memory: 24 bytes an answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._paths: list[Path] = []
        self._places = DigestIndex()

    def load(
        self,
        folder: Path,
        identity: LLMIdentity | None = None,
        is_asked: Callable[[str], bool] = lambda key: True,
        on_new: Callable[[str], None] = lambda key: None,
    ) -> Iterator[tuple[Path, Taken]]:
        """Takes the answers to one LLM's requests, or to all, and those imported. Raises AnswersError."""
        rounds = round_folders(folder, identity)
        paths = [path for one in rounds for path in sorted((*one.glob("answers-*"), *one.glob("errors-*")))]
        for path in (*paths, *sorted((folder / IMPORTED).glob("*.jsonl"))):
            yield path, self.take(path, is_asked, lambda row: on_new(row["custom_id"]))

    def holds(self, key: str) -> bool:
        return self._places.holds(key)

    def find(self, key: str) -> Answer | None:
        """The answer to a request; None if there is none yet."""
        if (place := self._places.get(key)) is None:
            return None
        file_number, start = divmod(place >> 1, 1 << _OFFSET_BITS)
        with self._paths[file_number].open("rb") as file:
            file.seek(start)
            return answer_of(orjson.loads(file.readline()), self._server)

    def take(
        self,
        path: Path,
        is_asked: Callable[[str], bool] = lambda key: True,
        on_new: Callable[[Json], None] = lambda row: None,
        on_setting: Callable[[Json], None] = lambda row: None,
    ) -> Taken:
        """Notes where answers stand. An answer goes before a refusal, and else the first of several counts. A file
        is read once: it may be a pipe. `on_setting` hears of rows that refuse a setting.

        Raises AnswersError.
        """
        taken = Taken()
        by_name: dict[str, RefusedSetting] = {}
        file_number = len(self._paths)
        self._paths.append(path)
        for start, row in rows_of(path):
            taken.n_rows += 1
            key: str = row["custom_id"]
            if not is_digest(key) or not is_asked(key):
                taken.n_unknown += 1
                if not is_digest(key):
                    continue
            try:
                refused = answer_of(row, self._server).refusal is not None
            except RefusedSetting as failure:
                taken.settings[key] = by_name.setdefault(failure.name, failure)
                taken.reason = str(failure.stopped)
                on_setting(row)
                continue
            except (Passing, LLMError) as failure:
                taken.n_passing += 1
                taken.reason = str(failure)
                if isinstance(failure, LLMStopped):
                    taken.stopped = failure
                continue
            before = self._places.get(key)
            if before is not None and (refused or not before & 1):
                taken.n_known += 1
                continue
            self._places.set(key, (file_number << _OFFSET_BITS | start) << 1 | refused)
            if not is_asked(key):
                continue
            taken.n_new += 1
            taken.n_refused += refused
            on_new(row)
        return taken


def all_requests(folder: Path) -> DigestIndex:
    """Every request that was ever put into a file, of any LLM."""
    asked = DigestIndex()
    for round_folder in round_folders(folder):
        for path in request_paths(round_folder):
            for key in keys_of(path):
                asked.set(key, 0)
    return asked
