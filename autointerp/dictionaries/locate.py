"""From what a user writes behind `--sae` to a DictionarySpec.

demo                                 the dictionary that comes with this package
neurons  neurons:200  experts        no dictionary: the model's own units (`basis.py`)
random-topk:16384:32                 no dictionary: random directions, a control (`random_topk.py`)
gpt2-small-res-jb/blocks.8.hook_...  a name of SAELens', where it is installed (`registry.py`)
package.module:function              code of your own, which gives a `spec.Dictionary`
ckpt/layers.7  ckpt/sae.safetensors  a local folder, or a file in it
ckpt/layer3.sae.pt                   a file that is a dictionary by itself
ckpt/layer_3                         a layer of a cross-layer transcoder that lies in one file (Llamascopium)
org/repo:layers.7@main               a Hugging Face repository, folder or file in it, revision
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from autointerp import demo, plugins
from autointerp.dictionaries import random_topk, unrecognised
from autointerp.dictionaries.basis import NAME, Basis
from autointerp.dictionaries.checkpoint import (
    contents,
    dictionaries_below,
    is_there,
    layer_in,
    many_dictionaries,
    shortened,
)
from autointerp.dictionaries.hub_files import fetched
from autointerp.dictionaries.hub_parts import in_parts, reading_parts
from autointerp.dictionaries.outside import OUTSIDE, OutsideFunction
from autointerp.dictionaries.registry import registered, without_list
from autointerp.dictionaries.spec import DictionarySpec, Reader
from autointerp.dictionaries.state_dict import StateDict
from autointerp.distant import Distant, NotInParts
from autointerp.errors import CheckpointError
from autointerp.identity import UNKNOWN

HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<place>[^@]+))?(?:@(?P<revision>.+))?", re.ASCII
)


def find_dictionary(text: str) -> DictionarySpec:
    """The dictionary that `text` names, described. Imports no torch.

    Raises CheckpointError: nothing there, no known format, several dictionaries, not fetchable, weights that expect
    inputs times a factor that nobody knows.
    """
    spec = _found(text)
    if spec.input_factor is None:
        raise CheckpointError(
            f"{spec.path}: the weights expect inputs times a factor (normalize_activations) that is not in these "
            "files: training checkpoints have it in activation_scaler.json, SAELens' list for some releases (name it "
            "release/sae_id where sae-lens is installed). Or fold it in with SAELens "
            "(sae.fold_activation_norm_scaling_factor(factor), sae.save_model(folder)) and use that folder."
        )
    return spec


@dataclass(frozen=True, slots=True)
class FromHeaders:
    """A dictionary of which no weights were read."""

    spec: DictionarySpec
    """Of one on the hub `path` is its name there, and the identity UNKNOWN where there are `unread`."""
    unread: tuple[Distant, ...]
    """Files of which only parts were read."""
    fetched_whole: int | None = None
    """Bytes, where its server gives no parts, so that all was fetched; 0 where it doesn't say the sizes either."""


def find_by_headers(text: str, *, identity: bool) -> FromHeaders:
    """As `find_dictionary`, and of files on the hub that are not in its cache no more is read than it takes; nothing
    is added to the cache. Whole are read only those whose server gives no parts.

    `identity`: read what that takes too, at most 64 MiB of a file. Raises CheckpointError.
    """
    parts = None
    try:
        with reading_parts(identity=identity) as parts:
            spec = find_dictionary(text)
            unread = parts.read_in_part()
    except NotInParts:
        return FromHeaders(find_dictionary(text), (), parts.n_bytes if parts else 0)
    notes = tuple(parts.named(note) for note in spec.notes)
    spec = replace(spec, path=parts.named_path(spec.path), notes=notes)
    # Also where a name was made of the files' identity, as a meta-SAE's is of its parent's.
    return FromHeaders(replace(spec, identity=UNKNOWN) if unread else spec, unread)


