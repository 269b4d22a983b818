"""Which files of a Hugging Face repository a dictionary is, and fetching them whole.

Of a repository only the named folder or file is fetched, at one commit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

from autointerp.dictionaries.checkpoint import LAYER, layer_in, listed, many_dictionaries, shortened
from autointerp.dictionaries.registry import without_list
from autointerp.dictionaries.tensors import KINDS, PICKLED
from autointerp.errors import CheckpointError

CONFIGURATION: Final = (".json", ".yaml", ".yml")
TENSORS: Final = tuple(suffix for suffix in KINDS if suffix not in PICKLED)
"""What is fetched of a folder on the hub; of pickles only one that is named, or that is all there is."""
MANY: Final = 4
"""Of a folder with more files of tensors than these (a dictionary's weights, its statistics) each is one."""
WEIGHTS_BELOW: Final = "checkpoints"
"""A sub-folder of this name belongs to the folder that holds it (Llama Scope)."""
PICKLED_BESIDE: Final = ("atom_indices.pt",)
"""A pickle of this name is not a dictionary but says where the one beside it is from (ITDA)."""
DECODER_BESIDE: Final = ("W_enc_", "W_dec_")
"""A cross-layer transcoder has its encoder in one file and its decoder in another (circuit-tracer)."""


def fetched(repo: str, place: str, revision: str | None) -> Path:
    """Local copy of one folder or file of a hub repository, with the configuration in the folders above it.

    Not the folders below it: a repository can hold hundreds of dictionaries. Raises CheckpointError.
    """
    import huggingface_hub

    hub = cast(Any, huggingface_hub)
    try:
        wanted = looked_up(repo, place, revision).files
        # Names are patterns to the hub's client; a bracket in one must mean itself.
        patterns = [re.sub(r"([\[?*])", r"[\1]", file) for file in wanted]
        # By the name that was asked for, not the commit's: offline, the cache is asked by that name again.
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)) / place
    except client_errors() as error:
        return held_instead(repo, place, revision, error)


def client_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where it is refused, or there is no network."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of all errors of its HTTP library, which is another one with its versions, and OSError; where a
    # name can't be a repository's, or what comes is no JSON, ValueError.
    return (*cast(Any, HfHubHTTPError).__bases__, ValueError)


def held_instead(repo: str, place: str, revision: str | None, error: Exception) -> Path:
    """What the cache has where the hub can't be reached: raises CheckpointError where that is nothing, or where the
    hub answered, and refused."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError

    answered = isinstance(error, HfHubHTTPError | HFValidationError)
    cached = None if answered else _fetched_before(repo, place, revision)
    if cached is None:
        if isinstance(error, RevisionNotFoundError):
            raise CheckpointError(
                f"{repo} has no revision '{shortened(revision)}'. Behind the @ stands a branch, a tag or a whole "
                "commit."
            ) from error
        hint = "" if place or revision else without_list(repo)
        raise CheckpointError(
            not_fetched(f"{repo}@{revision}" if revision else repo, error) + hint
        ) from error
    return cached


@dataclass(frozen=True, slots=True)
class LookedUp:
    """One folder or file of a repository, as it is now."""

    commit: str
    files: list[str]
    """What is needed of it."""


def looked_up(repo: str, place: str, revision: str | None) -> LookedUp:
    """Raises CheckpointError where no dictionary is there, and whatever the hub's client does."""
    import huggingface_hub

    info = cast(Any, huggingface_hub).HfApi().model_info(repo, revision=revision)
    files = [str(entry.rfilename) for entry in cast(list[Any], info.siblings or [])]
    wanted = wanted_files(files, place)
    if not any(file.endswith(tuple(KINDS)) for file in wanted):
        raise CheckpointError(_nothing_there(repo, place, files))
    return LookedUp(str(info.sha), wanted)


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


def not_fetched(name: str, error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    name = shortened(name)
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"no file or folder is called '{name}', Hugging Face's cache doesn't hold it, and HF_HUB_OFFLINE is set. "
            "Unset it, or fetch the dictionary where there is a network (autointerp prefetch)."
        )
    said = shortened(str(error).strip().partition("\n")[0], 300)
    return (
        f"no file or folder is called '{name}', and it can't be fetched from Hugging Face: {said} "
        f"({type(error).__name__}). Check the name and the network; for a private or gated repository, log in with "
        "`hf auth login`."
    )


def wanted_files(files: list[str], place: str) -> list[str]:
    """Of a repository's files, what is needed of a folder or file, and the configuration of the folders above.

    Of a folder: its configuration and its tensors, unless these are so many that each must be a dictionary.
    A pickle only where it is the folder's one dictionary: in the folder itself, whatever checkpoints of the
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
        own = [file for file in pickles if PurePosixPath(file).name not in PICKLED_BESIDE]
        tensors = pickles if len(own) == 1 else []
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
        where = f"{repo}:{shortened(place)}" if place else repo
        return many_dictionaries(where, [f"{repo}:{name}" for name in sorted(names)])
    if place:
        return (
            f"{repo} holds no file or folder '{shortened(place)}' with tensors in it. It holds: "
            f"{listed(sorted(files))}."
        )
    return f"{repo} holds no file of tensors ({', '.join(KINDS)}). It holds: {listed(sorted(files))}."


def _home(file: PurePosixPath) -> PurePosixPath:
    """The folder that a file of tensors belongs to."""
    return file.parent.parent if file.parent.name == WEIGHTS_BELOW else file.parent
