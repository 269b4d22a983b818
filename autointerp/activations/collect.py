"""Forward pass, encoder, and what is kept: token rows in, firings out.

Nothing here waits for the device but what has to: batches are queued, codes come back by asynchronous
copies into pinned memory, and `Collected.kept`, which sorts them, may run in another thread while the next
shard is queued.

Shape letters: B rows, T positions, N = tokens looked at, D = width of the site, M = codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.activations.rows import Rows
from autointerp.activations.shards import Sorted, sort_by_feature
from autointerp.activations.vectors import Vectors
from autointerp.dictionaries.encode import Codes, Encoder
from autointerp.portion import CHECK_TOKENS
from autointerp.types import Site


@dataclass(frozen=True, slots=True)
class Attached:
    """An encoder, the sites it reads, one vector behind the other, and those whose vectors its decoder makes
    (None: nobody knows, and only its codes can be checked)."""

    sites: tuple[Site, ...]
    encoder: Encoder
    target: tuple[Site, ...] | None
    only: NDArray[np.uint32] | None = None
    """Features whose firings are kept. None: all that the encoder has."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a dictionary does on the first tokens."""

    n_tokens: int
    l0: float
    """Mean number of firing features a token."""
    fvu: float | None
    """Share of variance not explained: sum |y - y_hat|^2 / sum |y - mean|^2, where y is what it was trained to
    give; None where that is not here."""
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
    """What one dictionary does on one shard. Tokens are row_in_shard * context_length + position."""

    firings: Sorted
    sinks: NDArray[np.int64]
    """Tokens masked for their norm, ascending."""
    n_tokens: int
    """Tokens looked at."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """One batch's codes on their way to the host; the tensors may not be read before the copy is done."""

    token_N: NDArray[np.int64]
    """Numbers of the tokens that were looked at."""
    codes: Codes
    """As the encoder's `candidates` gives them, in int32; sinks have value 0."""
    is_sink_N: Tensor
    n_bad: Tensor
    """How many tokens have activations that are not finite."""


@dataclass(slots=True)
class Collected:
    """One shard's codes of one dictionary, as they come from the device."""

    encoder: Encoder
    n_tokens: int
    """Tokens the shard has room for: rows * context_length."""
    only: NDArray[np.bool_] | None = None
    """[width], features whose firings are kept; None: all."""
    copied: torch.cuda.Event | None = None
    """Happens when every copy is done; None where nothing is asynchronous."""
    batches: list[_Batch] = field(default_factory=list["_Batch"])

    def kept(self) -> Kept:
        """Waits for the copies, sorts, and lets go of what it held. Raises ModelError where activations are
        not finite."""
        if self.copied is not None:
            self.copied.synchronize()
        n_looked_at = sum(len(batch.token_N) for batch in self.batches)
        self.encoder.check_finite(sum(int(batch.n_bad) for batch in self.batches), n_looked_at)
        sinks = [batch.token_N[batch.is_sink_N.numpy()] for batch in self.batches]
        pieces = [_active(batch, self.only) for batch in self.batches]
        self.batches = []
        feature, token, value = (np.concatenate(column) for column in zip(*pieces, strict=True))
        del pieces
        masked = np.sort(np.concatenate(sinks))
        return Kept(
            firings=sort_by_feature(feature, token, value, self.n_tokens, self.encoder.spec.n_columns),
            sinks=masked,
            n_tokens=n_looked_at - len(masked),
        )


