"""A dictionary -> our own layout (`native.py`)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.dictionaries.native import CONFIG, GATE, WEIGHTS
from autointerp.dictionaries.native_config import LAYOUT, SELECTORS
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import BY_DECODER, DictionarySpec, Weights
from autointerp.errors import CheckpointError
from autointerp.files import write_atomically
from autointerp.types import Json, Site

if TYPE_CHECKING:
    from torch import Tensor

_AS_THEY_ARE = (
    "selector", "k", "model", "corpus", "context_length", "prepend_bos", "is_transcoder", "transform",
    "model_was_centred", "decoder_norm_gate", "value_is_score", "reconstructs", "group_sizes",
    "approximation", "notes", "has_signs", "n_inputs", "n_models", "without_value_bias", "normalized_behind_gain",
    "centring_is_default", "gradient_weight", "writes_to", "by_input",
)  # fmt: skip


def check_native(spec: DictionarySpec) -> None:
    """Raises CheckpointError for a dictionary that our layout has no place for either."""
    if spec.needs_sequence:
        raise CheckpointError(
            f"{spec.path} can't be written as files: what it codes is what is left of a prediction from the tokens "
            "before, and neither layout has a place for how that is made. Use it as it is."
        )
    if spec.is_basis or spec.selector not in SELECTORS:
        what = f"selector {spec.selector}, which is code"
        if spec.is_basis:
            what = "a basis, which has no weights"
        elif spec.format == "native":
            what = "codes made of a parent's. A meta-SAE is in our own layout already: copy it and its parent"
        raise CheckpointError(f"{spec.path} can't be written as files: there is no place for {what}.")


def write_native(out: Path, spec: DictionarySpec, weights: Weights) -> None:
    """Writes the folder `out`, in float32. Raises DiskFull."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in _tensors(spec, weights).items()}
    write_atomically(out / WEIGHTS, save(tensors))
    write_atomically(out / CONFIG, json.dumps(_settings(spec), indent=2).encode())


def _settings(spec: DictionarySpec) -> Json:
    given: dict[str, Any] = {name: getattr(spec, name) for name in _AS_THEY_ARE}
    if spec.selector == "pursuit":
        given |= {"k": spec.k or spec.d_in, "pursuit": dataclasses.asdict(spec.pursuit)}
    given |= {
        "hook": _hook(spec.site, spec.hook),
        "further_hooks": list(map(str, spec.further_sites)),
        "hook_out": _hook(spec.site_out, spec.hook_out),
        "expected": stated(spec),
        "calibration": None if spec.calibration is None else dataclasses.asdict(spec.calibration),
    }
    if spec.calibration is not None:  # as it is read again, so that what is converted twice is the same
        given["calibration"]["k"] = float(spec.calibration.k)
    defaults = {field.name: field.default for field in dataclasses.fields(spec)}
    return {"layout": LAYOUT} | {
        key: value for key, value in given.items() if value not in (None, [], (), {}, defaults.get(key))
    }


def stated(spec: DictionarySpec) -> Json:
    """Of what it is said to do, what is known."""
    return {
        key: float(value) for key, value in dataclasses.asdict(spec.expected).items() if value is not None
    }


def _hook(site: Site | None, hook: str | None) -> str | None:
    """As it was spelt, where that still says the place."""
    return hook if site is None or site_of(hook) == site else str(site)


def _tensors(spec: DictionarySpec, weights: Weights) -> dict[str, Tensor]:
    # Readers may give one tensor for both biases, which safetensors refuses to write.
    pre_bias_D = weights.b_pre_D.clone()
    tensors = {"pre_bias": pre_bias_D, "decoder": weights.decoder, "decoder_bias": weights.b_dec_O}
    if spec.selector not in BY_DECODER:
        tensors |= {"encoder": weights.encoder, "encoder_bias": weights.b_enc_F}
    if spec.selector == "gated":
        assert weights.gate is not None
        gate = weights.gate
        tensors |= dict(zip(GATE, (gate.bias_F, gate.scale_F, gate.magnitude_bias_F), strict=True))
    if spec.selector == "jumprelu" and spec.calibration is None:
        assert weights.threshold_F is not None
        tensors["threshold"] = weights.threshold_F
    if spec.decoder_norm_gate and weights.score_norm_F is not None:
        tensors["score_norm"] = weights.score_norm_F
    if spec.by_input:
        assert weights.input_share_LF is not None
        tensors["input_share"] = weights.input_share_LF
    if weights.w_skip_DO is not None:
        tensors["skip"] = weights.w_skip_DO
    return tensors
