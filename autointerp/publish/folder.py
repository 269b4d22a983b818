"""A run -> the folder that is published: tables, what rebuilds the run, the card, and the manifest last.

README.md                                    the card
manifest.json
data/<dictionary>/<table>-<feature>.parquet
run/recipe.yaml  identities.json  environment.json  controls.json
run/vocabulary.parquet                       token id -> its bytes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import orjson
import yaml

from autointerp.errors import PublishError
from autointerp.files import carry, write_atomically
from autointerp.progress import Progress, Silent, Stop
from autointerp.publish.card import Published, card
from autointerp.publish.dates import written
from autointerp.publish.levels import Levels, digest_of, levels_of
from autointerp.publish.local import public_recipe
from autointerp.publish.manifest import CARD, NAME, File, Manifest, Options, read_manifest, sha256_of
from autointerp.publish.publication import Publication, keep, kept, publication_of
from autointerp.publish.rows import Rows
from autointerp.publish.schema import schema_of
from autointerp.publish.secrets import Guard
from autointerp.publish.shards import (
    DATA,
    Shard,
    is_partial,
    made_from,
    made_from_of,
    n_rows_of,
    rows_of,
    shards,
    span_of,
    tables_of,
    write_shard,
)
from autointerp.report.authors import journals_of
from autointerp.run import ENVIRONMENT, Run
from autointerp.spread import spread
from autointerp.stages.spent import spent
from autointerp.types import digest

RUN: Final = "run"
VOCABULARY: Final = f"{RUN}/vocabulary.parquet"
RECIPE: Final = f"{RUN}/recipe.yaml"
IDENTITIES: Final = f"{RUN}/identities.json"
CONTROLS: Final = f"{RUN}/controls.json"


@dataclass(slots=True)
class Built:
    """What lies in the folder."""

    folder: Path
    manifest: Manifest
    n_made: int = 0
    """Tables that were made; the others were there already."""
    card: str = ""
    guard: Guard = field(default_factory=Guard)


HasIt = Callable[[str, str], File | None]
"""(path, what it is made from) -> the file, where whoever is published to has it already."""


def build(
    run: Run,
    folder: Path,
    options: Options,
    *,
    to: str,
    licence: str,
    there: HasIt | None = None,
    replace: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Built:
    """Makes what is missing of the folder, in so many processes (`there` goes to them by pickle). `to`: ORG/NAME, for
    the card. `replace`: also where the folder is of another run.

    Raises PublishError where nothing is there to publish or the folder is not this run's, SecretFound when all
    tables were looked through, DiskFull, Interrupted. What was made stays, and is not made again.
    """
    progress, stop, guard = progress or Silent(), stop or Stop(), Guard()
    before = kept(run.path)
    spans = {
        name: span_of(run, name, before.spans.get(name) if before else None)
        for name in run.recipe.dictionaries
    }
    pieces = [piece for name, span in spans.items() for piece in shards(run, name, span)]
    if not pieces:
        raise PublishError(
            f"{run.path} holds no sampled feature yet, so there is nothing to publish. First: autointerp resume "
            f"{run.path}"
        )
    publication = _publication(run, spans)
    if replace:
        (folder / NAME).unlink(missing_ok=True)
    else:
        _check_ours(folder, publication.id)
    files: dict[str, File] = {}
    n_made = 0
    progress.begin("publish", len(pieces), "files of features")
    try:
        stop.check()
        levels = {name: levels_of(run, name, jobs=jobs, stop=stop) for name in spans}
        for made in spread(partial(Tables, run, folder, options, there, levels), pieces, jobs):
            progress.advance()
            files |= made.files
            n_made += made.n_made
            guard.found += made.secrets
            stop.check()
    finally:
        progress.end()
    guard.check()
    _write_run(run, folder, files)
    _remove_ours(folder, files.keys())
    manifest = Manifest(
        files, journals_of(run), options, spent(run), publication.id, spans, written(run, publication)
    )
    text = card(run, manifest, Published(to, licence), jobs=jobs)
    write_atomically(folder / CARD, text.encode())
    _look_through(folder, manifest, guard)
    guard.check()
    manifest.save(folder)
    return Built(folder, manifest, n_made, text, guard)


def _look_through(folder: Path, manifest: Manifest, guard: Guard) -> None:
    """All text beside the tables, for secrets."""
    for name in (CARD, RECIPE, IDENTITIES, CONTROLS, f"{RUN}/{ENVIRONMENT}"):
        if (folder / name).is_file():
            guard.look((folder / name).read_text(encoding="utf-8"), name, "anywhere in it")
    guard.look(orjson.dumps(manifest.journals).decode(), "manifest.json", "journals")


def _publication(run: Run, spans: dict[str, int]) -> Publication:
    """What the run is known by, with these spans kept."""
    publication = publication_of(run.path)
    if publication.spans != spans:
        publication = dataclasses.replace(publication, spans=spans)
        keep(run.path, publication)
    return publication


def _check_ours(folder: Path, run: str) -> None:
    """Raises PublishError where another run's set, or somebody's own files, lie in the folder. What a killed build
    of ours left, without a manifest yet, does not stop the next."""
    if (folder / NAME).is_file():
        if read_manifest(folder / NAME).run == run:
            return
        what = "the set of another run"
    elif (folder / CARD).is_file() and not (folder / RECIPE).is_file():
        what = f"a {CARD} that is not ours"
    else:
        return
    raise PublishError(
        f"{folder} holds {what}, which would be overwritten. Give another folder: --out; or, where it is meant to "
        f"go, add --replace."
    )


def _remove_ours(folder: Path, named: Collection[str]) -> None:
    """Tables of ours that the manifest to come does not name: of another choice of what is published, or begun by a
    build that was killed. They may hold what is not to leave this machine. Somebody's own files stay."""
    before = read_manifest(folder / NAME).files.keys() if (folder / NAME).is_file() else ()
    for path in (folder / DATA).rglob("*.parquet*"):
        name = path.relative_to(folder).as_posix()
        if name not in named and (name in before or is_partial(path) or made_from_of(path) is not None):
            path.unlink()


