"""Activations -> sparse codes, and back.

    x_ND -> T(x) -> pre_NF = T(x) @ W_enc + (b_enc - b_pre @ W_enc) -> selector -> (token, feature, value)

Codes are sparse by construction: what is dense exists for one tile of tokens and features at a time and
stays on the device, so that a dictionary of a million features needs no more room than its weights.

Shapes: N tokens, D = d_in, F = width, M codes, K = k of a topk dictionary; n, f, m a tile of N, F, M.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import ModelError

CPU_ELEMENTS: Final = 2**22
GPU_ELEMENTS: Final = 2**28
"""Elements of the largest dense tensor: 16 MiB of float32, near what a CPU's caches hold, and 1 GiB."""
TOKENS_A_TILE: Final = 256
"""Where a tile can't have the whole width it has so many tokens, so that reading the weights is paid."""
COLUMNS: Final = 64
"""A sliceable dictionary is multiplied so many features at a time or a multiple, zeros added: then a column's
product is the same to the bit whatever columns stand beside it (MKL takes other paths for odd widths)."""
LAYER_NORM_EPSILON: Final = 1e-5
"""Added to the standard deviation, as SAELens does (saes/sae.py), not to the variance."""


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Which feature is active on which token, and how strongly: columns."""

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

    def __init__(
        self,
        spec: DictionarySpec,
        weights: Weights,
        *,
        max_elements: int | None = None,
        product_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`max_elements` bounds the dense tensors; None: by device, see above. It changes results only as
        far as a matrix product of another shape rounds differently. `product_dtype`: of the matrix
        product; selection is float32 always."""
        self.spec = spec
        self._weights = weights
        on_cpu = weights.w_enc_DF.device.type == "cpu"
        self._max_elements = max_elements or (CPU_ELEMENTS if on_cpu else GPU_ELEMENTS)
        self._bias_F = _folded_bias(weights, self._max_elements)
        self._w_enc_DF = weights.w_enc_DF.to(product_dtype)
        self._gate_F = _norm(weights.w_dec_FD)[:, 0] if spec.decoder_norm_gate else None
        self._threshold_F = weights.threshold_F
        self._columns: Tensor | None = None
        if spec.feature_sliceable:
            self._pad()

    def sliced(self, features: Sequence[int]) -> Encoder:
        """An encoder of these features alone (ascending), whose codes are what the whole one would give
        them. Only for a `feature_sliceable` dictionary; it can't decode."""
        assert self.spec.feature_sliceable
        columns = torch.tensor(features, dtype=torch.int64, device=self._w_enc_DF.device)
        some = copy.copy(self)
        some._columns = columns
        some._w_enc_DF = self._w_enc_DF[:, columns]
        some._bias_F = self._bias_F[columns]
        some._gate_F = None if self._gate_F is None else self._gate_F[columns]
        some._threshold_F = None if self._threshold_F is None else self._threshold_F[columns]
        some._pad()
        return some

    def _pad(self) -> None:
        """Features that never fire, up to a multiple of COLUMNS."""
        missing = (0, -self._w_enc_DF.shape[1] % COLUMNS)
        if not missing[1]:
            return
        pad = torch.nn.functional.pad
        self._w_enc_DF, self._bias_F = pad(self._w_enc_DF, missing), pad(self._bias_F, missing)
        self._gate_F = None if self._gate_F is None else pad(self._gate_F, missing)
        self._threshold_F = None if self._threshold_F is None else pad(self._threshold_F, missing)

    @torch.no_grad()
    def encode(self, x_ND: Tensor) -> Codes:
        """The active features of each token, sorted by token, then feature. `x_ND`: any float dtype, on
        the dictionary's device.

        topk: where several pre-activations equal the k-th largest, which of them is taken is torch.topk's
        choice and may differ between devices. Raises ModelError where an activation is NaN or infinite.
        """
        self.check_finite(int((~torch.isfinite(x_ND)).any(dim=1).sum()), len(x_ND))
        codes = self.candidates(x_ND)
        active = (codes.value_M > 0).nonzero()[:, 0]
        token_M, feature_M = codes.token_M[active], codes.feature_M[active]
        order = (token_M * self.spec.width + feature_M).argsort()
        return Codes(token_M[order], feature_M[order], codes.value_M[active][order])

    @torch.no_grad()
    def candidates(self, x_ND: Tensor) -> Codes:
        """Codes in no order, among which some of a topk dictionary may be 0 or negative: these are not
        active. Nothing here waits for the device unless the selector compares with thresholds."""
        n_step, f_step = self._tile(len(x_ND))
        tiles = [
            self._encode_tokens(x_ND[start : start + n_step], start, f_step)
            for start in range(0, len(x_ND), n_step)
        ]
        if not tiles:
            return self._empty(x_ND.device)
        token_M, feature_M, value_M = (torch.cat(column) for column in zip(*tiles, strict=True))
        if self._columns is not None:
            feature_M = self._columns[feature_M]
        return Codes(token_M, feature_M, value_M)

    def check_finite(self, n_bad: int, n_tokens: int) -> None:
        """Raises ModelError where activations of `n_bad` tokens are NaN or infinite: such a token would
        pass for one on which nothing fires."""
        if n_bad:
            raise ModelError(
                f"the model's activations at '{self.spec.site or self.spec.hook}' are NaN or infinite on "
                f"{n_bad:,} of {n_tokens:,} tokens. In float16 they overflow: run the model in bfloat16 "
                "or float32."
            )

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

    def _tile(self, n_tokens: int) -> tuple[int, int]:
        """(tokens, features) of a tile."""
        width = self._w_enc_DF.shape[1]
        n_step = max(self._max_elements // width, min(TOKENS_A_TILE, n_tokens, self._max_elements), 1)
        f_step = max(1, min(width, self._max_elements // n_step))
        return n_step, f_step + -f_step % COLUMNS if self.spec.feature_sliceable else f_step

    def _encode_tokens(self, x_nD: Tensor, first_token: int, f_step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(token, feature, value) of a few tokens, the first of which has index `first_token`."""
        x_nD = self._transformed(x_nD.to(torch.float32))
        if self.spec.selector == "topk":
            value_nK, feature_nK = self._top_k(x_nD, f_step)
            token_n = torch.arange(first_token, first_token + len(x_nD), device=x_nD.device)
            return token_n.repeat_interleave(value_nK.shape[1]), feature_nK.ravel(), value_nK.ravel()
        tiles = [self._above(pre_nf, start) for start, pre_nf in self._pre(x_nD, f_step)]
        token_m, feature_m, value_m = (torch.cat(column) for column in zip(*tiles, strict=True))
        return token_m + first_token, feature_m, value_m

    def _pre(self, x_nD: Tensor, f_step: int) -> Iterator[tuple[int, Tensor]]:
        """Pre-activations [n, f] of one tile of features after the other, and the tile's first feature."""
        x_nD = x_nD.to(self._w_enc_DF.dtype)
        for start in range(0, self._w_enc_DF.shape[1], f_step):
            these = slice(start, start + f_step)
            if self._w_enc_DF.dtype == torch.float32:
                pre_nf = torch.addmm(self._bias_F[these], x_nD, self._w_enc_DF[:, these])
            else:
                pre_nf = (x_nD @ self._w_enc_DF[:, these]).float() + self._bias_F[these]
            if self._gate_F is not None:
                pre_nf.mul_(self._gate_F[these])
            yield start, pre_nf

    def _top_k(self, x_nD: Tensor, f_step: int) -> tuple[Tensor, Tensor]:
        """Values and features [n, K] of each token's k largest, over all tiles."""
        k = self.spec.k or 0
        best: tuple[Tensor, Tensor] | None = None
        for start, pre_nf in self._pre(x_nD, f_step):
            value_nk, place_nk = largest(pre_nf, min(k, pre_nf.shape[1]))
            found = (value_nk, place_nk + start)
            if best is not None:
                value_n2, feature_n2 = (torch.cat(pair, dim=1) for pair in zip(best, found, strict=True))
                value_nk, place_nk = largest(value_n2, min(k, value_n2.shape[1]))
                found = (value_nk, feature_n2.gather(1, place_nk))
            best = found
        assert best is not None
        return best

    def _above(self, pre_nf: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """The positive ones, with a threshold only those strictly above it."""
        active_nf = pre_nf > 0
        if self.spec.selector == "jumprelu":
            assert self._threshold_F is not None
            active_nf &= pre_nf > self._threshold_F[start : start + pre_nf.shape[1]]
        token_m, feature_m = torch.nonzero(active_nf, as_tuple=True)
        return token_m, feature_m + start, pre_nf[token_m, feature_m]

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


def largest(x_nf: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and places [n, k] of each row's k largest, in no order: torch.topk's, sooner.

    Columns are dealt into groups. The k groups with the largest maxima hold the k largest values, ties
    aside: were one of these in another group, each of the k groups would hold one at least as large.
    So torch.topk sees few of them.
    """
    width = x_nf.shape[1]
    group_size = next((size for size in (16, 4) if width >= 4 * k * size), 1)
    if group_size == 1:
        value_nk, place_nk = torch.topk(x_nf, k, dim=1, sorted=False)
        return value_nk, place_nk
    n_groups = width // group_size
    dealt = group_size * n_groups
    x_nsg = x_nf[:, :dealt].unflatten(1, (group_size, n_groups))
    _, group_nk = largest(x_nsg.amax(1), k)
    in_groups = x_nsg.gather(2, group_nk[:, None, :].expand(-1, group_size, -1)).flatten(1)
    if dealt < width:
        in_groups = torch.cat([in_groups, x_nf[:, dealt:]], dim=1)
    value_nk, at_nk = torch.topk(in_groups, k, dim=1, sorted=False)
    place_nk = at_nk // k * n_groups + group_nk.gather(1, at_nk % k)
    # What was not dealt stands behind all groups.
    return value_nk, torch.where(at_nk < group_size * k, place_nk, at_nk - group_size * k + dealt)


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
