"""A checkpoint's folder and configuration, read with distrust (its weights: `tensors.py`).

Whatever is wrong with a file comes out as one CheckpointError that names the file, the value seen, and
what to do.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from autointerp.distant import opened, size_of
from autointerp.errors import CheckpointError
from autointerp.types import Json

MAX_JSON_BYTES: Final = 16 * 2**20
MAX_YAML_BYTES: Final = 2**18
"""PyYAML reads about 100 kB a second."""
MAX_YAML_DEPTH: Final = 50
N_LISTED: Final = 12
"""At most so many sub-folders, files or names are listed in a message."""
N_FIRST: Final = 64
"""Bytes that say what kind of file it is."""
LFS_POINTER: Final = b"version https://git-lfs"
LAYER = re.compile(r"layer_(\d{1,4})", re.ASCII)
"""A layer of a cross-layer transcoder that lies in one file, named as if it were a file in the same folder."""
MAX_FOLDERS: Final = 10_000
"""The search for dictionaries in sub-folders looks at so many folders."""


# --- configuration -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """A JSON or YAML object from a checkpoint; asking it for a value of the wrong type is a CheckpointError.

    A key that is absent or null has the default.
    """

    path: Path
    values: Json

    def integer(self, key: str, default: int | None = None) -> int | None:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        # Of more than 64 bits nothing is a size, and nothing can be written into a run's files.
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
            self.refuse(key, "expected a whole number.")
        return value

    def count(self, key: str) -> int:
        """A number that must be there and be at least 1."""
        value = self.integer(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no '{key}'. It has: {listed(self.values)}.")
        if value < 1:
            self.refuse(key, "expected a number of at least 1.")
        return value

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:
            self.refuse(key, "expected a number.")
        return float(value)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        # Half a surrogate pair is no character, and no file or terminal takes it.
        if value is not None and not (isinstance(value, str) and _is_encodable(value)):
            self.refuse(key, "expected a text.")
        return value or None

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, "expected true or false.")
        return value

    def texts(self, key: str) -> list[str]:
        """Those of a list; none where it is absent."""
        value = self.values.get(key) or []
        found = cast(list[object], value) if isinstance(value, list) else []
        texts = [text for text in found if isinstance(text, str) and _is_encodable(text)]
        if not isinstance(value, list) or len(texts) < len(found):
            self.refuse(key, "expected a list of texts.")
        return texts

    def section(self, key: str) -> Settings:
        value = self.values.get(key)
        if value is None:
            return Settings(self.path, {})
        if not isinstance(value, dict):
            self.refuse(key, "expected an object.")
        return Settings(self.path, cast(Json, value))

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raises CheckpointError about the value of `key`; `why` is a sentence, or several."""
        raise CheckpointError(f"{self.path}: {key} is {shortened(self.values.get(key))}: {why}")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_settings(path: Path) -> Settings:
    """The object in `path`, JSON or, by suffix, YAML. Raises CheckpointError: missing, empty, too large, not an
    object."""
    is_yaml = path.suffix in (".yaml", ".yml")
    size = file_size(path)
    if size > (MAX_YAML_BYTES if is_yaml else MAX_JSON_BYTES):
        raise CheckpointError(f"{path} has {size:,} bytes, too many for a configuration. Is it another file?")
    try:
        with opened(path) as file:
            content = file.read()
        value: object = _yaml(content) if is_yaml else json.loads(content)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not {'YAML' if is_yaml else 'JSON'} ({first_line(error)}). Copy or download it again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object of settings.")
    return Settings(path, {str(key): entry for key, entry in cast(dict[Any, Any], value).items()})


