"""Thresholds for dictionaries that in training chose among the activations of a whole batch.

Once they have them they are JumpReLU: a token's code is the same whatever batch, shard or process it is in.
All is counted on scores as the selector sees them (on those of all inputs of a crosscoder, where each selects by
itself), of which those above 0 take part, and all is exact: the numbers are those that sorting every score would
give. Nothing dense outlives a tile.

    batch_topk       mean over batches of B tokens of the smallest score kept, where each batch keeps its k B
                     largest; what is left over behind the last whole batch is not used
    mutual_choice    the largest score not among the k N largest of all N tokens
    feature_choice   of each feature the largest score not among its k N / F largest
    sampled          as mutual_choice, among the features with the largest column scores; infinite for the rest

Memory beyond a tile: batch_topk 8 k B bytes, the others 8 k N (feature_choice 8 (k N + F)).

Sources: arXiv 2412.06410 section 3 (BatchTopK), 2411.02124 (Mutual and Feature Choice), 2508.21324 (Sampled-SAE).
The last choose per training batch; how a token alone is to be encoded they leave open, so that is ours.

Shapes: N tokens, D = d_in, F = width, B tokens of a batch; n, f a tile of N, F.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.finite import count_bad
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError

Inputs = Callable[[], Iterator[Tensor]]
"""Each call goes over the same tokens again, in the same order and pieces: what the dictionary reads [n, D]."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """What was found."""

    threshold_F: Tensor
    """Float32, at least 0; infinite where a feature never fires."""
    n_tokens: int
    """That took part."""


def calibrated(encoder: Encoder, inputs: Inputs, n_tokens: int) -> Calibrated:
    """`encoder`: of the dictionary without thresholds. `n_tokens`: that `inputs` give at most.

    Raises CheckpointError where there are too few tokens, or nothing is above 0; ModelError where
    activations are not finite.
    """
    calibration = encoder.spec.calibration
    assert calibration is not None
    found = _RULES[calibration.rule](encoder, calibration, inputs, n_tokens)
    if not found.n_tokens:
        raise CheckpointError(
            f"{encoder.spec.path} stores no threshold, and there is no token to calibrate it on. Is "
            f"cache.n_tokens (in a check --n-tokens) too small?"
        )
    return found


# --- rules ---------------------------------------------------------------------------------------------


def _batch_topk(encoder: Encoder, calibration: Calibration, inputs: Inputs, n_tokens: int) -> Calibrated:
    smallest: list[float] = []
    n_used = 0
    for x_BD in _whole_batches(inputs(), calibration.batch_tokens):
        kept = _Largest(max(1, round(calibration.k * len(x_BD))))
        for _, score_nf in _tiles(encoder, x_BD):
            kept.add(score_nf)
        n_used += len(x_BD)
        held = kept.held()
        if len(held):
            smallest.append(float(held.min()))
    if n_used and not smallest:
        raise _silent(encoder.spec, n_used)
    return _one_for_all(encoder, math.fsum(smallest) / max(len(smallest), 1), n_used)


def _mutual_choice(encoder: Encoder, calibration: Calibration, inputs: Inputs, n_tokens: int) -> Calibrated:
    threshold, n_used = _threshold_of(encoder, calibration.k, inputs, n_tokens, None)
    return _one_for_all(encoder, threshold, n_used)


def _feature_choice(encoder: Encoder, calibration: Calibration, inputs: Inputs, n_tokens: int) -> Calibrated:
    width, share = encoder.spec.width, min(calibration.k / encoder.spec.width, 1.0)
    n_held = int(share * n_tokens) + 1
    device, n_used = encoder.device, 0
    # Zeros stand for scores that are not there: of a feature with fewer above 0 all are kept.
    largest_Fm = torch.zeros(width, n_held, device=device)
    for x_nD in inputs():
        for first, score_nf in _tiles(encoder, x_nD):
            these = slice(first, first + score_nf.shape[1])
            both = torch.cat([largest_Fm[these], score_nf.T.clamp_min(0)], dim=1)
            largest_Fm[these] = torch.topk(both, n_held, dim=1, sorted=True).values
        n_used += len(x_nD)
    n_kept = int(share * n_used)
    if n_used and not n_kept:
        raise CheckpointError(
            f"{encoder.spec.path}: each feature is to keep {share:.2g} of all tokens, which of {n_used:,} is not "
            f"even one. Calibrate on more than {math.ceil(1 / share):,}: --set cache.calibration_tokens=N (in a "
            f"check --n-tokens N)"
        )
    if n_used and not largest_Fm.any():
        raise _silent(encoder.spec, n_used)
    return Calibrated(largest_Fm[:, n_kept].clone(), n_used)


def _sampled(encoder: Encoder, calibration: Calibration, inputs: Inputs, n_tokens: int) -> Calibrated:
    assert calibration.pool is not None
    column_F = _column_scores(encoder, calibration, inputs)
    order_F = torch.sort(column_F, descending=True, stable=True).indices  # of equals the first
    is_candidate_F = torch.zeros(encoder.spec.width, dtype=torch.bool, device=column_F.device)
    is_candidate_F[order_F[: calibration.pool]] = True
    threshold, n_used = _threshold_of(encoder, calibration.k, inputs, n_tokens, is_candidate_F)
    threshold_F = torch.where(is_candidate_F, threshold, torch.inf)
    return Calibrated(threshold_F.float(), n_used)


_RULES: Final = {
    "batch_topk": _batch_topk,
    "mutual_choice": _mutual_choice,
    "feature_choice": _feature_choice,
    "sampled": _sampled,
}


def _column_scores(encoder: Encoder, calibration: Calibration, inputs: Inputs) -> Tensor:
    """[F], float64: of each feature the squared norm of its positive scores z over tokens, or the entropy of
    p = z / sum z, which is log(sum z) - sum(z log z) / sum z; 0 where it never is above 0."""
    power_F = torch.zeros(encoder.spec.width, dtype=torch.float64, device=encoder.device)
    sum_F, spread_F = power_F.clone(), power_F.clone()
    for x_nD in inputs():
        for first, score_nf in _tiles(encoder, x_nD):
            these = slice(first, first + score_nf.shape[1])
            z_nf = score_nf.clamp_min(0).double()
            power_F[these] += z_nf.square().sum(0)
            sum_F[these] += z_nf.sum(0)
            spread_F[these] += torch.xlogy(z_nf, z_nf).sum(0)
    if calibration.column_score == "l2":
        return power_F
    some_F = sum_F.clamp_min(1e-300)
    return torch.where(sum_F > 0, some_F.log() - spread_F / some_F, 0.0)


def _threshold_of(
    encoder: Encoder, k: float, inputs: Inputs, n_tokens: int, is_candidate_F: Tensor | None
) -> tuple[float, int]:
    """The largest score that is not among the k a token largest, 0 where there are not so many; and the
    tokens that there were."""
    largest, n_used = _Largest(int(k * n_tokens) + 1), 0
    for x_nD in inputs():
        for first, score_nf in _tiles(encoder, x_nD):
            if is_candidate_F is not None:
                score_nf = score_nf[:, is_candidate_F[first : first + score_nf.shape[1]]]
            largest.add(score_nf)
        n_used += len(x_nD)
    held, n_kept = largest.held(), int(k * n_used)
    if n_used and not len(held):
        raise _silent(encoder.spec, n_used)
    if len(held) <= n_kept:
        return 0.0, n_used
    return float(torch.sort(held, descending=True).values[n_kept]), n_used


# --- streams -------------------------------------------------------------------------------------------


class _Largest:
    """The n largest of the positive values that go by, in whatever order. Memory: 2 n values and a tile."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._pieces: list[Tensor] = []
        self._n_held = 0
        self._floor = 0.0
        """What is not above it can't be among them, or equals one that is."""

    def add(self, values: Tensor) -> None:
        found = values[values > self._floor]
        self._pieces.append(found)
        self._n_held += len(found)
        if self._n_held > 2 * self._n:
            self._pieces = [self.held()]
            self._n_held = len(self._pieces[0])
            self._floor = float(self._pieces[0].min()) if self._n_held else self._floor

    def held(self) -> Tensor:
        """At most n, in no order."""
        together = torch.cat(self._pieces) if self._pieces else torch.zeros(0)
        return together if len(together) <= self._n else torch.topk(together, self._n, sorted=False).values


