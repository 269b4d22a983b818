"""The rows with the largest inner products with a query: exactly, and whatever else is asked.

    rows_VD, query_D -> the k rows with the largest rows_VD @ query_D

A float32 matrix product rounds in its own way in every shape and on every device, so that two close rows
would change places with the queries that share a block. So the product only proposes candidates. They are
scored again in float64, in operations whose order is fixed by D alone, and a bound on float32's error says
whether a row that was not proposed could be among the best; where it could, more are proposed. What is
found for a query therefore depends on the query and the rows alone.

Never more than a chunk of rows times a block of queries is in memory. The bound holds for float32 as such:
TensorFloat-32 must be off, as it is in torch by default.

Shapes: Q queries, V rows, D their width, K wanted, M candidates; q, v a block of Q, a chunk of V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

MAX_ELEMENTS: Final = 2**22
"""Elements of the largest tensor that is made: 2**22 float64 are 32 MiB. With 1,024 queries: 4,096 rows."""
QUERIES_AT_ONCE: Final = 1_024
EXTRA: Final = 16
"""Candidates beyond the k wanted."""
_FEW: Final = 2.0**-24
"""Half a unit in the last place of float32."""


class Keys:
    """Rows to search, as they are or scaled to norm 1. Rows of zeros have no direction and are never found."""

    def __init__(self, rows_VD: Tensor, *, scaled: bool, max_elements: int = MAX_ELEMENTS) -> None:
        """`rows_VD`: any float dtype, any device that has float64; it is neither copied nor changed."""
        self.rows_VD = rows_VD
        self.max_elements = max_elements
        step = max(1, max_elements // rows_VD.shape[1])
        chunks_vD = rows_VD.split(step)
        norm_V = torch.cat([norms(chunk_vD.to(torch.float64)) for chunk_vD in chunks_vD])
        self.is_zero_V = norm_V == 0
        self.scale_V = torch.where(self.is_zero_V, 1.0, 1 / norm_V) if scaled else torch.ones_like(norm_V)
        self.longest = 1.0 if scaled else float(norm_V.max())
        """Largest norm of a row that is searched."""
        self._scaled = scaled

    def __len__(self) -> int:
        return len(self.rows_VD)

    def single(self, these: slice) -> Tensor:
        """[v, D] float32, for proposing. Scaled in float64: a row may be too small for float32's 1 / norm."""
        rows_vD = self.rows_VD[these]
        if not self._scaled:
            return rows_vD.to(torch.float32)
        return (rows_vD.to(torch.float64) * self.scale_V[these, None]).to(torch.float32)

    def scores(self, queries_qD: Tensor, id_qM: Tensor) -> Tensor:
        """[q, M] float64: the inner product of each query with its own M rows, bit for bit the same in
        every company."""
        rows_qMD = self.rows_VD[id_qM].to(torch.float64) * self.scale_V[id_qM, None]
        return ordered_sum(rows_qMD * queries_qD[:, None])


@dataclass(frozen=True, slots=True, eq=False)
class Largest:
    """The best rows of each query, the best first; of equal ones the lowest number."""

    id_QK: Tensor
    """int64"""
    score_QK: Tensor
    """float64; -inf where there are fewer than K rows to find."""

    def of(self, query: int) -> tuple[list[int], list[float]]:
        """Rows and scores of one query, both at most K long."""
        found_K = self.score_QK[query] > -torch.inf
        return self.id_QK[query][found_K].tolist(), self.score_QK[query][found_K].tolist()


@torch.no_grad()
def largest(
    queries_QD: Tensor, keys: Keys, k: int, *, decimals: int | None = None, itself_Q: Tensor | None = None
) -> Largest:
    """The k rows of `keys` with the largest inner product with each query.

    `queries_QD`: float64 on the keys' device, of norm 1. `decimals`: scores are rounded before they are
    compared, so that mathematically equal ones are. `itself_Q`: a row that a query never finds.
    Memory is bounded by `keys.max_elements` and the answer. Thousands of equal rows among the best cost
    time: all of them are compared.
    """
    ids: list[Tensor] = []
    scores: list[Tensor] = []
    for start in range(0, len(queries_QD), QUERIES_AT_ONCE):
        these = slice(start, start + QUERIES_AT_ONCE)
        itself_q = None if itself_Q is None else itself_Q[these]
        id_qK, score_qK = _of_block(queries_QD[these], keys, k, EXTRA, decimals, itself_q)
        ids.append(id_qK)
        scores.append(score_qK)
    if not ids:
        none = torch.zeros(0, k, dtype=torch.int64, device=queries_QD.device)
        return Largest(none, none.to(torch.float64))
    return Largest(torch.cat(ids), torch.cat(scores))


