"""Any dictionary -> safetensors in SAELens' layout (cfg.json and sae_weights.safetensors), or in our own
(`native.py`) where SAELens has no place for it.

What SAELens has no setting for is folded into the weights, so that the activations stay what they are; what
can't be folded goes into our own layout as it is.

    scores times decoder norms, and scores are activations    W_enc, b_enc times the norms, W_dec divided by them
    the same, jumprelu, and pre-activations are activations   thresholds divided by the norms
    a pre-bias that is neither b_dec nor nothing              b_enc - b_pre @ W_enc

Shapes: D = d_in, F = width, O = d_out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.native_files import check_native, stated, write_native
from autointerp.dictionaries.saelens import WEIGHTS
from autointerp.dictionaries.saelens_config import CONFIG, KEPT, TRANSFORMS
from autointerp.dictionaries.spec import DictionarySpec, Selector, Weights
from autointerp.errors import CheckpointError
from autointerp.files import write_atomically
from autointerp.subject.sites import BEHIND_GAIN, transformer_lens_name
from autointerp.types import Json, Site

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES: Final[dict[Selector, str]] = {
    "relu": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
}
TRANSCODERS: Final[dict[Selector, str]] = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
WITH_SKIP: Final[dict[Selector, str]] = {"relu": "skip_transcoder", "jumprelu": "jumprelu_skip_transcoder"}
VERSIONS: Final[Json] = {"sae_lens_version": "6.54.12", "sae_lens_training_version": None}
"""SAELens takes a file that names no version for one from before 6 and leaves its metadata out. That of the training
is not known."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written."""

    spec: DictionarySpec
    layout: str
    """Which, and why."""


def convert(text: str, out: Path) -> Converted:
    """Writes the dictionary that `text` names into the new folder `out`, in float32. Raises CheckpointError."""
    from safetensors.torch import save

    if out.exists():
        raise CheckpointError(f"{out} is there already: name a folder that is not.")
    spec = find_dictionary(text)
    loaded = reader_of(spec).load(spec, "cpu")
    kind, missing = _architecture(spec, has_skip=loaded.w_skip_DO is not None)
    if missing is not None:
        check_native(spec)
        out.mkdir(parents=True)
        write_native(out, spec, loaded)
        written = find_dictionary(str(out))
        return Converted(written, f"autointerp's own layout: SAELens' has no place for {missing}")
    weights = _folded(spec, loaded)
    subtracts = bool(weights.b_pre_D.any())
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(spec, weights).items()}
    out.mkdir(parents=True)
    write_atomically(out / WEIGHTS, save(tensors))
    config = _config(spec, kind, subtracts=subtracts)
    write_atomically(out / CONFIG, json.dumps(config, indent=2).encode())
    written = find_dictionary(str(out))
    if kept := _kept(spec, written):
        config["metadata"][KEPT] = kept
        write_atomically(out / CONFIG, json.dumps(config, indent=2).encode())
        written = find_dictionary(str(out))
    return Converted(written, "SAELens' layout")


def _kept(spec: DictionarySpec, written: DictionarySpec) -> Json:
    """What `spec` says of itself and the files, as they are `written`, don't."""
    kept: Json = {"expected": stated(spec)} if spec.expected != written.expected else {}
    if spec.notes and spec.notes != written.notes:
        kept["notes"] = list(spec.notes)
    if spec.centring_is_default and spec.model_was_centred:
        kept["centring_is_default"] = True
    return kept


def _architecture(spec: DictionarySpec, *, has_skip: bool) -> tuple[str, str | None]:
    """SAELens' name, and what it has no place for, if anything."""
    names = ARCHITECTURES
    if spec.is_transcoder:
        names = WITH_SKIP if has_skip else TRANSCODERS
    missing = None
    if spec.selector not in names:
        missing = f"a {'transcoder' if spec.is_transcoder else 'dictionary'} with selector {spec.selector}"
    elif spec.is_basis or spec.further_sites or spec.n_inputs * spec.n_models > 1 or not spec.reconstructs:
        missing = "a basis, a crosscoder or what doesn't reconstruct by itself"
    elif spec.calibration is not None:
        missing = "thresholds that are still to be found"
    elif spec.without_value_bias:
        missing = "z without what biases add to it"
    elif spec.needs_sequence:
        missing = "a prediction from the tokens before"
    elif spec.needs_gradient:
        missing = "a choice by gradients"
    elif spec.approximation is not None:
        missing = "what is approximated"
    elif spec.transform not in TRANSFORMS.values():
        missing = f"the input transform {', '.join(spec.transform)}"
    elif spec.decoder_norm_gate and not spec.value_is_score and spec.selector != "jumprelu":
        missing = "a top k chosen by scores whose activations are pre-activations"
    return names.get(spec.selector, ""), missing


