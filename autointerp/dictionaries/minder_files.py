"""Files of dictionary_learning's fork by Julian Minder and Clement Dumas: one of tensors, mostly with a config.json.

    model.safetensors, config.json     as HuggingFace's mixin saves them; the settings of the class
    model_final.pt, config.json        of a finished training; the trainer's settings, below `trainer`

    activation_mean, activation_std [..., D], activation_global_scale [...]
                                       (x - mean) scale goes in, and comes out the other way; NaN where nothing is
                                       normalised; before July 2025 one scale for all inputs of a crosscoder

Sources: science-of-finetuning/dictionary_learning at 173f7fa, jkminder/dictionary_learning at 48debb2: dictionary.py,
training.py, trainers/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autointerp.dictionaries.checkpoint import Settings, read_settings, shortened
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.tensors import KINDS, Shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.json"
WEIGHTS: Final = ("model.safetensors", "ae.pt", "model.pt", "model_final.pt")
"""Of a folder; any other file is named."""
COMPILED: Final = "_orig_mod."
"""In front of all names where torch.compile was on."""
MEAN, STD, SCALE = "activation_mean", "activation_std", "activation_global_scale"
OFF: Final = 1e-8
"""Added to a scale before it is divided by."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of tensors."""

    path: Path
    headers: Mapping[str, TensorHeader]
    prefix: str

    @classmethod
    def of(cls, path: Path) -> Stored:
        """Raises CheckpointError."""
        found = next((path / name for name in WEIGHTS if (path / name).is_file()), path)
        headers = read_headers(found)
        prefix = COMPILED if all(name.startswith(COMPILED) for name in headers) else ""
        return cls(found, {name.removeprefix(prefix): header for name, header in headers.items()}, prefix)

    @property
    def config(self) -> Path | None:
        path = self.path.with_name(CONFIG)
        return path if path.is_file() else None

    @property
    def files(self) -> list[Path]:
        return [*([self.config] if self.config else []), self.path]

    @property
    def settings(self) -> Settings:
        """Those of the class or of its trainer. Raises CheckpointError."""
        if self.config is None:
            return Settings(self.path.with_name(CONFIG), {})
        settings = read_settings(self.config)
        return settings.section("trainer") if "trainer" in settings.values else settings

    def shape(self, name: str) -> tuple[int, ...]:
        return self.headers[name].shape if name in self.headers else ()

    def tensors(self, shapes: Shapes, device: str) -> dict[str, Tensor]:
        found = read_tensors(self.path, shapes, device)
        return {name.removeprefix(self.prefix): tensor for name, tensor in found.items()}

    def unchecked(self, *names: str, device: str = "cpu") -> list[Tensor]:
        """Those that may be whole numbers, or NaN."""
        wanted = [self.prefix + name for name in names]
        found = KINDS[self.path.suffix].load(self.path, wanted, device)
        return [found[name] for name in wanted]


@dataclass(frozen=True, slots=True)
class Normaliser:
    """What is done to inputs, [D] or L of them [L, D]: (x - mean) * into, and back: x * out + mean."""

    mean: Tensor
    into: Tensor
    """[] or [L, 1]."""
    out: Tensor
    is_none: bool = False

    @classmethod
    def of(cls, stored: Stored, b_dec: Tensor) -> Normaliser:
        """`b_dec`: the decoder's bias, [D] or [L, D]. Raises CheckpointError."""
        one = b_dec.new_ones((*b_dec.shape[:-1], 1) if b_dec.ndim > 1 else ())
        none = cls(b_dec.new_zeros(b_dec.shape), one, one, is_none=True)
        if MEAN not in stored.headers:
            return none
        if missing := [name for name in (STD, SCALE) if name not in stored.headers]:
            raise CheckpointError(f"{stored.path} has {MEAN}, but no {' and no '.join(missing)}.")
        found = stored.unchecked(MEAN, STD, SCALE, device=str(b_dec.device))
        if any(tensor.is_complex() for tensor in found):
            raise CheckpointError(f"{stored.path}: {MEAN}, {STD} and {SCALE} must be real numbers.")
        mean, std, scale = (tensor.to(b_dec) for tensor in found)
        if mean.isnan().any() or std.isnan().any():  # how the source says that nothing is normalised
            return none
        if not all(bool(tensor.isfinite().all()) for tensor in (mean, std, scale)):
            raise CheckpointError(
                f"{stored.path}: {MEAN}, {STD} and {SCALE} must be finite numbers, and some are not. The training "
                "broke or the file is damaged; take an earlier checkpoint."
            )
        fits = mean.shape == b_dec.shape and scale.shape in (b_dec.shape[:-1], ())
        if not fits or not bool((scale > 0).all()):
            raise CheckpointError(
                f"{stored.path}: {MEAN} has shape {list(mean.shape)} and {SCALE} is {shortened(scale.tolist())}, "
                f"but of {list(b_dec.shape)} inputs and numbers each input has a mean and a factor above 0."
            )
        if std.shape != mean.shape:
            raise CheckpointError(
                f"{stored.path}: {STD} has shape {list(std.shape)}, but {MEAN} has {list(mean.shape)}, and both are "
                "of the same inputs. Copy or download it again."
            )
        into = scale.expand(b_dec.shape[:-1]).reshape(one.shape)
        return cls(mean, into, 1 / (into + OFF))
