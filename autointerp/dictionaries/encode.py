"""Activations -> sparse codes, and back.

    x_ND -> T(x) -> score_NF = (T(x) @ W_enc + (b_enc - b_pre @ W_enc)) * norm -> selector
         -> (token, column, value)

Codes that are found with the decoder alone (matching pursuit, least squares) come from `by_decoder.py`.

A feature of a signed dictionary has two columns, one a pole: 2i for what is positive, 2i + 1 for what is
negative, whose value is the magnitude. Else column i is feature i.

Codes are sparse by construction: what is dense exists for one tile of tokens and features at a time and
stays on the device, so that a dictionary of a million features needs no more room than its weights.

Shapes: N tokens, D = d_in, F = width, M codes, O = d_out; n, f, m a tile of N, F, M.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from autointerp.dictionaries.by_decoder import gram_of, non_negative, pursued
from autointerp.dictionaries.by_gradient import top_k_by_effect
from autointerp.dictionaries.by_input import among_largest, top_k_of_any
from autointerp.dictionaries.columns import EncoderColumns
from autointerp.dictionaries.finite import check_finite, count_bad
from autointerp.dictionaries.selectors import (
    Found,
    by_token,
    elements_a_token,
    norm_matched,
    select,
    tile_multiple,
)
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.transforms import transformed, untransformed
from autointerp.errors import CheckpointError

CPU_ELEMENTS: Final = 2**22
GPU_ELEMENTS: Final = 2**28
"""Elements of the largest dense tensor: 16 MiB of float32, near what a CPU's caches hold, and 1 GiB."""
TOKENS_A_TILE: Final = 256
"""Where a tile can't have the whole width it has so many tokens, so that reading the weights is paid."""
COLUMNS: Final = 64
"""A sliceable dictionary is multiplied so many features at a time or a multiple, zeros added: then a column's
product is the same to the bit whatever columns stand beside it (MKL takes other paths for odd widths)."""


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Which feature is active on which token, and how strongly: columns."""

    token_M: Tensor
    """int64, index into the tokens that were encoded."""
    feature_M: Tensor
    """int64, columns."""
    value_M: Tensor
    """float32, above 0."""

    def __len__(self) -> int:
        return self.value_M.numel()


class Encoder:
    """One dictionary on one device. A code's value is what the source library calls the feature's
    activation."""

    def __init__(
        self,
        spec: DictionarySpec,
        weights: Weights,
        *,
        max_elements: int | None = None,
        product_dtype: torch.dtype = torch.float32,
        place: str | None = None,
    ) -> None:
        """`max_elements` bounds the dense tensors; None: by device, see above. It changes results only as
        far as a matrix product of another shape rounds differently. `product_dtype`: of the matrix
        product; selection is float32 always. `place`: where it reads, for messages; None: what `spec` says."""
        self.spec, self._place = spec, place or str(spec.site or spec.hook)
        self._weights = weights
        on_cpu = weights.b_enc_F.device.type == "cpu"
        self._max_elements = max_elements or (CPU_ELEMENTS if on_cpu else GPU_ELEMENTS)
        self._columns = EncoderColumns.of(spec, weights, product_dtype, self._max_elements)
        self._norm_F = self._columns.norm_C
        self._share_LF = weights.input_share_LF
        self._features: Tensor | None = None
        """Which features the columns are, of a slice."""
        self._gram_FF: Tensor | None = None
        self._is_multiplied = False
        if spec.feature_sliceable:
            self._columns = self._columns.padded(COLUMNS)
        if spec.needs_gradient and weights.encode is not None:
            raise CheckpointError(
                f"{spec.path}: codes that a function makes (encode) can't be chosen by gradients (gradient_weight is "
                f"{spec.gradient_weight:g}). Leave one of the two out."
            )

    @property
    def device(self) -> torch.device:
        return self._weights.b_enc_F.device

    def sliced(self, features: Sequence[int]) -> Encoder:
        """An encoder of these features alone (ascending), whose codes are what the whole one would give
        them. Only for a `feature_sliceable` dictionary; it can't decode."""
        assert self.spec.feature_sliceable
        some = copy.copy(self)
        some._features = torch.tensor(features, dtype=torch.int64, device=self._weights.b_enc_F.device)
        some._columns = self._columns.take(some._features).padded(COLUMNS)
        return some

    @torch.no_grad()
    def encode(self, x_ND: Tensor, gradient_ND: Tensor | None = None) -> Codes:
        """The active features of each token, sorted by token, then feature. `x_ND`: any float dtype, on
        the dictionary's device. `gradient_ND`: of the loss by it, for a dictionary that `needs_gradient`.

        topk: where several pre-activations equal the k-th largest, which of them is taken is torch.topk's
        choice and may differ between devices. Raises ModelError where an activation is NaN or infinite.
        """
        self.check_finite(count_bad(x_ND), len(x_ND))
        codes = self.candidates(x_ND, gradient_ND)
        active = (codes.value_M > 0).nonzero()[:, 0]
        token_M, feature_M = codes.token_M[active], codes.feature_M[active]
        order = (token_M * self.spec.n_columns + feature_M).argsort()
        return Codes(token_M[order], feature_M[order], codes.value_M[active][order])

    @torch.no_grad()
    def candidates(self, x_ND: Tensor, gradient_ND: Tensor | None = None) -> Codes:
        """Codes in no order, among which some may be 0 or negative: these are not active. Nothing here
        waits for the device unless the selector is elementwise, or one that needs the whole width at once."""
        n_step, f_step = self._tile(len(x_ND))
        tiles: list[Found] = []
        for start in range(0, len(x_ND), n_step):
            these = slice(start, start + n_step)
            gradient_nD = None if gradient_ND is None else gradient_ND[these].float()
            x_nD = self._transformed(x_ND[these])
            token_m, feature_m, value_m = self._selected(x_nD, gradient_nD, f_step)
            tiles.append((token_m + start, feature_m, value_m))
        if not tiles:
            return self._empty(x_ND.device)
        token_M, feature_M, value_M = (torch.cat(column) for column in zip(*tiles, strict=True))
        if self._features is not None:
            feature_M = self._features[feature_M]
        if self._norm_F is not None and not self.spec.value_is_score:
            value_M = value_M / self._norm_F[feature_M]
        if self.spec.signed:
            feature_M, value_M = 2 * feature_M + (value_M < 0), value_M.abs()
        return Codes(token_M, feature_M, value_M)

    @torch.no_grad()
    def predicted(self, x_BTD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Of a dictionary that `needs_sequence`: what the tokens before each token of a row predict of its vector,
        [B, T, D], float32; zeros behind a row's end. Encode what it leaves.

        `x_BTD`: rows from their first token on, anything behind their ends. Each row goes by itself, so that what it
        gives is the same to the bit whatever else is in the batch. Raises CheckpointError where that is NaN or
        infinite, and the row is not.
        """
        assert self._weights.predict is not None
        predicted_BTD = torch.zeros(x_BTD.shape, dtype=torch.float32, device=x_BTD.device)
        for row, length in enumerate(lengths):
            if length:
                x_TD = x_BTD[row, :length].float()
                predicted_BTD[row, :length] = self._weights.predict(x_TD)
                if not predicted_BTD[row].isfinite().all() and x_TD.isfinite().all():
                    raise CheckpointError(
                        f"{self.spec.path}: what it predicts of a token from those before it is NaN or infinite, and "
                        "the model's activations are not. Copy or download it again."
                    )
        return predicted_BTD

    @torch.no_grad()
    def score_tiles(self, x_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What the selector sees, whatever it makes of it: scores [n, f] of some tokens, each tile with its
        first feature; all of a tile of tokens before the next. Where each input selects by itself, one input's
        after the other's. A tile may be overwritten by whoever takes it."""
        n_step, f_step = self._tile(len(x_ND))
        for start in range(0, len(x_ND), n_step):
            x_nD = self._transformed(x_ND[start : start + n_step])
            for first, score_nf in self._scores(x_nD, f_step):
                score_nf = score_nf[:, : self.spec.width - first]
                if self._share_LF is None:
                    yield first, score_nf
                    continue
                for share_f in self._share_LF[:, first : first + score_nf.shape[1]]:
                    yield first, score_nf * share_f

    def check_finite(self, n_bad: int, n_tokens: int) -> None:
        """Of what it reads; raises ModelError."""
        check_finite(self._place, n_bad, n_tokens)

    @torch.no_grad()
    def decode(self, codes: Codes, x_ND: Tensor) -> Tensor:
        """x_hat_NO, float32: what the dictionary makes of `x_ND`, whose codes are `codes`.

        Of `x_ND` only the number of tokens is used and, for a dictionary that transforms its input, each
        token's mean and scale, to undo that; and what a transcoder lets past itself.
        """
        weights, d_out = self._weights, len(self._weights.b_dec_O)
        x_hat_NO = torch.zeros(x_ND.shape[0], d_out, device=weights.b_dec_O.device)
        if not x_ND.shape[0]:
            return x_hat_NO
        feature_M, value_M = codes.feature_M, codes.value_M
        if self.spec.signed:
            feature_M, value_M = feature_M // 2, torch.where(feature_M % 2 == 1, -value_M, value_M)
        if self._norm_F is not None and self.spec.value_is_score:
            value_M = value_M / self._norm_F[feature_M]
        selects_ML = None if self._share_LF is None else self._inputs_of(codes.token_M, feature_M, value_M)
        step = max(1, self._max_elements // d_out)
        for start in range(0, len(codes), step):
            these = slice(start, start + step)
            if weights.w_dec_FO is None:
                x_hat_NO[codes.token_M[these], feature_M[these]] = value_M[these]
                continue
            rows_mO = weights.w_dec_FO[feature_M[these]] * value_M[these, None]
            if selects_ML is not None:
                rows_mO *= selects_ML[these].repeat_interleave(d_out // selects_ML.shape[1], dim=1)
            x_hat_NO.index_add_(0, codes.token_M[these], rows_mO)
        x_hat_NO += weights.b_dec_O
        x_ND = x_ND.to(torch.float32)
        if not self.spec.is_transcoder:
            return untransformed(x_hat_NO, x_ND, self.spec.transform, self.spec.n_inputs)
        return x_hat_NO if weights.w_skip_DO is None else x_hat_NO + x_ND @ weights.w_skip_DO

    def _inputs_of(self, token_M: Tensor, feature_M: Tensor, value_M: Tensor) -> Tensor:
        """[M, L], bool: which inputs select each code. `value_M`: pre-activations."""
        assert self._share_LF is not None and self._norm_F is not None
        score_ML = (value_M * self._norm_F[feature_M])[:, None] * self._share_LF[:, feature_M].T
        threshold_F = self._weights.threshold_F
        if self.spec.selector == "topk":
            return among_largest(token_M, score_ML, self.spec.k or 0)
        return score_ML > 0 if threshold_F is None else score_ML > threshold_F[feature_M, None]

    def _transformed(self, x_nD: Tensor) -> Tensor:
        return transformed(x_nD.to(torch.float32), self.spec.transform, self.spec.n_inputs)

    def _tile(self, n_tokens: int) -> tuple[int, int]:
        """(tokens, features) of a tile."""
        width = self._columns.n
        if (a_token := elements_a_token(self.spec)) is not None:
            return max(1, self._max_elements // a_token), width
        n_step = max(self._max_elements // width, min(TOKENS_A_TILE, n_tokens, self._max_elements), 1)
        f_step = max(1, min(width, self._max_elements // n_step))
        multiple = COLUMNS if self.spec.feature_sliceable else tile_multiple(self.spec)
        return n_step, f_step + -f_step % multiple

    def _selected(self, x_nD: Tensor, gradient_nD: Tensor | None, f_step: int) -> Found:
        """(token, feature, value) of a few tokens. `x_nD`: transformed."""
        spec, weights = self.spec, self._weights
        if weights.encode is not None:
            return by_token(*weights.encode(x_nD))
        if spec.selector == "pursuit":
            return pursued(spec, x_nD - weights.b_pre_D, weights.decoder, self._gram())
        if spec.selector == "nnls":
            gram_FF = self._gram()
            assert gram_FF is not None
            return non_negative(x_nD - weights.b_pre_D, weights.decoder, gram_FF)
        scores = self._scores(x_nD, f_step)
        if spec.selector == "top_afa":
            return norm_matched(next(scores)[1], (x_nD - weights.b_pre_D).norm(dim=1))
        if spec.gradient_weight is not None:
            assert gradient_nD is not None, "whoever encodes with a gradient SAE has the gradients"
            return top_k_by_effect(scores, gradient_nD, weights.decoder, spec.gradient_weight, spec.k or 0)
        if self._share_LF is not None and spec.selector == "topk":
            return top_k_of_any(scores, self._share_LF, spec.k or 0)
        return select(spec, self._columns, scores)

    def _gram(self) -> Tensor | None:
        """Made for the first tokens: a dictionary that is only described, or decodes, does without."""
        if not self._is_multiplied:
            self._gram_FF = gram_of(self.spec, self._weights.decoder)
            self._is_multiplied = True
        return self._gram_FF

    def _scores(self, x_nD: Tensor, f_step: int) -> Iterator[tuple[int, Tensor]]:
        """The scores [n, f] of one tile of features after the other, and the tile's first feature."""
        for start in range(0, self._columns.n, f_step):
            yield start, self._columns.scores(x_nD, slice(start, start + f_step))

    def _empty(self, device: torch.device) -> Codes:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Codes(none, none, torch.zeros(0, device=device))
