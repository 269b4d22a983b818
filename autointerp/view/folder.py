"""Writes the explorer's folder. Memory: one unit's records, and the index (`columns.py`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from autointerp.errors import RunError
from autointerp.files import disk_errors
from autointerp.progress import Progress, Silent
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.spread import bundles, spread, worth
from autointerp.stages.sample import by_unit
from autointerp.types import Json
from autointerp.view.block import Block, Blocks
from autointerp.view.card import card
from autointerp.view.columns import Index
from autointerp.view.packed import packed, script
from autointerp.view.page import GENERATOR, page

FEATURES_A_SHARD: Final = 16
"""At least: to open a feature its shard is read. Of large runs twice as many, or four times ..., so that there are"""
MOST_SHARDS: Final = 8_000
"""or fewer."""
SINGLE_UP_TO: Final = 200
"""Features of a run that is one file unless told otherwise."""
ALL_WINDOWS_UP_TO: Final = 2_000
"""Features of a run of which every window is kept unless told otherwise; of larger ones WINDOWS of each split, and
more of those that a judge got wrong (`windows.py`): of a made-up run 15 kB a feature instead of 10."""
WINDOWS: Final = 24
PAGE: Final = "index.html"
DATA: Final = "data"


@dataclass(frozen=True, slots=True)
class Viewed:
    """What was written."""

    page: Path
    n_features: int
    n_files: int
    n_bytes: int
    n_windows: int | None
    """At most so many windows of each split were kept, beside those that a judge got wrong; None: all."""


def write_folder(
    run: Run,
    out: Path,
    *,
    n_windows: int | None = None,
    single: bool | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Viewed:
    """Replaces a page that is there. `n_windows`: kept of a feature and split, beside held-out ones that a judge got
    wrong, twice as many at most; None: by the run's size. `single`: one file or a folder; None: by the run's size.
    `jobs`: processes that make it, at most; more than one want a script that calls this to have its
    `if __name__ == "__main__"`.

    Raises RunError where nothing is sampled yet or `out` holds something else, and what reading a run raises.
    """
    _check_free(out)
    writer = _Writer(run, n_windows, single, jobs, progress or Silent())
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(out):
            (partial / DATA).mkdir(parents=True)
            found = writer.write(partial)
            if out.exists():
                shutil.rmtree(out)
            partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = [path for path in out.rglob("*") if path.is_file()]
    n_bytes = sum(path.stat().st_size for path in files)
    return Viewed(out / PAGE, found, len(files), n_bytes, writer.n_windows)


def _check_free(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    known = out / PAGE
    is_alone = out.is_dir() and {path.name for path in out.iterdir()} <= {PAGE, DATA}
    if is_alone and known.is_file():
        with known.open(encoding="utf-8", errors="replace") as file:
            if GENERATOR in file.read(1024):
                return
    raise RunError(
        f"{out} is there already, and holds other things than a page that `autointerp view` wrote: it stays as it "
        f"is. Name a new folder with --out."
    )


class _Writer:
    def __init__(
        self, run: Run, n_windows: int | None, single: bool | None, jobs: int, progress: Progress
    ) -> None:
        self._run, self._jobs, self._progress = run, jobs, progress
        n_asked = sum(len(run.asked(name)) for name in run.recipe.dictionaries)
        self.single = n_asked <= SINGLE_UP_TO if single is None else single
        self.n_windows = WINDOWS if n_windows is None and n_asked > ALL_WINDOWS_UP_TO else n_windows
        self._n_asked = n_asked
        self._features_a_shard = FEATURES_A_SHARD
        while self._features_a_shard * MOST_SHARDS < n_asked:
            self._features_a_shard *= 2
        self._blocks: dict[str, list[str]] = {}
        self._index = Index(list(run.recipe.dictionaries), list(run.recipe.explainers), run.scored())

    def write(self, folder: Path) -> int:
        """How many features there are."""
        self._progress.begin("view", self._n_asked, "features")
        payloads: list[str] = []
        n_shards = 0
        for payload in self._payloads():
            payloads.append(payload)
            if len(payloads) == self._features_a_shard:
                self._put(folder, f"s{n_shards:05}", payloads)
                payloads, n_shards = [], n_shards + 1
        if payloads:
            self._put(folder, f"s{n_shards:05}", payloads)
        self._progress.end()
        if not len(self._index):
            raise RunError(
                f"{self._run.path} has no sampled feature yet, so there is nothing to view. Go on with it: "
                f"autointerp resume {self._run.path}"
            )
        self._put(folder, "index", [packed(self._index.content() | self._head())])
        self._put(folder, "texts", [packed(self._index.texts())])
        if self.single:
            (folder / DATA).rmdir()
        title = f"{self._run.path.resolve().name} · autointerp"
        (folder / PAGE).write_text(page(title, self._blocks), encoding="utf-8")
        return len(self._index)

    def _head(self) -> Json:
        summaries = [summarise(self._run, name, jobs=self._jobs) for name in self._run.recipe.dictionaries]
        return {
            "features_a_shard": self._features_a_shard,
            "n_windows": self.n_windows,
            "card": card(self._run, summaries),
        }

    def _put(self, folder: Path, name: str, payloads: list[str]) -> None:
        if self.single:
            self._blocks[name] = payloads
        else:
            (folder / DATA / f"{name}.js").write_bytes(script(name, payloads))

    def _payloads(self) -> Iterator[str]:
        """Of every feature that is asked for and sampled, in the order of the index, which grows by it."""
        units: Block = [
            (dictionary, unit, [str(feature) for feature in features])
            for dictionary in self._run.recipe.dictionaries
            for unit, features in by_unit(self._run.asked(dictionary))
        ]
        blocks = list(bundles(units, [len(keys) for _, _, keys in units]))
        ready = spread(partial(Blocks, self._run, self.n_windows), blocks, worth(self._jobs, self._n_asked))
        for block, features in zip(blocks, ready, strict=True):
            self._progress.advance(sum(len(keys) for _, _, keys in block))
            for row, payload in features:
                self._index.add(row)
                yield payload
