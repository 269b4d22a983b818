"""What attention's value bias adds to z, of models that have one.

Attention's weights sum to one, so a bias of the values comes through unchanged: it is added to z on every token.
TransformerLens' `fold_value_biases` takes it out of z, and dictionaries trained there (Kissane et al., arXiv
2406.17759) may expect z without it.

Source: transformers models/{gpt2,gpt_neox,qwen2}/modeling_*.py (5.19).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from autointerp.subject.model_files import ModelFiles
from autointerp.subject.named_tensors import FLOATS, NamedTensors


def read_value_bias(files: ModelFiles, layer: int, device: str) -> Tensor | None:
    """[H], float32, all heads one behind the other as in z; None where the family has none that is known here.
    Raises ModelError where a file is missing or unreadable."""
    d_heads, n_heads = files.architecture.d_heads, files.architecture.n_heads
    tensors = NamedTensors(files.with_weights(), device)
    place = re.compile(
        rf"(.*\.)?(layers|h)\.{layer}\.(attn\.c_attn|attention\.query_key_value|self_attn\.v_proj)\.bias"
    )
    name = tensors.only(place, in_layers=True)
    if name is None or d_heads is None or n_heads is None:
        return None
    bias = tensors.read(name)
    if bias.dtype not in FLOATS or bias.ndim != 1:
        return None
    bias = bias.to(torch.float32)
    d_head = d_heads // n_heads
    if name.endswith("c_attn.bias") and len(bias) == 3 * d_heads:  # queries, keys, values
        return bias[2 * d_heads :]
    if name.endswith("query_key_value.bias") and len(bias) == 3 * d_heads:  # the same, head by head
        return bias.reshape(n_heads, 3, d_head)[:, 2].flatten()
    if name.endswith("v_proj.bias") and len(bias) and d_heads % len(bias) == 0:
        # Several heads of queries share one of values.
        return bias.reshape(-1, d_head).repeat_interleave(d_heads // len(bias), dim=0).flatten()
    return None
