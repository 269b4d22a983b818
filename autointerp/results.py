"""The records of explaining and scoring.

Pure data: lists inside records are columns, so that the hundred trials of a feature are a handful of JSON
arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from autointerp.types import Contrast, Json

if TYPE_CHECKING:
    from autointerp.sequential import Stopping
    from autointerp.trials import AnyTrials

ExplanationStatus = Literal["ok", "unreadable", "refused", "bad_request", "no_evidence"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one explainer says of one feature."""

    feature: str
    explainer: str
    """Name of the explainer's instance in the recipe."""
    status: ExplanationStatus
    text: str | None
    """None unless the status is ok: an explanation that could not be had is never scored."""
    label: str | None
    """The text in at most six words."""
    llm: str
    """Identity of the LLM, `model@revision`; `none` where there is none."""
    prompts: dict[str, str]
    """Digest of each prompt template it was made with, by name; empty where there is none."""
    reason: str | None = None
    """Why there is no text, in one line."""
    details: Json = field(default_factory=dict[str, Any])
    """What else the explainer found: candidates and their scores, concepts. Left out of records where empty."""
    refused_by: list[str] = field(default_factory=list[str])
    """LLMs that declined, in the order they were asked; `llm` is the last that was. Left out where empty."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a score's numbers need to know of the feature beside its trials. Kept with them, so that all numbers
    can be made anew from the record alone."""

    density: float
    """Share of tokens on which the feature fires."""
    prevalence: float | None
    """Share of all windows of the corpus in which it is active; `stages/score.py` says how that is known. None
    where the contrast is graded: windows between the two kinds are neither."""
    mass: list[float]
    """Share of the feature's activation that lies in each band, strongest first; sums to 1. Empty if unknown."""


@dataclass(frozen=True, slots=True)
class GroupMetrics:
    """A number of some of the trials, e.g. those of one decile."""

    value: Interval | None
    """None without a readable answer."""
    n: int
    """Trials, the unreadable ones included."""
    n_unreadable: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a set of trials says, whatever the scorer. A number that can't be had is None, never NaN."""

    headline: str
    """Which of the values the score is."""
    values: dict[str, Interval | None]
    """By name; what each one is stands in the module of `autointerp.metrics` that makes it."""
    groups: dict[str, dict[str, GroupMetrics]] = field(default_factory=dict[str, dict[str, GroupMetrics]])
    """By `stratum`, `band`, `offset`, ..., and in each by its name."""
    n: int = 0
    """Trials the headline is made from, the unreadable ones included. Windows chosen to be hard are in none of
    the counts."""
    n_positive: int = 0
    n_negative: int = 0
    """Of these by truth, where there is one."""
    n_unreadable: int = 0
    bounds: tuple[float, float] | None = None
    """The headline if every unreadable answer were wrong, and if every one were right."""
    chance: float | None = None
    """What the headline is worth on average where the explanation says nothing."""
    p_value: float | None = None
    """Of the headline being no better than chance, one-sided."""
    flags: list[str] = field(default_factory=list[str])
    """`unreliable`: over 10% of the answers are unreadable. `constant`: the same was predicted of every token.
    `sequential`: a test may have stopped early, so the value leans to the side it stopped on; the interval holds all
    the same."""

    @property
    def value(self) -> Interval | None:
        """The headline."""
        return self.values.get(self.headline)

    @classmethod
    def of(cls, record: Json) -> Metrics:
        """From a journal's record."""
        values = {name: _interval(one) for name, one in record["values"].items()}
        groups = {
            by: {
                name: GroupMetrics(_interval(one["value"]), one["n"], one["n_unreadable"])
                for name, one in group.items()
            }
            for by, group in record["groups"].items()
        }
        bounds = None if record["bounds"] is None else (record["bounds"][0], record["bounds"][1])
        read: Json = {"values": values, "groups": groups, "bounds": bounds}
        return cls(**(record | read))


def _interval(record: Json | None) -> Interval | None:
    return None if record is None else Interval(**record)


ScoreStatus = Literal["ok", "unreadable", "untestable", "bad_request"]
"""`untestable`: the feature's windows give this scorer no question whose right answer is yes beside one whose right
answer is no, such as a wrong mark in a feature that fires on nearly every token. Nothing is asked."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one scorer found for one explanation of one feature."""

    feature: str
    explainer: str
    scorer: str
    status: ScoreStatus
    explanation: str
    """Digest of the explanation's text that was scored."""
    protocol: str
    """What was done, in words that name every setting a reader must know to compare two scores."""
    llm: str
    contrast: Contrast
    facts: Facts
    metrics: Metrics | None
    trials: AnyTrials
    reason: str | None = None
    sequential: Stopping | None = None
    """How the test of a sequential scorer ended. Left out of records where there was none."""
