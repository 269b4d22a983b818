"""Dictionaries on the hub, of which no more is read than says what they are.

A folder of empty files stands for a repository (`distant.py`); the parts that a reader asks for come by HTTP range
requests. What the hub's cache holds already is linked into the folder instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from autointerp.dictionaries.checkpoint import shortened
from autointerp.dictionaries.hub_files import (
    LookedUp,
    client_errors,
    fetched,
    held_instead,
    looked_up,
    not_fetched,
)
from autointerp.dictionaries.tensors import KINDS
from autointerp.distant import SMALL, Distant, NotInParts, NotReached, standing_in
from autointerp.errors import CheckpointError

UNKNOWN_QUESTION: Final = (404, 405, 501)
"""How a mirror that knows less of the hub's protocol answers."""


@dataclass(slots=True, eq=False)
class Repositories:
    """Those that were looked at, as folders of files that are read in parts."""

    folder: Path
    identity: bool
    files: dict[Path, Distant] = field(default_factory=dict[Path, Distant])
    _repos: dict[Path, tuple[str, str]] = field(default_factory=dict[Path, tuple[str, str]])
    """Folder -> name and commit of the repository that it stands for."""

    def laid_out(self, repo: str, place: str, revision: str | None) -> Path:
        """As `fetched`: a folder or file that readers can be given, while `reading_parts` is open. Raises
        CheckpointError, and NotInParts where the hub doesn't say what there is."""
        import huggingface_hub

        hub = cast(Any, huggingface_hub)
        try:
            seen = looked_up(repo, place, revision)
            sizes = _sizes(repo, seen)
        except client_errors() as error:
            return held_instead(repo, place, revision, error)
        held = {file: hub.try_to_load_from_cache(repo, file, revision=seen.commit) for file in seen.files}
        if all(isinstance(path, str) for path in held.values()):
            return fetched(repo, place, revision)
        if sizes.keys() != held.keys():
            raise NotInParts(f"{repo}: not the sizes of all files came")
        # As in the cache, so that readers which go by the names of folders say the same.
        root = self.folder / f"models--{repo.replace('/', '--')}" / "snapshots" / seen.commit
        self._repos[root] = (repo, seen.commit)
        for file, path in held.items():
            self._add(root, file, path if isinstance(path, str) else None, sizes[file])
        return root / place

    def _add(self, root: Path, file: str, held: str | None, size: int) -> None:
        """`held`: where the cache has it."""
        import huggingface_hub

        repo, commit = self._repos[root]
        path = root / file
        if ".." in path.parts or not path.is_relative_to(root):
            raise CheckpointError(f"{repo} holds a file called '{shortened(file)}', which leads out of it.")
        if path.exists():  # another dictionary of this repository was looked at before: a meta-SAE's parent
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if held is not None:
            path.symlink_to(Path(held).absolute())  # HF_HOME may be relative
            return
        path.touch()
        url = cast(Any, huggingface_hub).hf_hub_url(repo, file, revision=commit)
        in_full = self.identity or size <= SMALL or path.suffix not in KINDS
        self.files[path] = Distant(f"{repo}:{file}", size, partial(_range, repo, url, size), in_full)

    @property
    def n_bytes(self) -> int:
        """Of all files that are not here."""
        return sum(file.size for file in self.files.values())

    def read_in_part(self) -> tuple[Distant, ...]:
        return tuple(file for file in self.files.values() if file.is_read_in_part)

    def named(self, text: str) -> str:
        """With the repositories' names in place of their folders."""
        for root, (repo, _) in self._repos.items():
            text = text.replace(f"{root}/", f"{repo}:").replace(str(root), repo)
        return text

    def named_path(self, path: Path) -> Path:
        """What to type for what lies there, at the commit that was read."""
        for root, (_, commit) in self._repos.items():
            if path.is_relative_to(root):
                return Path(f"{self.named(str(path))}@{commit}")
        return path


_PARTS: ContextVar[Repositories | None] = ContextVar("_PARTS", default=None)


def in_parts() -> Repositories | None:
    """What `reading_parts` gave, where it is open."""
    return _PARTS.get()


@contextmanager
def reading_parts(*, identity: bool) -> Generator[Repositories]:
    """While it is open, dictionaries on the hub are laid out and not fetched. `identity`: whether of their files all
    may be read that an identity takes. Raises CheckpointErrors of what is read with the hub's names."""
    with tempfile.TemporaryDirectory(prefix="autointerp-") as folder:
        parts = Repositories(Path(folder), identity)
        before = _PARTS.set(parts)
        try:
            with standing_in(parts.files):
                yield parts
        except (CheckpointError, NotReached) as error:
            raise CheckpointError(parts.named(str(error))) from error
        finally:
            _PARTS.reset(before)


def _sizes(repo: str, seen: LookedUp) -> dict[str, int]:
    """Raises NotInParts where the server doesn't know this question, and what the hub's client does."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        entries = cast(Any, huggingface_hub).HfApi().get_paths_info(repo, seen.files, revision=seen.commit)
    except HfHubHTTPError as error:
        if cast(Any, error).response.status_code not in UNKNOWN_QUESTION:
            raise
        raise NotInParts(f"{repo}: {error}") from error
    return {str(entry.path): int(entry.size) for entry in entries}


def _range(repo: str, url: str, size: int, start: int, end: int) -> bytes:
    """See `Distant.fetch`."""
    import huggingface_hub
    from huggingface_hub import utils

    client, calls = cast(Any, huggingface_hub), cast(Any, utils)
    # Of what may come compressed the hub's content network gives no parts.
    headers: dict[str, str] = {**calls.build_hf_headers(), "Accept-Encoding": "identity"}
    # The whole isn't asked for as a part: of a text in its repository the hub may give none.
    is_part = (start, end) != (0, size)
    if is_part:
        headers["Range"] = f"bytes={start}-{end - 1}"
    timeout = client.constants.HF_HUB_DOWNLOAD_TIMEOUT
    content, broken = b"", None
    try:
        with calls.http_stream_backoff("GET", url, headers=headers, timeout=timeout) as response:
            calls.hf_raise_for_status(response)
            if is_part and not _is_that(response.status_code, response.headers, start, end, size):
                raise NotInParts(f"{url}: bytes {start} to {end} were asked for, and others come")
            try:
                content = _content(response.iter_bytes(), end - start)
            except client_errors() as error:
                broken = (
                    error  # raised in here, the client would ask again, and give up with an error of its own
                )
        if broken is not None:
            raise broken
        if len(content) != end - start:
            raise OSError(f"{end - start} bytes were asked for, and {len(content)} came")
    except client_errors() as error:
        raise NotReached(not_fetched(repo, error)) from error
    return content


def _content(pieces: Iterable[bytes], n_bytes: int) -> bytes:
    """No more than one piece beyond `n_bytes`."""
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > n_bytes:
            break
    return bytes(content)


def _is_that(status: int, headers: Mapping[str, str], start: int, end: int, size: int) -> bool:
    """Whether an answer is just the part that was asked for, of a file of that size."""
    return status == 206 and headers.get("Content-Range") == f"bytes {start}-{end - 1}/{size}"
