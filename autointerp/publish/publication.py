"""What a run is known by where it is published, kept in its folder: made once, at its first publication. A copy, a
pack, a merge and an import keep it, so that all of them go on with one set; no other run touches that set.

    publication.json
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pydantic

from autointerp.errors import PublishError
from autointerp.files import write_atomically
from autointerp.run import PUBLICATION


@dataclass(frozen=True, slots=True)
class Written:
    """First and last day (UTC, YYYY-MM-DD) on which explanations and scores were written."""

    first: str
    last: str
    until: float = 0.0
    """Files of the run that are older (seconds since 1970) only hold what was written then: they were imported."""


@dataclass(frozen=True, slots=True)
class Publication:
    """Of one run, whatever it grows by."""

    id: str
    """Drawn, since nothing that a run is made of stays the same while it grows: features, explainers and LLMs are
    added. No result depends on it."""
    spans: dict[str, int] = field(default_factory=dict[str, int])
    """By dictionary: features that a file of its tables ranges over."""
    written: Written | None = None
    """Of what was imported: when that was written."""


def publication_of(folder: Path) -> Publication:
    """That of the run in `folder`, made where it has none. Raises PublishError where it can't be read or written."""
    found = kept(folder)
    if found is None:
        found = Publication(uuid.uuid4().hex)
        keep(folder, found)
    return found


def kept(folder: Path) -> Publication | None:
    """None where the run was never published."""
    path = folder / PUBLICATION
    if not path.is_file():
        return None
    try:
        return pydantic.TypeAdapter(Publication).validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise PublishError(
            f"{path} can't be read ({error}). Put back the run's own; or delete it: then the run is another to the "
            f"hub, and takes the place of what it published with --replace."
        ) from error


def keep(folder: Path, publication: Publication) -> None:
    """Raises PublishError, DiskFull."""
    try:
        write_atomically(folder / PUBLICATION, orjson.dumps(publication, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise PublishError(
            f"{folder / PUBLICATION} can't be written ({error.strerror}): it says what the run is known by where it "
            f"is published. Make the folder writable, or publish a copy of it."
        ) from error
