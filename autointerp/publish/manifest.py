"""manifest.json: what a published set is made of. It comes last, so a set that has the manifest is whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import pydantic

from autointerp import __version__
from autointerp.errors import PublishedError
from autointerp.files import write_atomically
from autointerp.llm.spending import Spent
from autointerp.publish.schema import READ, SCHEMA, TableName
from autointerp.types import Json

NAME: Final = "manifest.json"
CARD: Final = "README.md"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a set."""

    bytes: int
    sha256: str
    rows: int | None = None
    """Of a table."""
    table: TableName | None = None
    dictionary: str | None = None
    made_from: str | None = None
    """Digest of the records that a table's rows come from."""


@dataclass(frozen=True, slots=True)
class Options:
    """What of a run is published. Digested into every table."""

    examples: bool = True
    max_quote: int | None = None
    """Characters of each window whose text is quoted; None: all."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A set: its files but for the card and itself, and what of a run is in no table."""

    files: dict[str, File]
    """By path."""
    journals: dict[str, Json]
    """By place in the run (`score/layers.2/plain/detection`): the settings that its records were made from."""
    options: Options = field(default_factory=Options)
    spent: dict[str, Spent] = field(default_factory=dict[str, Spent])
    """What LLM requests took, by what asked (`explain/layers.2/plain`)."""
    run: str = ""
    """Id of the run (`publication.py`); other runs leave this set alone. Empty: made before runs had one."""
    spans: dict[str, int] = field(default_factory=dict[str, int])
    """By dictionary: features that a file of its tables ranges over."""
    written: tuple[str, str] | None = None
    """First and last day (UTC) on which explanations and scores were written, whoever published them since."""
    schema: int = SCHEMA
    package: str = __version__

    def of_table(self, dictionary: str, table: TableName) -> dict[str, File]:
        """By path, ascending, which is the order of the features."""
        return {
            path: file
            for path, file in sorted(self.files.items())
            if (file.dictionary, file.table) == (dictionary, table)
        }

    def save(self, folder: Path) -> None:
        """Raises DiskFull."""
        content = orjson.dumps(self, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        write_atomically(folder / NAME, content + b"\n")


def read_manifest(path: Path) -> Manifest:
    """Raises PublishedError for what is none, or of another version."""
    try:
        mapping: Any = orjson.loads(path.read_bytes())
        schema = mapping.get("schema") if isinstance(mapping, dict) else None
        if schema not in READ:
            raise PublishedError(
                f"{path} is of schema {schema!r}; this version of autointerp reads {READ[0]} to {SCHEMA}. Install "
                f"the version that wrote it, or publish the run again."
            )
        manifest = pydantic.TypeAdapter(Manifest).validate_python(mapping)
    except (OSError, orjson.JSONDecodeError, pydantic.ValidationError) as error:
        raise PublishedError(
            f"{path} is not the manifest of a published run ({error}). Copy it again."
        ) from error
    for name in manifest.files:
        if name.startswith("/") or ".." in Path(name).parts:
            raise PublishedError(f"{path} names the file '{name}', which would lie outside its folder.")
    return manifest


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
