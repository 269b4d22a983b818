"""Neurons or experts themselves as features: no checkpoint, no weights.

neurons       hidden neurons of an MLP, both poles; of each token the largest by magnitude (one in 64, or
              so many as said: `neurons:200`), as TransluceAI/observatory explains maxima and minima apart
experts       experts of a mixture, by the weight that the router gives them; their density is their load
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import shortened
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import CheckpointError
from autointerp.types import digest

NAME: Final = re.compile(r"(neurons|experts)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Basis:
    """No checkpoint: the model's own `neurons` (`neurons:200` keeps 200 a token) or `experts`."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        return False

    def describe(self, path: Path) -> DictionarySpec:
        """`path` is the name. Raises CheckpointError."""
        match = NAME.fullmatch(str(path))
        if match is None:
            raise CheckpointError(
                f"'{shortened(str(path))}' names no basis: write neurons, neurons:200 or experts."
            )
        kind, k = match[1], int(match[2]) if match[2] else None
        if kind == "experts" and k is not None:
            raise CheckpointError(f"'{path}': how many experts a token has is the model's own setting.")
        if k == 0:
            raise CheckpointError(f"'{path}' keeps no neuron of a token: write at least neurons:1.")
        return DictionarySpec(
            format="basis",
            path=path,
            identity=digest("basis", kind, k),
            d_in=0,
            width=0,
            selector="relu" if kind == "experts" else "abstopk",
            k=k,
            hook=None,
            site=None,
            model=None,
            corpus=None,
            context_length=None,
            prepend_bos=True,
            reconstructs=False,  # what it leaves out it leaves out on purpose
            basis="experts" if kind == "experts" else "neurons",
        )

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        import torch

        zero_D = torch.zeros(spec.width, device=device)
        return Weights(w_enc_DF=None, b_enc_F=zero_D, b_pre_D=zero_D, w_dec_FO=None, b_dec_O=zero_D)
