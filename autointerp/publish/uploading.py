"""A published folder -> a dataset repository on the Hugging Face hub.

The content of tables goes first, and is named by what it is: what an interrupted upload brought there is not sent
again. Then one commit changes the set: tables, card and manifest together, so that nobody reads half of it. Where
more files change than a commit should hold, main gets them by a pull request of ours, which is merged when it is
whole. In a pull request and on another branch there are several commits then: the first has the manifest, by which an
upload that broke off is known again, the last the card.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autointerp.errors import HubError, PublishError
from autointerp.progress import Progress, Stop
from autointerp.publish.folder import Built
from autointerp.publish.hub import (
    KIND,
    Remote,
    Target,
    api,
    hub_errors,
    line_of,
    look,
    of_run,
    with_open_pull_request,
)
from autointerp.publish.manifest import CARD, NAME

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

FILES_A_COMMIT: Final = 250
"""Larger commits time out on the hub. Three million features of one dictionary make some 1,500 files a table: with
four tables 24 commits."""
_NOBODYS: Final = (".gitattributes",)
"""What the hub itself puts into a repository that it makes."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was changed."""

    n_files: int
    n_commits: int
    url: str
    """Of the last commit, or of the pull request; of the repository where nothing changed."""


@dataclass(frozen=True, slots=True)
class _Changes:
    """Paths, of the folder and of the repository."""

    tables: list[str]
    others: list[str]
    """The manifest and what of the run is in no table."""
    card: list[str]
    """None or one."""
    stale: list[str]
    """To be deleted."""

    def __bool__(self) -> bool:
        return bool(self.tables or self.others or self.card or self.stale)


def check_ours(remote: Remote, run: str, target: Target) -> None:
    """Raises PublishError where files lie there that this run did not put there, which publishing would overwrite or
    mix with its own. `run`: its id."""
    if remote.manifest is not None and remote.manifest.run == run:
        return
    files = sorted(name for name in remote.content if name not in _NOBODYS)
    if not files:
        return
    some = f"{', '.join(files[:3])}{', ...' if len(files) > 3 else ''}"
    what = f"{len(files):,} files that this run did not put there ({some})"
    if remote.manifest is not None:
        dictionaries = {file.dictionary for file in remote.manifest.files.values() if file.dictionary}
        what = f"the set of another run (of {', '.join(sorted(dictionaries))})"
    raise PublishError(
        f"the dataset '{target.repository}' holds {what}. Publishing would take its place, so nothing was changed. "
        f"Publish under another name; or, where it is meant to go, add --replace."
    )


def upload(built: Built, target: Target, remote: Remote, progress: Progress, stop: Stop) -> Uploaded:
    """Brings there what differs. Raises HubError, Interrupted; what is there already is not sent again."""
    hub = api()
    changes = _changes(built, remote)
    with hub_errors(target.repository, "uploaded"):
        # Whoever may propose may not make a repository.
        if not remote.exists or not (target.create_pr or target.is_pull_request):
            hub.create_repo(target.repository, repo_type=KIND, private=target.private or None, exist_ok=True)
        if target.revision and not target.revision.startswith("refs/"):
            hub.create_branch(target.repository, branch=target.revision, repo_type=KIND, exist_ok=True)
        if not changes:
            return Uploaded(0, 0, _page(hub, target))
        if len(changes.tables) <= FILES_A_COMMIT or target.revision or target.create_pr:
            return _send(hub, built, target, changes, progress, stop)
    staged = with_open_pull_request(replace(target, create_pr=True, staged=True))
    if staged.is_pull_request:
        changes = _changes(built, look(staged))
    with hub_errors(target.repository, "uploaded"):
        done = _send(hub, built, staged, changes, progress, stop) if changes else Uploaded(0, 0, "")
    whole = with_open_pull_request(replace(staged, revision=None, create_pr=True))
    _merge(hub, whole)
    return replace(done, url=_page(hub, whole))


def _changes(built: Built, remote: Remote) -> _Changes:
    files, there = built.manifest.files, remote.content
    tables = [name for name, file in files.items() if file.table is not None]
    others = [*(name for name in files if files[name].table is None), NAME]
    before = remote.manifest.files if remote.manifest else {}
    # Where somebody else's set is to go, its tables must: a reader takes all that lie in one folder.
    is_anothers = remote.manifest is None or remote.manifest.run != built.manifest.run
    stale = [
        name
        for name in there
        if name not in files
        and (name in before or (is_anothers and name.startswith("data/") and name.endswith(".parquet")))
    ]
    return _Changes(
        [name for name in tables if there.get(name) != files[name].sha256],
        [name for name in others if _differs(built.folder / name, there.get(name))],
        [CARD] if _differs(built.folder / CARD, there.get(CARD)) else [],
        stale,
    )


