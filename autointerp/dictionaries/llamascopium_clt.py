"""Llamascopium's cross-layer transcoders: an encoder a layer, whose features write to that layer and all behind.

    W_E [L, D, F], b_E [L, F]           pre = (x_l n_l) W_E[l] + b_E[l]
    W_D.i [i + 1, F, D], b_D.i [D]      decoders by target: W_D.i[l] is what layer l writes to layer i
    log_jumprelu_threshold [L, F]       compared with pre times the root of the sum over i of |W_D.i[l] row|^2,
                                        without `sparsity_include_decoder_norm` with pre

All layers lie in one file. A dictionary is one of them, named `folder/layer_N`. What a target gets is a sum over the
layers before, so that one layer alone reconstructs nothing; a feature's direction is here the sum of its directions
over the layers that it writes to, in the model's scale, as of circuit-tracer's.

`layertopk` and `batchlayertopk` choose among the features of all layers: refused.

Source: OpenMOSS/Language-Model-SAEs at 95281ac: models/clt.py (`encode`; `encode_single_layer` takes other
norms), utils/topk_to_jumprelu_conversion.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autointerp.dictionaries.checkpoint import Settings
from autointerp.dictionaries.llamascopium_files import (
    Stored,
    check_width,
    has_thresholds,
    hook_list,
)
from autointerp.dictionaries.llamascopium_model import with_its_model
from autointerp.dictionaries.origin import site_of
from autointerp.dictionaries.spec import DictionarySpec, Expected, Weights
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_slice, read_tensors
from autointerp.errors import CheckpointError


def is_clt(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is a cross-layer transcoder's: then any layer_N is one of its layers, or wrong."""
    return values.get("sae_type") == "clt"


def described(spec: DictionarySpec, settings: Settings, stored: Stored, layer: int | None) -> DictionarySpec:
    """`spec`: what all types have in common. The identity is left empty. Raises CheckpointError, also where no layer
    is named."""
    hooks_in, hooks_out = (hook_list(settings, f"hook_points_{end}") for end in ("in", "out"))
    if len(hooks_in) != len(hooks_out):
        settings.refuse("hook_points_out", f"expected as many as there are hook_points_in, {len(hooks_in)}.")
    if layer is None:
        raise CheckpointError(
            f"{spec.path} holds a cross-layer transcoder, of which a dictionary is one layer: name "
            f"{spec.path}/layer_0, or another up to layer_{len(hooks_in) - 1}. --sae can be given several times."
        )
    if layer >= len(hooks_in):
        raise CheckpointError(
            f"{spec.path} is a cross-layer transcoder of {len(hooks_in)} layers, and has no layer_{layer}: name "
            f"layer_0, or another up to layer_{len(hooks_in) - 1}."
        )
    header = stored.headers.get(f"{stored.prefix}b_E")
    width = header.shape[-1] if header is not None and header.shape else 0
    hook, last = hooks_in[layer], len(hooks_in) - 1
    spec = replace(
        spec,
        path=spec.path / f"layer_{layer}",
        width=width,
        hook=hook,
        site=site_of(hook),
        d_out=spec.d_in,
        is_transcoder=True,
        reconstructs=False,
        expected=Expected(l0=None if spec.calibration is None else spec.calibration.k),
        writes_to=hooks_out[layer] + f" ... {hooks_out[last]}" * (layer < last),
        notes=(*spec.notes, "directions are sums over the places written to"),
    )
    check_shapes(stored.path, stored.headers, _shapes(spec, settings, stored, layer))
    check_width(settings, stored, width)
    return with_its_model(spec, settings, stored.version)


def weights_of(spec: DictionarySpec, settings: Settings, stored: Stored, layer: int, device: str) -> Weights:
    """One target at a time: all decoders can be hundreds of gigabytes. Raises CheckpointError, also where the files
    are others than described."""
    import torch

    shapes = _shapes(spec, settings, stored, layer)
    check_shapes(stored.path, stored.headers, shapes)
    hooks_in, hooks_out = (hook_list(settings, f"hook_points_{end}") for end in ("in", "out"))
    small = {name: axes for name, axes in shapes.items() if len(axes) < 2}
    tensors = read_tensors(stored.path, small, device)

    def own(name: str) -> torch.Tensor:
        return read_slice(stored.path, stored.prefix + name, layer, device)

    n_in, *n_out = stored.factors(settings, tensors, [hooks_in[layer], *hooks_out[layer:]])
    w_dec_FD = torch.zeros(spec.width, spec.d_in, device=device)
    squared_F = torch.zeros(spec.width, device=device)
    for target, factor in enumerate(n_out, start=layer):
        rows_FD = own(f"W_D.{target}")
        squared_F += rows_FD.square().sum(1)
        w_dec_FD += rows_FD / factor
    threshold_F = None
    if has_thresholds(spec):
        threshold_F = read_slice(stored.path, stored.log_threshold, layer, device).exp()
    return Weights(
        w_enc_DF=own("W_E") * n_in,
        b_enc_F=own("b_E"),
        b_pre_D=torch.zeros(spec.d_in, device=device),
        w_dec_FO=w_dec_FD,
        b_dec_O=tensors[f"{stored.prefix}b_D.{layer}"] / n_out[0],
        threshold_F=threshold_F,
        score_norm_F=squared_F.sqrt() if spec.decoder_norm_gate else None,
    )


def _shapes(spec: DictionarySpec, settings: Settings, stored: Stored, layer: int) -> Shapes:
    hooks_in, hooks_out = (hook_list(settings, f"hook_points_{end}") for end in ("in", "out"))
    depth, d_model, features = ("layers", len(hooks_in)), ("d_model", spec.d_in), ("features", spec.width)
    shapes: dict[str, tuple[tuple[str, int], ...]] = {
        "b_E": (depth, features),
        f"b_D.{layer}": (d_model,),
        "W_E": (depth, d_model, features),
    }
    for target in range(layer, len(hooks_out)):
        shapes[f"W_D.{target}"] = (("layers", target + 1), features, d_model)
    found = {stored.prefix + name: axes for name, axes in shapes.items()}
    if has_thresholds(spec):
        found[stored.log_threshold] = (depth, features)
    return found | stored.norms(settings, [hooks_in[layer], *hooks_out[layer:]])
