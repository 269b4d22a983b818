"""What attention's value bias adds to z, of models that have one.

Attention's weights sum to one, so a bias of the values comes through unchanged: it is added to z on every token.
TransformerLens' `fold_value_biases` takes it out of z, and dictionaries trained there (Kissane et al., arXiv
2406.17759) expect z without it. Before that, its `fold_ln` makes LayerNorm's bias, times the values' weights, a part
of the values' bias.

Sources: transformers models/{gpt2,gpt_neox,qwen2}/modeling_*.py (5.19); TransformerLens 2.16.1:
HookedTransformer.fold_layer_norm, fold_value_biases.
"""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor

from autointerp.subject.model_files import ModelFiles
from autointerp.subject.named_tensors import FLOATS, NamedTensors


def read_value_bias(files: ModelFiles, layer: int, device: str) -> Tensor | None:
    """[H], float32, all heads one behind the other as in z; None where the family has none that is known here.
    Raises ModelError where a file is missing or unreadable."""
    d_heads, n_heads = files.architecture.d_heads, files.architecture.n_heads
    tensors = NamedTensors(files.with_weights(), device)
    name = tensors.only(_named(layer, _VALUES, "bias"), in_layers=True)
    if name is None or d_heads is None or n_heads is None:
        return None
    bias = tensors.read(name)
    if bias.dtype not in FLOATS or bias.ndim != 1:
        return None
    return _of_heads(bias.to(torch.float32), name, d_heads, n_heads)


def read_folded_bias(files: ModelFiles, layer: int, device: str) -> Tensor | None:
    """The same with what LayerNorm's bias makes of the values: all that `fold_ln` and `fold_value_biases` take out of
    z."""
    bias_H = read_value_bias(files, layer, device)
    tensors = NamedTensors(files.with_weights(), device)
    norm = tensors.only(_named(layer, "ln_1|input_layernorm", "bias"), in_layers=True)
    name = tensors.only(_named(layer, _VALUES, "weight"), in_layers=True)
    if bias_H is None or norm is None or name is None:  # RMSNorm has no bias
        return bias_H
    shift_D, weight = tensors.read(norm).to(torch.float64), tensors.read(name).to(torch.float64)
    # GPT-2 keeps its maps as [in, out], the others as [out, in].
    moved = shift_D @ weight if name.endswith("c_attn.weight") else weight @ shift_D
    assert files.architecture.d_heads is not None and files.architecture.n_heads is not None
    own_H = _of_heads(moved, name, files.architecture.d_heads, files.architecture.n_heads)
    return bias_H if own_H is None else (bias_H.double() + own_H).float()


_VALUES: Final = r"attn\.c_attn|attention\.query_key_value|self_attn\.v_proj"


def _named(layer: int, module: str, kind: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?(layers|h)\.{layer}\.({module})\.{kind}")


def _of_heads(all_of_it: Tensor, name: str, d_heads: int, n_heads: int) -> Tensor | None:
    """Of what the map called `name` gives, the values, as z has them."""
    module, n, d_head = name.rpartition(".")[0], len(all_of_it), d_heads // n_heads
    if module.endswith("c_attn") and n == 3 * d_heads:  # queries, keys, values
        return all_of_it[2 * d_heads :]
    if module.endswith("query_key_value") and n == 3 * d_heads:  # the same, head by head
        return all_of_it.reshape(n_heads, 3, d_head)[:, 2].flatten()
    if module.endswith("v_proj") and n and d_heads % n == 0:
        # Several heads of queries share one of values.
        return all_of_it.reshape(-1, d_head).repeat_interleave(d_heads // n, dim=0).flatten()
    return None