def _differs(path: Path, there: str | None) -> bool:
    """Whether the content is another. A hub names small files as git does, large ones by SHA-256."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    as_git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return there not in (as_git, hashlib.sha256(content).hexdigest())


def _page(hub: HfApi, target: Target) -> str:
    """Of the pull request, or of the repository."""
    page = f"{hub.endpoint}/datasets/{target.repository}"
    return page if target.pull_request is None else f"{page}/discussions/{target.pull_request}"


def _send(
    hub: HfApi, built: Built, target: Target, changes: _Changes, progress: Progress, stop: Stop
) -> Uploaded:
    """In as many commits as it takes."""
    tables = changes.tables
    batches = [tables[at : at + FILES_A_COMMIT] for at in range(0, len(tables), FILES_A_COMMIT)]
    with _Sending(hub, built.folder, target, len(tables), progress, stop) as sending:
        return sending.commit([sending.send(batch) for batch in batches or [[]]], changes)


def _merge(hub: HfApi, target: Target) -> None:
    """Raises HubError."""
    from huggingface_hub.errors import HfHubHTTPError

    if target.pull_request is None:
        raise HubError(
            f"the pull request that all files were committed to is no longer open at {_page(hub, target)}: the same "
            f"command looks what is missing."
        )
    with hub_errors(target.repository, "uploaded"):
        try:
            hub.merge_pull_request(target.repository, target.pull_request, repo_type=KIND)
        except HfHubHTTPError as error:
            raise HubError(
                f"all files are in the pull request {_page(hub, target)}, and the hub would not merge it: "
                f"{line_of(error)} Merge it there; or, where main changed meanwhile, close it and give the same "
                f"command again: no content is sent twice."
            ) from error


class _Sending:
    """One upload."""

    def __init__(
        self, hub: HfApi, folder: Path, target: Target, n_files: int, progress: Progress, stop: Stop
    ) -> None:
        self._hub, self._folder, self._target = hub, folder, target
        self._n_files, self._progress, self._stop = n_files, progress, stop

    def __enter__(self) -> _Sending:
        self._progress.begin("upload", self._n_files, "files")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.end()

    def _additions(self, names: Sequence[str]) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        return [CommitOperationAdd(name, self._folder / name) for name in names]

    def send(self, names: Sequence[str]) -> list[Any]:
        """Brings the content there; no commit speaks of it yet."""
        self._stop.check()
        additions = self._additions(names)
        self._hub.preupload_lfs_files(
            self._target.repository,
            additions,
            repo_type=KIND,
            revision=self._target.revision,
            create_pr=self._target.create_pr,
        )
        self._progress.advance(len(names))
        return additions

    def commit(self, batches: list[list[Any]], changes: _Changes) -> Uploaded:
        """`batches`: what was sent of the tables, one at least."""
        from huggingface_hub import CommitOperationDelete

        # The manifest that names what is stale is overwritten by the first commit, which must delete it, then.
        first = [*self._additions(changes.others), *map(CommitOperationDelete, changes.stale)]
        operations = [[*first, *batches[0]], *batches[1:]]
        operations[-1] = [*operations[-1], *self._additions(changes.card)]
        revision, info = self._target.revision, None
        for number, of_one in enumerate(operations, start=1):
            self._stop.check()
            of_all = f" ({number} of {len(operations)})" if len(operations) > 1 else ""
            info = self._commit(of_one, f"Explained features: {len(of_one)} files{of_all}", revision)
            revision = info.pr_revision or revision
        assert info is not None  # there is one batch at least
        page = _page(self._hub, self._target) if self._target.is_pull_request else info.commit_url
        return Uploaded(sum(map(len, operations)), len(operations), info.pr_url or page)

    def _commit(self, operations: list[Any], message: str, revision: str | None) -> CommitInfo:
        is_first_of_pr = self._target.create_pr and revision == self._target.revision
        return self._hub.create_commit(
            self._target.repository,
            operations,
            commit_message=f"{message} {of_run(self._target)}" if is_first_of_pr else message,
            repo_type=KIND,
            revision=revision,
            create_pr=is_first_of_pr,
        )
