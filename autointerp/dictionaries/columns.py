"""What an encoder needs of each feature: its column of W_enc, and the numbers that belong to it.

Shapes: D = d_in, F = width, C columns.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from autointerp.dictionaries.spec import BY_DECODER, DictionarySpec, Weights


@dataclass(frozen=True, slots=True, eq=False)
class EncoderColumns:
    """Score = (x @ w_enc + bias) * norm. Of a gated dictionary, `bias` is the gate's."""

    w_enc_DC: Tensor | None
    """None: the identity, or no encoder."""
    bias_C: Tensor
    """Float32; what is subtracted from the input before encoding is folded in."""
    norm_C: Tensor | None
    """Of the decoder rows, where the selector sees pre-activations times these."""
    threshold_C: Tensor | None
    gated_C: tuple[Tensor, Tensor] | None
    """(scale, shift) of a gated dictionary: what fires has the value score * scale + shift."""

    @classmethod
    def of(
        cls, spec: DictionarySpec, weights: Weights, dtype: torch.dtype, max_elements: int
    ) -> EncoderColumns:
        """`dtype`: of the matrix product. `max_elements` bounds what is made on the way."""
        own, gated = weights.b_enc_F, None
        if spec.selector == "gated":
            assert weights.gate is not None
            gate, own = weights.gate, weights.gate.bias_F
            shift_F = gate.magnitude_bias_F.double() - gate.bias_F.double() * gate.scale_F.double()
            gated = (gate.scale_F, shift_F.float())
        norm = weights.score_norms if spec.decoder_norm_gate else None
        return cls(
            None if weights.w_enc_DF is None else weights.w_enc_DF.to(dtype),
            own if spec.selector in BY_DECODER else _folded(own, weights, max_elements),
            norm,
            weights.threshold_F,
            gated,
        )

    @property
    def n(self) -> int:
        return len(self.bias_C)

    def scores(self, x_nD: Tensor, these: slice) -> Tensor:
        """[n, f] of a tile of features. `x_nD`: float32."""
        if self.w_enc_DC is None:
            score_nf = x_nD[:, these] + self.bias_C[these]
        elif self.w_enc_DC.dtype == torch.float32:
            score_nf = torch.addmm(self.bias_C[these], x_nD, self.w_enc_DC[:, these])
        else:
            product_nf = x_nD.to(self.w_enc_DC.dtype) @ self.w_enc_DC[:, these]
            score_nf = product_nf.float() + self.bias_C[these]
        return score_nf if self.norm_C is None else score_nf.mul_(self.norm_C[these])

    def take(self, which: Tensor) -> EncoderColumns:
        """Those of indices `which`; not of an identity."""
        assert self.w_enc_DC is not None
        return EncoderColumns(
            self.w_enc_DC[:, which],
            self.bias_C[which],
            None if self.norm_C is None else self.norm_C[which],
            None if self.threshold_C is None else self.threshold_C[which],
            None if self.gated_C is None else (self.gated_C[0][which], self.gated_C[1][which]),
        )

    def padded(self, multiple: int) -> EncoderColumns:
        """With features that never fire, up to a multiple of so many."""
        missing = (0, -self.n % multiple)
        if not missing[1] or self.w_enc_DC is None:
            return self
        pad = torch.nn.functional.pad
        return dataclasses.replace(
            self,
            w_enc_DC=pad(self.w_enc_DC, missing),
            bias_C=pad(self.bias_C, missing),
            norm_C=None if self.norm_C is None else pad(self.norm_C, missing),
            threshold_C=None if self.threshold_C is None else pad(self.threshold_C, missing),
            gated_C=None
            if self.gated_C is None
            else (pad(self.gated_C[0], missing), pad(self.gated_C[1], missing)),
        )


def _folded(bias_F: Tensor, weights: Weights, max_elements: int) -> Tensor:
    """bias - b_pre @ W_enc [F], so that encoding never subtracts b_pre. Summed in float64, a few columns
    at a time: b_pre can be large, and what is left of it small."""
    b_pre_D = weights.b_pre_D.to(torch.float64)
    if not b_pre_D.any():
        return bias_F
    if weights.w_enc_DF is None:
        return (bias_F.to(torch.float64) - b_pre_D).to(torch.float32)
    w_enc_DF = weights.w_enc_DF
    step = max(1, max_elements // b_pre_D.numel())
    starts = range(0, w_enc_DF.shape[1], step)
    pieces = [b_pre_D @ w_enc_DF[:, start : start + step].to(torch.float64) for start in starts]
    return (bias_F.to(torch.float64) - torch.cat(pieces)).to(torch.float32)