def _found(text: str) -> DictionarySpec:
    if text == "demo":
        return describe_place(Path(demo.DICTIONARY))
    if NAME.fullmatch(text):
        return Basis().describe(Path(text))
    if random_topk.NAME.fullmatch(text):
        return random_topk.RandomTopk().describe(Path(text))
    path = Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 - Path's raises where there is no such user
    if is_place(path):
        return describe_place(path)
    head = text.partition(":")[0]
    if head in ("neurons", "experts") and find_spec(head) is None:  # else it is somebody's module
        return Basis().describe(Path(text))
    if OUTSIDE.fullmatch(text):
        return OutsideFunction(text).describe(path)
    if (known := registered(text)) is not None:
        return known.completed(_found(known.place))
    _check_local(path)
    match = HUB.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"no file or folder is called '{shortened(text)}', and it is not the name of a Hugging Face repository "
            "(org/repo, org/repo:folder, org/repo:folder/file.pt or org/repo:folder@revision), nor 'demo', "
            f"'neurons', 'experts' or the name of a function (package.module:function).{without_list(text)}"
        )
    repo, place, revision = match["repo"], (match["place"] or "").strip("/"), match["revision"]
    parts = in_parts()
    return describe_place(
        fetched(repo, place, revision) if parts is None else parts.laid_out(repo, place, revision)
    )


def is_place(path: Path) -> bool:
    """Whether a local file or folder has this name, or a layer in one (`layer_in`)."""
    if is_there(path) or layer_in(path)[1] is None:
        return is_there(path)
    return any(reader.recognises(path) for reader in _readers().values())


def _check_local(path: Path) -> None:
    """Raises CheckpointError where the name of what is no place is one of something here that is broken."""
    if os.path.islink(path):  # noqa: PTH114 - Path's raises for names that are too long
        raise CheckpointError(f"{path} is a link that leads to nothing. Copy or download it again.")
    folder, layer = layer_in(path)
    if layer is not None:
        unrecognised.check_configuration(folder)


def describe_place(path: Path) -> DictionarySpec:
    """The dictionary in a local folder or file, by the first reader that recognises it. A folder that is none,
    but that holds one file that is: that one. Raises CheckpointError."""
    readers = _readers()

    def known(place: Path) -> bool:
        return any(reader.recognises(place) for reader in readers.values())

    for reader in readers.values():
        if reader.recognises(path):
            if isinstance(reader, StateDict):
                unrecognised.check_not_another(path)
            return reader.describe(path)
    below = dictionaries_below(path, known)
    if len(below) == 1 and (path / below[0]).is_file() and (path / below[0]).parent == path:
        return describe_place(path / below[0])
    if below:
        raise CheckpointError(many_dictionaries(path, below))
    if (fault := unrecognised.fault(path)) is not None:
        raise CheckpointError(fault)
    formats = "".join(f"\n  {plugins.summary('dictionaries', name)}" for name in readers)
    holds = f" It holds: {contents(path)}." if path.is_dir() else ""
    holds += unrecognised.tensors_of(path)
    raise CheckpointError(f"{path} is no dictionary of a known format.{holds} Known formats:{formats}")


def reader_of(spec: DictionarySpec) -> Reader:
    """The reader that described `spec`, to load its weights."""
    if OUTSIDE.fullmatch(spec.format):
        return OutsideFunction(spec.format)
    return cast(Reader, plugins.find("dictionaries", spec.format)())


def reading_rules(spec: DictionarySpec) -> str | None:
    """The reader of `spec` and its version, by which the same files give the same activations; None of the first
    version, and of readers that have none."""
    version = getattr(reader_of(spec), "version", "1")
    return None if version == "1" else f"{spec.format} {version}"


def _readers() -> Mapping[str, Reader]:
    names = plugins.names("dictionaries")
    return {name: cast(Reader, plugins.find("dictionaries", name)()) for name in names}
