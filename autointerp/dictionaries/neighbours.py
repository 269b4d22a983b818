"""Which features of a dictionary have the most similar directions.

Over the whole dictionary, in chunks, by the cosine of decoder rows (of encoder columns where there is no
decoder): never an F x F matrix. A feature's neighbours depend on the dictionary alone, not on which other
features are asked about, nor on chunks or the device (`subject/largest.py` says how).

Shapes: F = width, D = length of a direction, Q features asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from autointerp.subject.largest import MAX_ELEMENTS, Keys, largest, unit_rows

DECIMALS: Final = 6
"""Similarities are rounded to so many decimals, then compared: mathematically equal ones are equal."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The features nearest to one: parallel lists, the most similar first, of equal ones the lowest index."""

    features: list[int]
    similarity: list[float]
    """Cosine, rounded to `DECIMALS`."""


class Neighbourhood:
    """A dictionary's directions, ready to be searched."""

    def __init__(self, directions_FD: Tensor, max_elements: int = MAX_ELEMENTS) -> None:
        """`directions_FD`: decoder rows, or encoder columns transposed; any float dtype, any device that has
        float64. A view will do, nothing is copied. `max_elements` bounds what is held at once (beside some
        numbers a feature) and changes no result."""
        self._keys = Keys(directions_FD, scaled=True, max_elements=max_elements)

    def nearest(self, features: Sequence[int], k: int) -> list[Nearest]:
        """For each of `features` the k others with the largest cosine, also where that is negative.

        Fewer where the dictionary has fewer; none for a feature whose row is all zeros, and such rows are
        nobody's neighbours.
        """
        asked_Q = torch.tensor(list(features), dtype=torch.int64, device=self._keys.rows_VD.device)
        queries_QD, norm_Q = unit_rows(self._keys.rows_VD[asked_Q].to(torch.float64))
        able_q = torch.nonzero(norm_Q)[:, 0]
        found = largest(queries_QD[able_q], self._keys, k, decimals=DECIMALS, itself_Q=asked_Q[able_q])
        nearest = [Nearest([], []) for _ in features]
        for number, place in enumerate(able_q.tolist()):
            nearest[place] = Nearest(*found.of(number))
        return nearest
