"""A layout of our own, for what no public format has a place for: dictionary.json and dictionary.safetensors.

dictionary.json holds `"layout": 1` and fields of a `DictionarySpec` by their names; what is left out has the
field's default, and a key that is not known is an error. Tensors, of any float type:

    decoder [F, O]    encoder [D, F]                     no encoder for pursuit and nnls
    encoder_bias [F]  pre_bias [D]  decoder_bias [O]     zeros where they are left out
    threshold [F] or []                                  jumprelu, unless `calibration` says how to find it
    gate_bias [F]  gate_scale [F]  magnitude_bias [F]    gated (spec.Gate)
    skip [D, O]                                          transcoders, if they have one
    score_norm [F]                                       with `decoder_norm_gate`, if scores have other norms than
                                                         those of decoder rows
    input_share [L, F]                                   with `by_input` (spec.Weights), `n_inputs` being L
    decoder_u1 [F, R]  decoder_c1 [O, R]                 in place of decoder, for `"variant": "polysae"`

With selector pursuit, `k` steps are taken, and `"pursuit": {"residual_below": 0.5, "ends_on_repeat": true}` may end
them (spec.Pursuit); `has_signs` keeps the products' signs. nnls is semi-NMF's: `decoder` holds its feature vectors,
one a row. top_afa compares scores, so that it mostly has `"decoder_norm_gate": true, "value_is_score": false`.

`variant` is one of `variants.py`. With `parent` it is a meta-SAE (`meta_sae.py`): D is then the length of the
parent's decoder rows, and `selector`, `k`, `transform`, ... are about these.

Shapes: D = d_in, F = width, O = d_out (D but in transcoders), R any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from autointerp.dictionaries.checkpoint import (
    Settings,
    folder_of,
    listed,
    read_settings,
    require_files,
    shortened,
)
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.native_config import Sizes, configured, variant_of
from autointerp.dictionaries.spec import BY_DECODER, DictionarySpec, Gate, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "dictionary.json"
WEIGHTS: Final = "dictionary.safetensors"
BIASES: Final = ("encoder_bias", "pre_bias", "decoder_bias")
GATE: Final = ("gate_bias", "gate_scale", "magnitude_bias")


@dataclass(frozen=True, slots=True)
class Native:
    """autointerp's own layout: dictionary.json + dictionary.safetensors; any selector, variants, meta-SAEs."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        try:
            return "layout" in read_settings(folder_of(path, CONFIG, WEIGHTS) / CONFIG).values
        except CheckpointError:
            return False

    def describe(self, path: Path) -> DictionarySpec:
        """Reads dictionary.json and the header of the tensors. Raises CheckpointError."""
        folder = folder_of(path, CONFIG, WEIGHTS)
        require_files(folder, CONFIG, WEIGHTS)
        settings = read_settings(folder / CONFIG)
        spec = replace(_described(settings), identity=fingerprint([folder / CONFIG, folder / WEIGHTS]))
        if settings.text("parent") is None:
            return spec
        from autointerp.dictionaries.meta_sae import of_parent

        return of_parent(spec, settings)

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the files are others than described."""
        settings = read_settings(spec.path / CONFIG)
        own = _described(settings)
        weights = _weights(own, device)
        if settings.text("parent") is None:
            return weights
        from autointerp.dictionaries.meta_sae import on_tokens

        return on_tokens(own, weights, settings, device)


def _described(settings: Settings) -> DictionarySpec:
    """What the files say by themselves; the identity is left empty. Raises CheckpointError."""
    path = settings.path.with_name(WEIGHTS)
    headers = read_headers(path)
    spec = configured(settings, _sizes(path, headers, settings))
    check_shapes(path, headers, _shapes(spec, settings, headers))
    return spec


def _sizes(path: Path, headers: Mapping[str, TensorHeader], settings: Settings) -> Sizes:
    """As the biases have it, and what has none as the matrices do: a bias tells which axis is which."""
    decoder = "decoder_c1" if "decoder_c1" in headers else "decoder"
    has_encoder = settings.text("selector") not in BY_DECODER
    for name in ("encoder", decoder)[not has_encoder :]:
        if name not in headers:
            raise CheckpointError(f"{path} has no tensor '{name}'. It has: {listed(headers)}.")
        if len(headers[name].shape) != 2 or not all(headers[name].shape):
            raise CheckpointError(
                f"{path}: '{name}' has shape {shortened(list(headers[name].shape))}; a matrix is expected."
            )
    width, d_out = headers[decoder].shape if decoder == "decoder" else (0, headers[decoder].shape[0])
    d_in, width = headers["encoder"].shape if has_encoder else (d_out, width)
    lengths = {name: headers[name].shape[0] for name in BIASES if name in headers and headers[name].shape}
    d_out = lengths.get("decoder_bias", d_out)
    if not settings.flag("is_transcoder", False):
        d_in = lengths.get("decoder_bias", d_in)
    return Sizes(lengths.get("pre_bias", d_in), lengths.get("encoder_bias", width), d_out)


def _shapes(spec: DictionarySpec, settings: Settings, headers: Mapping[str, TensorHeader]) -> Shapes:
    """What the file must hold. Raises CheckpointError for a tensor that nothing would read."""
    d_in, width = ("d_in", spec.d_in), ("features", spec.width)
    d_out = ("d_out", spec.d_out) if spec.d_out is not None else d_in
    has_encoder = spec.selector not in BY_DECODER
    shapes: dict[str, tuple[tuple[str, int], ...]] = {"encoder": (d_in, width)} if has_encoder else {}
    for name, axis in (("encoder_bias", width), ("pre_bias", d_in), ("decoder_bias", d_out)):
        if name in headers and (has_encoder or name != "encoder_bias"):
            shapes[name] = (axis,)
    if spec.selector == "gated":
        shapes |= dict.fromkeys(GATE, (width,))
    if spec.selector == "jumprelu" and spec.calibration is None:
        is_one = "threshold" in headers and not headers["threshold"].shape
        shapes["threshold"] = () if is_one else (width,)
    if spec.decoder_norm_gate and "score_norm" in headers:
        shapes["score_norm"] = (width,)
    if spec.by_input:
        shapes["input_share"] = (("inputs", spec.n_inputs), width)
    if spec.is_transcoder and "skip" in headers:
        shapes["skip"] = (d_in, d_out)
    variant = variant_of(settings)
    if variant is not None and variant.is_polynomial:
        rank = ("rank", headers["decoder_c1"].shape[1] if "decoder_c1" in headers else 0)
        shapes |= {"decoder_c1": (d_out, rank), "decoder_u1": (width, rank)}
    else:
        shapes["decoder"] = (width, d_out)
    if unread := headers.keys() - shapes.keys():
        raise CheckpointError(
            f"{spec.path / WEIGHTS} holds '{shortened(min(unread))}', which a dictionary of selector "
            f"{spec.selector}, as {CONFIG} describes it, doesn't have. It has: {listed(shapes)}."
        )
    return shapes


def _weights(spec: DictionarySpec, device: str) -> Weights:
    import torch

    path, settings = spec.path / WEIGHTS, read_settings(spec.path / CONFIG)
    tensors = read_tensors(path, _shapes(spec, settings, read_headers(path)), device)
    d_out = spec.d_out or spec.d_in
    decoder = tensors.get("decoder")
    if decoder is None:
        decoder = tensors["decoder_u1"] @ tensors["decoder_c1"].T

    def bias(name: str, length: int) -> Tensor:
        return tensors[name] if name in tensors else torch.zeros(length, device=device)

    weights = Weights(
        w_enc_DF=tensors.get("encoder"),
        b_enc_F=bias("encoder_bias", spec.width),
        b_pre_D=bias("pre_bias", spec.d_in),
        w_dec_FO=decoder,
        b_dec_O=bias("decoder_bias", d_out),
        threshold_F=tensors["threshold"].expand(spec.width).contiguous() if "threshold" in tensors else None,
        score_norm_F=tensors.get("score_norm"),
        input_share_LF=tensors.get("input_share"),
        gate=Gate(*(tensors[name] for name in GATE)) if spec.selector == "gated" else None,
        w_skip_DO=tensors.get("skip"),
    )
    _check_scores(path, weights)
    return weights


def _check_scores(path: Path, weights: Weights) -> None:
    """Raises CheckpointError for norms and shares by which a feature would fire for none of its inputs."""
    if weights.score_norm_F is not None and bool((weights.score_norm_F < 0).any()):
        raise CheckpointError(f"{path}: 'score_norm' holds numbers below 0, which no norm is.")
    if weights.input_share_LF is None:
        return
    largest_F = weights.input_share_LF.amax(0)
    fits_F = (largest_F == 1) | ((largest_F == 0) & (weights.score_norms == 0))
    if bool((weights.input_share_LF < 0).any()) or not bool(fits_F.all()):
        raise CheckpointError(
            f"{path}: 'input_share' must be shares of the largest: from 0 up to 1, and 1 for one input of each "
            "feature (or all 0 where its norm is)."
        )
