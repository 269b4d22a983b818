"""Gradient SAEs: the k are chosen by activation and by what a feature does to the model's loss.

    score = z + w z |W_dec g|

with g the gradient of the loss by the vector that the dictionary reconstructs; what is chosen keeps the value z. Of
several sites, one behind the other, g of an earlier one holds what passes through the later ones, too: the effect of
adding the feature to all.
Source: arXiv 2411.10397, which adds beta z |W_dec^T grad L| to what TopK sees. Here the loss is summed over a row, so
that a row's codes do not depend on what is beside it; where training took the mean over N tokens, w is beta / N.

Shapes: n tokens, f features of a tile, m codes, D = d_in, F = width, K = k.
"""

from __future__ import annotations

from torch import Tensor

from autointerp.dictionaries.selectors import Found, Tiles, by_token, largest, merged


def top_k_by_effect(tiles: Tiles, gradient_nD: Tensor, rows_FD: Tensor, weight: float, k: int) -> Found:
    """(token, feature, z) of the k largest scores. `tiles`: z. `rows_FD`: of the decoder."""
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for start, z_nf in tiles:
        effect_nf = (gradient_nD @ rows_FD[start : start + z_nf.shape[1]].T).abs_()
        score_nK, place_nK = largest(effect_nf.mul_(weight).add_(1).mul_(z_nf), min(k, z_nf.shape[1]))
        best = merged(best, (score_nK, place_nK + start, z_nf.gather(1, place_nK)), k)
    assert best is not None
    return by_token(best[2], best[1])
