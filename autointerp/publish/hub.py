"""A dataset repository on the Hugging Face hub: what lies there already, and bringing a set from there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autointerp.errors import HubError, PublishedError
from autointerp.publish.manifest import NAME, File, Manifest, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

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
    run: str = ""
    """Id of the run, in the title of its pull request: by it the request that is open already is found."""
    staged: bool = False
    """The pull request is our own way to main, and merged when it is whole; nobody is to review it."""

    @property
    def pull_request(self) -> int | None:
        """The number of one that is there."""
        begin, _, number = (self.revision or "").rpartition("/")
        return int(number) if f"{begin}/" == _PULL_REQUEST and number.isdecimal() else None

    @property
    def is_pull_request(self) -> bool:
        """Whether it is one that is there."""
        return self.pull_request is not None


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
            f"({line_of(error)})."
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"the dataset '{repository}' has no such revision ({line_of(error)}).") from error
    except HfHubHTTPError as error:
        raise HubError(
            f"the hub refused for '{repository}': {line_of(error)} What was {stays} stays: the same command goes on. "
            f"(401 and 403: the token may not do that there.)"
        ) from error
    except (HTTPError, RuntimeError, OSError) as error:
        # RuntimeError is what a failed upload of a large file is raised as.
        raise HubError(
            f"the hub can't be reached, or broke off ({line_of(error.__cause__ or error)}). What was {stays} stays: "
            f"the same command goes on."
        ) from error


def line_of(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def api() -> HfApi:
    """Of the client library, which takes a second to import."""
    from huggingface_hub import HfApi

    return HfApi()


def with_open_pull_request(target: Target) -> Target:
    """Turned to the open pull request of the same run by the same user, where there is one: an upload that broke off
    between two commits goes on there. Raises HubError."""
    from huggingface_hub.errors import RepositoryNotFoundError

    hub = api()
    with hub_errors(target.repository, "uploaded"):
        user: str = hub.whoami()["name"]
        found = hub.get_repo_discussions(
            target.repository,
            repo_type=KIND,
            author=user,
            discussion_type="pull_request",
            discussion_status="open",
        )
        try:
            numbers = [one.num for one in found if of_run(target) in one.title]
        except RepositoryNotFoundError:
            return target
    if not numbers:
        return target
    return replace(target, revision=f"{_PULL_REQUEST}{max(numbers)}", create_pr=False)


def of_run(target: Target) -> str:
    """In the title of its pull request."""
    return f"({'upload of ' if target.staged else ''}run {target.run})"


def look(target: Target) -> Remote:
    """What lies there. Raises HubError: not logged in, not reachable."""
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    hub, repository = api(), target.repository
    with hub_errors(repository, "uploaded"):
        hub.whoami()
        try:
            sha = hub.repo_info(repository, repo_type=KIND, revision=target.revision).sha
        except RepositoryNotFoundError:
            return Remote()
        except RevisionNotFoundError:  # a branch to be; it begins as main does
            sha = hub.repo_info(repository, repo_type=KIND).sha
        remote = Remote(exists=True)
        for entry in hub.list_repo_tree(repository, repo_type=KIND, revision=sha, recursive=True):
            if isinstance(entry, RepoFile):
                remote.content[entry.path] = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if NAME in remote.content:
            try:
                found = hub.hf_hub_download(repository, NAME, repo_type=KIND, revision=sha)
                remote.manifest = read_manifest(Path(found))
            except PublishedError:
                pass  # of another version, or somebody's own: nothing that lies there is this run's
    return remote


PREFIX: Final = "hub:"


def fetch(source: str) -> Path:
    """`hub:ORG/NAME` or `hub:ORG/NAME@REVISION` -> the folder in the hub's cache that holds it. Raises HubError."""
    from huggingface_hub import snapshot_download

    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    with hub_errors(repository, "fetched"):
        return Path(snapshot_download(repository, repo_type=KIND, revision=revision or None))
