"""A run -> folders that Neuronpedia's admin import reads: DIR/MODEL/SOURCE/.

The same run gives the same bytes. What is there already, made from the same records, stays; a file is whole or not
there. Their import takes a table's columns from its first line, so every row has all of them.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from autointerp.errors import PublishError
from autointerp.files import write_atomically
from autointerp.neuronpedia.exported import Exported, Exporter
from autointerp.neuronpedia.kept import kept_source
from autointerp.neuronpedia.layout import (
    ACTIVATION,
    EXPLANATION,
    FEATURES_PER_BATCH,
    MOST_FILES,
    NEURON,
    SCORE,
    of_table,
    stored,
)
from autointerp.neuronpedia.naming import Asked, Names, names_of
from autointerp.progress import Progress, Silent, Stop
from autointerp.publish.secrets import Guard
from autointerp.publish.shards import Shard, made_from
from autointerp.run import Run
from autointerp.types import Json, digest

VERSION: Final = 1
"""Raise it when the same run would give other rows."""
MADE_FROM: Final = "made_from.json"
_TABLES: Final = {"features": NEURON, "activations": ACTIVATION, "explanations": EXPLANATION, "scores": SCORE}


@dataclass(slots=True)
class Exports:
    """What was written, and what could not be said."""

    folders: list[Path] = field(default_factory=list[Path])
    n_rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TABLES, 0))
    """By table; of files that were there already too."""
    n_made: int = 0
    """Files."""
    n_without_value: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    units: tuple[str, ...]


def export_bulk(
    run: Run, folder: Path, asked: Asked, *, progress: Progress | None = None, stop: Stop | None = None
) -> Exports:
    """Raises PublishError, SecretFound (then the batches it is in are not there), DiskFull, Interrupted."""
    progress, stop, guard, done = progress or Silent(), stop or Stop(), Guard(), Exports()
    names = names_of(run, asked)
    batches = {name: _batches(run, name) for name in names}
    if not any(batches.values()):
        raise PublishError(
            f"{run.path} holds no sampled feature yet, so there is nothing to export. First: autointerp resume "
            f"{run.path}"
        )
    progress.begin("export", sum(map(len, batches.values())), "batches of features")
    try:
        for name, its in names.items():
            place = folder / its.model / its.source
            done.folders.append(place)
            _write_names(run, name, its, place)
            there = _there(place)
            for batch in batches[name]:
                stop.check()
                _write_batch(run, name, its, place, batch, there, guard, done)
                progress.advance()
    finally:
        progress.end()
    guard.check()
    return done


def _batches(run: Run, dictionary: str) -> list[_Batch]:
    """Ranges of indices, larger where a folder would hold too many files."""
    n_columns = run.identities.n_columns(dictionary)
    size = FEATURES_PER_BATCH
    while -(-n_columns // size) > MOST_FILES:
        size *= 2
    n_poles = run.identities.poles[dictionary]
    found: dict[int, list[str]] = {}
    for unit in run.existing("sample", dictionary).units():
        found.setdefault(int(unit) * n_poles // size, []).append(unit)
    return [_Batch(number, tuple(units)) for number, units in sorted(found.items())]


def _write_names(run: Run, dictionary: str, names: Names, folder: Path) -> None:
    known = kept_source(run, dictionary)
    said: Json = known["said"] if known else {}
    cache = run.recipe.cache
    n_rows = None if known or not cache.context_length else -(-cache.n_tokens // cache.context_length)
    corpus = run.recipe.corpus.path if run.recipe.corpus else None
    owner = {"creatorId": names.creator, "visibility": "PUBLIC"}
    rows: dict[str, Json] = {
        "release": {"name": names.source_set, "description": names.source_set, "creatorName": "", **owner},
        "model": {
            "id": names.model,
            "displayName": names.model,
            "displayNameShort": names.model,
            "owner": "",
            "layers": 0,
            "neuronsPerLayer": 0,
            "instruct": names.model.endswith("-it"),
            **owner,
        },
        "sourceset": {
            "modelId": names.model,
            "name": names.source_set,
            "description": names.source_set,
            "creatorName": "",
            "releaseName": names.source_set,
            **owner,
        },
        "source": {
            "modelId": names.model,
            "id": names.source,
            "setName": names.source_set,
            **owner,
            "num_prompts": said.get("num_prompts", n_rows),
            "num_tokens_in_prompt": said.get("num_tokens_in_prompt", None if known else cache.context_length),
            "dataset": said.get("dataset", corpus if corpus is None or not Path(corpus).exists() else None),
        },
    }
    for name, row in rows.items():
        write_atomically(folder / f"{name}.jsonl", orjson.dumps(row) + b"\n")


def _there(folder: Path) -> Json:
    path = folder / MADE_FROM
    try:
        found = orjson.loads(path.read_bytes()) if path.is_file() else {}
    except orjson.JSONDecodeError:
        found = {}
    return found if isinstance(found, dict) else {}


def _write_batch(
    run: Run,
    dictionary: str,
    names: Names,
    folder: Path,
    batch: _Batch,
    there: Json,
    guard: Guard,
    done: Exports,
) -> None:
    records = made_from(run, Shard(dictionary, batch.number, batch.units), {})
    source = digest(VERSION, names, records, run.identities.dictionaries[dictionary])
    paths = {table: folder / table / f"batch-{batch.number}.jsonl.gz" for table in _TABLES}
    known: Json = there.get(str(batch.number)) or {}
    if known.get("made_from") != source or any(
        n and not paths[table].is_file() for table, n in known["n_rows"].items()
    ):
        lines, n_without_value = _lines(Exporter(run, dictionary, names), names, batch, guard, folder.name)
        if lines is None:
            return
        for table, path in paths.items():
            if lines[table]:
                write_atomically(path, _gzipped(lines[table]))
                done.n_made += 1
            else:
                path.unlink(missing_ok=True)
        counts = {table: len(of_one) for table, of_one in lines.items()}
        known = {"made_from": source, "n_rows": counts, "n_without_value": n_without_value}
        there[str(batch.number)] = known
        content = orjson.dumps(there, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        write_atomically(folder / MADE_FROM, content)
    for table, n in known["n_rows"].items():
        done.n_rows[table] += n
    done.n_without_value += known["n_without_value"]


def _lines(
    exporter: Exporter, names: Names, batch: _Batch, guard: Guard, name: str
) -> tuple[dict[str, list[bytes]] | None, int]:
    """Rows by table, None where a secret stands in one, which `guard` keeps; scores without a value. `name`: of the
    source, for messages."""
    lines: dict[str, list[bytes]] = {table: [] for table in _TABLES}
    is_clean, n_without_value = True, 0
    for unit in batch.units:
        for feature in exporter.features(unit):
            n_without_value += feature.n_without_value
            for table, row in _rows(names, feature):
                line = orjson.dumps(row)
                is_clean &= guard.look(line.decode(), f"{name}/{table}", f"feature {feature.index}")
                lines[table].append(line)
    return lines if is_clean else None, n_without_value


def _gzipped(lines: list[bytes]) -> bytes:
    return gzip.compress(b"\n".join(lines) + b"\n", compresslevel=5, mtime=0)


def _rows(names: Names, feature: Exported) -> Iterator[tuple[str, Json]]:
    place: Json = {"modelId": names.model, "layer": names.source, "index": str(feature.index)}
    given = {"creatorId": names.creator, "sourceSetName": names.source_set}
    yield "features", _row(NEURON, feature.neuron | place | given)
    for number, one in enumerate(feature.activations):
        row = (
            {"id": names.id("activation", feature.index, number)} | one | place | {"creatorId": names.creator}
        )
        yield "activations", _row(ACTIVATION, row)
    for one in feature.explanations:
        yield "explanations", _row(EXPLANATION, one | place | {"authorId": names.creator})
    for one in feature.scores:
        yield "scores", _row(SCORE, one)


def _row(columns: Json, values: Json) -> Json:
    return {name: stored(value) for name, value in of_table(columns, values).items()}
