"""What the tokens before a token predict of its vector: the attention of a temporal SAE.

    of each layer    z = relu(x W_enc) and its keys, values and queries; attention of each token over the z of those
                     before it (and over a z of zeros, so that the first has something to attend to); p = relu of what
                     it gives, out of the same features; x loses its projection on the direction p W_dec

Source: arXiv 2511.01836; eslubana/temporalSAEs at d520c8c: sae/saeTemporal.py, sae/utils.py. There inputs are scaled
by a constant s first; here all is in the model's own units, with W_enc and b_pre folded accordingly.

Shapes: T tokens of a row, t some of them; D = d_in, F = width, H heads, E numbers of a key, of all heads, V = F / H.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

TOKENS: Final = 256
"""Of a row at once: what is dense and as wide as the dictionary has so many rows, but for a row's values [T, F]."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    """Maps as torch.nn.Linear has them: [out, in], and their biases."""

    key_EF: Tensor
    key_bias_E: Tensor
    query_EF: Tensor
    query_bias_E: Tensor
    value_FF: Tensor
    value_bias_F: Tensor
    out_FF: Tensor
    out_bias_F: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """A `spec.Predict`."""

    layers: tuple[AttentionLayer, ...]
    n_heads: int
    w_enc_DF: Tensor
    b_pre_D: Tensor
    w_dec_FD: Tensor
    epsilon: float
    """Added to the length of p W_dec."""

    def __call__(self, x_TD: Tensor) -> Tensor:
        predicted_TD = torch.zeros_like(x_TD)
        for layer in self.layers:
            predicted_TD += self._explained(layer, x_TD - predicted_TD - self.b_pre_D)
        return predicted_TD

    def _explained(self, layer: AttentionLayer, x_TD: Tensor) -> Tensor:
        """[T, D], by one layer."""
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for x_tD in x_TD.split(TOKENS):
            z_tF = (x_tD @ self.w_enc_DF).relu_()
            queries.append(linear(z_tF, layer.query_EF, layer.query_bias_E))
            keys.append(z_tF @ layer.key_EF.T)
            values.append(z_tF @ layer.value_FF.T)
        key_TE = _one_later(torch.cat(keys)) + layer.key_bias_E
        value_TF = _one_later(torch.cat(values)).add_(layer.value_bias_F)
        del values
        found: list[Tensor] = []
        for begin, seen_tF in self._attended(torch.cat(queries), key_TE, value_TF):
            x_tD = x_TD[begin : begin + TOKENS]
            towards_tD = linear(seen_tF, layer.out_FF, layer.out_bias_F).relu_() @ self.w_dec_FD
            length_t1 = towards_tD.norm(dim=1, keepdim=True) + self.epsilon
            share_t1 = (towards_tD * x_tD).sum(dim=1, keepdim=True) / length_t1.square()
            found.append(share_t1 * towards_tD)
        return torch.cat(found)

    def _attended(self, query_TE: Tensor, key_TE: Tensor, value_TF: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Some tokens at a time, the number of the first and what they see [t, F], heads one behind the other."""
        query_HTe, key_HTe, value_HTV = (self._by_head(one) for one in (query_TE, key_TE, value_TF))
        scale = query_HTe.shape[2] ** -0.5
        for begin in range(0, len(query_TE), TOKENS):
            end = min(begin + TOKENS, len(query_TE))
            score_HtT = scale * query_HTe[:, begin:end] @ key_HTe[:, :end].transpose(1, 2)
            place_T = torch.arange(end, device=score_HtT.device)
            score_HtT = score_HtT.masked_fill(place_T > place_T[begin:, None], float("-inf"))
            seen_HtV = score_HtT.softmax(dim=2) @ value_HTV[:, :end]
            yield begin, seen_HtV.transpose(0, 1).flatten(1)

    def _by_head(self, x_TE: Tensor) -> Tensor:
        """[H, T, E / H]"""
        return x_TE.unflatten(1, (self.n_heads, -1)).transpose(0, 1)


def _one_later(x_TE: Tensor) -> Tensor:
    """Row t is what stood at t - 1; row 0 is zeros."""
    return pad(x_TE[:-1], (0, 0, 1, 0))
