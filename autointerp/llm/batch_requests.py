"""Requests in files, in OpenAI's batch format: what waits for answers, and how far each file is.

    batch/<round>/llm.json                   who is to answer: one LLM a round
    batch/<round>/requests-000.jsonl         whole or not there; a line a request, its custom_id our digest
    batch/<round>/requests-000.batch.json    what a server knows it by, and whether more answers can come
    batch/<round>/answers-000.jsonl          what came of it, see `batch_answers.py`
    batch/<round>/errors-000.jsonl

A file is open until its batch has ended or, where it was not sent by us, until something in it is answered:
what is missing then goes into a file of the next round. So no request stands in two open files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from autointerp.errors import LLMBadRequest, RunError
from autointerp.files import disk_errors, write_atomically
from autointerp.llm.digests import DigestIndex
from autointerp.llm.protocol import Awaited, LLMIdentity
from autointerp.types import Json, digest

_WHO: Final = "llm.json"
_BEGINNING: Final = b'{"custom_id":"'
_DIGEST_CHARACTERS: Final = 32


@dataclass(frozen=True, slots=True)
class Sent:
    """How far a file is."""

    address: str = ""
    """Of the server that has it; empty where it was not sent by us."""
    file: str = ""
    """What the server calls the uploaded file."""
    batch: str = ""
    """What it calls the batch; empty where it may not have begun one."""
    ended: bool = False
    """No more answers come."""


@dataclass(slots=True)
class RequestFile:
    """One file of requests; `path` ends in `requests-<number>.jsonl`."""

    path: Path
    n_requests: int
    sent: Sent

    @property
    def answers(self) -> Path:
        return self._beside("answers")

    @property
    def errors(self) -> Path:
        return self._beside("errors")

    @property
    def state(self) -> Path:
        """Where `sent` is kept."""
        return self.path.with_suffix(".batch.json")

    def remember(self, sent: Sent) -> None:
        """When this returns, no kill makes us forget it."""
        write_atomically(self.state, orjson.dumps(dataclasses.asdict(sent)))
        self.sent = sent

    def forget(self) -> None:
        """It is as if it had never been sent."""
        self.state.unlink(missing_ok=True)
        self.sent = Sent()

    def awaited(self, model: str) -> Awaited:
        return Awaited(self.path, self.answers, self.n_requests, model, self.sent.batch)

    def _beside(self, name: str) -> Path:
        return self.path.with_name(self.path.name.replace("requests", name, 1))


def round_folders(folder: Path, identity: LLMIdentity | None = None) -> list[Path]:
    """The rounds in the order they were made: one LLM's, or all."""
    rounds = sorted(path.parent for path in folder.glob(f"*/{_WHO}"))
    if identity is None:
        return rounds
    who = dataclasses.asdict(identity)
    return [path for path in rounds if orjson.loads((path / _WHO).read_bytes()) == who]


def awaited(folder: Path) -> list[Awaited]:
    """Files of every LLM that answers can still come to and that hold none at the place where they are looked
    for. Raises RunError."""
    found: list[Awaited] = []
    for round_folder in round_folders(folder):
        model = orjson.loads((round_folder / _WHO).read_bytes())["model"]
        for path in request_paths(round_folder):
            file = RequestFile(path, sum(1 for _ in keys_of(path)), _sent(path))
            if not file.sent.ended and not file.answers.exists():
                found.append(file.awaited(model))
    return found


def open_to_answers(folder: Path) -> Iterator[RequestFile]:
    """Files of every LLM that were not sent by us, and that answers can still come to. Raises RunError."""
    for round_folder in round_folders(folder):
        for path in request_paths(round_folder):
            sent = _sent(path)
            if not sent.file and not sent.ended:
                yield RequestFile(path, sum(1 for _ in keys_of(path)), sent)


def round_digest(round_folder: Path) -> str:
    """Names a round by who is asked what: whatever came of it since, and however it is numbered."""
    keys = [list(keys_of(path)) for path in request_paths(round_folder)]
    return digest((round_folder / _WHO).read_bytes(), keys)


def take_round(source: Path, folder: Path) -> Path:
    """Copies a round into `folder` of another run, under the first free number, and returns its place.

    A kill leaves nothing that is read: who is asked is copied last.
    """
    target = folder / f"{_next_number(folder):04d}"
    with disk_errors(target):
        target.mkdir(parents=True)
    files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    for path in sorted(files, key=lambda path: path.name == _WHO):
        write_atomically(target / path.name, path.read_bytes())
    return target


def _next_number(folder: Path) -> int:
    taken = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    return max(taken, default=0) + 1


def request_paths(round_folder: Path) -> list[Path]:
    return sorted(round_folder.glob("requests-*.jsonl"))


