"""Dictionaries trained on a model that TransformerLens had centred (center_writing_weights).

It centres what is written to the residual stream of models with LayerNorm, and leaves others alone. Whether
that matters to a dictionary is thus known with the model, not in its checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from autointerp.dictionaries.checkpoint import listed
from autointerp.errors import CheckpointError
from autointerp.sources import DictionaryFound
from autointerp.subject.architecture import Architecture
from autointerp.subject.tokenizer_files import TokenizerFiles
from autointerp.types import Point

WRITTEN: Final[frozenset[Point]] = frozenset({"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"})
"""The residual stream and what is written to it."""


def centred(name: str, found: DictionaryFound, architecture: Architecture) -> DictionaryFound:
    """With `centre` in front where this model needs it. Raises CheckpointError where nobody knows though the files
    say that it was centred, and where only some of its inputs were."""
    found = _with_target(found, architecture)
    if not _concerned(found):
        return found
    if architecture.has_layer_norm is None:
        whose = f"whether a '{architecture.model_type}' model has LayerNorm is not known"
        if found.spec.centring_is_default:
            return _left_as_it_is(found, whose)
        raise CheckpointError(
            f"dictionary '{name}' ({found.spec.path}) was trained with center_writing_weights, which centres "
            f"the activations of models with LayerNorm, and {whose}. If it has RMSNorm, set center_writing_weights "
            "to false in the dictionary's configuration."
        )
    if not architecture.has_layer_norm:
        return found
    if others := [str(site) for site in found.inputs if site.point not in WRITTEN]:
        raise CheckpointError(
            f"dictionary '{name}' ({found.spec.path}) was trained where {_centred_inputs(found)} had been centred "
            f"(center_writing_weights) and {listed(others)} had not, and its inputs are all treated alike. Store its "
            "activations centred, and set center_writing_weights to false in the dictionary's configuration."
        )
    # Steps that take all inputs as one vector stay so; else each loses its own mean.
    n_inputs = found.spec.n_inputs if found.spec.transform else max(found.spec.n_inputs, len(found.inputs))
    spec = dataclasses.replace(found.spec, transform=("centre", *found.spec.transform), n_inputs=n_inputs)
    return dataclasses.replace(found, spec=spec)


def centred_from_files(
    found: Mapping[str, DictionaryFound], tokenizer: TokenizerFiles
) -> dict[str, DictionaryFound]:
    """As `centred`, for activations from files, centred already or not: centring twice is centring once. Their
    model's norm stands in the config.json beside the tokenizer. Raises CheckpointError where there is none though a
    dictionary's files say that it was centred."""
    if not any(map(_concerned, found.values())):
        return dict(found)
    if (architecture := tokenizer.architecture) is not None:
        return {name: centred(name, one, architecture) for name, one in found.items()}
    whose = "activations from files don't say their model's norm"
    stated = [name for name, one in found.items() if _concerned(one) and not one.spec.centring_is_default]
    if not stated:
        return {name: _left_as_it_is(one, whose) if _concerned(one) else one for name, one in found.items()}
    raise CheckpointError(
        f"dictionary '{stated[0]}' ({found[stated[0]].spec.path}) was trained with center_writing_weights, which "
        f"centres the activations of models with LayerNorm, and {whose}. Put the model's config.json beside the "
        f"tokenizer ({tokenizer.folder}), or, where the vectors are centred already or the model has RMSNorm, set "
        "center_writing_weights to false in the dictionary's configuration."
    )


def _with_target(found: DictionaryFound, architecture: Architecture) -> DictionaryFound:
    """What a transcoder predicts was centred too, whatever it reads; of a model of unknown norm it is left."""
    out = found.site_out
    is_written = found.spec.is_transcoder and out is not None and out.point in WRITTEN
    if not (is_written and found.spec.model_was_centred and architecture.has_layer_norm):
        return found
    return dataclasses.replace(found, target_is_centred=True)


def _left_as_it_is(found: DictionaryFound, whose: str) -> DictionaryFound:
    note = f"read without centring: {whose}"
    return dataclasses.replace(found, spec=dataclasses.replace(found.spec, notes=(*found.spec.notes, note)))


def _concerned(found: DictionaryFound) -> bool:
    return found.spec.model_was_centred and bool(_centred_inputs(found))


def _centred_inputs(found: DictionaryFound) -> str:
    """Those that center_writing_weights changes; an empty text where there are none."""
    written = [str(site) for site in found.inputs if site.point in WRITTEN]
    return listed(written) if written else ""
