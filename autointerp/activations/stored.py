"""An array in a file, found by its header and read piece by piece: `.npy`, or a tensor of a safetensors
file. No torch, and nothing is ever unpickled.

The files come from outside: whatever is wrong with one is an ActivationsError that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from autointerp.errors import ActivationsError

_DTYPES: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
"""safetensors' names and numpy's. numpy has no bfloat16: its 16 bits come as they are."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an array lies."""

    path: Path
    name: str
    """Of the tensor, for messages; empty in a `.npy` file."""
    shape: tuple[int, ...]
    dtype: str
    """numpy's name of it: `float32`, `uint16`, ...; `bfloat16` for what numpy doesn't know."""
    offset: int
    """Bytes before its first element."""

    def __str__(self) -> str:
        return f"'{self.name}' of {self.path}" if self.name else str(self.path)

    @property
    def is_whole_numbers(self) -> bool:
        return self.dtype.startswith(("int", "uint"))

    def flat(self, n_last: int = 0) -> NDArray[Any]:
        """The array mapped into memory, of which only what is looked at is read, as one axis; with
        `n_last` as two, of which the last is so long. bfloat16 as its 16 bits."""
        shape = (-1, n_last) if n_last else (-1,)
        dtype = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")
        if 0 in self.shape:
            return np.zeros(0, dtype).reshape(0, *shape[1:])
        try:
            return np.memmap(self.path, dtype, "r", self.offset, self.shape).reshape(shape)
        except (OSError, ValueError) as error:
            raise ActivationsError(f"{self} can't be read: {error}.") from error


def float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Values as `Stored.flat` gives them -> the numbers they stand for."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def tensors_in(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, by name. Raises ActivationsError."""
    try:
        with cast(Any, safe_open)(path, "np"):
            pass  # it checks the header against the file, so that what is read below can be trusted
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            header = orjson.loads(file.read(n_bytes))
    except (OSError, SafetensorError) as error:
        raise ActivationsError(
            f"{path} is not a whole safetensors file ({error}). Copy or write it again."
        ) from error
    found: dict[str, Stored] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind = entry["dtype"]
        dtype = "bfloat16" if kind == "BF16" else str(np.dtype(_DTYPES[kind])) if kind in _DTYPES else kind
        start = 8 + n_bytes + entry["data_offsets"][0]
        found[name] = Stored(path, name, tuple(entry["shape"]), dtype, start)
    return found


def npy_array(path: Path) -> Stored:
    """The array of a `.npy` file. Raises ActivationsError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ActivationsError(f"{path} is not a .npy array that can be read: {error}.") from error
    if not isinstance(array, np.memmap) or not array.flags.c_contiguous or array.dtype.byteorder == ">":
        raise ActivationsError(
            f"{path} is not an array in C order and little-endian. Write it with "
            f"numpy.save(path, numpy.ascontiguousarray(array))."
        )
    return Stored(path, "", array.shape, str(array.dtype), int(array.offset))
