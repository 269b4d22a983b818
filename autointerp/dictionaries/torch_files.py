"""Files of torch.save (.pt, .pth), read with distrust.

Such a file is a zip archive: `<name>/data.pkl`, a pickle of the saved value in which tensors are references
to `<name>/data/<key>`, raw numbers that are not compressed (torch/serialization.py). What it holds is
found without torch (`pickled.py`); loading is torch's own restricted one.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from autointerp.dictionaries.checkpoint import first_bytes, first_line, listed, shortened
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.pickled import StoredTensor, unpickled
from autointerp.dictionaries.zip_files import is_zip, opened
from autointerp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE_BYTES: Final = 4 * 2**20
"""The pickle of a dictionary has a few kilobytes: names and shapes."""
MAX_ENTRIES: Final = 20_000
MAX_DEPTH: Final = 12
MAX_NAME: Final = 1_000
SAFE_TORCH: Final = (2, 10)
"""Restricted loading was got around twice: CVE-2025-32434, CVE-2026-24747. Closed since torch 2.10."""

PICKLES: Final = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
"""How a pickle begins, but for those of protocols 0 and 1."""
OLD_MAGIC: Final = bytes.fromhex("6cfc9c46f9206aa85019")
"""What torch.save's files held at their beginning before they were archives (torch/serialization.py)."""
GZIP: Final = b"\x1f\x8b"
NOT_OPENED: Final = (
    "and it is not opened: a pickle runs what code it likes. If you trust where it comes from, load it in a Python "
    "of your own and save its tensors again, with safetensors or torch.save({name: tensor, ...}, path)."
)
"""The end of a sentence about a file."""

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds, by dotted name: `{"ae": {"b_dec": tensor}, "step": 3}` has `ae.b_dec` and `step`."""

    tensors: dict[str, TensorHeader]
    values: dict[str, Plain]
    """Items of lists are named by their place: `group_sizes.0`."""


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """The tensors of `read_contents`."""
    return read_contents(path).tensors


def read_contents(path: Path) -> Contents:
    """Reads names, shapes and plain values, no weights; imports no torch.

    Raises CheckpointError: missing, empty, not a zip archive, damaged, a pickle that holds objects.
    """
    if not is_zip(path):
        raise CheckpointError(
            f"{path} is not a file that torch.save has written since version 1.6, but {_kind(first_bytes(path))}, "
            f"{NOT_OPENED}"
        )
    with opened(path) as archive:
        root, data = _pickle(path, archive)
        sizes = {member.filename: member for member in archive.infolist()}
    tensors: dict[str, TensorHeader] = {}
    values: dict[str, Plain] = {}
    for name, value in _leaves(path, unpickled(data, path)):
        if isinstance(value, StoredTensor):
            _check_tensor(path, name, value, sizes.get(f"{root}/data/{value.storage.key}"))
            tensors[name] = TensorHeader(value.storage.dtype, value.shape)
        elif value is None or isinstance(value, str | int | float):
            values[name] = value
        else:
            raise CheckpointError(f"{path}: '{shortened(name)}' is neither a tensor nor a plain value.")
    return Contents(tensors, values)


def is_pickle(start: bytes) -> bool:
    """Whether a file's first bytes are a pickle's, of protocol 2 or later."""
    return start.startswith(PICKLES)


def is_torch_archive(path: Path) -> bool:
    """Whether it is what torch.save has written since version 1.6, whatever it holds. Raises CheckpointError."""
    if not is_zip(path):
        return False
    with opened(path) as archive:
        return any(name.partition("/")[2] == "data.pkl" for name in archive.namelist())


def _kind(start: bytes) -> str:
    if start.startswith(GZIP):
        return "compressed (gzip), maybe a pickle"
    if not is_pickle(start):
        return "a plain pickle or damaged"
    return "of its format before that, a row of pickles" if OLD_MAGIC in start else "a plain pickle"


def read_values(path: Path) -> dict[str, Plain]:
    """The plain values of `read_contents`."""
    return read_contents(path).values


def load(path: Path, names: Iterable[str], device: str) -> dict[str, Tensor]:
    """These tensors as they are stored, on `device`; `read_headers` has found them. Raises CheckpointError."""
    import torch

    version = str(torch.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointError(
            f"{path} is a pickle, and torch {version} can be made to run code from one even where it loads with "
            f"restrictions. Install torch {'.'.join(map(str, SAFE_TORCH))} or later, or save the dictionary "
            "as safetensors."
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"torch refuses to load {path}: {first_line(error)}. Copy or download it again."
        ) from error
    found = {name: value for name, value in _leaves(path, loaded) if isinstance(value, torch.Tensor)}
    wanted = list(names)
    if missing := [name for name in wanted if name not in found]:
        raise CheckpointError(f"{path} has no tensor {listed(missing)} any more. Was it replaced just now?")
    # A copy, or the tensors would change with the file that they are mapped from.
    return {name: found[name].detach().to(device, copy=True) for name in wanted}


def _pickle(path: Path, archive: zipfile.ZipFile) -> tuple[str, bytes]:
    """(name of the archive's folder, its data.pkl)."""
    names = archive.namelist()
    roots = [name.partition("/")[0] for name in names if name.partition("/")[2] == "data.pkl"]
    if len(roots) != 1 or f"{roots[0]}/constants.pkl" in names:
        what = "a TorchScript program" if roots else "a zip archive of something else"
        raise CheckpointError(f"{path} is no file of tensors but {what}. It holds: {listed(names)}.")
    size = archive.getinfo(f"{roots[0]}/data.pkl").file_size
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path}: its pickle has {size:,} bytes, too many for names and shapes. Save the tensors alone."
        )
    return roots[0], archive.read(f"{roots[0]}/data.pkl")


