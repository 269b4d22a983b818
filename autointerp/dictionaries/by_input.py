"""Crosscoders of which each input selects by itself: a feature is active where any input selects it.

Shapes: n tokens, f features of a tile, M codes, L inputs, K = k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autointerp.dictionaries.selectors import Found, Tiles, largest, merged


def top_k_of_any(tiles: Tiles, share_LF: Tensor, k: int) -> Found:
    """(token, feature, score) of what is among the k largest scores of at least one input, each once; an input's
    scores are those of `tiles` times its shares."""
    best: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(share_LF)
    for start, score_nf in tiles:
        for at, share_F in enumerate(share_LF):
            own_nf = score_nf * share_F[start : start + score_nf.shape[1]]
            own_nK, place_nK = largest(own_nf, min(k, own_nf.shape[1]))
            best[at] = merged(best[at], (own_nK, place_nK + start, score_nf.gather(1, place_nK)), k)
    kept = [found for found in best if found is not None]
    own_nM, feature_nM, score_nM = (torch.cat(pieces, dim=1) for pieces in zip(*kept, strict=True))
    # Of equal features the first is kept: one that is there for an input where its own score is above 0.
    score_nM, order_nM = score_nM.where(own_nM > 0, 0).sort(dim=1, descending=True)
    feature_nM, by_feature_nM = feature_nM.gather(1, order_nM).sort(dim=1, stable=True)
    score_nM = score_nM.gather(1, by_feature_nM)
    again_nM = torch.zeros_like(feature_nM, dtype=torch.bool)
    again_nM[:, 1:] = feature_nM[:, 1:] == feature_nM[:, :-1]
    token_m, place_m = (~again_nM).nonzero(as_tuple=True)
    return token_m, feature_nM[token_m, place_m], score_nM[token_m, place_m]


def among_largest(token_M: Tensor, score_ML: Tensor, k: int) -> Tensor:
    """[M, L], bool: whether a code's score is among the k largest of its token and input. That holds of all features
    where it does of those that are active: of each input the k largest are. A score of 0 selects nothing."""
    chosen_ML = torch.zeros_like(score_ML, dtype=torch.bool)
    place_M = torch.arange(len(token_M), device=token_M.device)
    for at, score_M in enumerate(score_ML.T):
        falling_M = score_M.argsort(descending=True, stable=True)
        order_M = falling_M[token_M[falling_M].argsort(stable=True)]
        sorted_M = token_M[order_M]
        rank_M = place_M - torch.searchsorted(sorted_M, sorted_M)
        chosen_ML[order_M, at] = rank_M < k
    return chosen_ML & (score_ML > 0)
