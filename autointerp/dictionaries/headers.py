"""What a file says of its tensors, whatever kind of file it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FLOAT_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes an element of the dtypes that weights may have."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the file says of one tensor."""

    dtype: str
    """As safetensors spells it: `F32`, `BF16`, ...; of a dtype that weights can't have, in any spelling."""
    shape: tuple[int, ...]
