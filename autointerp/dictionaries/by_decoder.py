"""Codes that are found with the decoder alone, step by step: matching pursuit, and non-negative least squares.

A step takes the feature whose decoder row has the largest product with what is left of the input. Every token
goes its own way, and leaves the batch when it has ended.

Shapes: n tokens, a those that have not ended, D = d_in, F = width, K steps, P places for the features in use;
G groups of S = GROUP features.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from autointerp.dictionaries.spec import DictionarySpec
from autointerp.dictionaries.steps import ALL_STEPS

TOLERANCE: Final = 1e-6
"""Of `non_negative`: with no row that is not used has what is left a larger product than this, times the norms of
that row and of the input."""
DEPENDENT: Final = 1e-10
"""Rows are taken to depend on each other where so small a share of one's squared length is its own."""

MAX_GRAM: Final = 2**28
"""Products of two rows that a pursuit holds, 1 GiB: those of 16,384 features. Of more features each step multiplies
anew."""
CACHED: Final = 2**18
"""Products that a CPU goes on with at once: 1 MiB, near what a core's caches hold."""
RENEWED: Final = 64
"""After so many steps what was subtracted from the products is multiplied anew, so that roundings don't add up."""
GROUP: Final = 64
"""Features of a group in which the largest is looked for."""

Found = tuple[Tensor, Tensor, Tensor]
"""(token, feature, value), each [m]; no token has a feature twice."""


def gram_of(spec: DictionarySpec, rows_FD: Tensor) -> Tensor | None:
    """All products of two rows [F, F], in float64 for nnls; None for a pursuit where they are too many."""
    if spec.selector == "nnls":
        rows = rows_FD.double()
        return rows @ rows.T
    return rows_FD @ rows_FD.T if len(rows_FD) ** 2 <= MAX_GRAM else None