def _leaves(path: Path, value: object) -> Iterator[tuple[str, object]]:
    """Dotted name and value of all that is no container. Raises CheckpointError: too many, too deep, two of
    one name."""
    n_seen, seen = 0, set[str]()
    todo: list[tuple[tuple[str, ...], object]] = [((), value)]
    while todo:
        parts, value = todo.pop()
        n_seen += 1
        name = ".".join(parts)
        if n_seen > MAX_ENTRIES or len(parts) > MAX_DEPTH or len(name) > MAX_NAME:
            raise CheckpointError(
                f"{path} holds more than {MAX_ENTRIES:,} values, or some nested deeper than {MAX_DEPTH}. Save "
                "the dictionary's tensors alone."
            )
        if isinstance(value, Mapping):
            entries = list(cast(Mapping[Any, object], value).items())
            todo.extend(((*parts, str(key)), entry) for key, entry in reversed(entries))
        elif isinstance(value, list | tuple):
            items = cast(list[object], value)
            todo.extend(((*parts, str(place)), items[place]) for place in reversed(range(len(items))))
        elif name in seen:
            raise CheckpointError(f"{path} holds two values called '{shortened(name)}'.")
        else:
            seen.add(name)
            yield name, value


def _check_tensor(path: Path, name: str, tensor: StoredTensor, member: zipfile.ZipInfo | None) -> None:
    """Raises CheckpointError where the tensor is not wholly in the file, or is more than it holds."""
    storage = tensor.storage
    n_bytes = storage.n_elements * storage.itemsize
    packed = member is not None and member.compress_type != zipfile.ZIP_STORED
    if member is None or packed or member.file_size != n_bytes:
        found = "none" if member is None else f"{member.file_size:,}{', compressed' * packed}"
        raise CheckpointError(
            f"{path}: tensor '{shortened(name)}' lies in a storage of {n_bytes:,} bytes, of which the file "
            f"has {found}. Copy or download it again."
        )
    n = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    # A stride of 0 makes a tensor of any shape out of a single number.
    if n and (n > storage.n_elements or last >= storage.n_elements):
        raise CheckpointError(
            f"{path}: tensor '{shortened(name)}' has shape {shortened(list(tensor.shape))}, more than the "
            f"{storage.n_elements:,} numbers that it lies in. Copy or download the file again."
        )
