"""Single tensors of a model's weights, found by name: the model itself is not loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autointerp.errors import ModelError
from autointerp.subject.model_files import weight_files

EMBEDDING: Final = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in)\.weight")
"""The table of token embeddings, [V, D]."""
FLOATS: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Plain weights; others are quantised, and mean nothing without their scales."""
_ELSEWHERE: Final = re.compile(r".*(vision|audio).*|.*\.\d+\..*")
"""Names of tensors in layers, or of other modalities than text."""


class NamedTensors:
    """The tensors of a model's safetensors files, by name, in the dtype they are stored in."""

    def __init__(self, folder: Path, device: str) -> None:
        self._device = device
        self._file_of = {name: path for path in weight_files(folder) for name in _names(path)}

    def only(self, pattern: re.Pattern[str], *, in_layers: bool = False) -> str | None:
        """The one name that matches; None where none does, or several do."""
        found = [
            name
            for name in self._file_of
            if pattern.fullmatch(name)
            and not (("vision" in name or "audio" in name) if in_layers else _ELSEWHERE.fullmatch(name))
        ]
        return found[0] if len(found) == 1 else None

    def read(self, name: str) -> Tensor:
        path = self._file_of[name]
        try:
            with cast(Any, safe_open)(path, framework="pt", device=self._device) as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} can't be read: {error}. Copy or download the model again.") from error


def _names(path: Path) -> Iterator[str]:
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            yield from cast(list[str], file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} can't be read: {error}. Copy or download the model again.") from error
