"""The whole way of a run to the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from autointerp.errors import PublishError
from autointerp.progress import Progress, Silent, Stop
from autointerp.publish.folder import Built, build
from autointerp.publish.hub import Target, Uploaded, look, upload, with_open_pull_request
from autointerp.publish.manifest import Options
from autointerp.run import Run
from autointerp.subject.corpus_spec import HUB_NAME
from autointerp.types import digest


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
    jobs: int = 1,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """`folder`: where the set is made before it is uploaded; with `dry_run` no more than that happens.
    `jobs`: processes that make it, at most; more than one want a script that calls this to have its
    `if __name__ == "__main__"`.

    Raises PublishError for a name that is none, SecretFound and HubError (`errors.py`), DiskFull, Interrupted.
    """
    progress, stop = progress or Silent(), stop or Stop()
    options = options or Options()
    if not HUB_NAME.fullmatch(target.repository):
        raise PublishError(f"--to {target.repository}: a dataset on the hub is named ORG/NAME.")
    if options.max_quote is not None and options.max_quote < 0:
        raise PublishError(f"--max-quote {options.max_quote}: a number of characters, 0 or more.")
    if target.create_pr and not dry_run:
        target = with_open_pull_request(replace(target, name=_name(run)))
    remote = None if dry_run else look(target)
    built = build(
        run,
        folder,
        options,
        to=target.repository,
        licence=licence,
        there=remote.has if remote else None,
        jobs=jobs,
        progress=progress,
        stop=stop,
    )
    return Outcome(built, None if remote is None else upload(built, target, remote, progress, stop))


def _name(run: Run) -> str:
    """The same while a run grows, and on whichever machine: by what its first dictionary is, and on what."""
    first = next(iter(run.recipe.dictionaries))
    known = run.identities
    return digest(known.model, known.corpus, known.dictionaries[first], known.sites[first], run.recipe.seed)[
        :12
    ]
