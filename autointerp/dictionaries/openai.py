"""OpenAI's dictionaries on GPT-2 small: a file a layer, in folders that name the place.

    gpt2-small/resid_post_mlp_v5_32k/autoencoders/7.pt

    latents = activation((x - pre_bias) encoder^T + latent_bias)

The input is layer-normed where the activation is TopK (v5), else (v1, v4: ReLU) it is not. TopK takes the k
largest, then its `postact_fn`, a ReLU. `resid_delta_*` is what attention or MLP adds to the stream,
`resid_post_*` the stream behind them.

Source: openai/sparse_autoencoder: sparse_autoencoder/model.py, paths.py, README.md; arXiv 2406.04093.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import shortened
from autointerp.dictionaries.layouts import Layout
from autointerp.dictionaries.origin import named, site_of
from autointerp.dictionaries.spec import DictionarySpec, Selector, Weights
from autointerp.dictionaries.tensors import PICKLED, check_shapes, read_tensors
from autointerp.dictionaries.torch_files import Contents, read_contents
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

LAYOUT: Final = Layout("encoder.weight", "decoder.weight", "latent_bias", "pre_bias", linear=True)
HOOKS: Final = {
    "mlp_post_act": "blocks.{layer}.mlp.hook_post",
    "resid_delta_attn": "blocks.{layer}.hook_attn_out",
    "resid_post_attn": "blocks.{layer}.hook_resid_mid",
    "resid_delta_mlp": "blocks.{layer}.hook_mlp_out",
    "resid_post_mlp": "blocks.{layer}.hook_resid_post",
}
PLACE: Final = f"^(?P<place>{'|'.join(HOOKS)})(_v\\d.*)?$"


@dataclass(frozen=True, slots=True)
class Openai:
    """OpenAI's sparse autoencoders: N.pt in a folder such as resid_post_mlp_v5_32k; topk, relu."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        if path.suffix not in PICKLED or not path.is_file():
            return False
        try:
            return read_contents(path).tensors.keys() >= {LAYOUT.b_enc, LAYOUT.b_dec}
        except CheckpointError:
            return False

    def describe(self, path: Path) -> DictionarySpec:
        """Reads names, headers and what the file says of its activation. Raises CheckpointError."""
        contents = read_contents(path)
        d_in, width = LAYOUT.sizes(path, contents.tensors)
        selector, k = _selector(path, contents, width)
        place, layer = named(path, PLACE), re.fullmatch(r"(\d+)", path.stem)
        hook = HOOKS[place["place"]].format(layer=layer[1]) if place and layer else None
        spec = DictionarySpec(
            format="openai",
            path=path,
            identity=fingerprint([path]),
            d_in=d_in,
            width=width,
            selector=selector,
            k=k,
            hook=hook,
            site=site_of(hook),
            model="gpt2" if named(path, r"^gpt2-small$") else None,
            corpus=None,
            context_length=64,
            prepend_bos=False,
            transform=("layer_norm",) if selector == "topk" else (),
            notes=(
                "pre_bias is subtracted",
                "the input is layer-normed" if selector == "topk" else "the input is not layer-normed",
            ),
        )
        check_shapes(path, contents.tensors, LAYOUT.shapes(spec))
        return spec

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the tensors. Raises CheckpointError, also where the file is another than described."""
        weights = LAYOUT.weights(read_tensors(spec.path, LAYOUT.shapes(spec), device))
        return replace(weights, b_pre_D=weights.b_dec_O)


def _selector(path: Path, contents: Contents, width: int) -> tuple[Selector, int | None]:
    activation = contents.values.get("activation", "ReLU")
    if activation == "ReLU":
        return "relu", None
    if activation != "TopK":
        raise CheckpointError(f"{path}: its activation is {shortened(activation)}. TopK and ReLU are read.")
    k = contents.values.get("activation_state_dict.k")
    after = contents.values.get("activation_state_dict.postact_fn", "ReLU")
    if type(k) is not int or not 1 <= k <= width:
        raise CheckpointError(
            f"{path}: activation_state_dict.k is {shortened(k)}, but the TopK of {width} features needs a number."
        )
    if after != "ReLU":
        raise CheckpointError(
            f"{path}: behind its TopK comes {shortened(after)}, so that features have negative activations. Only "
            "ReLU is read."
        )
    return "topk", k
