"""Sequential scoring: judge a feature's windows in blocks, and stop when the rest would hardly change the verdict.

The verdict is whether an explanation is good: Wald's sequential probability ratio test (1945, Annals of Mathematical
Statistics 16) of an accuracy of `low` against one of `high`, looked at after each block and cut off at the last.
With n trials a look and accuracy b, the mean of both truths' rates,

    log ratio = n (b log(high / low) + (1 - b) log((1 - high) / (1 - low)))

At or beyond +-log((1 - error) / error) the test has decided. At the last look the sign decides. Where the windows end
before the last look, nothing has.

Stopping when things look clear biases what was seen until then. So

    of a feature   intervals are widened to hold at every look at once (`metrics/judged.py`)
    of a run       means are over a panel: features, drawn by a keyed hash, that are judged on all windows
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from autointerp import draw
from autointerp.errors import RecipeError

Decision = Literal["pass", "fail", "undecided"]
Why = Literal["threshold", "last look", "windows ran out"]


@dataclass(frozen=True, slots=True)
class Sequential:
    """When to look, and what decides."""

    blocks: tuple[int, ...] = (20, 40, 60, 80, 100)
    """Trials at each look, half of them of active windows."""
    low: float = 0.65
    high: float = 0.80
    """Accuracies of an explanation that is not good and of one that is."""
    error: float = 0.07
    """Share of wrong verdicts at these two."""
    panel: float = 0.05
    """Share of features that are judged on all windows."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        faults = [
            f"blocks: even numbers of trials that grow, 2 or more (found {list(self.blocks)})"
            if not self.blocks or not _grow(self.blocks) or any(n % 2 for n in self.blocks)
            else "",
            f"low, high: accuracies between 0 and 1, the low one first (found {self.low:g} and {self.high:g})"
            if not 0 < self.low < self.high < 1
            else "",
            f"error: above 0 and below 0.5 (found {self.error:g})" if not 0 < self.error < 0.5 else "",
            f"panel: a share of features, from 0 to 1 (found {self.panel:g})"
            if not 0 <= self.panel <= 1
            else "",
        ]
        if said := "\n".join(f"sequential.{fault}" for fault in faults if fault):
            raise RecipeError(said)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Sequential:
        """From a journal's record."""
        numbers = (record[name] for name in ("low", "high", "error", "panel"))
        return cls(tuple(record["blocks"]), *numbers)

    @property
    def threshold(self) -> float:
        return math.log((1 - self.error) / self.error)

    def log_ratio(self, look: Look) -> float:
        """Above 0 where `high` is likelier. 0 before both truths have a readable answer.

        Where truths are unequally many, n is what equally many would be worth: 4 / (1 / n+ + 1 / n-).
        """
        if not look.n_active or not look.n_silent:
            return 0.0
        accuracy = (look.right_active / look.n_active + look.right_silent / look.n_silent) / 2
        n = 4 / (1 / look.n_active + 1 / look.n_silent)
        right, wrong = math.log(self.high / self.low), math.log((1 - self.high) / (1 - self.low))
        return n * (accuracy * right + (1 - accuracy) * wrong)

    def has_decided(self, look: Look) -> bool:
        return abs(self.log_ratio(look)) >= self.threshold

    def described(self) -> str:
        """For a score's protocol."""
        return (
            f"sequential, looks at {', '.join(map(str, self.blocks))} trials, accuracy {self.low:g} against "
            f"{self.high:g}, error {self.error:g}; {self.panel:.3g} of the features (panel) judged on all windows"
        )


def _grow(numbers: Sequence[int]) -> bool:
    return numbers[0] >= 2 and all(one < other for one, other in pairwise(numbers))


@dataclass(frozen=True, slots=True)
class Look:
    """Readable answers until then, by what is right to say, and how many of them are right."""

    n_active: int
    right_active: int
    n_silent: int
    right_silent: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """How the test of one feature ended."""

    decision: Decision
    why: Why
    n_looks: int
    """The verdict is that of this look, from 1; of a feature of the panel others follow, which change nothing."""
    in_panel: bool
    looks: list[Look]
    log_ratios: list[float]
    """At each look, to 4 decimals."""


def stopping(rule: Sequential, looks: Sequence[Look], *, in_panel: bool) -> Stopping:
    """The verdict on all looks that were made, in their order."""
    ratios = [rule.log_ratio(look) for look in looks]
    first = next((n for n, look in enumerate(looks, 1) if rule.has_decided(look)), None)
    last = ratios[-1] if ratios else 0.0
    why: Why = "windows ran out"
    if first is not None:
        why, last = "threshold", ratios[first - 1]
    elif len(looks) == len(rule.blocks):
        why = "last look"
    decision: Decision = "undecided"
    if why != "windows ran out" and last:
        decision = "pass" if last > 0 else "fail"
    return Stopping(decision, why, first or len(looks), in_panel, list(looks), [round(r, 4) for r in ratios])


def is_in_panel(rule: Sequential, seed: int, feature: str) -> bool:
    """Whether this feature is judged on all windows, whichever others are."""
    return draw.key(seed, "panel", feature) < rule.panel * 2**64


def counts_in_means(score: Mapping[str, Any]) -> bool:
    """Whether the record of a score was made of a number of trials that was fixed before."""
    sequential = score.get("sequential")
    return sequential is None or sequential["in_panel"]
