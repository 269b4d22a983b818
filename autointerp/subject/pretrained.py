"""Weights of a subject model by transformers: whole, cut behind a layer, or at random.

The families' own code runs, never code from a repository.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn

from autointerp import draw
from autointerp.subject.architecture import Architecture

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""`auto` is float32 on a CPU, where results must repeat exactly, and bfloat16 elsewhere."""

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_dtype(name: Dtype, device: str) -> torch.dtype:
    """Of the model on this device."""
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return _DTYPES[name]


def from_pretrained(
    folder: str,
    architecture: Architecture,
    dtype: torch.dtype,
    device_map: str | None,
    n_layers: int | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The model and what transformers says of the loading (`missing_keys`, ...)."""
    from transformers import AutoModelForCausalLM  # slow to import

    load = cast(Any, AutoModelForCausalLM).from_pretrained  # typed for no model in particular
    log = logging.getLogger("transformers.modeling_utils")
    before = log.level
    log.setLevel(
        logging.ERROR
    )  # its report of layers that are left out on purpose; what is missing is checked
    try:
        return load(
            folder,
            config=_config(folder, architecture.n_layers, n_layers),
            dtype=dtype,
            attn_implementation=architecture.attention,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    finally:
        log.setLevel(before)


def randomise(model: nn.Module, seed: int) -> None:
    """Every parameter becomes normal numbers of the mean and spread that it has (arXiv 2501.17727,
    "re-randomised"), embeddings, norms and biases included. Keyed by name, so that a part of the model is a part
    of the random model.

    Not as the family would initialise it: that gives a residual stream a hundredth as long, and a dictionary
    that was trained on the model then says the same few features on every token.
    """
    for name, parameter in cast(Iterable[tuple[str, nn.Parameter]], model.named_parameters()):
        generator = torch.Generator().manual_seed(draw.key(seed, "random weights", name) >> 1)
        mean, spread = _moments(parameter.detach().cpu())  # sums on a GPU would differ in their last bits
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator).mul_(spread).add_(mean))


def _moments(known: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, in pieces: in float64 an embedding weighs four times what it does."""
    pieces = known.flatten().split(2**22)
    mean = math.fsum(float(piece.double().sum()) for piece in pieces) / known.numel()
    squares = math.fsum(float((piece.double() - mean).square().sum()) for piece in pieces)
    return mean, math.sqrt(squares / known.numel())


def _config(folder: str, n_all: int, n_wanted: int | None) -> Any:
    """transformers' configuration of the model, or of one that ends after `n_wanted` layers."""
    from transformers import AutoConfig

    config = cast(Any, AutoConfig).from_pretrained(folder, trust_remote_code=False)
    if n_wanted is None or n_wanted >= n_all:
        return config
    text = config.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(cast(list[Any], value)) == n_all:
            setattr(text, name, value[:n_wanted])  # layer_types and its like: an entry a layer
    text.num_hidden_layers = n_wanted
    return config
