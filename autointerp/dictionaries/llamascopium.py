"""Llamascopium (OpenMOSS, formerly lm-saes): a folder with config.json and sae_weights.safetensors or .pt.

    score = (x n_in) W_E + b_E, times |W_D row| with `sparsity_include_decoder_norm`
    activation = what act_fn leaves of the score, divided by that norm again

`norm_activation` says what n is: of each token sqrt(d_model) / its norm, a constant for the data set that is
stored with the weights, or 1 (`inference`: folded in before). Thresholds are stored as logarithms, and compared
with scores in the scaled space. `batchtopk` chose among a training batch and stores no threshold: a run calibrates
it, on scores (`calibrate.py`). Older files (R1-Distill) have the tensors of torch's linear layers.

Source: OpenMOSS/Language-Model-SAEs, llamascopium 2.0.0b34: models/sae.py, models/sparse_dictionary.py,
activation_functions.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import (
    DictionarySpec,
    Expected,
    Selector,
    Transform,
    Weights,
)
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

CONFIG: Final = "config.json"
WEIGHTS: Final = ("sae_weights.safetensors", "sae_weights.pt")
LAYOUTS: Final = (
    Layout("W_E", "W_D", "b_E", "b_D"),
    Layout("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias", linear=True),
)
LOG_THRESHOLDS: Final = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
NORM: Final = "dataset_average_activation_norm."
SELECTORS: Final[dict[str, Selector]] = {
    "relu": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "jumprelu",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file's tensors are called."""

    path: Path
    headers: Mapping[str, TensorHeader]
    layout: Layout
    prefix: str
    """`sae.` in a .pt file."""

    @property
    def log_threshold(self) -> str:
        names = [self.prefix + name for name in LOG_THRESHOLDS]
        return next((name for name in names if name in self.headers), names[0])

    def shapes(self, spec: DictionarySpec, settings: Settings) -> Shapes:
        shapes = dict(self.layout.shapes(spec))
        if spec.selector == "jumprelu" and spec.calibration is None:
            shapes[self.log_threshold] = (("features", spec.width),)
        if _normalisation(settings) == "dataset-wise":
            shapes |= {self.norm(hook): () for hook in _hooks(settings)}
        return shapes

    def norm(self, hook: str) -> str:
        return f"{self.prefix}{NORM}{hook}"


