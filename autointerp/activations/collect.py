"""Forward pass, encoder, and what is kept: token rows in, firings out.

Nothing here waits for the device but what has to: batches are queued, codes come back by asynchronous
copies into pinned memory, and `Collected.kept`, which sorts them, may run in another thread while the next
shard is queued.

Shape letters: B rows, T positions, N = tokens looked at, D = width of the site, M = codes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.activations.collected import Batch, Collected
from autointerp.activations.looked_at import FirstVectors, Inputs, LookedAt, Masking, joined, sent
from autointerp.activations.rows import Rows
from autointerp.activations.vectors import Vectors
from autointerp.dictionaries.encode import Codes, Encoder
from autointerp.dictionaries.finite import check_finite, count_bad
from autointerp.dictionaries.transforms import transformed
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
    target_is_centred: bool = False
    """The decoder makes the target less each token's mean."""

    def wanted(self, x_of: Mapping[Site, Tensor]) -> Tensor | None:
        """What the decoder should make, [N, O], of the vectors of all sites."""
        if self.target is None:
            return None
        y_NO = joined(x_of, self.target)
        return transformed(y_NO.to(torch.float32), ("centre",)) if self.target_is_centred else y_NO


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


def _mask(attached: Attached) -> NDArray[np.bool_] | None:
    if attached.only is None:
        return None
    mask = np.zeros(attached.encoder.spec.n_columns, bool)
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
        first = self.first_vectors(shards, CHECK_TOKENS)
        return {
            name: self._check(entry.encoder, first.inputs(name, entry.sites), entry.wanted(first.x_of))
            for name, entry in self._attached.items()
        }

    @torch.inference_mode()
    def first_vectors(self, shards: Iterator[tuple[int, Rows]], n_tokens: int) -> FirstVectors:
        """Of the first `n_tokens` tokens looked at. Raises ModelError where the model is not finite on one."""
        sites = dict.fromkeys(site for entry in self._attached.values() for site in _read(entry))
        in_rows = {
            name: one
            for name, one in self._attached.items()
            if one.encoder.spec.needs_sequence or one.encoder.spec.needs_gradient
        }
        vectors: dict[Site, list[Tensor]] = {site: [] for site in sites}
        predicted: dict[str, list[Tensor]] = defaultdict(list)
        gradient: dict[str, list[Tensor]] = defaultdict(list)
        n_read = 0
        for first_row, rows in shards:
            for batch in batches(rows, self.batch_tokens, by_length=False):
                looked_at, token_N = self._forward(rows, batch, batch + first_row, list(sites))
                for site in sites:
                    vectors[site].append(looked_at.at(site).float())
                for name, one in in_rows.items():
                    inputs = looked_at.inputs(one.encoder, one.sites)
                    if inputs.predicted_ND is not None:
                        predicted[name].append(inputs.predicted_ND)
                    if inputs.gradient_ND is not None:
                        gradient[name].append(inputs.gradient_ND.float())
                n_read += len(token_N)
                if n_read >= n_tokens:
                    break
            if n_read >= n_tokens:
                break
        x_of = {site: torch.cat(pieces)[:n_tokens] for site, pieces in vectors.items()}
        for site, x_ND in x_of.items():  # before anybody drops a token: a norm that is NaN is no usual one
            check_finite(str(site), count_bad(x_ND), len(x_ND))
        return FirstVectors(
            x_of,
            {name: torch.cat(pieces)[:n_tokens] for name, pieces in predicted.items()},
            {name: torch.cat(pieces)[:n_tokens] for name, pieces in gradient.items()},
        )

    @torch.inference_mode()
    def inputs(self, name: str, rows: Rows, numbers: NDArray[np.int64]) -> Iterator[Inputs]:
        """What one dictionary reads on each batch of `rows` in their order, in float32. `numbers`: those that the
        rows have in the run."""
        entry = self._attached[name]
        for batch in batches(rows, self.batch_tokens, by_length=False):
            looked_at, _ = self._forward(rows, batch, numbers[batch], list(entry.sites))
            found = looked_at.inputs(entry.encoder, entry.sites)
            yield Inputs(found.x_ND.float(), found.predicted_ND, found.gradient_ND)

    def _check(self, encoder: Encoder, inputs: Inputs, y_NO: Tensor | None) -> Check:
        is_usual_N = self._masking.usual(inputs.x_ND)
        median = float(inputs.x_ND.norm(dim=1).median())
        inputs, y_NO = inputs[is_usual_N], None if y_NO is None else y_NO[is_usual_N]
        codes = inputs.codes(encoder)
        return Check(
            n_tokens=len(inputs.x_ND),
            l0=len(codes) / max(len(inputs.x_ND), 1),
            fvu=None if y_NO is None else unexplained(y_NO, inputs.decoded(encoder, codes)),
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
            looked_at, token_N = self._forward(rows, batch, batch + first_row, sites)
            for name, entry in self._attached.items():
                inputs = looked_at.inputs(entry.encoder, entry.sites)
                collected[name].batches.append(
                    self._encoded(entry.encoder, inputs, token_N, median_norms[name])
                )
            on_batch(int(rows["length"][batch].sum()))
        if self._vectors.device.type == "cuda":
            for of_one in collected.values():
                of_one.copied = torch.cuda.Event()
                of_one.copied.record()
        return collected

    def _encoded(
        self, encoder: Encoder, inputs: Inputs, token_N: NDArray[np.int64], median_norm: float
    ) -> Batch:
        x_ND, encoded_ND = inputs.x_ND, inputs.encoded
        is_sink_N = torch.zeros(len(x_ND), dtype=torch.bool, device=x_ND.device)
        if self._masking.sink_ratio is not None:
            is_sink_N = torch.linalg.vector_norm(x_ND.float(), dim=1) > self._masking.sink_ratio * median_norm
        codes = encoder.candidates(encoded_ND, inputs.gradient_ND)
        value_M = codes.value_M.masked_fill(is_sink_N[codes.token_M], 0)
        return Batch(
            token_N=token_N,
            codes=Codes(
                codes.token_M.int().to("cpu", non_blocking=True),
                codes.feature_M.int().to("cpu", non_blocking=True),
                value_M.to("cpu", non_blocking=True),
            ),
            is_sink_N=is_sink_N.to("cpu", non_blocking=True),
            n_bad=(~torch.isfinite(encoded_ND).all(dim=1)).sum().to("cpu", non_blocking=True),
        )

    def _forward(
        self, rows: Rows, batch: NDArray[np.int64], row_B: NDArray[np.int64], sites: list[Site]
    ) -> tuple[LookedAt, NDArray[np.int64]]:
        """The tokens to look at, and their numbers [N]. `row_B`: the numbers that these of `rows` have in the
        run."""
        context_length = rows.dtype["tokens"].shape[0]
        lengths = rows["length"][batch].astype(np.int64)
        longest = int(lengths.max())
        ids_BT = torch.from_numpy(rows["tokens"][batch, :longest].astype(np.int64))
        position_T = np.arange(longest)
        look_BT = (position_T >= self._masking.first) & (position_T < lengths[:, None])
        token_N = (batch[:, None] * context_length + position_T)[look_BT]
        ids_BT = sent(ids_BT, self._vectors.device)
        captured = self._vectors.capture(ids_BT, sites, row_B)
        needed = self._sites_of_gradients()
        gradients = self._vectors.gradients(ids_BT, lengths, needed) if needed else {}
        return LookedAt(captured, lengths, look_BT, self._vectors.device, gradients), token_N

    def _sites_of_gradients(self) -> list[Site]:
        needing = [entry for entry in self._attached.values() if entry.encoder.spec.needs_gradient]
        return list(dict.fromkeys(site for entry in needing for site in entry.sites))


def _read(entry: Attached) -> tuple[Site, ...]:
    return (*entry.sites, *(entry.target or ()))


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
