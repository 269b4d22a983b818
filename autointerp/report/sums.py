"""Records of scores and explanations added up, in the order of the keys. Sums of features that come behind others are
added to theirs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

from autointerp.metrics import HEADLINE_STRATA, MeanOver, mean_over_features
from autointerp.metrics.features import Population
from autointerp.metrics.records import ScoreRecord
from autointerp.results import Metrics
from autointerp.sequential import Decision


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the sequential test said. Means are over the features of its panel alone: elsewhere the number of trials
    depends on the answers, and a mean would be biased."""

    n_by_decision: dict[str, int]
    n_panel: int
    """Of the scored features, those that are in the panel."""
    mean_trials: float | None
    """A feature outside the panel; None where there is none."""


@dataclass(slots=True)
class Explained:
    """How many explanations an explainer has."""

    statuses: Counter[str] = field(default_factory=Counter[str])
    with_windows: Counter[str] = field(default_factory=Counter[str])
    """By status, of features with enough windows to be tested."""
    n_untestable: int = 0
    """Of the others, those that are explained."""
    n_refused: int = 0
    """Features that some LLM declined to explain, also those that a fallback then explained."""
    explains_all: bool = False
    """Whether it takes features without windows."""

    def extend(self, other: Explained) -> None:
        self.statuses.update(other.statuses)
        self.with_windows.update(other.with_windows)
        self.n_untestable += other.n_untestable
        self.n_refused += other.n_refused
        self.explains_all = self.explains_all or other.explains_all


@dataclass(slots=True)
class Sums:
    """What is added up of one scorer on one explainer's explanations, record by record, in the order of the keys."""

    headline: str = ""
    protocols: Counter[str] = field(default_factory=Counter[str])
    silent_protocols: Counter[str] = field(default_factory=Counter[str])
    """Of features set against silent windows: the usual ones, which are told where there are any."""
    pooled: Population = field(default_factory=Population)
    ends: Counter[str] = field(default_factory=Counter[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    decisions: Counter[str] = field(default_factory=Counter[str])
    chances: list[float] = field(default_factory=list[float])
    worst: list[float] = field(default_factory=list[float])
    best: list[float] = field(default_factory=list[float])
    p_values: list[float] = field(default_factory=list[float])
    numbers: dict[tuple[str, str], list[float]] = field(default_factory=dict[tuple[str, str], list[float]])
    """By what it is (`value`, `stratum`, `band`, `density`) and name."""

    def add(self, score: ScoreRecord) -> None:
        record, metrics = score.record, score.metrics
        self.protocols[record["protocol"]] += 1
        if record["contrast"] == "silent":
            self.silent_protocols[record["protocol"]] += 1
        if metrics is not None:
            self.counts["trials"] += metrics.n
            self.counts["unreadable"] += metrics.n_unreadable
            self.counts["unreliable"] += "unreliable" in metrics.flags
        if metrics is None or score.value is None:
            self.ends[record["status"]] += 1
            return
        self.headline = metrics.headline
        self.counts["scored"] += 1
        self.counts["graded"] += record["contrast"] == "graded"
        if metrics.p_value is not None:
            self.p_values.append(metrics.p_value)
        if (sequential := record.get("sequential")) is not None:
            self.decisions[sequential["decision"]] += 1
        if not score.add_to(self.pooled):
            self.counts["trials outside"] += metrics.n
            return
        if metrics.bounds is not None:
            self.worst.append(metrics.bounds[0])
            self.best.append(metrics.bounds[1])
        if metrics.chance is not None:
            self.chances.append(metrics.chance)
        self._add_numbers(metrics, record["facts"]["density"])

    def extend(self, other: Sums) -> None:
        """By the sums of features that come behind these."""
        self.headline = other.headline or self.headline
        self.pooled.extend(other.pooled)
        for counter, more in (
            (self.ends, other.ends),
            (self.counts, other.counts),
            (self.decisions, other.decisions),
            (self.protocols, other.protocols),
            (self.silent_protocols, other.silent_protocols),
        ):
            counter.update(more)
        self.chances += other.chances
        self.worst += other.worst
        self.best += other.best
        self.p_values += other.p_values
        for place, values in other.numbers.items():
            self.numbers.setdefault(place, []).extend(values)

    def _add_numbers(self, metrics: Metrics, density: float) -> None:
        found = {("value", name): value for name, value in metrics.values.items()}
        found |= {("band", name): one.value for name, one in metrics.groups.get("band", {}).items()}
        for name, one in metrics.groups.get("stratum", {}).items():
            if name not in HEADLINE_STRATA:
                found["stratum", name] = one.value
        if density > 0:
            found["density", str(math.floor(math.log10(density)))] = metrics.value
        for place, value in found.items():
            if value is not None:
                self.numbers.setdefault(place, []).append(value.value)

    def protocol(self) -> str:
        """For a person. There are several where a server refused a setting from some time on, or of one of the runs
        that were merged."""
        found = self.silent_protocols or self.protocols
        if len(found) < 2:
            return next(iter(found), "")
        ordered = sorted(found.items(), key=lambda one: (-one[1], one[0]))
        return " | ".join(f"of {n:,} scores: {protocol}" for protocol, n in ordered)

    def verdicts(self) -> Verdicts | None:
        if not self.decisions:
            return None
        n_panel = len(self.pooled.values)
        n_outside = self.counts["scored"] - n_panel
        mean = self.counts["trials outside"] / n_outside if n_outside else None
        return Verdicts({name: self.decisions[name] for name in get_args(Decision)}, n_panel, mean)

    def means(self, of: str, seed: int) -> dict[str, MeanOver]:
        return {
            name: mean
            for (what, name), values in self.numbers.items()
            if what == of and (mean := mean_over_features(values, seed=seed, purpose=f"{of} {name}"))
        }