def _tiles(encoder: Encoder, x_nD: Tensor) -> Iterator[tuple[int, Tensor]]:
    encoder.check_finite(count_bad(x_nD), len(x_nD))
    return encoder.score_tiles(x_nD)


def _whole_batches(pieces: Iterator[Tensor], batch_tokens: int) -> Iterator[Tensor]:
    """Of just so many tokens; where there are fewer in all, these."""
    held: list[Tensor] = []
    n_held, is_first = 0, True
    for piece in pieces:
        held.append(piece)
        n_held += len(piece)
        while n_held >= batch_tokens:
            together = torch.cat(held)
            yield together[:batch_tokens]
            held, n_held, is_first = [together[batch_tokens:]], n_held - batch_tokens, False
    if is_first and n_held:
        yield torch.cat(held)


def _one_for_all(encoder: Encoder, threshold: float, n_tokens: int) -> Calibrated:
    return Calibrated(torch.full((encoder.spec.width,), threshold, device=encoder.device), n_tokens)


def _silent(spec: DictionarySpec, n_tokens: int) -> CheckpointError:
    return CheckpointError(
        f"{spec.path} stores no threshold, and it can't be calibrated: on {n_tokens:,} tokens no activation is "
        f"above 0. Is it of another model or site (--model, --hook)?"
    )
