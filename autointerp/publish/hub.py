"""A published folder -> a dataset repository on the Hugging Face hub, and back.

The content of tables goes first, and is named by what it is: what an interrupted upload brought there is not sent
again. Then one commit changes the set: tables, card and manifest together, so that nobody reads half of it. Where
more files change than a commit should hold there are several, and card and manifest are in the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autointerp.errors import HubError, PublishedError
from autointerp.progress import Progress, Stop
from autointerp.publish.folder import Built
from autointerp.publish.manifest import CARD, NAME, File, Manifest, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

FILES_A_COMMIT: Final = 250
"""Some three million features fill six: larger commits time out on the hub."""
KIND: Final = "dataset"
_PULL_REQUEST: Final = "refs/pr/"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a set goes."""

    repository: str
    """ORG/NAME."""
    revision: str | None = None
    """A branch, or `refs/pr/3`. None: main."""
    private: bool = False
    """Of a repository that is made; one that is there stays as it is."""
    create_pr: bool = False
    name: str = ""
    """Of the run, in the title of its pull request: by it the request that is open already is found."""

    @property
    def is_pull_request(self) -> bool:
        """Whether it is one that is there."""
        return self.revision is not None and self.revision.startswith(_PULL_REQUEST)


@dataclass(slots=True)
class Remote:
    """What lies there already."""

    exists: bool = False
    content: dict[str, str] = field(default_factory=dict[str, str])
    """Path -> SHA-256 of a large file, git's name of a small one."""
    manifest: Manifest | None = None

    def has(self, name: str, made_from: str) -> File | None:
        """The table of this name, where it is there and made from these records."""
        file = self.manifest.files.get(name) if self.manifest else None
        if file is None or file.made_from != made_from or self.content.get(name) != file.sha256:
            return None
        return file


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was changed."""

    n_files: int
    n_commits: int
    url: str
    """Of the last commit, or of the pull request; of the repository where nothing changed."""


@contextmanager
def hub_errors(repository: str, stays: str) -> Generator[None]:
    """Turns what the client library raises into HubError; other errors pass. `stays`: what is there already when the
    same command is given again."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of the HTTP library, which differs by version
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise HubError(f"'{repository}' can't be a name on the hub: {error} Write ORG/NAME.") from error
    except LocalTokenNotFoundError as error:
        raise HubError(
            "nobody is logged in to the hub here: set HF_TOKEN to a token that may write, or: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no dataset '{repository}', or it is private and the token given may not see it "
            f"({_line(error)})."
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"the dataset '{repository}' has no such revision ({_line(error)}).") from error
    except HfHubHTTPError as error:
        raise HubError(
            f"the hub refused for '{repository}': {_line(error)} What was {stays} stays: the same command goes on. "
            f"(401 and 403: the token may not do that there.)"
        ) from error
    except (HTTPError, RuntimeError, OSError) as error:
        # RuntimeError is what a failed upload of a large file is raised as.
        raise HubError(
            f"the hub can't be reached, or broke off ({_line(error.__cause__ or error)}). What was {stays} stays: "
            f"the same command goes on."
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi()


def with_open_pull_request(target: Target) -> Target:
    """Turned to the open pull request of the same run by the same user, where there is one: an upload that broke off
    between two commits goes on there. Raises HubError."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api = _api()
    with hub_errors(target.repository, "uploaded"):
        user: str = api.whoami()["name"]
        found = api.get_repo_discussions(
            target.repository,
            repo_type=KIND,
            author=user,
            discussion_type="pull_request",
            discussion_status="open",
        )
        try:
            numbers = [one.num for one in found if _of_run(target.name) in one.title]
        except RepositoryNotFoundError:
            return target
    if not numbers:
        return target
    return replace(target, revision=f"{_PULL_REQUEST}{max(numbers)}", create_pr=False)


def _of_run(name: str) -> str:
    return f"(run {name})"


def look(target: Target) -> Remote:
    """What lies there. Raises HubError: not logged in, not reachable."""
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api, repository = _api(), target.repository
    with hub_errors(repository, "uploaded"):
        api.whoami()
        try:
            sha = api.repo_info(repository, repo_type=KIND, revision=target.revision).sha
        except RepositoryNotFoundError:
            return Remote()
        except RevisionNotFoundError:  # a branch to be; it begins as main does
            sha = api.repo_info(repository, repo_type=KIND).sha
        remote = Remote(exists=True)
        for entry in api.list_repo_tree(repository, repo_type=KIND, revision=sha, recursive=True):
            if isinstance(entry, RepoFile):
                remote.content[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if NAME in remote.content:
            try:
                found = api.hf_hub_download(repository, NAME, repo_type=KIND, revision=sha)
                remote.manifest = read_manifest(Path(found))
            except PublishedError:
                pass  # of another version, or somebody's own: all files are compared by content
    return remote


def upload(built: Built, target: Target, remote: Remote, progress: Progress, stop: Stop) -> Uploaded:
    """Brings there what differs. Raises HubError, Interrupted; what is there already is not sent again."""
    api, repository = _api(), target.repository
    tables = [name for name, file in built.manifest.files.items() if file.table is not None]
    others = [name for name in built.manifest.files if name not in tables]
    sizes = {name: file.sha256 for name, file in built.manifest.files.items()}
    changed = [name for name in tables if remote.content.get(name) != sizes[name]]
    small = [
        name for name in (*others, CARD, NAME) if _differs(built.folder / name, remote.content.get(name))
    ]
    stale = [
        name
        for name in remote.content
        if name.startswith("data/") and name.endswith(".parquet") and name not in built.manifest.files
    ]
    with hub_errors(repository, "uploaded"):
        # Whoever may propose may not make a repository.
        if not remote.exists or not (target.create_pr or target.is_pull_request):
            api.create_repo(repository, repo_type=KIND, private=target.private or None, exist_ok=True)
        if target.revision and not target.revision.startswith("refs/") and not target.create_pr:
            api.create_branch(repository, branch=target.revision, repo_type=KIND, exist_ok=True)
        if not changed and not small and not stale:
            return Uploaded(0, 0, _page(api, target))
        batches = [changed[at : at + FILES_A_COMMIT] for at in range(0, len(changed), FILES_A_COMMIT)]
        with _Sending(api, built.folder, target, len(changed), progress, stop) as sending:
            ready = [sending.send(batch) for batch in batches or [[]]]
            return sending.commit(ready, sending.additions(small), stale)


def _page(api: HfApi, target: Target) -> str:
    """Of the pull request, or of the repository."""
    page = f"{api.endpoint}/datasets/{target.repository}"
    if not target.is_pull_request:
        return page
    return f"{page}/discussions/{(target.revision or '').removeprefix(_PULL_REQUEST)}"


def _differs(path: Path, there: str | None) -> bool:
    """Whether the content is another. A hub names small files as git does, large ones by SHA-256."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    as_git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return there not in (as_git, hashlib.sha256(content).hexdigest())


class _Sending:
    """One upload."""

    def __init__(
        self, api: HfApi, folder: Path, target: Target, n_files: int, progress: Progress, stop: Stop
    ) -> None:
        self._api, self._folder, self._target = api, folder, target
        self._n_files, self._progress, self._stop = n_files, progress, stop

    def __enter__(self) -> _Sending:
        self._progress.begin("upload", self._n_files, "files")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.end()

    def additions(self, names: Sequence[str]) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        return [CommitOperationAdd(name, self._folder / name) for name in names]

    def send(self, names: Sequence[str]) -> list[Any]:
        """Brings the content there; no commit speaks of it yet."""
        self._stop.check()
        additions = self.additions(names)
        self._api.preupload_lfs_files(
            self._target.repository,
            additions,
            repo_type=KIND,
            revision=self._target.revision,
            create_pr=self._target.create_pr,
        )
        self._progress.advance(len(names))
        return additions

    def commit(self, batches: list[list[Any]], last: list[Any], stale: list[str]) -> Uploaded:
        """`last`: card, manifest and what goes with them, in the last commit."""
        from huggingface_hub import CommitOperationDelete

        n_files = sum(map(len, batches)) + len(last) + len(stale)
        revision, info = self._target.revision, None
        for number, batch in enumerate(batches, start=1):
            self._stop.check()
            operations: list[Any] = list(batch)
            if number == len(batches):
                operations += [*last, *map(CommitOperationDelete, stale)]
            of_all = f" ({number} of {len(batches)})" if len(batches) > 1 else ""
            message = f"Explained features: {len(operations)} files{of_all}"
            info = self._commit(operations, message, revision)
            revision = info.pr_revision or revision
        assert info is not None  # there is one batch at least
        page = _page(self._api, self._target) if self._target.is_pull_request else info.commit_url
        return Uploaded(n_files, len(batches), info.pr_url or page)

    def _commit(self, operations: list[Any], message: str, revision: str | None) -> CommitInfo:
        is_first_of_pr = self._target.create_pr and revision == self._target.revision
        if is_first_of_pr and self._target.name:
            message += f" {_of_run(self._target.name)}"
        return self._api.create_commit(
            self._target.repository,
            operations,
            commit_message=message,
            repo_type=KIND,
            revision=revision,
            create_pr=is_first_of_pr,
        )


PREFIX: Final = "hub:"


def fetch(source: str) -> Path:
    """`hub:ORG/NAME` or `hub:ORG/NAME@REVISION` -> the folder in the hub's cache that holds it. Raises HubError."""
    from huggingface_hub import snapshot_download

    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    with hub_errors(repository, "fetched"):
        return Path(snapshot_download(repository, repo_type=KIND, revision=revision or None))
