"""What a dictionary must be that chooses by gradients (`DictionarySpec.gradient_weight`). No torch."""

from __future__ import annotations

import math

from autointerp.dictionaries.spec import DictionarySpec
from autointerp.errors import CheckpointError


def gradient_fault(spec: DictionarySpec) -> str | None:
    """What is wrong with its `gradient_weight`, a sentence without its end; None where nothing is, or it has none."""
    weight = spec.gradient_weight
    if weight is None:
        return None
    if not (math.isfinite(weight) and weight > 0):
        return "expected a number above 0, or nothing for activations alone"
    if spec.selector != "topk" or spec.by_input:
        return "it takes the selector topk, of all inputs together"
    if spec.is_transcoder or spec.is_basis or not spec.reconstructs:
        return "the gradient is that by what the dictionary reads, so it must reconstruct just that"
    if spec.decoder_norm_gate:
        return "with decoder_norm_gate a score and its row's effect have different scales: fold the norms in first"
    if scaling := [step for step in spec.transform if step != "centre"]:
        return f"a step that scales each token ({', '.join(scaling)}) leaves open what the gradient is of"
    return None


def check_gradient_weight(spec: DictionarySpec) -> None:
    """Raises CheckpointError."""
    if (fault := gradient_fault(spec)) is not None:
        raise CheckpointError(f"{spec.path}: gradient_weight is {spec.gradient_weight:g}: {fault}.")