def _yaml(content: bytes) -> object:
    """Plain values only: no tags of Python, no aliases, with which a few lines can stand for billions of values,
    and no deep nesting, whose time grows with its square. Raises ValueError."""
    import yaml

    depth = 0
    try:
        for event in yaml.parse(content, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_YAML_DEPTH:
                raise ValueError(f"aliases, and more than {MAX_YAML_DEPTH} levels, are not read")
        return yaml.safe_load(content)
    except (yaml.YAMLError, AttributeError, LookupError, OverflowError, TypeError) as error:
        # PyYAML trips over tags that don't fit their value: `!!int ""`, `!!bool maybe`.
        raise ValueError(str(error)) from error


# --- files and messages --------------------------------------------------------------------------------


def folder_of(path: Path, *own: str) -> Path:
    """The folder of a checkpoint that is named by its folder or by one of its `own` files; by any file where none
    are given. Another file is itself, in which nothing of a folder will be found."""
    is_own = path.is_file() and (not own or path.name in own)
    return path.parent if is_own else path


def require_files(folder: Path, *names: str) -> None:
    """Raises CheckpointError where one is not there; sub-folders that have them all are listed."""
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. Give the folder of a checkpoint.")
    below = subfolders(folder, lambda path: all((path / name).is_file() for name in names))
    if below:
        raise CheckpointError(many_dictionaries(folder, below))
    raise CheckpointError(f"{folder} has no {' and no '.join(missing)}. It holds: {contents(folder)}.")


def subfolders(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """Relative names of sub-folders, at any depth, that are `wanted`: the first ones in order of name."""
    found = (path for path in islice(_folders_below(folder), MAX_FOLDERS) if wanted(path))
    return [path.relative_to(folder).as_posix() for path in islice(found, N_LISTED + 1)]


def dictionaries_below(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """The same, and files that are `wanted` by themselves, in the folder and in sub-folders that are not."""
    found = _dictionaries_below(folder, wanted) if folder.is_dir() else iter(())
    return [path.relative_to(folder).as_posix() for path in islice(found, N_LISTED + 1)]


def _dictionaries_below(folder: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    yield from (path for path in _files_in(folder) if wanted(path))
    for below in islice(_folders_below(folder), MAX_FOLDERS):
        if wanted(below):
            yield below
        else:
            yield from (path for path in _files_in(below) if wanted(path))


def _files_in(folder: Path) -> list[Path]:
    """None of a folder that may not be read: what is there is then found by naming it."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []


def many_dictionaries(folder: Path | str, names: list[str]) -> str:
    """The message for a place that holds dictionaries in sub-folders but is none itself."""
    return (
        f"{folder} is not one dictionary but a folder of dictionaries: {listed(names)}. "
        "Name one of them; --sae can be given several times."
    )


def contents(folder: Path) -> str:
    """The names in a folder, for a message."""
    try:
        return listed(sorted(path.name + "/" * path.is_dir() for path in folder.iterdir()))
    except OSError as error:
        return f"can't be listed ({error})"


def listed(names: Mapping[str, Any] | list[str]) -> str:
    """`a, b, c` or `a, b, c, and 7 more`."""
    shown = [shortened(name) for name in islice(names, N_LISTED)]
    more = f", and {len(names) - N_LISTED} more" if len(names) > N_LISTED else ""
    return (", ".join(shown) or "nothing") + more


def _folders_below(folder: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (Path(parent) / name for name in names)


def is_there(path: Path) -> bool:
    """Whether a file or folder has this name; not so of a name that none can have."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long; no access to the folder
        return False


def layer_in(path: Path) -> tuple[Path, int | None]:
    """(folder, N) of `folder/layer_N` where the folder is there and nothing in it is called so: a layer of a
    cross-layer transcoder whose layers lie in one file. Else (path, None)."""
    named = LAYER.fullmatch(path.name)
    if named is None or is_there(path) or not is_there(path.parent):
        return path, None
    return path.parent, int(named[1])


def file_size(path: Path) -> int:
    """Bytes of a file. Raises CheckpointError: missing, empty, not a file."""
    if not path.is_file():
        if is_there(path):
            what = "a folder" if path.is_dir() else "a pipe or device"
            raise CheckpointError(f"{path} is {what}, not a file. Copy or download it again.")
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link that leads to no file. Copy or download it again.")
        raise CheckpointError(f"{path} is missing. A checkpoint's files lie together in one folder.")
    size = size_of(path)
    if not size:
        raise CheckpointError(f"{path} is empty (0 bytes). Copy or download it again.")
    return size


def first_bytes(path: Path) -> bytes:
    """Of a file. Raises CheckpointError: missing, empty, unreadable, or what git leaves in the place of a large
    file."""
    file_size(path)
    try:
        with opened(path) as file:
            start = file.read(N_FIRST)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}.") from error
    if start.startswith(LFS_POINTER):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull.")
    return start


def shortened(value: object, most: int = 100) -> str:
    """For a message, `most` characters of it: what a terminal can't show, or would obey, as an escape."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except RecursionError:  # json reads what is nested a little deeper than what it writes
        text = f"a {type(value).__name__}, nested too deep to show"
    text = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    return shortened(str(error).partition("\n")[0])
