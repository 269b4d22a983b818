"""Records of scores as numbers to be pooled: over features and documents, alone or against another's."""

from __future__ import annotations

from dataclasses import dataclass, field

from autointerp import trials as trial_records
from autointerp.metrics.features import LIMITS, UNLIMITED, Population, bundled
from autointerp.metrics.influence import influences
from autointerp.metrics.paired import Discordant, less
from autointerp.results import Interval, Metrics
from autointerp.sequential import counts_in_means
from autointerp.trials import AnyTrials
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """A journal's record of a score, read once for all numbers that it goes into."""

    record: Json
    metrics: Metrics | None
    value: Interval | None
    """The headline; None where the record is no score."""
    trials: AnyTrials | None
    """None where it is in no mean: it is no score, or a sequential test may have stopped early."""
    parts: list[tuple[int, float]]
    """What each bundle of documents adds to it; a bundle may come several times."""

    @classmethod
    def of(cls, record: Json) -> ScoreRecord:
        metrics = None if record["metrics"] is None else Metrics.of(record["metrics"])
        value = metrics.value if metrics is not None and record["status"] == "ok" else None
        if metrics is None or value is None or not counts_in_means(record):
            return cls(record, metrics, value, None, [])
        trials = trial_records.of(record["trials"])
        return cls(record, metrics, value, trials, bundled(influences(trials, metrics.headline)))

    def add_to(self, population: Population) -> bool:
        """Whether it is in means, and so in this one."""
        if self.value is None or self.trials is None:
            return False
        if self.metrics is not None:
            population.limits = LIMITS.get(self.metrics.headline, UNLIMITED)
        population.add_bundled(self.value.value, self.parts)
        return True


@dataclass(slots=True)
class Against:
    """Two scores of the same features, as they come. Of a sequential scorer, features of the panel are compared."""

    pooled: Population = field(default_factory=Population)
    """Of the differences, first less second."""
    second: list[float] = field(default_factory=list[float])
    """The second's headlines."""
    discordant: Discordant = field(default_factory=Discordant)

    def add(self, one: ScoreRecord, other: ScoreRecord) -> bool:
        """Two of one feature. False where they are left out: either is no score, or may have stopped early."""
        if one.trials is None or other.trials is None:
            return False
        assert one.value is not None and other.value is not None  # there are trials
        self.second.append(other.value.value)
        self.discordant.add(one.trials, other.trials)
        self.pooled.add_bundled(one.value.value - other.value.value, less(one.parts, other.parts))
        return True

    def extend(self, other: Against) -> None:
        """By features that come behind these."""
        self.pooled.extend(other.pooled)
        self.second += other.second
        self.discordant.extend(other.discordant)
