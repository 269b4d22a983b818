"""Sources in a folder: which there are, in which files, and their features, a block of indices at a time.

Files of the bulk layout need not be cut alike: what a row belongs to is said by its index alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from autointerp.errors import PublishedError
from autointerp.neuronpedia.files import one_object, rows
from autointerp.neuronpedia.layout import DASHBOARD_ACTIVATION, DASHBOARD_SOURCE, MOST_INDEX
from autointerp.types import Json

BLOCK: Final = 1024
"""Features read at once; their windows lend each other silent ones."""
MOST_WINDOW: Final = 65_535

Table = Literal["dashboard", "features", "activations", "explanations"]
_BATCH: Final = re.compile(r"batch-(\d+)\.(json|jsonl)(\.gz)?")


@dataclass(slots=True)
class Published:
    """One feature, in Neuronpedia's columns; those nobody here knows stay as they are."""

    index: int
    neuron: Json
    activations: list[Json] = field(default_factory=list[Json])
    explanations: list[Json] = field(default_factory=list[Json])


@dataclass(frozen=True, slots=True)
class Source:
    """A dictionary's features at one layer."""

    name: str
    """`LAYER-SET`, e.g. `20-my-res-16k`."""
    model: str
    source_set: str
    files: tuple[tuple[Table, Path], ...]
    said: Json
    """`num_prompts`, `num_tokens_in_prompt`, `dataset` and the rest of source.jsonl, where it says."""
    blocks: dict[int, tuple[tuple[Table, Path], ...]]
    """Number of a block of `BLOCK` indices -> files that hold rows of it, ascending."""

    def features(self, block: int) -> list[Published]:
        """Those of a block, ascending. Raises PublishedError. Memory: the block and one file."""
        found: dict[int, Published] = {}
        later: list[tuple[str, Table, Json]] = []
        for table, path in self.blocks[block]:
            for place, row in _rows(table, path):
                index = _index(row, place)
                if index // BLOCK != block:
                    continue
                if table in ("dashboard", "features"):
                    if index in found:
                        raise PublishedError(f"{place}: feature {index} of {self.name} stands there twice.")
                    found[index] = _published(index, row, place)
                else:
                    later.append((place, table, row))
        for place, table, row in later:
            _add(found, table, row, place)
        return [found[index] for index in sorted(found)]


def find_sources(folder: Path) -> list[Source]:
    """Those in a folder or, a folder each, two levels under it. Every file is read. Raises PublishedError."""
    if not folder.is_dir():
        raise PublishedError(f"there is no folder {folder}.")
    places = [folder, *sorted(p for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.is_dir())]
    sources = [_source(place, files) for place in places if (files := _files(place))]
    if not sources:
        raise PublishedError(
            f"{folder} holds nothing of Neuronpedia: neither batch-N.json, as SAEDashboard writes them, nor "
            f"features/batch-N.jsonl.gz. Give the folder of a source, or one of several."
        )
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PublishedError(f"source '{twice}' lies in {folder} twice: import one of them at a time.")
    return sources


def _files(folder: Path) -> list[tuple[Table, Path]]:
    found: list[tuple[Table, Path]] = []
    tables: dict[Table, Path] = {"dashboard": folder}
    tables |= {cast(Table, name): folder / name for name in ("features", "activations", "explanations")}
    for table, place in tables.items():
        kind = "json" if table == "dashboard" else "jsonl"
        named = [(match, path) for path in place.glob("batch-*") if (match := _BATCH.fullmatch(path.name))]
        for match, path in sorted(named, key=_number):
            if match[2] == kind:
                found.append((table, path))
    return found if any(table in ("dashboard", "features") for table, _ in found) else []


def _number(named: tuple[re.Match[str], Path]) -> tuple[int, str]:
    return int(named[0][1]), named[1].name