def pursued(spec: DictionarySpec, x_nD: Tensor, rows_FD: Tensor, gram_FF: Tensor | None) -> Found:
    """Matching pursuit as `spec.pursuit` says. `x_nD`: float32, b_pre subtracted. `rows_FD`: of the decoder, used
    as they are, so that they should have length 1. `gram_FF`: their products, with which a step costs F for a token
    and not F D.

    Products are compared as the device rounds them; a code's value is the product of the two vectors alone, which
    does not depend on the batch.
    """
    n_step = (
        max(1, CACHED // len(rows_FD)) if x_nD.device.type == "cpu" and gram_FF is not None else len(x_nD)
    )
    product_nF = x_nD @ rows_FD.T
    found: list[Found] = []
    for start in range(0, len(x_nD), n_step):
        these = slice(start, start + n_step)
        token_m, feature_m, value_m = _pursued(spec, x_nD[these], product_nF[these], rows_FD, gram_FF)
        found.append((token_m + start, feature_m, value_m))
    token_m, feature_m, value_m = (torch.cat(column) for column in zip(*found, strict=True))
    return token_m, feature_m, value_m


def _pursued(
    spec: DictionarySpec, x_nD: Tensor, product_aF: Tensor, rows_FD: Tensor, gram_FF: Tensor | None
) -> Found:
    """`product_aF`: x_nD rows_FD^T; overwritten."""
    n_steps = spec.k or spec.d_in
    if spec.pursuit.ends_on_repeat:
        n_steps = min(n_steps, spec.width + 1)
    value_nK = x_nD.new_zeros(len(x_nD), n_steps)
    feature_nK = torch.full_like(value_nK, -1, dtype=torch.int64)
    token_a, left_aD = torch.arange(len(x_nD), device=x_nD.device), x_nD
    for step in range(n_steps):
        if step and (gram_FF is None or step % RENEWED == 0):
            product_aF = left_aD @ rows_FD.T
        feature_a = _first_largest(product_aF.abs() if spec.signed else product_aF)
        row_aD = rows_FD[feature_a]
        value_a = (left_aD * row_aD).sum(1)
        if not spec.signed:
            value_a = value_a.clamp_min(0)
        left_aD = left_aD - value_a[:, None] * row_aD
        if gram_FF is not None:
            product_aF.addcmul_(gram_FF.index_select(0, feature_a), value_a[:, None], value=-1)
        is_known_aK = feature_nK[token_a, : step + 1] == feature_a[:, None]
        repeats_a = is_known_aK.any(1)
        place_a = torch.where(repeats_a, is_known_aK.int().argmax(1), step)
        feature_nK[token_a, place_a] = feature_a
        value_nK[token_a, place_a] += value_a
        if spec.pursuit == ALL_STEPS:
            continue  # nothing can end, and the device is not waited for
        ended_a = torch.zeros_like(repeats_a)
        if spec.pursuit.ends_on_repeat:
            ended_a = repeats_a | (value_a == 0)
        if spec.pursuit.residual_below > 0:
            ended_a |= left_aD.norm(dim=1) < spec.pursuit.residual_below
        if ended_a.any():
            token_a, left_aD, product_aF = (one[~ended_a] for one in (token_a, left_aD, product_aF))
            if not len(token_a):
                break
    token_m, place_m = value_nK.nonzero(as_tuple=True)
    return token_m, feature_nK[token_m, place_m], value_nK[token_m, place_m]


def _first_largest(x_aF: Tensor) -> Tensor:
    """argmax(1), on a CPU several times sooner: the maxima of groups are found without their places."""
    if x_aF.shape[1] % GROUP:
        return x_aF.argmax(1)
    x_aGS = x_aF.unflatten(1, (-1, GROUP))
    group_a = x_aGS.amax(2).argmax(1)
    place_a = torch.arange(len(x_aF), device=x_aF.device)
    return group_a * GROUP + x_aGS[place_a, group_a].argmax(1)


def non_negative(x_nD: Tensor, rows_FD: Tensor, gram_FF: Tensor) -> Found:
    """The codes g >= 0 of each token with the smallest |x - g rows|, to `TOLERANCE`; where rows depend on each
    other and several codes are as good, one of these. `gram_FF`: the products of all rows, float64.

    Active sets (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23) in float64. Features that
    promise something join those in use, these are solved for, and what would turn negative leaves, until nothing
    promises anything. Not one joins at a time but half of what there is room for: of those that join, one at least
    stays, so that each round comes nearer. At most 3 min(F, D) rounds.
    """
    x_aD, rows = x_nD.double(), rows_FD.double()
    target_aF = x_aD @ rows.T
    bound_aF = TOLERANCE * x_aD.norm(dim=1)[:, None] * rows.norm(dim=1)
    code_nF = torch.zeros_like(target_aF)
    token_a = torch.arange(len(x_nD), device=x_nD.device)
    code_aF, in_use_aF = code_nF, torch.zeros_like(target_aF, dtype=torch.bool)
    room_a = torch.full_like(token_a, min(rows.shape))
    for _ in range(3 * min(rows.shape)):
        promise_aF = (target_aF - code_aF @ gram_FF).masked_fill_(in_use_aF, -torch.inf)
        going_a = (promise_aF > bound_aF).any(1)
        if not going_a.any():
            break
        token_a, room_a, code_aF, in_use_aF, target_aF, bound_aF, promise_aF = (
            one[going_a] for one in (token_a, room_a, code_aF, in_use_aF, target_aF, bound_aF, promise_aF)
        )
        n_joining_a = ((room_a - in_use_aF.sum(1)) // 2).clamp_min(1)
        rank_aF = promise_aF.argsort(dim=1, descending=True).argsort(dim=1)
        joining_aF = (promise_aF > bound_aF) & (rank_aF < n_joining_a[:, None])
        code_aF, in_use_aF, failed_a = _settled(gram_FF, target_aF, code_aF, in_use_aF, joining_aF)
        # Those that can't join together, because rows depend on each other, join one by one or, at last, not.
        never_aF = joining_aF & (failed_a & (n_joining_a == 1))[:, None]
        bound_aF = bound_aF.masked_fill(never_aF, torch.inf)
        room_a = room_a.masked_fill(failed_a, 0)
        code_nF[token_a] = code_aF
    token_m, feature_m = code_nF.nonzero(as_tuple=True)
    return token_m, feature_m, code_nF[token_m, feature_m].to(x_nD.dtype)


def _settled(
    gram_FF: Tensor, target_aF: Tensor, code_aF: Tensor, in_use_aF: Tensor, joining_aF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and features in use when some have joined and others left; whether that failed [a], and all is as
    it was."""
    was_aF, had_aF = code_aF, in_use_aF
    failed_a = torch.zeros(len(code_aF), dtype=torch.bool, device=code_aF.device)
    in_use_aF = in_use_aF | joining_aF
    while True:
        solved_aF, singular_a = _solved(gram_FF, target_aF, in_use_aF)
        failed_a = failed_a | singular_a
        negative_aF = in_use_aF & (solved_aF <= 0) & ~failed_a[:, None]
        way_aF = (code_aF / (code_aF - solved_aF)).masked_fill_(~negative_aF, 1)
        share_a1 = way_aF.amin(1, keepdim=True)  # of the way to the solution, until the first code is 0
        leaving_aF = negative_aF & (way_aF <= share_a1)
        code_aF = (code_aF + share_a1 * (solved_aF - code_aF)).masked_fill_(leaving_aF, 0)
        in_use_aF = in_use_aF & ~leaving_aF
        if not leaving_aF.any():
            keeps_a1 = failed_a[:, None]
            return torch.where(keeps_a1, was_aF, code_aF), torch.where(keeps_a1, had_aF, in_use_aF), failed_a


def _solved(gram_FF: Tensor, target_aF: Tensor, in_use_aF: Tensor) -> tuple[Tensor, Tensor]:
    """The codes [a, F] of the features in use that reconstruct best, of any sign, and 0 of the others; where there
    is no telling [a]."""
    n_places = int(in_use_aF.sum(1).max())
    feature_aP = in_use_aF.byte().argsort(dim=1, descending=True, stable=True)[:, :n_places]
    is_used_aP = in_use_aF.gather(1, feature_aP)
    both_aPP = is_used_aP[:, :, None] & is_used_aP[:, None, :]
    gram_aPP = gram_FF[feature_aP[:, :, None], feature_aP[:, None, :]].masked_fill_(~both_aPP, 0)
    gram_aPP.diagonal(dim1=1, dim2=2).add_((~is_used_aP).to(gram_aPP.dtype))
    target_aP = target_aF.gather(1, feature_aP).masked_fill_(~is_used_aP, 0)
    factor_aPP, info_a = torch.linalg.cholesky_ex(gram_aPP)
    pivot_aP, square_aP = (one.diagonal(dim1=1, dim2=2) for one in (factor_aPP, gram_aPP))
    singular_a = (info_a != 0) | ~(pivot_aP.square() > DEPENDENT * square_aP).all(1)
    solved_aP1 = torch.cholesky_solve(target_aP[:, :, None], factor_aPP)
    return torch.zeros_like(target_aF).scatter_(1, feature_aP, solved_aP1[:, :, 0]), singular_a
