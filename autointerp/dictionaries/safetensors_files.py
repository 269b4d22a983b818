"""Files of safetensors, read with distrust.

The format: 8 bytes little-endian length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard, TypeVar, cast

from autointerp.dictionaries.checkpoint import file_size, first_bytes, first_line, shortened
from autointerp.dictionaries.headers import FLOAT_BYTES, TensorHeader
from autointerp.distant import opened
from autointerp.errors import CheckpointError
from autointerp.types import Json

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

METADATA: Final = "__metadata__"

MAX_HEADER_BYTES: Final = 8 * 2**20
"""safetensors takes 100 MB, which as JSON can be gigabytes of objects and a quarter of a minute. A dictionary's
header has well under a kilobyte; this is room for some 80,000 tensors, more than a file of any model has."""


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Name -> header of every tensor in a safetensors file; no weights are read.

    Raises CheckpointError: missing, empty, truncated, a header that is too long, not JSON, or that
    doesn't fit the file.
    """
    entries, n_data_bytes = _header(path)
    return {
        name: _tensor_header(path, name, entry, n_data_bytes)
        for name, entry in entries.items()
        if name != METADATA
    }


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that stand beside the tensors. Raises CheckpointError."""
    entries, _ = _header(path)
    found = entries.get(METADATA)
    values = cast(Json, found if isinstance(found, dict) else {})
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _header(path: Path) -> tuple[Json, int]:
    """The header as it is, and how many bytes of data there are. Raises CheckpointError."""
    size = file_size(path)
    try:
        with opened(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if size >= 8 and MAX_HEADER_BYTES < length <= size - 8:
                raise CheckpointError(
                    f"{path}: the safetensors header has {length:,} bytes, and none of more than "
                    f"{MAX_HEADER_BYTES:,} is read: no dictionary has so many tensors. Is it another file?"
                )
            if size < 8 or length > size - 8:
                first_bytes(path)  # which says it of what git leaves in the place of a large file
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: it has {size:,} bytes and says that its header "
                    f"has {length:,}. Copy or download it again."
                )
            header: object = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the safetensors header is not JSON ({first_line(error)}). Copy or download it again."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is a {type(header).__name__}, not an object.")
    return cast(Json, header), size - 8 - length


def _tensor_header(path: Path, name: str, entry: object, n_data_bytes: int) -> TensorHeader:
    def broken(why: str) -> NoReturn:
        raise CheckpointError(f"{path}: tensor '{shortened(name)}' {why}. Copy or download the file again.")

    fields = cast(Json, entry if isinstance(entry, dict) else {})
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        broken(f"has a header that can't be read ({shortened(fields)})")
    start, end = offsets
    if not start <= end <= n_data_bytes:
        broken(f"lies at bytes {start:,} to {end:,}, but the file holds {n_data_bytes:,}: it is cut short")
    if dtype in FLOAT_BYTES and math.prod(shape) * FLOAT_BYTES[dtype] != end - start:
        broken(f"of shape {shortened(shape)} and dtype {dtype} can't have {end - start:,} bytes")
    return TensorHeader(dtype, tuple(shape))


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in cast(list[object], value))


Index = int | tuple[slice, int]
"""A part of a tensor: `[3]` or `[:, 3]`."""


def load_slice(path: Path, name: str, index: Index, device: str) -> Tensor:
    """That part as it is stored, on `device`; the rest of the tensor is not read. Raises CheckpointError."""
    return _read(path, device, lambda file: file.get_slice(name)[index])


def load(path: Path, names: Iterable[str], device: str) -> dict[str, Tensor]:
    """These tensors as they are stored, on `device`. Raises CheckpointError."""
    return _read(path, device, lambda file: {name: file.get_tensor(name) for name in names})


def _read(path: Path, device: str, what: Callable[[Any], T]) -> T:
    from safetensors import SafetensorError, safe_open

    try:
        with cast(Any, safe_open)(path, framework="pt", device=device) as file:
            return what(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be read: {first_line(error)}. Copy or download it again."
        ) from error