def keys_of(path: Path) -> Iterator[str]:
    """The digests of a file's requests. Raises RunError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            key = line[len(_BEGINNING) : len(_BEGINNING) + _DIGEST_CHARACTERS]
            if not line.startswith(_BEGINNING) or not line.endswith(b"\n"):
                raise RunError(
                    f"{path}, line {number}, is not as it was written: {line[:60]!r}. Delete the file: what "
                    f"has no answer yet is asked for in another one."
                )
            yield key.decode()


def bodies_of(path: Path) -> Iterator[tuple[str, Json]]:
    """The digests of a file's requests, each with what is sent. Raises RunError."""
    with path.open("rb") as file:
        for key, line in zip(keys_of(path), file, strict=True):
            yield key, orjson.loads(line)["body"]


class Requests:
    """All files of one LLM in a run, and the one that is being written."""

    def __init__(self, folder: Path, identity: LLMIdentity, *, max_rows: int, max_bytes: int) -> None:
        self._folder = folder
        self._identity = identity
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._files: list[RequestFile] = []
        self._file_of = DigestIndex()
        self._n_asked = DigestIndex()
        self._answered: set[int] = set()
        self._round: Path | None = None
        self._writing: BinaryIO | None = None
        self._path = self._partial = folder  # of what is being written
        self._n_rows = self._n_bytes = 0

    def load(self) -> None:
        """Reads what is there. Raises RunError."""
        for leftover in self._folder.glob("*/.requests-*.tmp"):  # of a kill
            leftover.unlink()
        for round_folder in round_folders(self._folder, self._identity):
            for path in request_paths(round_folder):
                file = RequestFile(path, 0, _sent(path))
                if file.sent.ended:
                    continue
                for key in keys_of(path):
                    self._file_of.set(key, len(self._files))
                    file.n_requests += 1
                self._files.append(file)

    def note_answer(self, key: str) -> None:
        """Somebody answered this request."""
        if (number := self._file_of.get(key)) is not None:
            self._answered.add(number)

    def end_answered(self) -> None:
        """Ends the answered files that were not sent by us: whoever answered them is through with them."""
        for number in self._answered:
            if not self._files[number].sent.file:
                self._files[number].remember(Sent(ended=True))
        self._answered.clear()

    def asked(self, key: str) -> bool:
        """Whether it stands in a file that was open when we began, or in one made since."""
        return self._file_of.holds(key)

    def is_open(self, key: str) -> bool:
        """Whether a file that answers can still come to holds this request."""
        number = self._file_of.get(key)
        return number is not None and (number == len(self._files) or not self._files[number].sent.ended)

    def n_asked(self, key: str) -> int:
        """Files of this process that it was put into, but for those of which it is known why they failed."""
        return self._n_asked.get(key) or 0

    def discount(self, key: str) -> None:
        """The last file it was put into counts no more."""
        self._n_asked.set(key, max(0, self.n_asked(key) - 1))

    def open_files(self) -> list[RequestFile]:
        """Those that answers can still come to; the one that is being written is none of them."""
        return [file for file in self._files if not file.sent.ended]

    def add(self, key: str, url: str, body: Json) -> None:
        """Puts a request into the file that is being written. Raises LLMBadRequest and DiskFull."""
        line = orjson.dumps({"custom_id": key, "method": "POST", "url": url, "body": body}) + b"\n"
        if len(line) > self._max_bytes:
            raise LLMBadRequest(
                f"this request takes {len(line):,} bytes, and a batch file {self._max_bytes:,} (max_bytes)."
            )
        if self._n_rows == self._max_rows or self._n_bytes + len(line) > self._max_bytes:
            self.seal()
        if self._writing is None:
            self._begin()
        assert self._writing is not None
        with disk_errors(self._partial):
            self._writing.write(line)
        self._n_rows, self._n_bytes = self._n_rows + 1, self._n_bytes + len(line)
        self._file_of.set(key, len(self._files))
        self._n_asked.set(key, self.n_asked(key) + 1)

    def seal(self) -> None:
        """Ends the file that is being written: now, and not before, it is there."""
        if self._writing is None:
            return
        with disk_errors(self._partial):
            self._writing.flush()
            os.fsync(self._writing.fileno())
        self._writing.close()
        self._partial.replace(self._path)
        self._files.append(RequestFile(self._path, self._n_rows, Sent()))
        self._writing, self._n_rows, self._n_bytes = None, 0, 0

    def end_round(self) -> None:
        """Seals; what is asked from now on stands in a folder of its own."""
        self.seal()
        self._round = None

    def abandon(self) -> None:
        """Drops what was not sealed: it is asked again when its feature is."""
        if self._writing is not None:
            self._writing.close()
            self._writing = None
            self._partial.unlink(missing_ok=True)

    def _begin(self) -> None:
        if self._round is None:
            self._round = self._folder / f"{_next_number(self._folder):04d}"
            with disk_errors(self._round):
                self._round.mkdir(parents=True)
            write_atomically(self._round / _WHO, orjson.dumps(dataclasses.asdict(self._identity)))
        self._path = self._round / f"requests-{len(request_paths(self._round)):03d}.jsonl"
        self._partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._writing = self._partial.open("wb")


def _sent(path: Path) -> Sent:
    state = path.with_suffix(".batch.json")
    return Sent(**orjson.loads(state.read_bytes())) if state.exists() else Sent()
