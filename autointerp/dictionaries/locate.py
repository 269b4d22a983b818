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

Of a repository only the named folder or file is fetched, at one commit.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final, cast

from autointerp import demo, plugins
from autointerp.dictionaries import random_topk
from autointerp.dictionaries.basis import NAME, Basis
from autointerp.dictionaries.checkpoint import (
    LAYER,
    contents,
    dictionaries_below,
    is_there,
    layer_in,
    listed,
    many_dictionaries,
)
from autointerp.dictionaries.registry import registered
from autointerp.dictionaries.spec import Dictionary, DictionarySpec, Reader, Weights
from autointerp.dictionaries.tensors import KINDS, PICKLED
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<place>[^@]+))?(?:@(?P<revision>.+))?", re.ASCII
)

OUTSIDE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

CONFIGURATION: Final = (".json", ".yaml", ".yml")
TENSORS: Final = tuple(suffix for suffix in KINDS if suffix not in PICKLED)
"""What is fetched of a folder on the hub; of pickles only one that is named, or that is all there is."""
MANY: Final = 4
"""Of a folder with more files of tensors than these (a dictionary's weights, its statistics) each is one."""
WEIGHTS_BELOW: Final = "checkpoints"
"""A sub-folder of this name belongs to the folder that holds it (Llama Scope)."""
DECODER_BESIDE: Final = ("W_enc_", "W_dec_")
"""A cross-layer transcoder has its encoder in one file and its decoder in another (circuit-tracer)."""


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
    if OUTSIDE.fullmatch(text):
        return _outside(text).spec
    if (known := registered(text)) is not None:
        return known.completed(_found(known.place))
    match = HUB.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"no file or folder is called '{text}', and it is not the name of a Hugging Face repository "
            "(org/repo, org/repo:folder, org/repo:folder/file.pt or org/repo:folder@revision), nor 'demo', "
            "'neurons', 'experts' or the name of a function (package.module:function)."
        )
    return describe_place(_fetched(match["repo"], (match["place"] or "").strip("/"), match["revision"]))


def is_place(path: Path) -> bool:
    """Whether a local file or folder has this name, or a layer in one (`layer_in`)."""
    if is_there(path) or layer_in(path)[1] is None:
        return is_there(path)
    return any(reader.recognises(path) for reader in _readers().values())


def describe_place(path: Path) -> DictionarySpec:
    """The dictionary in a local folder or file, by the first reader that recognises it. A folder that is none,
    but that holds one file that is: that one. Raises CheckpointError."""
    readers = _readers()

    def known(place: Path) -> bool:
        return any(reader.recognises(place) for reader in readers.values())

    for reader in readers.values():
        if reader.recognises(path):
            return reader.describe(path)
    below = dictionaries_below(path, known)
    if len(below) == 1 and (path / below[0]).is_file() and (path / below[0]).parent == path:
        return describe_place(path / below[0])
    if below:
        raise CheckpointError(many_dictionaries(path, below))
    formats = "".join(f"\n  {plugins.summary('dictionaries', name)}" for name in readers)
    holds = f" It holds: {contents(path)}." if path.is_dir() else ""
    raise CheckpointError(f"{path} is no dictionary of a known format.{holds} Known formats:{formats}")


def reader_of(spec: DictionarySpec) -> Reader:
    """The reader that described `spec`, to load its weights."""
    if OUTSIDE.fullmatch(spec.format):
        return Outside(spec.format)
    return cast(Reader, plugins.find("dictionaries", spec.format)())


@dataclass(frozen=True, slots=True)
class Outside:
    """A function of somebody's, which knows one dictionary."""

    function: str

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        return False

    def describe(self, path: Path) -> DictionarySpec:
        return _outside(self.function).spec

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        return _outside(self.function).load(device)


def _outside(text: str) -> Dictionary:
    """What `package.module:function` gives. Raises CheckpointError where it is no `Dictionary`; errors of
    the function itself go their way."""
    module, _, name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"--sae {text}: {error}. (A folder or repository is named otherwise.)"
        ) from error
    given = function()
    if not isinstance(given, Dictionary):
        raise CheckpointError(
            f"--sae {text} gives a {type(given).__name__}; it must give an "
            f"autointerp.dictionaries.spec.Dictionary."
        )
    file = Path(inspect.getfile(function))
    identity = given.spec.identity or fingerprint([file])
    return replace(given, spec=replace(given.spec, format=text, path=file, identity=identity))


def _readers() -> Mapping[str, Reader]:
    names = plugins.names("dictionaries")
    return {name: cast(Reader, plugins.find("dictionaries", name)()) for name in names}


