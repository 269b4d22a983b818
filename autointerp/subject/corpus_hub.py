"""Datasets on the Hugging Face hub, and copies of what was read of them for machines without a network.

    <copies>/<org--name>-<selection>/current       the commit that the last `autointerp prefetch` saw
    <copies>/<org--name>-<selection>/<commit>/     a journal, a unit a part: how many rows, whether the last
        000000004096.0001.jsonl                    the journal's part
        000000004096.0001.texts.jsonl.gz           its rows: one text or conversation a line

A copy is a beginning of the dataset, as long as the runs it was made for need. It is read where
HF_HUB_OFFLINE=1; elsewhere the hub is.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson

from autointerp import __version__
from autointerp.errors import CorpusError
from autointerp.journal import Journal, Part, write_atomically
from autointerp.subject.chat import Conversation
from autointerp.subject.corpus_sources import dataset_contents, jsonl_file
from autointerp.subject.corpus_spec import CorpusSpec
from autointerp.types import Json, digest

COMMIT = re.compile(r"[0-9a-f]{40}")
ROWS_A_PART: Final = 4096
BYTES_A_PART: Final = 2**24
_TEXTS = ".texts.jsonl.gz"
_FIELD = "content"

Content = str | Conversation


def is_offline() -> bool:
    """Whether the user said so: HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def default_copies() -> Path:
    """Beside the hub client's own cache, so that who carries that one along has the copies too."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "autointerp" / "corpora"


@dataclass(frozen=True, slots=True)
class Hub:
    """Where datasets are read: on the hub; offline from copies, where there is one."""

    copies: Path | None = None
    """None: `default_copies`."""

    def commit(self, spec: CorpusSpec) -> str:
        """The dataset's commit now. Raises CorpusError where nobody knows it."""
        if spec.revision is not None and COMMIT.fullmatch(spec.revision):
            return spec.revision
        if is_offline() and (copy := Copy.current(self.folder(), spec)) is not None:
            return copy.commit
        return _commit(spec)

    def contents(self, spec: CorpusSpec) -> Iterator[Content]:
        """Raises CorpusError, also in mid-stream, and where a copy ends before the dataset does."""
        if is_offline() and (copy := Copy.current(self.folder(), spec)) is not None:
            return copy.contents()
        return streamed(spec, spec.revision)

    def folder(self) -> Path:
        return self.copies or default_copies()


def streamed(spec: CorpusSpec, revision: str | None) -> Iterator[Content]:
    return dataset_contents(
        spec.path,
        spec.field,
        chat=spec.chat,
        name=spec.name,
        split=spec.split,
        revision=revision,
        streaming=spec.streaming,
    )


# --- copies --------------------------------------------------------------------------------------------


