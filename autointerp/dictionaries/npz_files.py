"""Files of numpy.savez (.npz), read with distrust: a zip archive of `<name>.npy` files, without pickles."""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast

from autointerp.dictionaries.checkpoint import listed, shortened
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.zip_files import is_zip, opened
from autointerp.errors import CheckpointError

if TYPE_CHECKING:  # numpy is imported where it is used: of most dictionaries no .npz file is looked at
    import numpy as np
    from torch import Tensor

MAX_HEADER_BYTES: Final = 4_096
DTYPES: Final = {"f2": "F16", "f4": "F32", "f8": "F64"}


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Name -> header of every array; no weights are read. Raises CheckpointError: missing, empty, not such a
    file, damaged, an array that is more than the file holds."""
    if not is_zip(path):
        raise CheckpointError(f"{path} is not an .npz archive. Copy or download it again.")
    with opened(path) as archive:
        return {
            member.filename.removesuffix(".npy"): _header(path, archive, member)
            for member in archive.infolist()
        }


def load(path: Path, names: Iterable[str], device: str) -> dict[str, Tensor]:
    """These arrays as they are stored, on `device`; `read_headers` has found them. Raises CheckpointError."""
    import numpy as np
    import torch

    tensors: dict[str, Tensor] = {}
    with opened(path) as archive:
        for name in names:
            with archive.open(f"{name}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
            tensors[name] = cast(Any, torch).from_numpy(native).to(device)
    return tensors


def _header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> TensorHeader:
    if not member.filename.endswith(".npy"):
        raise CheckpointError(f"{path} is not an .npz archive: it holds {listed(archive.namelist())}.")
    with archive.open(member) as file:
        shape, dtype = _shape_and_dtype(file)
        n_bytes = member.file_size - file.tell()
    name = shortened(member.filename.removesuffix(".npy"))
    if dtype.hasobject:
        raise CheckpointError(
            f"{path}: '{name}' holds Python objects, which are pickled and not opened. Save arrays of numbers."
        )
    if math.prod(shape) * dtype.itemsize != n_bytes:
        raise CheckpointError(
            f"{path}: '{name}' of shape {shortened(list(shape))} and dtype {dtype} can't have {n_bytes:,} bytes. "
            "Copy or download the file again."
        )
    return TensorHeader(DTYPES.get(dtype.str[1:], str(dtype)), shape)


def _shape_and_dtype(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Raises ValueError where the header is no header."""
    import numpy as np

    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the .npy format")
    try:
        shape, _, dtype = read(file, max_header_size=MAX_HEADER_BYTES)
    except (SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        # numpy parses it as Python, which ends so for brackets left open and for thousands of signs.
        raise ValueError("a header that is no header of an array") from error
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return shape, dtype
