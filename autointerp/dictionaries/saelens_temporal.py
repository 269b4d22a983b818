"""SAELens' temporal SAEs (`architecture: temporal`): what cfg.json and the weights say of their attention.

    normalize_activations: constant_scalar_rescale   inputs are multiplied by `activation_normalization_factor`
    sae_diff_type          topk: the `kval_topk` largest codes, all where it is null; relu: all
    W_dec, W_enc, b_dec    D, E and b of `temporal.py`, whose maths these are; no W_enc: `tied_weights`
    apply_b_dec_to_input   false: b_dec is not subtracted, and added again only where W_enc is there

Source: decoderesearch/SAELens 6.54.12: sae_lens/saes/temporal_sae.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autointerp.dictionaries import temporal
from autointerp.dictionaries.checkpoint import Settings
from autointerp.dictionaries.spec import Selector, Weights
from autointerp.dictionaries.temporal import (
    Form,
    attention_form,
    attention_shapes,
    check_attention,
    in_model_units,
)

if TYPE_CHECKING:
    from torch import Tensor

TEMPORAL: Final = "temporal"
RESCALE: Final = "constant_scalar_rescale"
A_MAP: Final = "attn_layers.0.k_ctx.weight"
"""A tensor that only these have."""


def form_of(settings: Settings) -> Form:
    """Raises CheckpointError."""
    norm = settings.text("normalize_activations") or "none"
    if norm not in ("none", RESCALE):
        settings.refuse("normalize_activations", f"of temporal dictionaries none and {RESCALE} are read.")
    scale = settings.number("activation_normalization_factor") if norm == RESCALE else None
    return attention_form(settings, settings.count("d_sae"), scale)


def selected(settings: Settings) -> tuple[Selector, int | None]:
    """(selector, k). Raises CheckpointError for a kind that SAELens doesn't have: it would be all codes there."""
    kind = settings.text("sae_diff_type") or "topk"
    if kind not in ("topk", "relu"):
        settings.refuse("sae_diff_type", "of temporal dictionaries topk and relu are read.")
    if settings.values.get("kval_topk") is None:
        return "relu", None
    return temporal.selected(settings, settings.count("d_sae"))


def shapes(
    settings: Settings, weights: Path, headers: Mapping[str, object]
) -> dict[str, tuple[tuple[str, int], ...]]:
    """Of all tensors. Raises CheckpointError."""
    form = form_of(settings)
    check_attention(weights, settings.path.name, headers, form, "W_enc")
    d_in, d_sae = ("d_in", settings.count("d_in")), ("d_sae", settings.count("d_sae"))
    encoder = {} if form.is_tied else {"W_enc": (d_in, d_sae)}
    return {"b_dec": (d_in,), "W_dec": (d_sae, d_in), **encoder, **attention_shapes(d_sae[1], form)}


def weights_of(settings: Settings, tensors: Mapping[str, Tensor], *, subtracts_b_dec: bool) -> Weights:
    """With the scale of the inputs folded in."""
    import torch

    form, w_dec_FD, b_D = form_of(settings), tensors["W_dec"], tensors["b_dec"]
    w_enc_DF = w_dec_FD.T if form.is_tied else tensors["W_enc"]
    none_D = torch.zeros_like(b_D)
    weights = in_model_units(w_dec_FD, w_enc_DF, b_D if subtracts_b_dec else none_D, tensors, form)
    is_added = subtracts_b_dec or not form.is_tied
    return replace(weights, b_dec_O=b_D / form.scale if is_added else none_D)
