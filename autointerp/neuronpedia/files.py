"""JSON of Neuronpedia and SAEDashboard, plain or gzipped: whole files, and a row a line.

Both are written by Python's json too, which knows NaN and lone surrogates: these become null and U+FFFD.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import orjson

from autointerp.errors import PublishedError
from autointerp.types import Json

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def one_object(path: Path) -> Json:
    """Raises PublishedError."""
    return _object(_content(path), str(path))


def rows(path: Path) -> Iterator[tuple[str, Json]]:
    """(place, row) of each line that is not empty. Raises PublishedError."""
    for number, line in enumerate(_content(path).split(b"\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", _object(line, f"{path}, line {number}")


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise PublishedError(
            f"{path} can't be read ({error}): damaged, or cut short. Copy it again, or take it out."
        ) from error


def _object(content: bytes, place: str) -> Json:
    try:
        found: Any = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        found = _leniently(content, place, error)
    if not isinstance(found, dict):
        raise PublishedError(f"{place} holds {type(found).__name__}, not an object with fields.")
    return cast(Json, found)


def _leniently(content: bytes, place: str, strict: orjson.JSONDecodeError) -> Any:
    try:
        return _well_formed(json.loads(content, parse_constant=lambda _: None, parse_int=_number))
    except (ValueError, RecursionError) as error:
        raise PublishedError(
            f"{place} is not JSON ({strict}): damaged, or cut short. Copy it again, or take it out."
        ) from error


def _number(text: str) -> int | float:
    """As orjson reads and writes it: whole numbers have 64 bits."""
    return int(text) if len(text) < 19 else float(text)


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_well_formed(one) for one in cast(list[Any], value)]
    if isinstance(value, dict):
        return {_well_formed(name): _well_formed(one) for name, one in cast(Json, value).items()}
    return value
