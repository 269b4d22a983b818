"""Activations that are no numbers. One that is NaN or infinite would pass for one on which nothing fires."""

from __future__ import annotations

import torch
from torch import Tensor

from autointerp.errors import ModelError


def count_bad(x_ND: Tensor) -> int:
    """Tokens whose activations are NaN or infinite."""
    return int((~torch.isfinite(x_ND)).any(dim=1).sum())


def check_finite(place: str, n_bad: int, n_tokens: int) -> None:
    """Raises ModelError where the activations at `place` are bad on `n_bad` tokens of so many."""
    if n_bad:
        raise ModelError(
            f"the model's activations at '{place}' are NaN or infinite on {n_bad:,} of {n_tokens:,} tokens. In "
            "float16 they overflow: run the model in bfloat16 or float32. Where it runs in these already, its "
            "weights are not sound: copy or download them again."
        )
