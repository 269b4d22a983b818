"""Selectors: from scores, a tile of features at a time, to the codes of a few tokens.

Shapes: n tokens, f features of a tile, m codes, K = k; G groups of S features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch
from torch import Tensor

from autointerp.dictionaries.columns import EncoderColumns
from autointerp.dictionaries.spec import BY_DECODER, ELEMENTWISE, DictionarySpec

Tiles = Iterable[tuple[int, Tensor]]
"""The first feature of a tile, and its scores [n, f], float32."""
Found = tuple[Tensor, Tensor, Tensor]
"""(token, feature, value), each [m], in no order. Some values may be 0 or, unless the dictionary is signed,
negative: these are not active."""

GROUP_SIZES: Final = (16, 4)


def select(spec: DictionarySpec, columns: EncoderColumns, tiles: Tiles) -> Found:
    """The codes of n tokens. Nothing waits for the device unless the selector is elementwise."""
    if spec.selector in ELEMENTWISE:
        found = [_above(spec, columns, start, score_nf) for start, score_nf in tiles]
        token_m, feature_m, value_m = (torch.cat(column) for column in zip(*found, strict=True))
        return token_m, feature_m, value_m
    if spec.selector == "groupmax":
        pieces = list(_of_groups(tiles, columns.n // (spec.k or 1)))
        value_nK, feature_nK = (torch.cat(pair, dim=1) for pair in zip(*pieces, strict=True))
    else:
        value_nK, feature_nK = _top_k(tiles, spec.k or 0, by_magnitude=spec.selector == "abstopk")
    return by_token(value_nK, feature_nK)


def by_token(value_nK: Tensor, feature_nK: Tensor) -> Found:
    """From K codes a token."""
    token_n = torch.arange(len(value_nK), device=value_nK.device)
    return token_n.repeat_interleave(value_nK.shape[1]), feature_nK.ravel(), value_nK.ravel()


def merged(
    before: tuple[Tensor, Tensor, Tensor] | None, found: tuple[Tensor, Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of two times K (what it is chosen by, feature, value) a token, [n, K] each, the k chosen."""
    if before is None:
        return found
    by_n2, feature_n2, value_n2 = (torch.cat(pair, dim=1) for pair in zip(before, found, strict=True))
    by_nk, place_nk = largest(by_n2, min(k, by_n2.shape[1]))
    return by_nk, feature_n2.gather(1, place_nk), value_n2.gather(1, place_nk)


def norm_matched(score_nF: Tensor, norm_n: Tensor) -> Found:
    """top_afa: of each token the largest scores, as many as bring the root of the sum of their squares nearest to
    `norm_n`, at least one (arXiv 2503.24277; SewoongLee/top-afa-sae: training/sae.py, which can't choose all F)."""
    size_nF, feature_nF = score_nF.clamp_min(0).sort(dim=1, descending=True)
    sum_nF = size_nF.double().square().cumsum(1).sqrt_()  # in float32 a long sum would hide its small parts
    last_n1 = (sum_nF - norm_n[:, None]).abs_().argmin(1, keepdim=True)
    rank_F = torch.arange(score_nF.shape[1], device=score_nF.device)
    token_m, place_m = ((rank_F <= last_n1) & (size_nF > 0)).nonzero(as_tuple=True)
    return token_m, feature_nF[token_m, place_m], size_nF[token_m, place_m]


def elements_a_token(spec: DictionarySpec) -> int | None:
    """Of a selector that needs the whole width at once: the most elements that it holds a token. Else None."""
    if spec.selector not in BY_DECODER | {"top_afa"}:
        return None
    of_products = min(spec.width, spec.d_in) ** 2 if spec.selector == "nnls" else 0
    return max(spec.width, spec.d_in, of_products)


def tile_multiple(spec: DictionarySpec) -> int:
    """A tile must hold a multiple of so many features."""
    return spec.width // (spec.k or 1) if spec.selector == "groupmax" else 1


def _above(spec: DictionarySpec, columns: EncoderColumns, start: int, score_nf: Tensor) -> Found:
    """The positive ones, with a threshold only those strictly above it."""
    active_nf = score_nf > 0
    if spec.selector == "jumprelu":
        assert columns.threshold_C is not None
        active_nf &= score_nf > columns.threshold_C[start : start + score_nf.shape[1]]
    token_m, feature_m = torch.nonzero(active_nf, as_tuple=True)
    value_m, feature_m = score_nf[token_m, feature_m], feature_m + start
    if columns.gated_C is not None:
        scale_C, shift_C = columns.gated_C
        value_m = value_m * scale_C[feature_m] + shift_C[feature_m]
    return token_m, feature_m, value_m


def _top_k(tiles: Tiles, k: int, *, by_magnitude: bool) -> tuple[Tensor, Tensor]:
    """Values and features [n, K] of each token's k largest, over all tiles."""
    best: tuple[Tensor, Tensor] | None = None
    for start, score_nf in tiles:
        found = _largest(score_nf, min(k, score_nf.shape[1]), by_magnitude)
        found = (found[0], found[1] + start)
        if best is not None:
            value_n2, feature_n2 = (torch.cat(pair, dim=1) for pair in zip(best, found, strict=True))
            value_nk, place_nk = _largest(value_n2, min(k, value_n2.shape[1]), by_magnitude)
            found = (value_nk, feature_n2.gather(1, place_nk))
        best = found
    assert best is not None
    return best


def _largest(x_nf: Tensor, k: int, by_magnitude: bool) -> tuple[Tensor, Tensor]:
    if not by_magnitude:
        return largest(x_nf, k)
    _, place_nk = largest(x_nf.abs(), k)
    return x_nf.gather(1, place_nk), place_nk


def _of_groups(tiles: Tiles, group_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Values and features [n, G] of the largest of each group of a tile."""
    for start, score_nf in tiles:
        value_nG, place_nG = score_nf.unflatten(1, (-1, group_size)).max(dim=2)
        first_G = torch.arange(0, score_nf.shape[1], group_size, device=score_nf.device)
        yield value_nG, place_nG + first_G + start


def largest(x_nf: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and places [n, k] of each row's k largest, in no order: torch.topk's, sooner.

    EncoderColumns are dealt into groups. The k groups with the largest maxima hold the k largest values, ties
    aside: were one of these in another group, each of the k groups would hold one at least as large.
    So torch.topk sees few of them.
    """
    width = x_nf.shape[1]
    group_size = next((size for size in GROUP_SIZES if width >= 4 * k * size), 1)
    if group_size == 1:
        value_nk, place_nk = torch.topk(x_nf, k, dim=1, sorted=False)
        return value_nk, place_nk
    n_groups = width // group_size
    dealt = group_size * n_groups
    x_nSG = x_nf[:, :dealt].unflatten(1, (group_size, n_groups))
    _, group_nk = largest(x_nSG.amax(1), k)
    in_groups = x_nSG.gather(2, group_nk[:, None, :].expand(-1, group_size, -1)).flatten(1)
    if dealt < width:
        in_groups = torch.cat([in_groups, x_nf[:, dealt:]], dim=1)
    value_nk, at_nk = torch.topk(in_groups, k, dim=1, sorted=False)
    place_nk = at_nk // k * n_groups + group_nk.gather(1, at_nk % k)
    # What was not dealt stands behind all groups.
    return value_nk, torch.where(at_nk < group_size * k, place_nk, at_nk - group_size * k + dealt)
