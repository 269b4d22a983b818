"""Batches at a server: begun once, looked at until they end, their answers taken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

from autointerp.errors import LLMError, LLMStopped, LLMUnavailable
from autointerp.llm.batch_answers import Answers, Taken
from autointerp.llm.batch_api import BatchServer
from autointerp.llm.batch_refusals import Refusals, Refused, refused_settings
from autointerp.llm.batch_requests import RequestFile, Requests, Sent, keys_of
from autointerp.llm.retries import Passing
from autointerp.llm.server_errors import RefusedSetting
from autointerp.progress import Progress
from autointerp.types import Json

_MAX_PAUSE_S: Final = 60.0
_MAX_LOST: Final = 15
"""So many looks in a row without an answer, at last a minute apart, end the wait; the batches go on."""
_ENDED: Final = frozenset(("completed", "expired", "cancelled"))
"""No more answers come. A batch that `failed` never began: its input was refused."""
_TOO_MUCH_QUEUED: Final = "token_limit_exceeded"


class Jobs:
    """The batches of one LLM's open files."""

    def __init__(
        self,
        api: BatchServer,
        requests: Requests,
        answers: Answers,
        refusals: Refusals,
        *,
        url: str,
        window: str,
        first_pause_s: float,
    ) -> None:
        self.last_failure = "no row answers it"
        """Why a request that a batch did not answer was not, as far as a row said it."""
        self._api = api
        self._requests = requests
        self._answers = answers
        self._refusals = refusals
        self._url, self._window, self._first_pause_s = url, window, first_pause_s
        self._held: list[RequestFile] = []  # until the server's queue has room
        self._alone: RequestFile | None = None  # sent while nothing else of ours was queued
        self._n_done: dict[Path, int] = {}

    async def send(self, file: RequestFile, progress: Progress) -> None:
        """Uploads a file and begins its batch; each step is on disk before the next one. What was done
        before a kill is not done again. Raises LLMErrors."""
        address = self._api.server.address
        if file.sent.file and file.sent.address != address:
            raise LLMStopped(
                f"{file.path} was sent to {file.sent.address}, and base_url is {address} now. Put it back, or "
                f"delete {file.state} to send it here too."
            )
        if file.sent.batch:
            return
        try:
            uploaded, batch = await self._begun(file, address)
        except RefusedSetting as refused:
            try:
                self._ask_otherwise(file, {refused.name: (refused, None)}, progress)
            except Passing:
                raise refused.stopped from None
            return
        file.remember(Sent(address, uploaded, batch))
        progress.note(f"{file.path}: {file.n_requests:,} requests are batch {batch} at {address}.")

    async def _begun(self, file: RequestFile, address: str) -> tuple[str, str]:
        """The server's names of an uploaded file and of its batch. Raises LLMErrors and RefusedSetting."""
        may_have_begun = bool(file.sent.file)
        if not may_have_begun:
            file.remember(Sent(address, await self._api.upload(file.path)))
        uploaded, about = file.sent.file, {"autointerp": f"{file.path.parent.name}/{file.path.name}"}
        return uploaded, await self._api.create(uploaded, self._url, self._window, about, look=may_have_begun)

    async def wait(self, progress: Progress) -> None:
        """Until every batch has ended and its answers are here.

        Raises LLMErrors; what is known by then stays known, and batches that run go on.
        """
        pause_s, n_lost = self._first_pause_s, 0
        while files := self._requests.open_files():
            try:
                await self._look_at_all(files, progress)
                n_lost = 0
            except LLMUnavailable:
                n_lost += 1
                if n_lost == _MAX_LOST:
                    raise
            left = self._requests.open_files()
            pause_s = min(pause_s * 1.5, _MAX_PAUSE_S) if len(left) == len(files) else self._first_pause_s
            if left:
                await asyncio.sleep(pause_s)

    async def _look_at_all(self, files: list[RequestFile], progress: Progress) -> None:
        running = [file for file in files if file.sent.batch]
        stopped: list[LLMError] = []
        try:
            for file in running:
                stopped += await self._look_at(file, progress)
        except LLMUnavailable:
            if not stopped:
                raise
        if stopped:
            raise stopped[0]
        left = self._requests.open_files()
        is_alone = not any(file.sent.batch for file in left)
        if self._held and (len(left) < len(files) or is_alone):
            self._alone = self._held[0] if is_alone else None
            await self.send(self._held[0], progress)
            self._held.pop(0)

    async def _look_at(self, file: RequestFile, progress: Progress) -> list[LLMError]:
        """Why the run must stop, if it must."""
        batch = await self._api.batch(file.sent.batch)
        if batch is None:
            return [_unknown(file)]
        if batch.get("status") == "failed":
            return self._failed(file, batch, progress)
        if batch.get("status") in _ENDED:
            return await self._ended(file, batch, progress)
        self._advance(file, (batch.get("request_counts") or {}).get("completed") or 0, progress)
        return []

    def _failed(self, file: RequestFile, batch: Json, progress: Progress) -> list[LLMError]:
        """Why the run must stop, if it must; the file is to be sent again, or what is in it asked otherwise."""
        errors: list[Json] = (batch.get("errors") or {}).get("data") or []
        said = self._api.server.shown(
            "; ".join(str(error.get("message")) for error in errors) or "no reason given"
        )
        if refused := refused_settings(errors, self._api.server):
            try:
                self._ask_otherwise(file, refused, progress)
                return []
            except Passing as reason:
                said += f" ({reason})"
            except LLMStopped as stopped:
                return [stopped]
        name = file.sent.batch
        file.forget()
        if any(error.get("code") == _TOO_MUCH_QUEUED for error in errors):
            if file is not self._alone:
                self._held.append(file)
                return []
            said += " Smaller files may fit: the LLM's options max_rows and max_bytes."
        address = self._api.server.address
        return [
            LLMStopped(f"{address} refused the batch {name} ({file.path}): {said} Resuming sends it again.")
        ]

    def _ask_otherwise(self, file: RequestFile, refused: Refused, progress: Progress) -> None:
        """Nothing of a file runs, for settings in it: its requests go into another one, without these. Raises
        Passing and LLMStopped as `Refusals.of_file`."""
        try:
            self._refusals.of_file(file, refused)
        except LLMStopped:
            file.remember(_over(file.sent))  # whatever is changed now, this file holds what is refused
            raise
        file.remember(_over(file.sent))
        progress.note(f"{file.path}: {', '.join(refused)} is refused, and its requests are asked without.")

    async def _ended(self, file: RequestFile, batch: Json, progress: Progress) -> list[LLMError]:
        """Takes what came of a batch; why the run must stop, if it must."""
        stopped: list[LLMError] = []
        asked = set(keys_of(file.path))
        for field, path in (("output_file_id", file.answers), ("error_file_id", file.errors)):
            if not (name := batch.get(field)):
                continue
            await self._api.download(name, path)
            taken = self._answers.take(path, asked.__contains__)
            progress.note(said_of(path, taken))
            self.last_failure = taken.reason or self.last_failure
            stopped += [taken.stopped] if taken.stopped else []
            if taken.settings:
                refused = self._refusals.of_rows(file, taken.settings)
                stopped += refused.stopped
                self.last_failure = refused.passing or self.last_failure
        self._advance(file, file.n_requests, progress)
        file.remember(_over(file.sent))
        if n_missing := sum(not self._answers.holds(key) for key in asked):
            progress.note(
                f"batch {file.sent.batch} is {batch['status']}: {n_missing:,} requests got no answer."
            )
        if batch["status"] == "cancelled":
            stopped.append(
                LLMStopped(
                    f"the batch {file.sent.batch} was cancelled at {self._api.server.address}. What it had answered "
                    f"is taken; resuming asks for the rest in a new one."
                )
            )
        return stopped

    def _advance(self, file: RequestFile, n_done: int, progress: Progress) -> None:
        progress.advance(max(0, n_done - self._n_done.get(file.path, 0)))
        self._n_done[file.path] = n_done


def _over(sent: Sent) -> Sent:
    return Sent(sent.address, sent.file, sent.batch, ended=True)


def _unknown(file: RequestFile) -> LLMStopped:
    return LLMStopped(
        f"{file.sent.address} does not know the batch {file.sent.batch} ({file.path}) any more. Is the key that "
        f"of the same account? If its answers are lost, delete {file.state} and resume: it is sent, and paid "
        f"for, again."
    )


def said_of(path: Path, taken: Taken) -> str:
    """What was taken from a file, in a line."""
    asked_again = f"failed for now and are asked again (the last: {taken.reason})"
    counts: list[tuple[int, Any]] = [
        (taken.n_refused, "of them refusals"),
        (taken.n_known, "known already"),
        (taken.n_passing, asked_again),
        (len(taken.settings), "refuse a setting and are asked again without it"),
        (taken.n_unknown, "answer nothing that waits for an answer, and are passed over"),
    ]
    more = "".join(f", {n:,} {what}" for n, what in counts if n)
    return f"{path}: {taken.n_new:,} answers{more}."
