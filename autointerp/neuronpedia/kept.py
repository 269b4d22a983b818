"""What was published of each feature, kept word for word in the run: so that it can be exported again.

neuronpedia/<dictionary>/<unit>.<attempt>.jsonl       {"key", "line"}
neuronpedia/<dictionary>/<unit>.<attempt>.gz          a feature a line: its columns, activations, explanations
neuronpedia/<dictionary>/source.<attempt>.jsonl       {"key": "source", "model", "source_set", "name", "said"}
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

import orjson

from autointerp import __version__
from autointerp.files import write_sealed
from autointerp.journal import Journal, Part, unit_of_feature
from autointerp.neuronpedia.reading import Published, Source
from autointerp.run import Run
from autointerp.types import Json

FOLDER: Final = "neuronpedia"
_SOURCE: Final = "source"
_SUFFIX: Final = ".gz"


def _journal(run: Run, dictionary: str) -> Journal:
    made_from: Json = {"published": run.identities.dictionaries[dictionary]}
    return Journal(run.path / FOLDER / dictionary, made_from, package=__version__)


def keep_source(run: Run, dictionary: str, source: Source) -> None:
    """Raises DiskFull."""
    record = {
        "model": source.model,
        "source_set": source.source_set,
        "name": source.name,
        "said": source.said,
    }
    with Part(_journal(run, dictionary), _SOURCE) as part:
        part.append(_SOURCE, record)


def keep(run: Run, dictionary: str, features: Sequence[Published]) -> None:
    """`features`: whole units, ascending. Raises DiskFull."""
    journal = _journal(run, dictionary)
    for unit, of_unit in groupby(features, lambda feature: unit_of_feature(feature.index)):
        found = list(of_unit)
        with Part(journal, unit) as part:
            part.attach(_SUFFIX, partial(_save, features=found))
            for line, feature in enumerate(found):
                part.append(f"{dictionary}/{feature.index}", {"line": line})


def _save(path: Path, features: Sequence[Published]) -> Json:
    lines = [
        orjson.dumps({"neuron": one.neuron, "activations": one.activations, "explanations": one.explanations})
        for one in features
    ]
    return write_sealed(path, gzip.compress(b"\n".join(lines), compresslevel=6, mtime=0))


def kept_source(run: Run, dictionary: str) -> Json | None:
    """What was said of a source; None where the run was not imported from Neuronpedia."""
    return run.existing(FOLDER, dictionary).read(_SOURCE).get(_SOURCE)


def kept(run: Run, dictionary: str, unit: str) -> dict[str, Published]:
    """What was published of a unit's features, by key; empty where the run was made in another way."""
    found: dict[str, Published] = {}
    lines: dict[Path, list[bytes]] = {}
    for key, (record, part) in run.existing(FOLDER, dictionary).located(unit).items():
        path = part.with_suffix(_SUFFIX)
        if path not in lines:
            lines[path] = gzip.decompress(path.read_bytes()).split(b"\n")
        row: Json = orjson.loads(lines[path][record["line"]])
        found[key] = Published(
            int(key.rpartition("/")[2]), row["neuron"], row["activations"], row["explanations"]
        )
    return found
