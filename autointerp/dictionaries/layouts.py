"""How formats name a dictionary's tensors and lay out its matrices, for readers of the usual four.

D = d_in, F = features, O = d_out. Which axis is which is told by the biases' lengths, never by size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.dictionaries.checkpoint import listed, shortened
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.tensors import Shapes
from autointerp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of the four tensors; whether the matrices are those of `torch.nn.Linear`."""

    w_enc: str
    w_dec: str
    b_enc: str
    b_dec: str
    linear: bool = False
    """W_enc is stored [F, D] and W_dec [O, F], instead of [D, F] and [F, O]."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.w_enc, self.w_dec, self.b_enc, self.b_dec))

    def below(self, prefix: str) -> Layout:
        """The same, in a dictionary in the file."""
        names = {name: prefix + getattr(self, name) for name in ("w_enc", "w_dec", "b_enc", "b_dec")}
        return replace(self, **names)

    def sizes(self, path: Path, headers: Mapping[str, TensorHeader]) -> tuple[int, int]:
        """(d_in, features) as the biases have it, b_dec being as long as the input. Raises CheckpointError."""
        return self._length(path, headers, self.b_dec), self._length(path, headers, self.b_enc)

    def shapes(self, spec: DictionarySpec) -> Shapes:
        """What a file of this layout must hold."""
        d_in, width = ("d_in", spec.d_in), ("features", spec.width)
        d_out = ("d_out", spec.d_out or spec.d_in) if spec.is_transcoder else d_in
        return {
            self.b_dec: (d_out,),
            self.b_enc: (width,),
            self.w_enc: (width, d_in) if self.linear else (d_in, width),
            self.w_dec: (d_out, width) if self.linear else (width, d_out),
        }

    def weights(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Nothing is subtracted before encoding, and there is no threshold."""
        import torch

        w_enc, w_dec, b_dec_O = tensors[self.w_enc], tensors[self.w_dec], tensors[self.b_dec]
        w_enc_DF = w_enc.T if self.linear else w_enc
        return Weights(
            w_enc_DF=w_enc_DF,
            b_enc_F=tensors[self.b_enc],
            b_pre_D=torch.zeros(w_enc_DF.shape[0], device=b_dec_O.device),
            w_dec_FO=w_dec.T if self.linear else w_dec,
            b_dec_O=b_dec_O,
        )

    def _length(self, path: Path, headers: Mapping[str, TensorHeader], name: str) -> int:
        found = headers.get(name)
        if found is None:
            raise CheckpointError(f"{path} has no tensor '{name}'. It has: {listed(headers)}.")
        if len(found.shape) != 1 or not found.shape[0]:
            raise CheckpointError(
                f"{path}: '{name}' has shape {shortened(list(found.shape))}, but a bias is a list of numbers."
            )
        return found.shape[0]