def _active(
    batch: _Batch, only: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """(feature, token, value) of the codes that are active, and of one of the features `only`."""
    feature, value = batch.codes.feature_M.numpy(), batch.codes.value_M.numpy()
    token = batch.token_N.astype(np.int32)[batch.codes.token_M.numpy()]
    active = value > 0
    if only is not None:  # here and not on the device, which would have to be waited for
        active &= only[feature]
    return (feature, token, value) if active.all() else (feature[active], token[active], value[active])


def _mask(attached: Attached) -> NDArray[np.bool_] | None:
    if attached.only is None:
        return None
    mask = np.zeros(attached.encoder.spec.width, bool)
    mask[attached.only] = True
    return mask


class Collector:
    """Dictionaries attached to a subject model, or to what it left in files."""

    def __init__(
        self, vectors: Vectors, attached: Mapping[str, Attached], masking: Masking, batch_tokens: int
    ) -> None:
        """`batch_tokens`: of one forward pass; whoever meets an out-of-memory error may lower it."""
        self._vectors = vectors
        self._attached = attached
        self._only = {name: _mask(entry) for name, entry in attached.items()}
        self._masking = masking
        self.batch_tokens = batch_tokens

    def turned_to(self, attached: Mapping[str, Attached]) -> Collector:
        """One of other dictionaries, or of other features of theirs, on the same vectors."""
        return Collector(self._vectors, attached, self._masking, self.batch_tokens)

    @torch.inference_mode()
    def check(self, shards: Iterator[tuple[int, Rows]]) -> dict[str, Check]:
        """Each dictionary on the first `CHECK_TOKENS` tokens looked at, all of one pass. `shards`: the
        number of their first row, and the rows."""
        x_of = self.first_vectors(shards, CHECK_TOKENS)
        return {
            name: self._check(
                entry.encoder,
                joined(x_of, entry.sites),
                None if entry.target is None else joined(x_of, entry.target),
            )
            for name, entry in self._attached.items()
        }

    @torch.inference_mode()
    def first_vectors(self, shards: Iterator[tuple[int, Rows]], n_tokens: int) -> dict[Site, Tensor]:
        """Of the first `n_tokens` tokens looked at, the vectors at every site that is read or predicted."""
        sites = dict.fromkeys(site for entry in self._attached.values() for site in _read(entry))
        vectors: dict[Site, list[Tensor]] = {site: [] for site in sites}
        n_read = 0
        for first_row, rows in shards:
            for batch in batches(rows, self.batch_tokens, by_length=False):
                captured, token_N = self._forward(rows, batch, batch + first_row, list(sites))
                for site, x_ND in captured.items():
                    vectors[site].append(x_ND.float())
                n_read += len(token_N)
                if n_read >= n_tokens:
                    break
            if n_read >= n_tokens:
                break
        return {site: torch.cat(pieces)[:n_tokens] for site, pieces in vectors.items()}

    @torch.inference_mode()
    def vectors(self, name: str, rows: Rows, numbers: NDArray[np.int64]) -> Iterator[Tensor]:
        """What one dictionary reads on each batch of `rows` in their order [N, D], float32. `numbers`: those
        that the rows have in the run."""
        sites = self._attached[name].sites
        for batch in batches(rows, self.batch_tokens, by_length=False):
            captured, _ = self._forward(rows, batch, numbers[batch], list(sites))
            yield joined(captured, sites).float()

    def _check(self, encoder: Encoder, x_ND: Tensor, y_NO: Tensor | None) -> Check:
        norm_N = x_ND.norm(dim=1)
        median = float(norm_N.median())
        if self._masking.sink_ratio is not None:
            is_usual_N = norm_N <= self._masking.sink_ratio * median
            x_ND, y_NO = x_ND[is_usual_N], None if y_NO is None else y_NO[is_usual_N]
        codes = encoder.encode(x_ND)
        return Check(
            n_tokens=len(x_ND),
            l0=len(codes.value_M) / max(len(x_ND), 1),
            fvu=None if y_NO is None else unexplained(y_NO, encoder.decode(codes, x_ND)),
            median_norm=median,
        )

    @torch.inference_mode()
    def shard(
        self,
        rows: Rows,
        first_row: int,
        median_norms: Mapping[str, float],
        on_batch: Callable[[int], None] = lambda n_tokens: None,
    ) -> dict[str, Collected]:
        """One shard, whose rows begin with number `first_row` of the run. `on_batch(n)` after each batch with
        the tokens it held; it may raise to stop. Memory: the shard's codes, 12 bytes each."""
        n_tokens = len(rows) * rows.dtype["tokens"].shape[0]
        sites = list(dict.fromkeys(site for entry in self._attached.values() for site in entry.sites))
        collected = {
            name: Collected(entry.encoder, n_tokens, self._only[name])
            for name, entry in self._attached.items()
        }
        for batch in batches(rows, self.batch_tokens, by_length=True):
            captured, token_N = self._forward(rows, batch, batch + first_row, sites)
            for name, entry in self._attached.items():
                x_ND = joined(captured, entry.sites)
                collected[name].batches.append(
                    self._encoded(entry.encoder, x_ND, token_N, median_norms[name])
                )
            on_batch(int(rows["length"][batch].sum()))
        if self._vectors.device.type == "cuda":
            for of_one in collected.values():
                of_one.copied = torch.cuda.Event()
                of_one.copied.record()
        return collected

    def _encoded(
        self, encoder: Encoder, x_ND: Tensor, token_N: NDArray[np.int64], median_norm: float
    ) -> _Batch:
        is_sink_N = torch.zeros(len(x_ND), dtype=torch.bool, device=x_ND.device)
        if self._masking.sink_ratio is not None:
            is_sink_N = torch.linalg.vector_norm(x_ND.float(), dim=1) > self._masking.sink_ratio * median_norm
        codes = encoder.candidates(x_ND)
        value_M = codes.value_M.masked_fill(is_sink_N[codes.token_M], 0)
        return _Batch(
            token_N=token_N,
            codes=Codes(
                codes.token_M.int().to("cpu", non_blocking=True),
                codes.feature_M.int().to("cpu", non_blocking=True),
                value_M.to("cpu", non_blocking=True),
            ),
            is_sink_N=is_sink_N.to("cpu", non_blocking=True),
            n_bad=(~torch.isfinite(x_ND).all(dim=1)).sum().to("cpu", non_blocking=True),
        )

    def _forward(
        self, rows: Rows, batch: NDArray[np.int64], row_B: NDArray[np.int64], sites: list[Site]
    ) -> tuple[dict[Site, Tensor], NDArray[np.int64]]:
        """Activations [N, D] by site of the tokens to look at, and these tokens' numbers [N]. `row_B`: the
        numbers that these of `rows` have in the run."""
        context_length = rows.dtype["tokens"].shape[0]
        lengths = rows["length"][batch].astype(np.int64)
        longest = int(lengths.max())
        ids_BT = torch.from_numpy(rows["tokens"][batch, :longest].astype(np.int64))
        position_T = np.arange(longest)
        look_BT = (position_T >= self._masking.first) & (position_T < lengths[:, None])
        token_N = (batch[:, None] * context_length + position_T)[look_BT]
        look_N = torch.from_numpy(np.flatnonzero(look_BT))
        captured = self._vectors.capture(self._sent(ids_BT, self._vectors.device), sites, row_B)
        return {
            site: x_BTD.flatten(0, 1).index_select(0, self._sent(look_N, x_BTD.device))
            for site, x_BTD in captured.items()
        }, token_N

    def _sent(self, tensor: Tensor, device: torch.device) -> Tensor:
        """On the device, without waiting for it."""
        if device.type != "cuda":
            return tensor.to(device)
        return tensor.pin_memory().to(device, non_blocking=True)


def _read(entry: Attached) -> tuple[Site, ...]:
    return (*entry.sites, *(entry.target or ()))


def joined(x_of: Mapping[Site, Tensor], sites: Sequence[Site]) -> Tensor:
    """The vectors of several sites, one behind the other, on the device of the first."""
    if len(sites) == 1:
        return x_of[sites[0]]
    first_ND = x_of[sites[0]]
    return torch.cat([first_ND, *(x_of[site].to(first_ND.device) for site in sites[1:])], dim=1)


def unexplained(y_NO: Tensor, y_hat_NO: Tensor) -> float:
    """The share of the variance of y that y_hat doesn't explain (FVU), over all dimensions together."""
    error = (y_NO - y_hat_NO).double().square().sum()
    spread = (y_NO - y_NO.mean(0)).double().square().sum()
    return float(error / spread) if float(spread) > 0 else float(error > 0)


def batches(rows: Rows, batch_tokens: int, *, by_length: bool) -> Iterator[NDArray[np.int64]]:
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
