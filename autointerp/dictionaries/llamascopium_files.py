"""What Llamascopium's dictionaries of all types have in common: files, names of tensors, settings.

Source: OpenMOSS/Language-Model-SAEs at 95281ac: models/sparse_dictionary.py, activation_functions.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from autointerp.dictionaries.checkpoint import Settings
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.spec import DictionarySpec, Selector, Transform
from autointerp.dictionaries.tensors import read_headers, read_values
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.json"
WEIGHTS: Final = ("sae_weights.safetensors", "sae_weights.pt")
LOG_THRESHOLDS: Final = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
SELECTORS: Final[dict[str, Selector]] = {
    "relu": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "jumprelu",
}

OVER_LAYERS: Final = ("layertopk", "batchlayertopk")


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of tensors, and what they are called there."""

    path: Path
    headers: Mapping[str, TensorHeader]
    prefix: str
    """`sae.` in a .pt file."""
    version: str | None = None
    """Of the package that saved it."""

    @property
    def log_threshold(self) -> str:
        names = [self.prefix + name for name in LOG_THRESHOLDS]
        return next((name for name in names if name in self.headers), names[0])

    def norm(self, hook: str) -> str:
        return f"{self.prefix}dataset_average_activation_norm.{hook}"

    def norms(self, settings: Settings, hooks: Iterable[str]) -> dict[str, tuple[()]]:
        """The norms that are stored of these hook points."""
        return {self.norm(hook): () for hook in hooks} if normalisation(settings) == "dataset-wise" else {}

    def factors(self, settings: Settings, tensors: Mapping[str, Tensor], hooks: Sequence[str]) -> list[float]:
        """What the vectors of each are multiplied with. Raises CheckpointError."""
        if normalisation(settings) != "dataset-wise":
            return [1.0] * len(hooks)
        norms = [float(tensors[self.norm(hook)]) for hook in hooks]
        if min(norms) <= 0:
            raise CheckpointError(
                f"{self.path}: an average activation norm is {min(norms):g}. It was saved before the norms "
                "were measured; save it after training."
            )
        return [math.sqrt(settings.count("d_model")) / norm for norm in norms]


def stored_in(folder: Path) -> Stored:
    """Raises CheckpointError."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        advice = (
            " Load sae_weights.dcp, a folder of torch.distributed, with llamascopium on one device and save it "
            "there (save_pretrained): that writes sae_weights.safetensors."
            if (folder / "sae_weights.dcp").exists()
            else ""
        )
        raise CheckpointError(f"{folder} has no {' and no '.join(WEIGHTS)}.{advice}")
    headers = read_headers(path)
    version = read_values(path).get("version")
    prefix = "sae." if any(name.startswith("sae.") for name in headers) else ""
    return Stored(path, headers, prefix, version if isinstance(version, str) else None)


def common(folder: Path, settings: Settings) -> DictionarySpec:
    """What config.json says of any type; sizes, places and the identity are left empty. Raises CheckpointError."""
    activation = activation_of(settings)
    if activation in OVER_LAYERS:
        settings.refuse(
            "act_fn",
            "it chooses among the features of all layers, so that those of one layer hang on what the others read. "
            "llamascopium's convert_topk_to_jumprelu gives each its threshold; save it as jumprelu.",
        )
    if activation not in SELECTORS:
        settings.refuse("act_fn", f"these are read: {', '.join(SELECTORS)}.")
    transform: tuple[Transform, ...] = ("constant_norm",) if normalisation(settings) == "token-wise" else ()
    k = settings.count("top_k") if activation in ("topk", "batchtopk") else None
    # Of what is positive a gate by a positive factor changes nothing.
    gated = settings.flag("sparsity_include_decoder_norm", True) and activation != "relu"
    return DictionarySpec(
        format="llamascopium",
        path=folder,
        identity="",
        d_in=settings.count("d_model"),
        width=0,
        selector=SELECTORS[activation],
        k=k if activation == "topk" else None,
        hook=None,
        site=None,
        model=None,
        corpus=None,
        context_length=None,
        prepend_bos=True,
        transform=transform,
        decoder_norm_gate=gated,
        value_is_score=not gated,
        calibration=Calibration("batch_topk", k) if activation == "batchtopk" and k is not None else None,
        notes=("b_dec is not subtracted",),
    )


def activation_of(settings: Settings) -> str:
    return (settings.text("act_fn") or "relu").lower()


def normalisation(settings: Settings) -> str:
    kind = settings.text("norm_activation") or "dataset-wise"
    if kind not in ("token-wise", "dataset-wise", "inference"):
        settings.refuse("norm_activation", "token-wise, dataset-wise and inference are read.")
    return kind


def check_width(settings: Settings, stored: Stored, width: int) -> None:
    """Raises CheckpointError where config.json says another number of features, or a top k of more."""
    value = settings.values.get("expansion_factor")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        settings.refuse("expansion_factor", "expected a number above 0.")
    if width != int(settings.count("d_model") * value):
        settings.refuse(
            "expansion_factor", f"{stored.path.name} has {width} features, not d_model times that."
        )
    if activation_of(settings) in ("topk", "batchtopk") and settings.count("top_k") > width:
        settings.refuse("top_k", f"more than the {width} features.")


def has_thresholds(spec: DictionarySpec) -> bool:
    return spec.selector == "jumprelu" and spec.calibration is None


def hook_list(settings: Settings, key: str) -> list[str]:
    """Raises CheckpointError."""
    value = settings.values.get(key)
    if not isinstance(value, list) or not value or len(cast(list[object], value)) > 10_000:
        settings.refuse(key, "expected a list of hook points.")
    names = cast(list[object], value)
    return [
        Settings(settings.path, {key: name}).text(key) or settings.refuse(key, "expected texts.")
        for name in names
    ]
