"""Dictionaries trained on a model that TransformerLens had centred (center_writing_weights).

It centres what is written to the residual stream of models with LayerNorm, and leaves others alone. Whether
that matters to a dictionary is thus known with the model, not in its checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from autointerp.errors import CheckpointError
from autointerp.sources import DictionaryFound
from autointerp.subject.architecture import Architecture
from autointerp.subject.tokenizer_files import TokenizerFiles
from autointerp.types import Point

WRITTEN: Final[frozenset[Point]] = frozenset({"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"})
"""The residual stream and what is written to it."""


def centred(name: str, found: DictionaryFound, architecture: Architecture) -> DictionaryFound:
    """With `centre` in front where this model needs it. Raises CheckpointError where nobody knows."""
    if not _concerned(found):
        return found
    if architecture.has_layer_norm is None:
        raise CheckpointError(
            f"dictionary '{name}' ({found.spec.path}) was trained with center_writing_weights, which centres "
            f"the activations of models with LayerNorm, and whether a '{architecture.model_type}' model has "
            "LayerNorm is not known. If it has RMSNorm, set center_writing_weights to false in the dictionary's "
            "configuration."
        )
    if not architecture.has_layer_norm:
        return found
    spec = dataclasses.replace(found.spec, transform=("centre", *found.spec.transform))
    return dataclasses.replace(found, spec=spec)


def centred_from_files(
    found: Mapping[str, DictionaryFound], tokenizer: TokenizerFiles
) -> dict[str, DictionaryFound]:
    """As `centred`, for activations from files, centred already or not: centring twice is centring once. Their
    model's norm stands in the config.json beside the tokenizer. Raises CheckpointError where there is none."""
    if not any(map(_concerned, found.values())):
        return dict(found)
    if (architecture := tokenizer.architecture) is not None:
        return {name: centred(name, one, architecture) for name, one in found.items()}
    name, one = next((name, one) for name, one in found.items() if _concerned(one))
    raise CheckpointError(
        f"dictionary '{name}' ({one.spec.path}) was trained with center_writing_weights, which centres "
        "the activations of models with LayerNorm, and activations from files don't say their model's "
        f"norm. Put the model's config.json beside the tokenizer ({tokenizer.folder}), or, where the vectors are "
        "centred already or the model has RMSNorm, set center_writing_weights to false in the dictionary's "
        "configuration."
    )


def _concerned(found: DictionaryFound) -> bool:
    return found.spec.model_was_centred and found.site.point in WRITTEN
