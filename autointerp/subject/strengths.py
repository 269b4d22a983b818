"""How strongly to push: a bracketed search for the strengths that change the model by so much.

How much is the mean over prompts of KL(clean || steered) of the next-token distribution, in nats. It need not
grow with the strength, so a target is looked for where it is first crossed from below on a grid, and then by
turns interpolating between the ends of that bracket (both axes logarithmic: a small push changes the KL by its
square) and halving it. What no bracket holds within the range is a status of its own.

Several searches go on at once, so that one batch of the model answers all of them. No torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from autointerp.effects import SearchStatus

TOLERANCE: Final = 0.1
"""A target is hit within this share of it."""
MOST_ROUNDS: Final = 24
"""Beyond the grid. Half of them halve the bracket: 12 halvings of half a decade leave a thousandth of it."""
_TINY: Final = 1e-12
"""Stands for a KL of 0, or a rounding error below it, where its logarithm is taken."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ended with for one target."""

    status: SearchStatus
    strength: float
    kl: float
    """At this strength, in nats; within the tolerance of the target where the status is ok, else the nearest."""


def grid(low: float, high: float, n: int) -> list[float]:
    """`n` strengths from `low` to `high`, equally far apart in their logarithms."""
    step = math.log(high / low) / (n - 1)
    return [low * math.exp(step * number) for number in range(n)]


class Search:
    """Of one direction: says which strengths it wants to know the KL of, and is told."""

    def __init__(self, targets: Sequence[float], strengths: Sequence[float]) -> None:
        """`targets`: in nats. `strengths`: the grid, ascending."""
        self._targets = targets
        self._grid = list(strengths)
        self._known: dict[float, float] = {}
        self._n_rounds = 0

    def wanted(self) -> list[float]:
        """Strengths, ascending; none where the search has ended."""
        if not self._n_rounds:
            return self._grid
        if self._n_rounds > MOST_ROUNDS:
            return []
        brackets = (self._bracket(target) for target in self._targets if self._hit(target) is None)
        return sorted({self._between(*bracket) for bracket in brackets if bracket is not None})

    def note(self, strengths: Sequence[float], kls: Sequence[float]) -> None:
        """What was wanted. A KL that is not finite (a model in float16 overflows) says nothing."""
        self._n_rounds += 1
        self._known |= {s: kl for s, kl in zip(strengths, kls, strict=True) if math.isfinite(kl)}

    def found(self, target: float) -> Found | None:
        """None where no strength gave a finite KL."""
        if not self._known:
            return None
        strength = self._hit(target)
        status: SearchStatus = "ok"
        if strength is None:
            status = "no_bracket" if self._bracket(target) is None else "not_reached"
            strength = min(sorted(self._known), key=lambda s: abs(_log(self._known[s]) - _log(target)))
        return Found(status, strength, self._known[strength])

    def _hit(self, target: float) -> float | None:
        """The smallest strength that is near enough, what hurts the model least; none while a weaker push is
        known to cross the target: where the KL falls again it passes the target once more."""
        near = min(
            (s for s, kl in self._known.items() if abs(kl - target) <= TOLERANCE * target), default=None
        )
        bracket = self._bracket(target)
        return None if near is not None and bracket is not None and bracket[1] < near else near

    def _bracket(self, target: float) -> tuple[float, float, float] | None:
        """Neighbouring strengths between which the target is first crossed from below, and the target."""
        strengths = sorted(self._known)
        for low, high in itertools.pairwise(strengths):
            if self._known[low] < target <= self._known[high]:
                return low, high, target
        return None

    def _between(self, low: float, high: float, target: float) -> float:
        share = 0.5
        if self._n_rounds % 2:
            below, above = _log(self._known[low]), _log(self._known[high])
            share = min(0.9, max(0.1, (_log(target) - below) / (above - below)))
        return math.exp(_log(low) + share * (_log(high) - _log(low)))


def _log(value: float) -> float:
    return math.log(max(value, _TINY))