@dataclass(slots=True)
class Made:
    """The tables of a shard."""

    files: dict[str, File] = field(default_factory=dict[str, File])
    n_made: int = 0
    """The others were there already."""
    secrets: list[str] = field(default_factory=list[str])


class Tables:
    """Makes what is missing of a shard's tables. Memory: the records of one unit, and a row group."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        options: Options,
        there: HasIt | None,
        levels: Mapping[str, Levels],
    ) -> None:
        """`levels`: by dictionary."""
        self._run, self._folder, self._options, self._there = run, folder, options, there
        self._levels = levels
        self._of_levels = {name: digest_of(of_dictionary) for name, of_dictionary in levels.items()}
        self._rows: dict[str, Rows] = {}

    def __call__(self, shard: Shard) -> Made:
        """Raises DiskFull, and what reading a run raises."""
        run, options, found, guard = self._run, self._options, Made(), Guard()
        levels, n_characters = self._levels[shard.dictionary], options.max_quote
        rows = self._rows.get(shard.dictionary) or Rows(run, shard.dictionary, levels, max_quote=n_characters)
        self._rows[shard.dictionary] = rows
        of_all = made_from(run, shard, {"max_quote": n_characters})
        for table in tables_of(run, shard, options):
            name, source = shard.path(table), of_all
            if table == "scores":
                source = digest(of_all, self._of_levels[shard.dictionary])
            path = self._folder / name
            is_there = made_from_of(path) == source
            known = self._there(name, source) if self._there else None
            if known is not None:
                found.files[name] = known
                if not is_there:
                    path.unlink(missing_ok=True)  # not what the manifest will name, so perhaps not to be seen
                continue
            if not is_there:
                schema = schema_of(table, list(run.recipe.scorers))
                if not write_shard(path, table, schema, rows_of(rows.of(table), shard), source, guard, name):
                    continue
                found.n_made += 1
            if n_rows := n_rows_of(path):
                size = path.stat().st_size
                found.files[name] = File(size, sha256_of(path), n_rows, table, shard.dictionary, source)
        found.secrets = guard.found
        return found


def _write_run(run: Run, folder: Path, files: dict[str, File]) -> None:
    """What the run knows beside its tables."""
    recipe = yaml.safe_dump(public_recipe(run.recipe), sort_keys=False, allow_unicode=True)
    write_atomically(folder / RECIPE, recipe.encode())
    write_atomically(folder / IDENTITIES, orjson.dumps(run.identities, option=orjson.OPT_INDENT_2))
    for name, source in (
        (f"{RUN}/{ENVIRONMENT}", run.path / ENVIRONMENT),
        (CONTROLS, run.path / "controls.json"),
    ):
        if source.is_file():
            write_atomically(folder / name, source.read_bytes())
        else:
            (folder / name).unlink(missing_ok=True)
    carry(run.vocabulary, folder / VOCABULARY)
    for name in (RECIPE, IDENTITIES, f"{RUN}/{ENVIRONMENT}", CONTROLS, VOCABULARY):
        path = folder / name
        if path.is_file():
            files[name] = File(path.stat().st_size, sha256_of(path))
