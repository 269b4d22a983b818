"""What a dictionary's input goes through first, token by token, and the way back.

Shapes: N tokens, D = d_in; of several inputs, which stand one behind the other, each goes through it like a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from autointerp.dictionaries.spec import Transform

LAYER_NORM_EPSILON: Final = 1e-5
"""Added to the standard deviation, as SAELens does (saes/sae.py), not to the variance."""


def transformed(x_ND: Tensor, steps: Sequence[Transform], n_inputs: int = 1) -> Tensor:
    """`x_ND`: float32."""
    if not steps:
        return x_ND
    shape, x_ND = x_ND.shape, _apart(x_ND, n_inputs)
    for step in steps:
        x_ND = _forth(x_ND, step)
    return x_ND.reshape(shape)


def untransformed(x_hat_ND: Tensor, x_ND: Tensor, steps: Sequence[Transform], n_inputs: int = 1) -> Tensor:
    """Back to where `x_ND` lies: of each of its tokens, mean and scale undo what they did."""
    if not steps:
        return x_hat_ND
    shape, x_hat_ND, x_ND = x_hat_ND.shape, _apart(x_hat_ND, n_inputs), _apart(x_ND, n_inputs)
    befores: list[Tensor] = []
    for step in steps:
        befores.append(x_ND)
        x_ND = _forth(x_ND, step)
    for step, before_ND in zip(reversed(steps), reversed(befores), strict=True):
        x_hat_ND = _back(x_hat_ND, before_ND, step)
    return x_hat_ND.reshape(shape)


def _apart(x_ND: Tensor, n_inputs: int) -> Tensor:
    """A row for each input of each token."""
    return x_ND.reshape(len(x_ND) * n_inputs, -1) if n_inputs > 1 else x_ND


def _forth(x_ND: Tensor, step: Transform) -> Tensor:
    if step == "centre":
        return x_ND - x_ND.mean(dim=1, keepdim=True)
    if step == "layer_norm":
        mean_N1, std_N1 = _mean_and_std(x_ND)
        return (x_ND - mean_N1) / (std_N1 + LAYER_NORM_EPSILON)
    return x_ND / _relative_norm(x_ND)


def _back(x_hat_ND: Tensor, x_ND: Tensor, step: Transform) -> Tensor:
    if step == "centre":
        return x_hat_ND + x_ND.mean(dim=1, keepdim=True)
    if step == "layer_norm":
        mean_N1, std_N1 = _mean_and_std(x_ND)
        return x_hat_ND * std_N1 + mean_N1
    return x_hat_ND * _relative_norm(x_ND)


def _mean_and_std(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token [N, 1]; the standard deviation is the unbiased one, over D - 1."""
    return x_ND.mean(dim=1, keepdim=True), x_ND.std(dim=1, keepdim=True)


def _relative_norm(x_ND: Tensor) -> Tensor:
    """Each token's norm over sqrt(D) [N, 1]; above 0 also for a token of zeros."""
    return x_ND.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12) / x_ND.shape[1] ** 0.5
