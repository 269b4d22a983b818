"""From what a user writes behind `--sae` to a DictionarySpec.

    demo                                 the dictionary that comes with this package
    neurons  neurons:200  experts        no dictionary: the model's own units (`basis.py`)
    package.module:function              code of your own, which gives a `spec.Dictionary`
    ckpt/layers.7  ckpt/sae.safetensors  a local folder, or a file in it
    org/repo:layers.7@main               a Hugging Face repository, folder in it, revision

Of a repository only the named folder is fetched, at one commit.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final, cast

from autointerp import demo, plugins
from autointerp.dictionaries.basis import NAME, Basis
from autointerp.dictionaries.checkpoint import contents, folder_of, listed, many_dictionaries, subfolders
from autointerp.dictionaries.spec import Dictionary, DictionarySpec, Reader, Weights
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<folder>[^@]+))?(?:@(?P<revision>.+))?", re.ASCII
)

OUTSIDE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

WANTED_SUFFIXES: Final = (".json", ".yaml", ".safetensors")
"""What is fetched of a folder on the hub. Pickles stay where they are: nothing here opens one."""


def find_dictionary(text: str) -> DictionarySpec:
    """The dictionary that `text` names, described. Imports no torch.

    Raises CheckpointError: nothing there, no known format, several dictionaries, not fetchable.
    """
    if text == "demo":
        return describe_folder(Path(demo.DICTIONARY))
    if NAME.fullmatch(text):
        return Basis().describe(Path(text))
    path = Path(text).expanduser().absolute()
    if path.exists():
        return describe_folder(folder_of(path))
    if OUTSIDE.fullmatch(text):
        return _outside(text).spec
    match = HUB.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"no file or folder is called '{text}', and it is not the name of a Hugging Face repository "
            "(org/repo, org/repo:folder or org/repo:folder@revision), nor 'demo', 'neurons', 'experts' or the "
            "name of a function (package.module:function)."
        )
    return describe_folder(_fetched(match["repo"], (match["folder"] or "").strip("/"), match["revision"]))


def describe_folder(folder: Path) -> DictionarySpec:
    """The dictionary in a local folder, by the first reader that recognises it. Raises CheckpointError."""
    readers = _readers()
    for reader in readers.values():
        if reader.recognises(folder):
            return reader.describe(folder)
    below = subfolders(folder, lambda path: any(reader.recognises(path) for reader in readers.values()))
    if below:
        raise CheckpointError(many_dictionaries(folder, below))
    formats = "; ".join(plugins.summary("dictionaries", name) for name in readers)
    raise CheckpointError(
        f"{folder} holds no dictionary of a known format. It holds: {contents(folder)}. "
        f"Known formats: {formats}"
    )


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


def _fetched(repo: str, folder: str, revision: str | None) -> Path:
    """Local copy of one folder of a hub repository, with the JSON files of the folders above it.

    Only the named folder is fetched, not those below it: a repository can hold hundreds of dictionaries.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = cast(Any, huggingface_hub)
    name = f"{repo}@{revision}" if revision else repo
    try:
        info = hub.HfApi().model_info(repo, revision=revision)
        files = [str(entry.rfilename) for entry in cast(list[Any], info.siblings or [])]
        wanted = wanted_files(files, folder)
        if not any(file.endswith(".safetensors") for file in wanted):
            raise CheckpointError(_nothing_there(repo, folder, files))
        # Names are patterns to the hub's client; a bracket in one must mean itself.
        patterns = [re.sub(r"([\[?*])", r"[\1]", file) for file in wanted]
        # By the name that was asked for, not `info.sha`: offline, the cache is asked by that name again.
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)) / folder
    except CheckpointError:
        raise
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(_not_fetched(name, error)) from error
    except Exception as error:  # no network: the class depends on the client's HTTP library of the day
        cached = _fetched_before(repo, folder, revision)
        if cached is None:
            raise CheckpointError(_not_fetched(name, error)) from error
        return cached


def _fetched_before(repo: str, folder: str, revision: str | None) -> Path | None:
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
    place = Path(snapshot) / folder
    return place if place.is_dir() else None


def _not_fetched(name: str, error: Exception) -> str:
    return (
        f"no file or folder is called '{name}', and it can't be fetched from Hugging Face: "
        f"{str(error).strip().partition(chr(10))[0]} ({type(error).__name__}). Check the name and the "
        "network; for a private or gated repository, log in with `hf auth login`."
    )


def wanted_files(files: list[str], folder: str) -> list[str]:
    """Of a repository's files, those of one folder, and JSON files right in the folders above it."""
    place = PurePosixPath(folder)
    above = set(place.parents)
    return [
        file
        for file in files
        if (PurePosixPath(file).parent == place and file.endswith(WANTED_SUFFIXES))
        or (PurePosixPath(file).parent in above and file.endswith(".json"))
    ]


def _nothing_there(repo: str, folder: str, files: list[str]) -> str:
    holders = sorted(
        {PurePosixPath(file).parent.as_posix() for file in files if file.endswith(".safetensors")}
    )
    if holders:
        place = f"{repo}:{folder}" if folder else repo
        return many_dictionaries(place, [f"{repo}:{holder}" for holder in holders])
    return f"{repo} holds no safetensors file. It holds: {listed(sorted(files))}."
