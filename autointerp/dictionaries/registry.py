"""SAELens' names of dictionaries, `release/sae_id`, where its package is installed.

Its list is one YAML file, read without importing the package: of a megabyte and a half only the lines of the
release that is asked for. It says which repository and folder a name means, and often an L0 and a share of
explained variance, which `sae check` compares; of early releases also the factor that their inputs are multiplied
with, which their files leave out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from autointerp.dictionaries.checkpoint import listed, shortened
from autointerp.dictionaries.origin import hub_name
from autointerp.dictionaries.saelens_config import TRANSFORMS
from autointerp.dictionaries.spec import DictionarySpec, Expected
from autointerp.errors import CheckpointError
from autointerp.types import Json

PACKAGE: Final = "sae_lens"
LIST: Final = "pretrained_saes.yaml"
NORMALISATION: Final = "normalize_activations"
NAMES: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[^:@]+", re.ASCII)
KNOWN_OVERRIDES: Final = frozenset(
    {"dataset_path", "model_name", "hook_name", "model_from_pretrained_kwargs", NORMALISATION}
)


@dataclass(frozen=True, slots=True)
class Registered:
    """What the list says of one dictionary."""

    place: str
    """`org/repo:folder`."""
    model: str | None
    expected: Expected
    overrides: Json
    """Settings that take the place of the checkpoint's own."""
    factor: float | None = None
    """What inputs are to be multiplied with, for weights that expect it and don't say it; else not read."""

    def completed(self, spec: DictionarySpec) -> DictionarySpec:
        """`spec`, as described from the files, with what the list adds. Raises CheckpointError for an override
        that would change what an activation is."""
        unknown = self.overrides.keys() - KNOWN_OVERRIDES
        if unknown:
            raise CheckpointError(
                f"SAELens overrides {listed(sorted(unknown))} of {self.place}, which is not read. Download it and "
                "set these in its configuration."
            )
        if NORMALISATION in self.overrides:
            spec = self._normalised(spec, self.overrides[NORMALISATION])
        if spec.input_factor is None and self.factor is not None:
            note = f"inputs are multiplied by {self.factor:.6g} (norm_scaling_factor in SAELens' list)"
            spec = _changed(replace(spec, input_factor=self.factor), repr(self.factor), note)
        kwargs = cast(Json, self.overrides.get("model_from_pretrained_kwargs") or {})
        return replace(
            spec,
            model=spec.model or hub_name(self.model),
            corpus=self.overrides.get("dataset_path") or spec.corpus,
            model_was_centred=spec.model_was_centred or bool(kwargs.get("center_writing_weights", False)),
            normalized_behind_gain=spec.normalized_behind_gain and not kwargs.get("fold_ln", False),
            expected=Expected(
                l0=spec.expected.l0 if self.expected.l0 is None else self.expected.l0,
                fvu=spec.expected.fvu if self.expected.fvu is None else self.expected.fvu,
            ),
        )

    def _normalised(self, spec: DictionarySpec, value: object) -> DictionarySpec:
        """With another `normalize_activations` than its own configuration has."""
        if spec.format != "saelens" or not isinstance(value, str) or value not in TRANSFORMS:
            raise CheckpointError(
                f"SAELens overrides {NORMALISATION} of {self.place} with {shortened(value)}. Read are, of "
                f"checkpoints in SAELens' layout: {listed(sorted(TRANSFORMS))}. Download it and set it in its "
                "configuration."
            )
        changed = replace(spec, transform=TRANSFORMS[value], input_factor=1.0)
        return _changed(changed, f"{NORMALISATION} {value}", f"{NORMALISATION}: {value} (SAELens' list)")


def _changed(spec: DictionarySpec, by: str, note: str) -> DictionarySpec:
    """What decides what an activation is is part of what the dictionary is."""
    named = hashlib.blake2b(f"{spec.identity} {by}".encode(), digest_size=16)
    return replace(spec, identity=named.hexdigest(), notes=(*spec.notes, note))


def registered(text: str) -> Registered | None:
    """What `release/sae_id` is; None where SAELens isn't installed or has no such release. Raises CheckpointError
    for a release without that id."""
    release, slash, sae_id = text.partition("/")
    path = _list()
    if not slash or path is None:
        return None
    found = _release(path, release)
    if found is None:
        return None
    for one in cast(list[Json], found.get("saes") or []):
        if one.get("id") == sae_id:
            return _registered(found, one)
    ids = [str(one.get("id")) for one in cast(list[Json], found.get("saes") or [])]
    raise CheckpointError(
        f"SAELens' release '{release}' has no '{shortened(sae_id)}'. It has: {listed(ids)}."
    )


def without_list(text: str) -> str:
    """A sentence, for what is found nowhere, where it may be one of these names and the list is not there; else
    empty."""
    if NAMES.fullmatch(text) is None or _list() is not None:
        return ""
    return " If it is a name of SAELens' (release/sae_id): such names need sae-lens (pip install sae-lens)."


def _registered(release: Json, one: Json) -> Registered:
    explained, factor = one.get("variance_explained"), one.get("norm_scaling_factor")
    if factor is not None and not (isinstance(factor, int | float) and 0 < factor < sys.float_info.max):
        raise CheckpointError(
            f"SAELens' list has norm_scaling_factor {factor} for {one.get('id')}: expected a number above 0."
        )
    return Registered(
        place=f"{release['repo_id']}:{_path(one['path'])}",
        model=release.get("model"),
        expected=Expected(
            l0=None if one.get("l0") is None else float(one["l0"]),
            fvu=None if explained is None else 1 - float(explained),
        ),
        factor=None if factor is None else float(factor),
        overrides=cast(Json, (release.get("config_overrides") or {}) | (one.get("config_overrides") or {})),
    )


def _path(stated: object) -> str:
    """In the repository. A number is a layer of a cross-layer transcoder of circuit-tracer's."""
    return f"W_enc_{stated}.safetensors" if isinstance(stated, int) else str(stated)


def _list() -> Path | None:
    found = importlib.util.find_spec(PACKAGE)  # finds a package without importing it
    places = [] if found is None else list(found.submodule_search_locations or [])
    return next((path for place in places if (path := Path(place) / LIST).is_file()), None)


def _release(path: Path, name: str) -> Json | None:
    import yaml

    block = "".join(_lines(path, name))
    if not block:
        return None
    return cast(dict[str, Any], yaml.safe_load(block))[name]


def _lines(path: Path, name: str) -> Iterator[str]:
    """Of one top-level key."""
    inside = False
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line[0].isspace() and not line.startswith(("#", "-")):
                inside = line.rstrip().rstrip(":").strip("'\"") == name
            if inside:
                yield line