class Copy:
    """A copy of one commit's rows, or of their beginning."""

    def __init__(self, folder: Path, spec: CorpusSpec, commit: str) -> None:
        """`folder`: of all copies."""
        self._spec = spec
        self.commit = commit
        self.folder = _folder(folder, spec) / commit
        self._journal = Journal(
            self.folder, {"dataset": _selection(spec), "commit": commit}, package=__version__
        )

    @classmethod
    def current(cls, folder: Path, spec: CorpusSpec) -> Copy | None:
        """The one that the last prefetch made, or of the commit that `spec` names; None where there is none."""
        commit = spec.revision if spec.revision is not None and COMMIT.fullmatch(spec.revision) else None
        try:
            commit = commit or (_folder(folder, spec) / "current").read_text()
        except OSError:
            return None
        copy = cls(folder, spec, commit)
        return copy if copy.folder.is_dir() else None

    def make_current(self) -> None:
        """What offline runs read from now on."""
        write_atomically(self.folder.parent / "current", self.commit.encode())

    @property
    def n_rows(self) -> int:
        return sum(record["n_rows"] for record, _ in self._parts())

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for _, path in self._parts())

    def is_whole(self) -> bool:
        """Whether the dataset ends where the copy does."""
        return any(record["is_last"] for record, _ in self._parts())

    def contents(self) -> Iterator[Content]:
        """Raises CorpusError where more is asked for than is here."""
        yield from self._copied()
        if not self.is_whole():
            raise CorpusError(
                f"the copy of dataset '{self._spec.path}' in {self.folder} ends after {self.n_rows:,} rows, and "
                f"this run needs more. Run `autointerp prefetch` with its recipe where there is a network, or "
                f"read fewer tokens (--set cache.n_tokens=...)."
            )

    def growing(self) -> Generator[Content]:
        """The dataset's rows: those copied, then from the hub, each copied on the way. What is not in a full
        part yet is written when the generator is closed."""
        n_rows = 0
        for content in self._copied():
            n_rows += 1
            yield content
        if self.is_whole():
            return
        buffer = _Buffer()
        is_last = False
        try:
            stream = streamed(self._spec, self.commit)
            for number, content in enumerate(stream):
                if number < n_rows:
                    continue
                buffer.add(content)
                yield content
                if buffer.is_full():
                    n_rows += self._write(n_rows, buffer, is_last=False)
                    buffer = _Buffer()
            is_last = True
        finally:
            if buffer.lines or is_last:
                self._write(n_rows, buffer, is_last=is_last)

    def _copied(self) -> Iterator[Content]:
        for _, path in self._parts():
            yield from jsonl_file(path, _FIELD, "auto")

    def _parts(self) -> list[tuple[Json, Path]]:
        """Records and files without a gap, in order of rows."""
        found: list[tuple[Json, Path]] = []
        n_rows = 0
        for unit in filter(str.isdigit, self._journal.units()):
            located = self._journal.located(unit).get(unit)
            if located is None or int(unit) != n_rows:
                break
            record, part = located
            found.append((record, part.with_name(part.stem + _TEXTS)))
            n_rows += record["n_rows"]
        return found

    def _write(self, first: int, buffer: _Buffer, *, is_last: bool) -> int:
        unit = f"{first:012d}"
        with Part(self._journal, unit) as part:
            place = part.open()
            write_atomically(place.with_name(place.stem + _TEXTS), gzip.compress(buffer.bytes(), 6, mtime=0))
            part.append(unit, {"n_rows": len(buffer.lines), "is_last": is_last})
        return len(buffer.lines)

    # --- what it is enough for ---

    def is_enough_for(self, need: Json) -> bool:
        return digest(need) in self._journal.read("enough")

    def note_enough_for(self, need: Json) -> None:
        with Part(self._journal, "enough") as part:
            part.append(digest(need), need)


class _Buffer:
    """Rows that wait to be written."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._n_bytes = 0

    def add(self, content: Content) -> None:

        line = orjson.dumps({_FIELD: content})
        self.lines.append(line)
        self._n_bytes += len(line)

    def is_full(self) -> bool:
        return len(self.lines) >= ROWS_A_PART or self._n_bytes >= BYTES_A_PART

    def bytes(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines)


def _selection(spec: CorpusSpec) -> Json:
    """What of a dataset is read, but not of which commit."""
    return {
        "path": spec.path,
        "name": spec.name,
        "split": spec.split,
        "field": spec.field,
        "chat": spec.chat,
    }


def _folder(copies: Path, spec: CorpusSpec) -> Path:
    asked = _selection(spec) | {"revision": spec.revision}
    return copies / f"{spec.path.replace('/', '--')}-{digest(asked)[:12]}"


def _commit(spec: CorpusSpec) -> str:
    """The commit that the hub has now for the dataset's revision."""
    import huggingface_hub

    try:
        info = cast(Any, huggingface_hub).HfApi().dataset_info(spec.path, revision=spec.revision)
        return str(info.sha)
    except Exception as error:  # no such dataset, no network: the hub client's errors have no common class
        first = str(error).strip().partition("\n")[0][:300]
        raise CorpusError(
            f"the Hugging Face hub didn't say which commit of dataset '{spec.path}' this is: {first} "
            f"({type(error).__name__}). Check the name and the network, or set corpus.revision to a commit "
            "(40 hex characters). For a machine without a network, run `autointerp prefetch` on one that has it."
        ) from error
