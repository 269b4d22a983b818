"""The tokens of a batch that are looked at: what they are at every site, and what a dictionary reads of them.

Most dictionaries read each token by itself. What one that `needs_sequence` reads of a token depends on the tokens
before it in its row, also on those that nobody looks at, BOS among them: so it is made here, where rows are whole.
What one that `needs_gradient` reads depends on those behind it, and comes with the batch.

Shape letters: B rows, T positions, N = tokens looked at, D = width of the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.dictionaries.encode import Codes, Encoder
from autointerp.types import Site


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a dictionary reads of some tokens."""

    x_ND: Tensor
    predicted_ND: Tensor | None = None
    """What the tokens before them predict of it; None for a dictionary that reads each token by itself."""
    gradient_ND: Tensor | None = None
    """Of the loss by it; None for a dictionary that doesn't need it."""

    @property
    def encoded(self) -> Tensor:
        """What its encoder takes [N, D]."""
        return self.x_ND if self.predicted_ND is None else self.x_ND.float() - self.predicted_ND

    def __getitem__(self, which: Tensor | slice) -> Inputs:
        parts = (self.x_ND, self.predicted_ND, self.gradient_ND)
        x_ND, predicted_ND, gradient_ND = (None if part is None else part[which] for part in parts)
        assert x_ND is not None
        return Inputs(x_ND, predicted_ND, gradient_ND)

    def codes(self, encoder: Encoder) -> Codes:
        """The dictionary's, sorted. Raises ModelError where they are NaN or infinite."""
        return encoder.encode(self.encoded, self.gradient_ND)

    def decoded(self, encoder: Encoder, codes: Codes) -> Tensor:
        """What the dictionary makes of them [N, O], whose codes are `codes`."""
        y_hat_NO = encoder.decode(codes, self.encoded)
        return y_hat_NO if self.predicted_ND is None else y_hat_NO + self.predicted_ND


@dataclass(frozen=True, slots=True)
class Masking:
    """Which tokens nobody looks at."""

    first: int
    """Positions of a row before this are passed over: 1 masks position 0."""
    sink_ratio: float | None

    def usual(self, x_ND: Tensor) -> Tensor:
        """[N]: all of these tokens but those of massive norm."""
        norm_N = x_ND.norm(dim=1)
        if self.sink_ratio is None:
            return torch.ones_like(norm_N, dtype=torch.bool)
        return norm_N <= self.sink_ratio * norm_N.median()


@dataclass(frozen=True, slots=True, eq=False)
class FirstVectors:
    """What the first tokens looked at are."""

    x_of: dict[Site, Tensor]
    """At every site that is read or predicted [N, D], float32."""
    predicted_of: dict[str, Tensor]
    """Of each dictionary that `needs_sequence` what the tokens before them predict of these [N, D]."""
    gradient_of: dict[str, Tensor]
    """Of each that `needs_gradient` the gradients of the loss by these [N, D]."""

    def inputs(self, name: str, sites: tuple[Site, ...]) -> Inputs:
        """What the dictionary called `name` reads, at `sites`."""
        x_ND = joined(self.x_of, sites)
        return Inputs(x_ND, self.predicted_of.get(name), self.gradient_of.get(name))

    def chosen(self, which_N: Tensor) -> FirstVectors:
        """Some of them."""
        return FirstVectors(
            {site: x_ND[which_N.to(x_ND.device)] for site, x_ND in self.x_of.items()},
            {name: x_ND[which_N.to(x_ND.device)] for name, x_ND in self.predicted_of.items()},
            {name: x_ND[which_N.to(x_ND.device)] for name, x_ND in self.gradient_of.items()},
        )


class LookedAt:
    """One batch, behind the forward pass."""

    def __init__(
        self,
        captured: Mapping[Site, Tensor],
        lengths: NDArray[np.int64],
        look_BT: NDArray[np.bool_],
        device: torch.device,
        gradients: Mapping[Site, Tensor] | None = None,
    ) -> None:
        """`captured`: [B, T, D] by site, anything behind a row's end; each on its layer's device, of which a model
        spread over several cards has several. `look_BT`: which tokens are looked at. `device`: the
        dictionaries'. `gradients`: of the loss, at the sites of dictionaries that need them, as `captured`."""
        self._captured, self._lengths = captured, lengths
        self._gradients = gradients or {}
        self._device = device
        self._look_N = torch.from_numpy(np.flatnonzero(look_BT))
        self._at: dict[Site, Tensor] = {}

    def at(self, site: Site) -> Tensor:
        """[N, D], on the dictionaries' device."""
        if site not in self._at:
            self._at[site] = self._chosen(self._captured[site])
        return self._at[site]

    def inputs(self, encoder: Encoder, sites: Sequence[Site]) -> Inputs:
        """What a dictionary at `sites` reads."""
        x_ND = joined({site: self.at(site) for site in sites}, sites)
        predicted_ND = gradient_ND = None
        if encoder.spec.needs_sequence:
            x_BTD = joined({site: self._captured[site].to(self._device) for site in sites}, sites)
            predicted_ND = self._chosen(encoder.predicted(x_BTD, self._lengths.tolist()))
        if encoder.spec.needs_gradient:
            gradient_ND = joined({site: self._chosen(self._gradients[site]) for site in sites}, sites)
        return Inputs(x_ND, predicted_ND, gradient_ND)

    def _chosen(self, x_BTD: Tensor) -> Tensor:
        chosen_ND = x_BTD.flatten(0, 1).index_select(0, sent(self._look_N, x_BTD.device))
        return chosen_ND.to(self._device, non_blocking=True)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def joined(x_of: Mapping[Site, Tensor], sites: Sequence[Site]) -> Tensor:
    """The vectors of several sites, one behind the other, on the device of the first."""
    if len(sites) == 1:
        return x_of[sites[0]]
    first = x_of[sites[0]]
    return torch.cat([first, *(x_of[site].to(first.device) for site in sites[1:])], dim=-1)
