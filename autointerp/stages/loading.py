"""A dictionary's tensors, with what only its model says folded in."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from autointerp.dictionaries.locate import reader_of
from autointerp.dictionaries.spec import Weights
from autointerp.sources import DictionaryFound
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.sites import width_at
from autointerp.subject.value_bias import read_folded_bias

if TYPE_CHECKING:
    from torch import Tensor


def load_weights(found: DictionaryFound, device: str) -> Weights:
    """Raises CheckpointError, and ModelError where a file of the model's is missing or unreadable."""
    weights = reader_of(found.spec).load(found.spec, device)
    if found.biases_of is None:
        return weights
    bias_D = bias_of_inputs(found, found.biases_of, device)
    if bias_D is None:
        return weights
    encode = weights.encode
    if encode is not None:  # a meta-SAE: what its parent reads

        def encode_less(x_nD: Tensor) -> tuple[Tensor, Tensor]:
            return encode(x_nD - bias_D)

        return dataclasses.replace(weights, encode=encode_less)
    # It reads z less the bias, and gives what the bias is then added to: z is what a run has on both sides.
    return dataclasses.replace(weights, b_pre_D=weights.b_pre_D + bias_D, b_dec_O=weights.b_dec_O + bias_D)


def bias_of_inputs(found: DictionaryFound, model: ModelFiles, device: str) -> Tensor | None:
    """[d_in]: what `fold_value_biases` takes out of each input, nothing of those that are not z; None of a model
    without such biases. Raises ModelError."""
    import torch

    parts = [
        read_folded_bias(model, site.layer, device) if site.point == "z" else None for site in found.inputs
    ]
    if all(part is None for part in parts):
        return None
    return torch.cat(
        [
            torch.zeros(width_at(site, model.architecture), device=device) if part is None else part
            for site, part in zip(found.inputs, parts, strict=True)
        ]
    )