def _folded(spec: DictionarySpec, weights: Weights) -> Weights:
    """Without decoder norms in scores; `b_pre` is b_dec or zeros."""
    import torch

    if spec.decoder_norm_gate and spec.value_is_score:
        norm_F = weights.score_norms
        weights = replace(
            weights,
            w_enc_DF=weights.encoder * norm_F,
            b_enc_F=weights.b_enc_F * norm_F,
            w_dec_FO=weights.decoder / norm_F.clamp_min(1e-30)[:, None],
        )
    elif spec.decoder_norm_gate and weights.threshold_F is not None:
        threshold_F = weights.threshold_F / weights.score_norms
        weights = replace(
            weights, threshold_F=torch.nan_to_num(threshold_F, nan=torch.finfo(torch.float32).max)
        )
    is_b_dec = not spec.is_transcoder and torch.equal(weights.b_pre_D, weights.b_dec_O)
    if is_b_dec or not weights.b_pre_D.any():
        return weights
    shift_F = (weights.b_pre_D.double() @ weights.encoder.double()).float()
    gate = weights.gate
    if gate is not None:
        magnitude = gate.magnitude_bias_F - shift_F * gate.scale_F
        gate = replace(gate, bias_F=gate.bias_F - shift_F, magnitude_bias_F=magnitude)
    none_D = torch.zeros_like(weights.b_pre_D)
    return replace(weights, b_enc_F=weights.b_enc_F - shift_F, b_pre_D=none_D, gate=gate)


def _tensors(spec: DictionarySpec, weights: Weights) -> dict[str, Tensor]:
    tensors = {"W_enc": weights.encoder, "W_dec": weights.decoder, "b_dec": weights.b_dec_O}
    if weights.gate is not None and spec.selector == "gated":
        gate = weights.gate
        tensors |= {"b_gate": gate.bias_F, "b_mag": gate.magnitude_bias_F, "r_mag": gate.scale_F.log()}
    else:
        tensors["b_enc"] = weights.b_enc_F
    if spec.selector == "jumprelu" and weights.threshold_F is not None:
        tensors["threshold"] = weights.threshold_F
    if weights.w_skip_DO is not None:
        tensors["W_skip"] = weights.w_skip_DO.T
    return tensors


def _config(spec: DictionarySpec, kind: str, *, subtracts: bool) -> Json:
    metadata: Json = {
        "model_name": spec.model,
        "hook_name": _hook(spec.site, spec.hook),
        "hook_name_out": _hook(spec.site_out, spec.hook_out) if spec.is_transcoder else None,
        "dataset_path": spec.corpus,
        "context_size": spec.context_length,
        "prepend_bos": spec.prepend_bos,
        "model_from_pretrained_kwargs": _processing(spec) or None,
    }
    ends = [sum(spec.group_sizes[: n + 1]) for n in range(len(spec.group_sizes))]
    config: Json = {
        "architecture": kind,
        "d_in": spec.d_in,
        "d_sae": spec.width,
        "d_out": spec.d_out if spec.is_transcoder else None,
        "k": spec.k,
        "dtype": "float32",
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": next(name for name, steps in TRANSFORMS.items() if steps == spec.transform),
        "matryoshka_widths": ends or None,
        "metadata": VERSIONS | {name: value for name, value in metadata.items() if value is not None},
    }
    return {name: value for name, value in config.items() if value is not None}


def _processing(spec: DictionarySpec) -> Json:
    """How TransformerLens must load the model so that its hook sees what the dictionary reads."""
    kwargs = {"center_writing_weights": True} if spec.model_was_centred else dict[str, bool]()
    normalized = spec.site is not None and spec.site.point in BEHIND_GAIN
    return kwargs | ({"fold_ln": True} if normalized and not spec.normalized_behind_gain else {})


def _hook(site: Site | None, hook: str | None) -> str | None:
    """As SAELens writes it, if it has a name for the place."""
    return hook if site is None else transformer_lens_name(site) or str(site)
