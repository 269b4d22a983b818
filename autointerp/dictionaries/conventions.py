"""Other ways in which a checkpoint could be meant: the conventions that public converters get wrong.

A dictionary that is read by the wrong one still runs, with an L0 or a share of explained variance that is off
by multiples. `sae check` measures each and says which fits better; nothing is ever switched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autointerp.dictionaries.gradient_weight import gradient_fault
from autointerp.dictionaries.spec import DictionarySpec, Transform, Weights


@dataclass(frozen=True, slots=True)
class Convention:
    """One way to read a checkpoint."""

    name: str
    """What is different about it, as a sentence's end: `with b_dec subtracted from the input`."""
    spec: DictionarySpec
    weights: Weights


def alternatives(spec: DictionarySpec, weights: Weights, x_ND: Tensor) -> Iterator[Convention]:
    """Other readings than the one there is, one difference each. `x_ND`: some of the inputs, for a scale that
    training may have estimated."""
    for convention in _alternatives(spec, weights, x_ND):
        if gradient_fault(convention.spec) is None:
            yield convention


def _alternatives(spec: DictionarySpec, weights: Weights, x_ND: Tensor) -> Iterator[Convention]:
    if spec.selector == "custom" or weights.w_enc_DF is None or spec.needs_sequence:
        return  # nothing is known of the encoder, or there is none, or what it reads hangs on how it is read
    yield from _pre_bias(spec, weights)
    yield from _transforms(spec, weights)
    # Inputs that select apart do so by their norms: without these there would be nothing to tell them apart.
    if weights.w_dec_FO is not None and spec.selector in ("topk", "jumprelu") and not spec.by_input:
        gate = not spec.decoder_norm_gate
        name = (
            "with scores times the decoder's norms" if gate else "without the decoder's norms in the scores"
        )
        yield Convention(name, replace(spec, decoder_norm_gate=gate, value_is_score=False), weights)
    if not spec.transform:
        factor = float(x_ND.shape[1] ** 0.5 / x_ND.norm(dim=1).mean())
        yield Convention(
            f"with inputs times {factor:.4g}, to a mean norm of sqrt(d)", spec, scaled(weights, factor)
        )


def _pre_bias(spec: DictionarySpec, weights: Weights) -> Iterator[Convention]:
    none_D = torch.zeros_like(weights.b_pre_D)
    if weights.b_pre_D.any():
        yield Convention("with nothing subtracted from the input", spec, replace(weights, b_pre_D=none_D))
    elif weights.b_dec_O.any() and weights.b_dec_O.shape == weights.b_pre_D.shape:
        subtracting = replace(weights, b_pre_D=weights.b_dec_O)
        yield Convention("with b_dec subtracted from the input", spec, subtracting)


def _transforms(spec: DictionarySpec, weights: Weights) -> Iterator[Convention]:
    names: dict[Transform, str] = {
        "centre": "each token's mean subtracted",
        "layer_norm": "each token normalised to mean 0 and standard deviation 1",
        "constant_norm": "each token scaled to norm sqrt(d)",
    }
    for step, name in names.items():
        if step in spec.transform:
            left = tuple(one for one in spec.transform if one != step)
            yield Convention(f"without {name}", replace(spec, transform=left), weights)
        elif not spec.transform:
            yield Convention(f"with {name}", replace(spec, transform=(step,)), weights)


def scaled(weights: Weights, factor: float) -> Weights:
    """For inputs that are to be multiplied by a constant first, and outputs divided by it: folded in, so that
    they take and give what the model has."""
    return replace(
        weights,
        w_enc_DF=weights.encoder * factor,
        b_pre_D=weights.b_pre_D / factor,
        w_dec_FO=weights.decoder / factor,
        b_dec_O=weights.b_dec_O / factor,
    )
