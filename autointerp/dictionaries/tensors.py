"""The weights of a checkpoint, read with distrust, whatever kind of file they lie in.

`read_headers` reads no weights and needs no torch; `read_tensors` reads what was asked for, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autointerp.dictionaries import npz_files, safetensors_files, torch_files
from autointerp.dictionaries.checkpoint import listed, shortened
from autointerp.dictionaries.headers import FLOAT_BYTES, TensorHeader
from autointerp.dictionaries.safetensors_files import Index
from autointerp.dictionaries.torch_files import Plain
from autointerp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FileKind:
    """The ways into a kind of file, see `read_headers`, `read_tensors` and `read_values`."""

    read_headers: Callable[[Path], dict[str, TensorHeader]]
    load: Callable[[Path, Iterable[str], str], dict[str, Tensor]]
    read_values: Callable[[Path], Mapping[str, Plain]] = lambda path: {}


_TORCH: Final = FileKind(torch_files.read_headers, torch_files.load, torch_files.read_values)
KINDS: Final = {
    ".safetensors": FileKind(
        safetensors_files.read_headers, safetensors_files.load, safetensors_files.read_metadata
    ),
    ".npz": FileKind(npz_files.read_headers, npz_files.load),
    ".pt": _TORCH,
    ".pth": _TORCH,
}
"""By suffix."""
PICKLED: Final = (".pt", ".pth")
"""Files that are pickles: readable only as far as they hold nothing but tensors and plain values."""


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Name -> header of every tensor in a file; no weights are read.

    In a `.pt` file a tensor in a dictionary in a dictionary has a dotted name (`ae.encoder.weight`); plain
    values beside the tensors: `torch_files.read_contents`. Raises CheckpointError: missing, empty,
    truncated, of a kind that is not read, a header that is absurd or doesn't fit the file.
    """
    return _kind(path).read_headers(path)


def read_values(path: Path) -> Mapping[str, Plain]:
    """What stands beside the tensors: of safetensors the metadata, of .pt files plain values by dotted name, of .npz
    nothing. Raises CheckpointError as `read_headers`."""
    return _kind(path).read_values(path)


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
            raise CheckpointError(f"{path} has no tensor '{shortened(name)}'. It has: {listed(headers)}.")
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

    check_shapes(path, read_headers(path), expected)
    tensors = _kind(path).load(path, expected, device)
    tensors = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        _check_finite(path, name, tensor)
    return tensors


def read_slice(path: Path, name: str, index: Index, device: str) -> Tensor:
    """`tensor[index]` in float32 on `device`; of a safetensors file nothing else of the tensor is read. Raises
    CheckpointError as `read_tensors` does; `check_shapes` has seen the tensor."""
    import torch

    if path.suffix == ".safetensors":
        part = safetensors_files.load_slice(path, name, index, device)
    else:
        part = _kind(path).load(path, [name], "cpu")[name][index].to(device)
    part = part.to(torch.float32)
    _check_finite(path, name, part)
    return part


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    import torch

    # A mask of all values, and what it takes to make one, would need more memory than the tensor itself.
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        n_bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        raise CheckpointError(
            f"{path}: '{name}' holds {n_bad:,} values of {tensor.numel():,} that are NaN or infinite in "
            "float32. The training broke or the file is damaged; take an earlier checkpoint."
        )


def _kind(path: Path) -> FileKind:
    if path.suffix not in KINDS:
        raise CheckpointError(f"{path} is not a file of tensors. Such files end in {', '.join(KINDS)}.")
    return KINDS[path.suffix]
