"""Where activations come from: a model that reads the rows, or files.

Shapes: B rows, T tokens a row, D the width at a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.activations.dump import Dump
from autointerp.activations.stored import float32
from autointerp.errors import ActivationsError
from autointerp.subject.gradients import loss_gradients
from autointerp.subject.model import Subject
from autointerp.subject.pretrained import Dtype
from autointerp.types import Site

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Vectors(Protocol):
    """Activations at sites, of any rows of a run."""

    @property
    def device(self) -> torch.device:
        """Where token ids go in, and dictionaries lie."""
        ...

    def capture(
        self, token_ids_BT: Tensor, sites: Sequence[Site], row_B: NDArray[np.int64]
    ) -> dict[Site, Tensor]:
        """[B, T, D] by site. `token_ids_BT`: int64, padded on the right; `row_B`: which rows of the run
        these are. What comes out on padding is meaningless."""
        ...

    def gradients(
        self, token_ids_BT: Tensor, lengths: NDArray[np.int64], sites: Sequence[Site]
    ) -> dict[Site, Tensor]:
        """[B, T, D] by site: of the model's loss by what `capture` gives, 0 on padding. `lengths`: of the rows."""
        ...


@dataclass(frozen=True, slots=True)
class FromModel:
    """What the subject model computes."""

    subject: Subject

    @property
    def device(self) -> torch.device:
        return self.subject.device

    def capture(
        self, token_ids_BT: Tensor, sites: Sequence[Site], row_B: NDArray[np.int64]
    ) -> dict[Site, Tensor]:
        return self.subject.capture(token_ids_BT, sites)

    def gradients(
        self, token_ids_BT: Tensor, lengths: NDArray[np.int64], sites: Sequence[Site]
    ) -> dict[Site, Tensor]:
        return loss_gradients(self.subject, token_ids_BT, lengths.tolist(), sites)


@dataclass(frozen=True, slots=True)
class FromDump:
    """What lies in a folder, of one site."""

    dump: Dump
    device: torch.device
    first_position: int
    """What lies before it in a row may be anything: nobody looks at it."""

    @property
    def dtype(self) -> Dtype:
        return cast(Dtype, self.dump.dtype)

    def capture(
        self, token_ids_BT: Tensor, sites: Sequence[Site], row_B: NDArray[np.int64]
    ) -> dict[Site, Tensor]:
        """Raises ActivationsError where activations are NaN or infinite."""
        vectors_BTD = self.dump.vectors(row_B, token_ids_BT.shape[1])
        self._check_finite(vectors_BTD, row_B)
        x_BTD = torch.from_numpy(vectors_BTD.view(np.int16) if self.dump.dtype == "bfloat16" else vectors_BTD)
        x_BTD = x_BTD.view(_DTYPES[self.dump.dtype]).to(self.device)
        return dict.fromkeys(sites, x_BTD)

    def gradients(
        self, token_ids_BT: Tensor, lengths: NDArray[np.int64], sites: Sequence[Site]
    ) -> dict[Site, Tensor]:
        raise AssertionError("`resolve` refuses dictionaries that need gradients where there is no model")

    def _check_finite(self, vectors_BTD: NDArray[Any], row_B: NDArray[np.int64]) -> None:
        # A token with a number that is not finite has a sum that isn't either; float32 holds any sum of
        # what isn't near its own end.
        sum_BT = float32(vectors_BTD, self.dump.dtype).sum(axis=2)[:, self.first_position :]
        bad = np.argwhere(~np.isfinite(sum_BT))
        if len(bad):
            row, position = bad[0].tolist()
            raise ActivationsError(
                f"the activations in {self.dump.folder} are NaN or infinite on {len(bad):,} tokens of "
                f"{len(row_B):,} rows looked at together, the first in row {int(row_B[row]):,} at position "
                f"{position + self.first_position:,}. Float16 ends at 65,504: save them in bfloat16 or "
                f"float32."
            )
