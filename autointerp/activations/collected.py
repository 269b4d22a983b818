"""One shard's codes of one dictionary, from the device to what is kept.

Copies into pinned memory are asynchronous; `Collected.kept`, which sorts, may run in another thread.

Shape letters: N = tokens looked at, M = codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.activations.shards import Sorted, sort_by_feature
from autointerp.dictionaries.encode import Codes, Encoder
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Kept:
    """What one dictionary does on one shard. Tokens are row_in_shard * context_length + position."""

    firings: Sorted
    sinks: NDArray[np.int64]
    """Tokens masked for their norm, ascending."""
    n_tokens: int
    """Tokens looked at."""


@dataclass(frozen=True, slots=True)
class Batch:
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
    batches: list[Batch] = field(default_factory=list["Batch"])

    def kept(self) -> Kept:
        """Waits for the copies, sorts, and lets go of what it held. Raises ModelError where activations are
        not finite, CheckpointError where codes of finite ones are not."""
        if self.copied is not None:
            self.copied.synchronize()
        n_looked_at = sum(len(batch.token_N) for batch in self.batches)
        self.encoder.check_finite(sum(int(batch.n_bad) for batch in self.batches), n_looked_at)
        sinks = [batch.token_N[batch.is_sink_N.numpy()] for batch in self.batches]
        if self.encoder.spec.selector == "custom":  # on a GPU nobody else has looked at these values
            for batch in self.batches:
                _check_values(batch.codes, self.encoder.spec)
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


def _check_values(codes: Codes, spec: DictionarySpec) -> None:
    """Raises CheckpointError where a value is NaN or infinite, which would pass for no firing, or there is no such
    feature."""
    value_M, feature_M = codes.value_M.numpy(), codes.feature_M.numpy()
    if np.isfinite(value_M).all() and ((feature_M >= 0) & (feature_M < spec.n_columns)).all():
        return
    raise CheckpointError(
        f"{spec.path}: codes are NaN or infinite, or of features beyond its width, {spec.width:,}. Look at what its "
        "encode gives: only numbers, of features from 0 on, can be kept."
    )


def _active(
    batch: Batch, only: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """(feature, token, value) of the codes that are active, and of one of the features `only`."""
    feature, value = batch.codes.feature_M.numpy(), batch.codes.value_M.numpy()
    token = batch.token_N.astype(np.int32)[batch.codes.token_M.numpy()]
    active = value > 0
    if only is not None:  # here and not on the device, which would have to be waited for
        active &= only[feature]
    return (feature, token, value) if active.all() else (feature[active], token[active], value[active])