def _of_block(
    queries_qD: Tensor, keys: Keys, k: int, extra: int, decimals: int | None, itself_q: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(rows, scores) [q, K]; with eight times as many candidates for those queries that need them."""
    rough_qM, id_qM = _proposed(queries_qD, keys, k + extra, itself_q)
    id_qM, order_qM = id_qM.sort(dim=1)
    rough_qM = rough_qM.gather(1, order_qM)
    score_qM = _scored(queries_qD, keys, id_qM).masked_fill(rough_qM == -torch.inf, -torch.inf)
    if decimals is not None:
        score_qM = torch.round(score_qM, decimals=decimals) + 0.0  # no -0.0
    ranked_qM, order_qM = score_qM.sort(dim=1, descending=True, stable=True)
    id_qK, ranked_qK = id_qM.gather(1, order_qM)[:, :k], ranked_qM[:, :k]
    if id_qM.shape[1] < len(keys):
        # Every row that was not proposed has a rough score of at most the worst candidate's.
        error = (keys.rows_VD.shape[1] + 8) * _FEW * keys.longest + (0 if decimals is None else 10**-decimals)
        worst_q = rough_qM.amin(dim=1).to(torch.float64)
        open_q = torch.nonzero(worst_q + error >= ranked_qK[:, -1])[:, 0]
        open_q = open_q[worst_q[open_q] > -torch.inf]  # else every row there is was proposed
        for some_q in open_q.split(max(1, keys.max_elements // (k + 8 * extra))):
            itself = None if itself_q is None else itself_q[some_q]
            found = _of_block(queries_qD[some_q], keys, k, 8 * extra, decimals, itself)
            id_qK[some_q], ranked_qK[some_q] = found
    return _filled(id_qK, 0, k), _filled(ranked_qK, -torch.inf, k)


def _proposed(queries_qD: Tensor, keys: Keys, n: int, itself_q: Tensor | None) -> tuple[Tensor, Tensor]:
    """(float32 scores, rows) [q, M] of the n best by float32, in no order; M is n, or V if that is less.
    A row that may not be found has -inf."""
    queries_qD = queries_qD.to(torch.float32)
    n_queries = len(queries_qD)
    device = queries_qD.device
    score_qM = torch.zeros(n_queries, 0, device=device)
    id_qM = torch.zeros(n_queries, 0, dtype=torch.int64, device=device)
    step = max(1, keys.max_elements // max(n_queries, queries_qD.shape[1]))
    for start in range(0, len(keys), step):
        rows_vD = keys.single(slice(start, start + step))
        score_qv = queries_qD @ rows_vD.T
        score_qv.masked_fill_(keys.is_zero_V[start : start + step], -torch.inf)
        if itself_q is not None:
            here_q = torch.nonzero((itself_q >= start) & (itself_q < start + len(rows_vD)))[:, 0]
            score_qv[here_q, itself_q[here_q] - start] = -torch.inf
        best_qm, place_qm = score_qv.topk(min(n, len(rows_vD)), dim=1, sorted=False)
        score_qM = torch.cat([score_qM, best_qm], dim=1)
        id_qM = torch.cat([id_qM, place_qm + start], dim=1)
        if score_qM.shape[1] > n:
            score_qM, place_qM = score_qM.topk(n, dim=1, sorted=False)
            id_qM = id_qM.gather(1, place_qM)
    return score_qM, id_qM


def _scored(queries_qD: Tensor, keys: Keys, id_qM: Tensor) -> Tensor:
    """[q, M] float64, a few queries and candidates at a time."""
    n_candidates, width = id_qM.shape[1], queries_qD.shape[1]
    queries_at_once = max(1, keys.max_elements // (n_candidates * width))
    columns_at_once = max(1, keys.max_elements // width)
    return torch.cat(
        [
            torch.cat([keys.scores(queries, ids) for ids in block.split(columns_at_once, dim=1)], dim=1)
            for queries, block in zip(
                queries_qD.split(queries_at_once), id_qM.split(queries_at_once), strict=True
            )
        ]
    )


def _filled(x_qK: Tensor, value: float, k: int) -> Tensor:
    """With columns of `value` behind, up to k."""
    missing = k - x_qK.shape[1]
    return x_qK if not missing else torch.cat([x_qK, x_qK.new_full((len(x_qK), missing), value)], dim=1)


# --- sums in a fixed order -------------------------------------------------------------------------------


def ordered_sum(x: Tensor) -> Tensor:
    """Sum over the last axis, halves added to each other until one number is left: in an order that depends
    on the axis' length alone, where `sum` may choose another one for another shape."""
    while (length := x.shape[-1]) > 1:
        half = length // 2
        odd = x[..., 2 * half :]
        x = x[..., :half] + x[..., half : 2 * half]
        if odd.shape[-1]:
            x = torch.cat([x, odd], dim=-1)
    return x[..., 0]


def norms(x_ND: Tensor) -> Tensor:
    """[N], of each row; float64 in, float64 out."""
    return ordered_sum(x_ND * x_ND).sqrt()


def unit_rows(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(rows of norm 1 [N, D], their norms [N]), float64 in and out; a row of zeros stays one."""
    norm_N = norms(x_ND)
    return x_ND / torch.where(norm_N == 0, 1.0, norm_N)[:, None], norm_N