def _source(folder: Path, files: list[tuple[Table, Path]]) -> Source:
    blocks: dict[int, list[tuple[Table, Path]]] = {}
    names: dict[tuple[str, str, str], Path] = {}
    said: Json = {}
    known: set[int] = set()
    for table, path in files:
        if table == "dashboard":
            names.setdefault(_dashboard_names(one_object(path), path), path)
        for place, row in _rows(table, path):
            index = _index(row, place)
            if table == "features":
                names.setdefault(_bulk_names(row, place), path)
            if table in ("dashboard", "features"):
                known.add(index)
                _published(index, row, place)  # what can't be read is told before anything is written
                said |= {ours: row[theirs] for theirs, ours in DASHBOARD_SOURCE.items() if theirs in row}
            elif index not in known:
                raise PublishedError(f"{place}: feature {index} has no row in features/.")
            else:
                _checked(table, row, place)
            of_block = blocks.setdefault(index // BLOCK, [])
            if not of_block or of_block[-1] != (table, path):
                of_block.append((table, path))
    if len(names) > 1:
        raise PublishedError(
            f"{folder} holds several sources ({', '.join(sorted(name for _, _, name in names))}): give each a folder."
        )
    if not names:
        raise PublishedError(f"{folder} holds no feature.")
    ((model, source_set, name),) = names
    for path in sorted(folder.glob("source.jsonl*")):
        said |= next((row for _, row in rows(path)), {})
    return Source(name, model, source_set, tuple(files), said, {n: tuple(blocks[n]) for n in sorted(blocks)})


def _dashboard_names(header: Json, path: Path) -> tuple[str, str, str]:
    model, source_set, layer = (
        _text(header, "model_id", path),
        _text(header, "sae_set", path),
        header.get("layer"),
    )
    if not isinstance(layer, int | str):
        raise PublishedError(f"{path}: 'layer' is {layer!r}; a number is expected.")
    suffix = header.get("sae_id_suffix")
    return model, source_set, f"{layer}-{source_set}" + (f"__{suffix}" if suffix else "")


def _bulk_names(row: Json, place: str) -> tuple[str, str, str]:
    model, name = _text(row, "modelId", place), _text(row, "layer", place)
    return model, str(row.get("sourceSetName") or name.partition("-")[2].partition("__")[0] or name), name


def _text(row: Json, name: str, place: object) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise PublishedError(f"{place}: '{name}' is {_shown(value)}; a text is expected.")
    return value


def _rows(table: Table, path: Path) -> Iterator[tuple[str, Json]]:
    if table != "dashboard":
        yield from rows(path)
        return
    features = one_object(path).get("features")
    if not isinstance(features, list):
        raise PublishedError(f"{path}: 'features' is {_shown(features)}; a list is expected.")
    for number, one in enumerate(cast(list[Any], features)):
        if not isinstance(one, dict):
            raise PublishedError(f"{path}, feature number {number}: {_shown(one)} is no object with fields.")
        yield f"{path}, feature number {number}", cast(Json, one)


def _index(row: Json, place: str) -> int:
    value: Any = row.get("index", row.get("feature_index"))
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is not int or not 0 <= value <= MOST_INDEX:
        raise PublishedError(
            f"{place}: its index is {_shown(value)}; a number from 0 to {MOST_INDEX:,} is expected."
        )
    return value


# --- one row -------------------------------------------------------------------------------------------


def _published(index: int, row: Json, place: str) -> Published:
    """A feature's row, of SAEDashboard with its activations. Raises PublishedError."""
    neuron = {name: value for name, value in row.items() if name not in ("activations", "feature_index")}
    for name in ("frac_nonzero", "maxActApprox"):
        if neuron.get(name) is not None and not _is_number(neuron[name]):
            raise PublishedError(f"{place}: '{name}' is {_shown(neuron[name])}; a number is expected.")
    for texts, numbers in (("pos_str", "pos_values"), ("neg_str", "neg_values")):
        _check_parallel(neuron, texts, numbers, place)
    heights, values = "freq_hist_data_bar_heights", "freq_hist_data_bar_values"
    for name in (heights, values):
        if not _all(neuron.get(name) or [], _is_number):
            raise PublishedError(f"{place}: '{name}' is {_shown(neuron[name])}; numbers are expected.")
    activations: Any = row.get("activations") or []
    if not _all(activations, _is_object):
        raise PublishedError(
            f"{place}: 'activations' is {_shown(activations)}; a list of objects is expected."
        )
    found = [
        _checked("activations", {DASHBOARD_ACTIVATION.get(name, name): v for name, v in one.items()}, place)
        for one in cast(list[Json], activations)
    ]
    return Published(index, neuron, found)


def _checked(table: Table, row: Json, place: str) -> Json:
    if table == "explanations":
        _text(row, "description", place)
        return row
    _check_parallel(row, "tokens", "values", place)
    n_tokens = len(row.get("tokens") or [])
    if not 1 <= n_tokens <= MOST_WINDOW:
        raise PublishedError(
            f"{place}: an activation has {n_tokens:,} tokens; 1 to {MOST_WINDOW:,} are expected."
        )
    return row


def _check_parallel(row: Json, texts: str, numbers: str, place: str) -> None:
    for name, is_one in ((texts, _is_text), (numbers, _is_number)):
        if not _all(row.get(name) or [], is_one):
            kind = "texts" if name == texts else "finite numbers"
            raise PublishedError(f"{place}: '{name}' is {_shown(row[name])}; a list of {kind} is expected.")
    n_texts, n_numbers = len(row.get(texts) or []), len(row.get(numbers) or [])
    if n_texts != n_numbers:
        raise PublishedError(f"{place}: {n_texts:,} '{texts}', but {n_numbers:,} '{numbers}'.")


def _all(values: Any, is_one: Any) -> bool:
    return isinstance(values, list) and all(map(is_one, cast(Iterable[Any], values)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 3.4e38 and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _add(found: dict[int, Published], table: Table, row: Json, place: str) -> None:
    """A row of another table, to its feature."""
    feature = found[_index(row, place)]
    row = {name: value for name, value in row.items() if name not in ("index", "layer", "modelId")}
    (feature.activations if table == "activations" else feature.explanations).append(row)