@dataclass(frozen=True, slots=True)
class Llamascopium:
    """Llamascopium (OpenMOSS): config.json with sae_type + sae_weights.safetensors; (jump)relu, (batch)topk."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        try:
            values = read_settings(folder_of(path, CONFIG, *WEIGHTS) / CONFIG).values
        except CheckpointError:
            return False
        return "sae_type" in values and "d_model" in values

    def describe(self, path: Path) -> DictionarySpec:
        """Reads config.json and the header of the weights. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, *WEIGHTS)
        settings = read_settings(folder / CONFIG)
        spec, stored = _configured(folder, settings), _stored(folder)
        if any("_glu" in name for name in stored.headers):
            raise CheckpointError(
                f"{stored.path} holds a gate of its own on the encoder (GLU), which is not read."
            )
        _, width = stored.layout.sizes(stored.path, stored.headers)
        if width != int(spec.d_in * _expansion(settings)):
            settings.refuse(
                "expansion_factor", f"{stored.path.name} has {width} features, not d_model times that."
            )
        spec = replace(spec, width=width)
        k = spec.k or (0 if spec.calibration is None else spec.calibration.k)
        if k > width:
            settings.refuse("top_k", f"more than the {width} features.")
        check_shapes(stored.path, stored.headers, stored.shapes(spec, settings))
        return replace(spec, identity=fingerprint([folder / CONFIG, stored.path]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        settings, stored = read_settings(spec.path / CONFIG), _stored(spec.path)
        tensors = read_tensors(stored.path, stored.shapes(spec, settings), device)
        weights = stored.layout.weights(tensors)
        threshold_F, norm_F = None, None
        if spec.selector == "jumprelu" and spec.calibration is None:
            threshold_F = tensors[stored.log_threshold].exp()
            norm_F = weights.decoder.norm(dim=1)  # as stored: thresholds are of that scale
        n_in, n_out = 1.0, 1.0
        if _normalisation(settings) == "dataset-wise":
            root = math.sqrt(spec.d_in)
            norms = [float(tensors[stored.norm(hook)]) for hook in _hooks(settings)]
            if min(norms) <= 0:
                raise CheckpointError(
                    f"{stored.path}: an average activation norm is {min(norms):g}. It was saved before the norms "
                    "were measured; save it after training."
                )
            n_in, n_out = root / norms[0], root / norms[-1]
        return replace(
            weights,
            w_enc_DF=weights.encoder * n_in,
            w_dec_FO=weights.decoder / n_out,
            b_dec_O=weights.b_dec_O / n_out,
            threshold_F=threshold_F,
            score_norm_F=norm_F if spec.decoder_norm_gate else None,
        )


def _stored(folder: Path) -> Stored:
    """The file of weights and how its tensors are called. Raises CheckpointError."""
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
    prefix = "sae." if any(name.startswith("sae.") for name in headers) else ""
    layouts = [layout.below(prefix) for layout in LAYOUTS]
    layout = next((layout for layout in layouts if layout.w_enc in headers), layouts[0])
    return Stored(path, headers, layout, prefix)


def _configured(folder: Path, settings: Settings) -> DictionarySpec:
    """What config.json says; width and identity are left empty."""
    kind, activation = settings.text("sae_type"), (settings.text("act_fn") or "relu").lower()
    if kind != "sae":
        settings.refuse("sae_type", "of Llamascopium's dictionaries, those of type sae are read.")
    if activation not in SELECTORS:
        settings.refuse("act_fn", f"these are read: {', '.join(SELECTORS)}.")
    if not settings.flag("use_decoder_bias", True):
        settings.refuse("use_decoder_bias", "only dictionaries with a decoder bias are read.")
    hook, *out = _hooks(settings)
    token_wise = _normalisation(settings) == "token-wise"
    d_in, gate = settings.count("d_model"), settings.flag("sparsity_include_decoder_norm", True)
    transform: tuple[Transform, ...] = ("constant_norm",) if token_wise else ()
    # Of what is positive a gate by a positive factor changes nothing.
    gated = gate and activation != "relu"
    k = settings.count("top_k") if activation in ("topk", "batchtopk") else None
    calibration = Calibration("batch_topk", k) if activation == "batchtopk" and k is not None else None
    return DictionarySpec(
        format="llamascopium",
        path=folder,
        identity="",
        d_in=d_in,
        width=0,
        selector=SELECTORS[activation],
        k=k if activation == "topk" else None,
        hook=hook,
        site=site_of(hook),
        model=None,
        corpus=None,
        context_length=None,
        prepend_bos=True,
        hook_out=out[0] if out else None,
        site_out=site_of(out[0]) if out else None,
        d_out=d_in if out else None,
        is_transcoder=bool(out),
        transform=transform,
        decoder_norm_gate=gated,
        value_is_score=not gated,
        # What a transcoder gives is then scaled as its output was, token by token, which nobody knows.
        reconstructs=not (token_wise and out),
        expected=Expected() if calibration is None else Expected(l0=k),
        calibration=calibration,
        notes=("b_dec is not subtracted",),
    )


def _hooks(settings: Settings) -> list[str]:
    """Input and, where it is another place, output."""
    hook = settings.text("hook_point_in")
    if hook is None:
        raise CheckpointError(f"{settings.path} has no 'hook_point_in'.")
    return list(dict.fromkeys([hook, settings.text("hook_point_out") or hook]))


def _normalisation(settings: Settings) -> str:
    kind = settings.text("norm_activation") or "dataset-wise"
    if kind not in ("token-wise", "dataset-wise", "inference"):
        settings.refuse("norm_activation", "token-wise, dataset-wise and inference are read.")
    return kind


def _expansion(settings: Settings) -> float:
    value = settings.values.get("expansion_factor")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        settings.refuse("expansion_factor", "expected a number above 0.")
    return float(value)
