"""The whole way of a run to the hub."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from autointerp.errors import PublishError
from autointerp.progress import Progress, Silent, Stop
from autointerp.publish.folder import Built, build
from autointerp.publish.hub import Target, look, with_open_pull_request
from autointerp.publish.manifest import Options
from autointerp.publish.publication import publication_of
from autointerp.publish.uploading import Uploaded, check_ours, upload
from autointerp.run import Run
from autointerp.subject.corpus_spec import HUB_NAME


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    built: Built
    uploaded: Uploaded | None
    """None where nothing was to be uploaded."""


def publish(
    run: Run,
    folder: Path,
    target: Target,
    options: Options | None = None,
    *,
    licence: str = "unknown",
    dry_run: bool = False,
    replace: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """`folder`: where the set is made before it is uploaded; with `dry_run` no more than that happens.
    `replace`: also where another run's set, or somebody's own files, lie there: they go.
    `jobs`: processes that make it, at most; more than one want a script that calls this to have its
    `if __name__ == "__main__"`.

    Raises PublishError for a name that is none and where others' files lie there, SecretFound and HubError
    (`errors.py`), DiskFull, Interrupted.
    """
    progress, stop = progress or Silent(), stop or Stop()
    options = options or Options()
    if not HUB_NAME.fullmatch(target.repository):
        raise PublishError(f"--to {target.repository}: a dataset on the hub is named ORG/NAME.")
    if options.max_quote is not None and options.max_quote < 0:
        raise PublishError(f"--max-quote {options.max_quote}: a number of characters, 0 or more.")
    if target.revision == "main":
        target = dataclasses.replace(target, revision=None)
    if target.create_pr and target.revision is not None:
        raise PublishError(
            f"--create-pr proposes a change of main, and --revision {target.revision} is not main: give one of them."
        )
    target = dataclasses.replace(target, run=publication_of(run.path).id)
    if target.create_pr and not dry_run:
        target = with_open_pull_request(target)
    remote = None if dry_run else look(target)
    if remote is not None and not replace:
        check_ours(remote, target.run, target)
    built = build(
        run,
        folder,
        options,
        to=target.repository,
        licence=licence,
        there=remote.has if remote else None,
        replace=replace,
        jobs=jobs,
        progress=progress,
        stop=stop,
    )
    return Outcome(built, None if remote is None else upload(built, target, remote, progress, stop))