def _fetched(repo: str, place: str, revision: str | None) -> Path:
    """Local copy of one folder or file of a hub repository, with the configuration in the folders above it.

    Not the folders below it: a repository can hold hundreds of dictionaries.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = cast(Any, huggingface_hub)
    name = f"{repo}@{revision}" if revision else repo
    try:
        info = hub.HfApi().model_info(repo, revision=revision)
        files = [str(entry.rfilename) for entry in cast(list[Any], info.siblings or [])]
        wanted = wanted_files(files, place)
        if not any(file.endswith(tuple(KINDS)) for file in wanted):
            raise CheckpointError(_nothing_there(repo, place, files))
        # Names are patterns to the hub's client; a bracket in one must mean itself.
        patterns = [re.sub(r"([\[?*])", r"[\1]", file) for file in wanted]
        # By the name that was asked for, not `info.sha`: offline, the cache is asked by that name again.
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)) / place
    except CheckpointError:
        raise
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(_not_fetched(name, error)) from error
    except Exception as error:  # no network: the class depends on the client's HTTP library of the day
        cached = _fetched_before(repo, place, revision)
        if cached is None:
            raise CheckpointError(_not_fetched(name, error)) from error
        return cached


def _fetched_before(repo: str, place: str, revision: str | None) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub = cast(Any, huggingface_hub)
    try:
        snapshot = hub.snapshot_download(repo, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        # Newer clients say that a repository of which only one folder was fetched is incomplete, and where.
        snapshot = getattr(error, "snapshot_path", None)
    if snapshot is None:
        return None
    found = Path(snapshot) / place
    return found if found.exists() or layer_in(found)[1] is not None else None


def _not_fetched(name: str, error: Exception) -> str:
    return (
        f"no file or folder is called '{name}', and it can't be fetched from Hugging Face: "
        f"{str(error).strip().partition(chr(10))[0]} ({type(error).__name__}). Check the name and the "
        "network; for a private or gated repository, log in with `hf auth login`."
    )


def wanted_files(files: list[str], place: str) -> list[str]:
    """Of a repository's files, what is needed of a folder or file, and the configuration of the folders above.

    Of a folder: its configuration and its tensors, unless these are so many that each must be a dictionary.
    A pickle only where it is the folder's one file of tensors: in the folder itself, whatever checkpoints of the
    same training lie below it, or else there. Else one must be named.
    """
    folder = PurePosixPath(place).parent if place in files else PurePosixPath(place)
    if LAYER.fullmatch(folder.name) and not any(folder in PurePosixPath(file).parents for file in files):
        folder = folder.parent  # a layer of what lies in one file
    near = {folder, folder / WEIGHTS_BELOW}
    named = (place, (folder / PurePosixPath(place).name.replace(*DECODER_BESIDE)).as_posix())
    tensors = [file for file in files if file in named] if place in files else _among(files, near, TENSORS)
    if len(tensors) > MANY:
        tensors = []
    elif not tensors:
        pickles = _among(files, {folder}, PICKLED) or _among(files, near, PICKLED)
        tensors = pickles if len(pickles) == 1 else []
    around = near | set(folder.parents)
    configuration = _among(files, around, CONFIGURATION)
    return [file for file in files if file in tensors or file in configuration]


def _among(files: list[str], folders: set[PurePosixPath], suffixes: tuple[str, ...]) -> list[str]:
    return [file for file in files if PurePosixPath(file).parent in folders and file.endswith(suffixes)]


def _nothing_there(repo: str, place: str, files: list[str]) -> str:
    """Names the dictionaries below: folders, or files where a folder holds several."""
    root = PurePosixPath(place)
    folders = {_home(PurePosixPath(file)) for file in files if file.endswith(tuple(KINDS))}
    names: set[str] = set()
    for folder in folders:
        if root in (folder, *folder.parents):
            in_it = wanted_files(files, folder.as_posix())
            whole = any(file.endswith(tuple(KINDS)) for file in in_it)
            names |= {folder.as_posix()} if whole else set(_among(files, {folder}, tuple(KINDS)))
    if names:
        where = f"{repo}:{place}" if place else repo
        return many_dictionaries(where, [f"{repo}:{name}" for name in sorted(names)])
    if place:
        return (
            f"{repo} holds no file or folder '{place}' with tensors in it. It holds: {listed(sorted(files))}."
        )
    return f"{repo} holds no file of tensors ({', '.join(KINDS)}). It holds: {listed(sorted(files))}."


def _home(file: PurePosixPath) -> PurePosixPath:
    """The folder that a file of tensors belongs to."""
    return file.parent.parent if file.parent.name == WEIGHTS_BELOW else file.parent
