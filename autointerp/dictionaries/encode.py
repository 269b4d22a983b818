"""Activations -> sparse codes, and back.

    x_ND -> T(x) -> pre_NF = T(x) @ W_enc + (b_enc - b_pre @ W_enc) -> selector -> (token, feature, value)

Codes are sparse by construction: what is dense ([tokens, F]) exists for one chunk of tokens at a time and
stays on the device. All arithmetic is float32, whatever the model's dtype.

Shapes: N tokens, D = d_in, F = width, M codes, K = k of a topk dictionary; n, m a chunk of N, M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import ModelError

MAX_ELEMENTS: Final = 2**26
"""Elements of the largest dense tensor: 2**26 float32 are 256 MiB. For 131,072 features: 512 tokens."""
LAYER_NORM_EPSILON: Final = 1e-5
"""Added to the standard deviation, as SAELens does (saes/sae.py), not to the variance."""


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Which feature is active on which token, and how strongly: columns, sorted by token, then feature."""

    token_M: Tensor
    """int64, index into the tokens that were encoded."""
    feature_M: Tensor
    """int64"""
    value_M: Tensor
    """float32, above 0."""

    def __len__(self) -> int:
        return self.value_M.numel()


class Encoder:
    """One dictionary on one device.

    A code's value is what the source library calls the feature's activation; for a dictionary with
    `decoder_norm_gate` that is the pre-activation times the norm of the decoder row, and `decode` divides
    it out again (SAELens topk_sae.py with `rescale_acts_by_decoder_norm`).
    """

    def __init__(self, spec: DictionarySpec, weights: Weights, max_elements: int = MAX_ELEMENTS) -> None:
        """`max_elements` bounds the dense tensors, see MAX_ELEMENTS; it changes results only as far as a
        matrix product of another batch size rounds differently."""
        self.spec = spec
        self._weights = weights
        self._max_elements = max_elements
        self._bias_F = _folded_bias(weights, max_elements)
        self._gate_F = _norm(weights.w_dec_FD)[:, 0] if spec.decoder_norm_gate else None

    @torch.no_grad()
    def encode(self, x_ND: Tensor) -> Codes:
        """The active features of each token. `x_ND`: any float dtype, on the dictionary's device.

        topk: where several pre-activations equal the k-th largest, which of them is taken is torch.topk's
        choice and may differ between devices. Raises ModelError where an activation is NaN or infinite:
        its token would pass for one on which nothing fires.
        """
        if not torch.isfinite(x_ND).all():
            n_bad = int((~torch.isfinite(x_ND)).any(dim=1).sum())
            raise ModelError(
                f"the model's activations at '{self.spec.site or self.spec.hook}' are NaN or infinite on "
                f"{n_bad:,} of {x_ND.shape[0]:,} tokens. In float16 they overflow: run the model in bfloat16 "
                "or float32."
            )
        step = max(1, self._max_elements // self.spec.width)
        starts = range(0, x_ND.shape[0], step)
        chunks = [self._encode_chunk(x_ND[start : start + step], start) for start in starts]
        if not chunks:
            return self._empty(x_ND.device)
        return Codes(*(torch.cat(column) for column in zip(*chunks, strict=True)))

    @torch.no_grad()
    def decode(self, codes: Codes, x_ND: Tensor) -> Tensor:
        """x_hat_ND, float32: what the dictionary makes of `x_ND`, whose codes are `codes`.

        Of `x_ND` only the number of tokens is used and, for a dictionary that normalises its input, each
        token's mean and scale, to undo that as SAELens does.
        """
        weights, d_in = self._weights, self.spec.d_in
        x_hat_ND = torch.zeros(x_ND.shape[0], d_in, device=weights.w_dec_FD.device)
        if not x_ND.shape[0]:
            return x_hat_ND
        step = max(1, self._max_elements // d_in)
        value_M = codes.value_M
        if self._gate_F is not None:
            value_M = value_M / self._gate_F[codes.feature_M]
        for start in range(0, len(codes), step):
            these = slice(start, start + step)
            rows_mD = weights.w_dec_FD[codes.feature_M[these]] * value_M[these, None]
            x_hat_ND.index_add_(0, codes.token_M[these], rows_mD)
        return self._untransformed(x_hat_ND + weights.b_dec_D, x_ND.to(torch.float32))

    def _encode_chunk(self, x_nD: Tensor, first_token: int) -> tuple[Tensor, Tensor, Tensor]:
        """(token, feature, value) of a few tokens, the first of which has index `first_token`."""
        x_nD = self._transformed(x_nD.to(torch.float32))
        pre_nF = torch.addmm(self._bias_F, x_nD, self._weights.w_enc_DF)
        if self._gate_F is not None:
            pre_nF.mul_(self._gate_F)
        if self.spec.selector == "topk":
            token_m, feature_m, value_m = _top_k(pre_nF, self.spec.k or 0)
        else:
            threshold_F = self._weights.threshold_F if self.spec.selector == "jumprelu" else None
            token_m, feature_m, value_m = _above(pre_nF, threshold_F)
        return token_m + first_token, feature_m, value_m

    def _transformed(self, x_nD: Tensor) -> Tensor:
        if self.spec.transform == "layer_norm":
            mean_n1, std_n1 = _mean_and_std(x_nD)
            return (x_nD - mean_n1) / (std_n1 + LAYER_NORM_EPSILON)
        if self.spec.transform == "constant_norm":
            return x_nD / _relative_norm(x_nD)
        return x_nD

    def _untransformed(self, x_hat_ND: Tensor, x_ND: Tensor) -> Tensor:
        if self.spec.transform == "layer_norm":
            mean_N1, std_N1 = _mean_and_std(x_ND)
            return x_hat_ND * std_N1 + mean_N1
        if self.spec.transform == "constant_norm":
            return x_hat_ND * _relative_norm(x_ND)
        return x_hat_ND

    def _empty(self, device: torch.device) -> Codes:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Codes(none, none, torch.zeros(0, device=device))


def _top_k(pre_nF: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each token, the positive ones of them."""
    value_nK, feature_nK = torch.topk(pre_nF, k, dim=1, sorted=False)
    feature_nK, order_nK = feature_nK.sort(dim=1)
    value_nK = value_nK.gather(1, order_nK)
    token_m, place_m = torch.nonzero(value_nK > 0, as_tuple=True)
    return token_m, feature_nK[token_m, place_m], value_nK[token_m, place_m]


def _above(pre_nF: Tensor, threshold_F: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The positive ones, with a threshold only those strictly above it."""
    active_nF = pre_nF > 0
    if threshold_F is not None:
        active_nF &= pre_nF > threshold_F
    token_m, feature_m = torch.nonzero(active_nF, as_tuple=True)
    return token_m, feature_m, pre_nF[token_m, feature_m]


def _folded_bias(weights: Weights, max_elements: int) -> Tensor:
    """b_enc - b_pre @ W_enc [F], so that encoding never subtracts b_pre. Summed in float64, a few columns
    at a time: b_pre can be large, and what is left of it small."""
    b_pre_D = weights.b_pre_D.to(torch.float64)
    if not b_pre_D.any():
        return weights.b_enc_F
    step = max(1, max_elements // b_pre_D.numel())
    starts = range(0, weights.w_enc_DF.shape[1], step)
    pieces = [b_pre_D @ weights.w_enc_DF[:, start : start + step].to(torch.float64) for start in starts]
    return (weights.b_enc_F.to(torch.float64) - torch.cat(pieces)).to(torch.float32)


def _mean_and_std(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token [N, 1]; the standard deviation is the unbiased one, over D - 1."""
    return x_ND.mean(dim=1, keepdim=True), x_ND.std(dim=1, keepdim=True)


def _relative_norm(x_ND: Tensor) -> Tensor:
    """Each token's norm over sqrt(D) [N, 1]; above 0 also for a token of zeros."""
    return _norm(x_ND).clamp_min(1e-12) / x_ND.shape[1] ** 0.5


def _norm(x_ND: Tensor) -> Tensor:
    """Of each row [N, 1]."""
    return x_ND.square().sum(dim=1, keepdim=True).sqrt()
