"""Llama Scope (OpenMOSS): a folder a dictionary, with hyperparams.json and checkpoints/final.safetensors.

    Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x/

    pre = x W_enc + b_enc / n_in;  fires where pre * |decoder row| > jump_relu_threshold, and is pre there

n = sqrt(d_model) / dataset_average_activation_norm scaled activations in training; at inference the input stays
raw, and biases and decoder take it over. The threshold is compared in that raw space, as it is stored. Decoder
rows are not of norm one (about 1.5), and with `sparsity_include_decoder_norm` they gate.

Source: OpenMOSS/Language-Model-SAEs at 4ec6f0aa (October 2024, the release): src/lm_saes/sae.py, config.py. There
a feature's activation is pre * |decoder row|, in later versions pre; they differ by a factor a feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings, require_files
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import named, site_of
from autointerp.dictionaries.spec import DictionarySpec, Selector, Weights
from autointerp.dictionaries.tensors import check_shapes, read_headers, read_tensors
from autointerp.identity import fingerprint

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
LAYOUT: Final = Layout("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias", linear=True)
NORMS: Final = "dataset_average_activation_norm"


@dataclass(frozen=True, slots=True)
class LlamaScope:
    """Llama Scope (OpenMOSS): hyperparams.json + checkpoints/final.safetensors; jumprelu, relu, topk."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        return (_folder(path) / CONFIG).is_file()

    def describe(self, path: Path) -> DictionarySpec:
        """Reads hyperparams.json and the header of the weights. Raises CheckpointError."""
        folder = _folder(path)
        require_files(folder, CONFIG, WEIGHTS)
        spec = _configured(folder, read_settings(folder / CONFIG))
        check_shapes(folder / WEIGHTS, read_headers(folder / WEIGHTS), LAYOUT.shapes(spec))
        return replace(spec, identity=fingerprint([folder / CONFIG, folder / WEIGHTS]))

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        import torch

        settings = read_settings(spec.path / CONFIG)
        weights = LAYOUT.weights(read_tensors(spec.path / WEIGHTS, LAYOUT.shapes(spec), device))
        n_in, n_out = _factors(settings)
        weights = replace(
            weights,
            b_enc_F=weights.b_enc_F / n_in,
            w_dec_FO=weights.decoder * (n_in / n_out),
            b_dec_O=weights.b_dec_O / n_out,
        )
        if settings.flag("apply_decoder_bias_to_pre_encoder", True):
            weights = replace(weights, b_pre_D=weights.b_dec_O)
        if spec.selector != "jumprelu":
            return weights
        return replace(weights, threshold_F=torch.full_like(weights.b_enc_F, _threshold(settings)))


def _folder(path: Path) -> Path:
    """Named by itself, its configuration or its weights."""
    is_weights = path.is_file() and path.parts[-2:] == tuple(WEIGHTS.split("/"))
    return path.parent.parent if is_weights else folder_of(path, CONFIG)


def _configured(folder: Path, settings: Settings) -> DictionarySpec:
    """What hyperparams.json says; the identity is left empty."""
    if settings.flag("use_glu_encoder", False):
        settings.refuse("use_glu_encoder", "a gate of its own on the encoder is not read.")
    if not settings.flag("use_decoder_bias", True):
        settings.refuse("use_decoder_bias", "only dictionaries with a decoder bias are read.")
    selector, k = _selector(settings)
    hook, hook_out = settings.text("hook_point_in"), settings.text("hook_point_out")
    is_transcoder = hook_out is not None and hook_out != hook
    subtracted = settings.flag("apply_decoder_bias_to_pre_encoder", True)
    # Of what is positive a gate by a positive factor changes nothing.
    gate = selector != "relu" and settings.flag("sparsity_include_decoder_norm", True)
    d_in = settings.count("d_model")
    _factors(settings)  # raises
    token_wise = (settings.text("norm_activation") or "token-wise") == "token-wise"
    return DictionarySpec(
        format="llama_scope",
        path=folder,
        identity="",
        d_in=d_in,
        width=settings.count("d_sae"),
        selector=selector,
        k=k,
        hook=hook,
        site=site_of(hook),
        model="meta-llama/Llama-3.1-8B" if named(folder, "Llama3_1-8B-Base") else None,
        corpus=None,
        context_length=1024,
        prepend_bos=True,
        hook_out=hook_out if is_transcoder else None,
        site_out=site_of(hook_out) if is_transcoder else None,
        d_out=d_in if is_transcoder else None,
        is_transcoder=is_transcoder,
        transform=("constant_norm",) if token_wise else (),
        decoder_norm_gate=gate,
        value_is_score=not gate,
        # What a transcoder gives is then scaled as its output was, token by token, which nobody knows.
        reconstructs=not (token_wise and is_transcoder),
        notes=("b_dec is subtracted" if subtracted else "b_dec is not subtracted",),
    )


def _selector(settings: Settings) -> tuple[Selector, int | None]:
    """A topk dictionary with a threshold runs as a jumprelu one (from_config)."""
    activation = (settings.text("act_fn") or "relu").lower()
    if activation == "jumprelu" or (activation == "topk" and _threshold(settings) > 0):
        return "jumprelu", None
    if activation == "topk":
        k, width = settings.count("top_k"), settings.count("d_sae")
        if k > width:
            settings.refuse("top_k", f"more than the {width} features.")
        return "topk", k
    if activation != "relu":
        settings.refuse("act_fn", "jumprelu, topk and relu are read.")
    return "relu", None


def _threshold(settings: Settings) -> float:
    return _number(settings, "jump_relu_threshold", 0.0, least=0.0)


def _factors(settings: Settings) -> tuple[float, float]:
    """What all inputs and outputs were multiplied with in training. Raises CheckpointError."""
    kind = settings.text("norm_activation") or "token-wise"
    if kind in ("token-wise", "inference", "none"):
        return 1.0, 1.0
    if kind != "dataset-wise":
        settings.refuse("norm_activation", "dataset-wise, token-wise, inference and none are read.")
    norms = settings.section(NORMS)
    root = math.sqrt(settings.count("d_model"))
    return root / _number(norms, "in", None, least=1e-6), root / _number(norms, "out", None, least=1e-6)


def _number(settings: Settings, key: str, default: float | None, *, least: float) -> float:
    """Raises CheckpointError where it is not a finite number of at least `least`."""
    value = settings.values.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < least:
        settings.refuse(key, f"expected a number of at least {least:g}.")
    return float(value)
