"""Forward pass, encoder, and what is kept: token rows in, firings out.

Shape letters: B rows, T positions, N = tokens looked at, D = width of the site, M = firings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.activations.rows import Rows
from autointerp.activations.shards import NOTHING, Firings, sort_by_feature
from autointerp.dictionaries.encode import Encoder
from autointerp.subject.model import Subject
from autointerp.types import Site

CHECK_TOKENS: Final = 20_000
"""Tokens on which a dictionary is checked before anything is kept."""


@dataclass(frozen=True, slots=True)
class Attached:
    """An encoder and the site it reads."""

    site: Site
    encoder: Encoder


@dataclass(frozen=True, slots=True)
class Check:
    """What a dictionary does on the first tokens."""

    n_tokens: int
    l0: float
    """Mean number of firing features a token."""
    fvu: float
    """Share of variance not explained: sum |x - x_hat|^2 / sum |x - mean|^2."""
    median_norm: float
    """Median norm of the site's vectors: the measure for sink tokens."""


@dataclass(frozen=True, slots=True)
class Masking:
    """Which tokens nobody looks at."""

    first: int
    """Positions of a row before this are passed over: 1 masks position 0."""
    sink_ratio: float | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one shard for one dictionary. Tokens are row_in_shard * context_length + position."""

    firings: Firings
    sinks: NDArray[np.int64]
    """Tokens masked for their norm, ascending."""
    n_tokens: int
    """Tokens looked at."""


class Collector:
    """A subject model with dictionaries attached."""

    def __init__(
        self, subject: Subject, attached: Mapping[str, Attached], masking: Masking, batch_tokens: int
    ) -> None:
        self._subject = subject
        self._attached = attached
        self._masking = masking
        self._batch_tokens = batch_tokens

    def check(self, shards: Iterator[Rows]) -> dict[str, Check]:
        """Each dictionary on the first `CHECK_TOKENS` tokens looked at, all of one pass."""
        vectors: dict[Site, list[Tensor]] = {entry.site: [] for entry in self._attached.values()}
        n_tokens = 0
        for rows in shards:
            for batch in _batches(rows, self._batch_tokens, by_length=False):
                captured, look_BT, _ = self._forward(rows, batch)
                for site, x_BTD in captured.items():
                    vectors[site].append(x_BTD[look_BT].float())
                n_tokens += int(look_BT.sum())
                if n_tokens >= CHECK_TOKENS:
                    break
            if n_tokens >= CHECK_TOKENS:
                break
        x_of = {site: torch.cat(pieces)[:CHECK_TOKENS] for site, pieces in vectors.items()}
        return {name: self._check(x_of[entry.site], entry.encoder) for name, entry in self._attached.items()}

    def _check(self, x_ND: Tensor, encoder: Encoder) -> Check:
        norm_N = x_ND.norm(dim=1)
        median = float(norm_N.median())
        if self._masking.sink_ratio is not None:
            x_ND = x_ND[norm_N <= self._masking.sink_ratio * median]
        codes = encoder.encode(x_ND)
        error = (x_ND - encoder.decode(codes, x_ND)).double().square().sum()
        spread = (x_ND - x_ND.mean(0)).double().square().sum()
        return Check(
            n_tokens=len(x_ND),
            l0=len(codes.value_M) / max(len(x_ND), 1),
            fvu=float(error / spread) if float(spread) > 0 else float(error > 0),
            median_norm=median,
        )

    def shard(
        self,
        rows: Rows,
        median_norms: Mapping[str, float],
        on_batch: Callable[[int], None] = lambda n_tokens: None,
    ) -> dict[str, Kept]:
        """One shard through the model. `on_batch(n)` after each batch with the tokens it held; it may
        raise to stop. Memory: the shard's firings."""
        context_length = rows.dtype["tokens"].shape[0]
        collected: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in self._attached}
        sinks: dict[str, list[Tensor]] = {name: [] for name in self._attached}
        n_looked_at = dict.fromkeys(self._attached, 0)
        for batch in _batches(rows, self._batch_tokens, by_length=True):
            captured, look_BT, token_BT = self._forward(rows, batch)
            for name, entry in self._attached.items():
                x_ND = captured[entry.site][look_BT].float()
                token_N = token_BT[look_BT]
                if self._masking.sink_ratio is not None:
                    is_sink_N = x_ND.norm(dim=1) > self._masking.sink_ratio * median_norms[name]
                    sinks[name].append(token_N[is_sink_N].cpu())
                    x_ND, token_N = x_ND[~is_sink_N], token_N[~is_sink_N]
                codes = entry.encoder.encode(x_ND)
                n_looked_at[name] += len(x_ND)
                # int32 halves what is held until the shard is sorted.
                collected[name].append(
                    (
                        codes.feature_M.int().cpu(),
                        token_N[codes.token_M].int().cpu(),
                        codes.value_M.float().cpu(),
                    )
                )
            on_batch(int(rows["length"][batch].sum()))
        assert len(rows) * context_length < 2**31
        return {
            name: Kept(_sorted(pieces), _joined(sinks[name]), n_looked_at[name])
            for name, pieces in collected.items()
        }

    def _forward(self, rows: Rows, batch: NDArray[np.int64]) -> tuple[dict[Site, Tensor], Tensor, Tensor]:
        """Captured activations by site [B, T, D]; which tokens to look at [B, T]; their numbers [B, T]."""
        context_length = rows.dtype["tokens"].shape[0]
        lengths = torch.from_numpy(rows["length"][batch].astype(np.int64))
        longest = int(lengths.max())
        ids_BT = torch.from_numpy(rows["tokens"][batch][:, :longest].astype(np.int64))
        position_T = torch.arange(longest)
        look_BT = (position_T >= self._masking.first) & (position_T < lengths[:, None])
        token_BT = torch.from_numpy(batch)[:, None] * context_length + position_T
        sites = list({entry.site: None for entry in self._attached.values()})
        captured = self._subject.capture(ids_BT.to(self._subject.device), sites)
        device = self._subject.device
        return captured, look_BT.to(device), token_BT.to(device)


def _batches(rows: Rows, batch_tokens: int, *, by_length: bool) -> Iterator[NDArray[np.int64]]:
    """Row numbers, so many that the padded batch holds at most `batch_tokens` tokens (at least one row).

    By length, rows of like length share a batch and little is padded; the grouping depends on the shard
    alone."""
    lengths = rows["length"].astype(np.int64)
    order = np.argsort(lengths, kind="stable") if by_length else np.arange(len(rows))
    begin = 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        end = begin + 1
        while end < len(order):
            longest = max(longest, int(lengths[order[end]]))
            if longest * (end + 1 - begin) > batch_tokens:
                break
            end += 1
        yield order[begin:end].astype(np.int64)
        begin = end


def _sorted(pieces: list[tuple[Tensor, Tensor, Tensor]]) -> Firings:
    if not pieces:
        return NOTHING
    feature, token, value = (torch.cat(column).numpy() for column in zip(*pieces, strict=True))
    return sort_by_feature(feature.astype(np.int64), token.astype(np.int64), value)


def _joined(pieces: list[Tensor]) -> NDArray[np.int64]:
    if not pieces:
        return np.zeros(0, np.int64)
    return np.sort(torch.cat(pieces).numpy().astype(np.int64))
