"""What explain, score and a reader need of a run, in a folder of its own to take elsewhere.

Rows and activation shards, nearly all of a run's weight, stay where they are. In the folder the LLM's stages
resume as in the run itself, with the same digests; `merge` brings back what came of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from autointerp import __version__
from autointerp.activations.random_rates import RANDOM_UNITS
from autointerp.errors import RunError
from autointerp.files import carry, write_atomically
from autointerp.journal import MADE_FROM, unit_of_feature
from autointerp.llm.batch import FOLDER as BATCHES
from autointerp.run import (
    CALIBRATION,
    CHECK,
    ENVIRONMENT,
    PACKED,
    PUBLICATION,
    TOKEN_EMBEDDING,
    VOCABULARY,
    Run,
)
from autointerp.stages.cut_off import settle

_WHOLE = (
    "neuronpedia",
    "directions",
    "sample",
    "intervene",
    "explain",
    "probe",
    "score",
    "control",
    "usage",
    "failed",
)


@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed."""

    n_files: int
    n_bytes: int


def pack(run: Run, out: Path, *, with_requests: bool) -> Packed:
    """`with_requests`: also every LLM reply and batch, so that what a kill left half done is not paid for again.

    Raises RunBusy, DiskFull, and RunError where something lies in `out` already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is there already, and not empty: pack into a new folder.")
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    n_files = n_bytes = 0
    try:
        with run.lock():
            settle(run)
            for path in _files(run, with_requests):
                carry(path, partial / path.relative_to(run.path))
                n_files, n_bytes = n_files + 1, n_bytes + path.stat().st_size
        said = {"package": __version__, "with_requests": with_requests}
        write_atomically(partial / PACKED, orjson.dumps(said, option=orjson.OPT_INDENT_2))
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Packed(n_files, n_bytes)


def _files(run: Run, with_requests: bool) -> Iterator[Path]:
    yield from (run.path / name for name in ("recipe.yaml", "identities.json", ENVIRONMENT))
    yield from run.path.glob(PUBLICATION)
    yield from run.rows().folder.glob("*.json")
    for unit in (VOCABULARY, TOKEN_EMBEDDING):
        yield from run.rows().folder.glob(f"{unit}.*")
    for dictionary in run.recipe.dictionaries:
        yield from run.cache(dictionary).folder.glob("*.json")
        for units in (CALIBRATION, CHECK, f"{RANDOM_UNITS}*"):
            yield from run.cache(dictionary).folder.glob(f"{units}.*")
    for stage in (*_WHOLE, *(("requests", BATCHES) if with_requests else ())):
        found = (path for path in (run.path / stage).rglob("*") if path.is_file())
        yield from (path for path in found if not path.name.startswith("."))


def check_made_here(run: Run) -> None:
    """Raises RunError for results of another program: nobody knows how to make more of the kind."""
    for path in sorted((run.path / "sample").rglob(MADE_FROM)):
        if "published" in orjson.loads(path.read_bytes())["made_from"]:
            raise RunError(
                f"{run.path} holds explanations and scores that another program made: how is not known, so no more "
                f"can be made like them. Read them (autointerp status, show, view, report), make their numbers anew "
                f"(rescore), set them beside a run of your own (compare). To explain such features here, start a "
                f"run: autointerp explain --sae ... --out ANOTHER"
            )


def check_packed(run: Run) -> None:
    """Raises RunError where a packed run is asked for what needs the cache."""
    names = run.recipe.dictionaries
    new = [name for name in names if name not in run.identities.widths]
    n_missing = 0 if new else sum(_n_unsampled(run, name) for name in names)
    n_uncounted = 0 if new else sum(len(run.without_random_rates(name)) for name in names)
    unread = [] if new else [name for name in run.recipe.scorers if _is_unread(run, name)]
    if run.is_published and (new or n_missing or unread):
        what = f"{n_missing:,} features that were not published" if n_missing else "what takes the model"
        raise RunError(
            f"{run.path} holds windows that were published, without model or corpus, and is asked for {what}. Ask "
            f"for fewer features, or leave out {', '.join(unread) or 'the rest'}."
        )
    if unread and not (n_missing or n_uncounted):
        raise RunError(
            f"{run.path} was packed without its cache, and scorer '{unread[0]}' has the model read texts. Score with "
            f"it in the run it was packed from, and pack that again; or leave it out."
        )
    if new or n_missing or n_uncounted:
        what = f"{n_uncounted:,} features' rates on random tokens"
        if new or n_missing:
            what = f"dictionary '{new[0]}'" if new else f"{n_missing:,} features that it has no samples of"
        raise RunError(
            f"{run.path} was packed without its cache, and is asked for {what}. Ask the run it was packed from, "
            f"and pack it again; or ask for fewer. (To make a cache of its own here, delete "
            f"{run.path / PACKED} and resume: that needs the model, the dictionary and the corpus.)"
        )


def _is_unread(run: Run, scorer: str) -> bool:
    """Whether a scorer needs the model, and nothing of it is there."""
    return run.is_probing(scorer) and not any(
        run.responses(dictionary, explainer, scorer).folder.is_dir()
        for dictionary in run.recipe.dictionaries
        for explainer in run.recipe.explainers
    )


def _n_unsampled(run: Run, dictionary: str) -> int:
    journal = run.sample(dictionary)
    asked: dict[str, list[str]] = {}
    for feature in run.asked(dictionary):
        asked.setdefault(unit_of_feature(feature.index), []).append(str(feature))
    return sum(len(set(keys) - journal.read(unit).keys()) for unit, keys in asked.items())
