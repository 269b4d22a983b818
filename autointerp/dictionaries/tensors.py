"""The weights of a checkpoint in safetensors, read with distrust.

`read_headers` reads no weights and needs no torch; `read_tensors` reads what was asked for, in float32.
The format: 8 bytes little-endian length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard, cast

from autointerp.dictionaries.checkpoint import file_size, first_line, listed, shortened
from autointerp.errors import CheckpointError
from autointerp.types import Json

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES: Final = 100_000_000
"""As safetensors itself. A dictionary's header has well under a kilobyte."""
FLOAT_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes an element of the dtypes that weights may have."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the file says of one tensor."""

    dtype: str
    """As safetensors spells it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Name -> header of every tensor in a safetensors file; no weights are read.

    Raises CheckpointError: missing, empty, truncated, a header that is too long, not JSON, or that
    doesn't fit the file.
    """
    size = file_size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
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
    n_data_bytes = size - 8 - length
    entries = cast(Json, header)
    return {
        name: _tensor_header(path, name, entry, n_data_bytes)
        for name, entry in entries.items()
        if name != "__metadata__"
    }


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


Shapes = Mapping[str, tuple[tuple[str, int], ...]]
"""Tensor -> its axes, each (what it is, its length): `{"W_enc": (("d_in", 32), ("d_sae", 64)), ...}`."""


def check_shapes(path: Path, headers: Mapping[str, TensorHeader], expected: Shapes) -> None:
    """Every tensor of `expected` is in the file, is a float and has just these axes, in this order.

    Give the biases first: a bias tells which axis is which, a matrix of nearly square shape doesn't.
    Raises CheckpointError.
    """
    for name, axes in expected.items():
        found = headers.get(name)
        if found is None:
            raise CheckpointError(f"{path} has no tensor '{name}'. It has: {listed(headers)}.")
        if found.dtype not in FLOAT_BYTES:
            raise CheckpointError(
                f"{path}: '{name}' is of dtype {shortened(found.dtype)}, which weights can't have. Save the "
                f"dictionary in one of: {listed(FLOAT_BYTES)}."
            )
        shape = tuple(length for _, length in axes)
        if found.shape != shape:
            wanted = ", ".join(f"{what} {length}" for what, length in axes)
            swapped = " The axes are swapped: save it transposed." if found.shape == shape[::-1] else ""
            raise CheckpointError(
                f"{path}: '{name}' has shape {shortened(list(found.shape))}, but the configuration makes it "
                f"[{wanted}].{swapped or ' Is the configuration of another dictionary?'}"
            )


def read_tensors(path: Path, expected: Shapes, device: str) -> dict[str, Tensor]:
    """The tensors of `expected` in float32 on `device`.

    Raises CheckpointError: as `read_headers` and `check_shapes`, or where a weight is NaN or infinite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    check_shapes(path, read_headers(path), expected)
    tensors: dict[str, Tensor] = {}
    try:
        with cast(Any, safe_open)(path, framework="pt", device=device) as file:
            for name in expected:
                tensors[name] = file.get_tensor(name).to(torch.float32)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be read: {first_line(error)}. Copy or download it again."
        ) from error
    for name, tensor in tensors.items():
        n_bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        if n_bad:
            raise CheckpointError(
                f"{path}: '{name}' holds {n_bad:,} values of {tensor.numel():,} that are NaN or infinite in "
                "float32. The training broke or the file is damaged; take an earlier checkpoint."
            )
    return tensors
