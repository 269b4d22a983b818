"""The scores of a run in numbers: means over features with intervals, and differences between explainers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Final, get_args

from autointerp import trials as trial_records
from autointerp.metrics import HEADLINE_STRATA, MeanOver, mean_over_features
from autointerp.metrics.claims import claimed
from autointerp.metrics.features import Population
from autointerp.metrics.influence import influences, of_many_judged
from autointerp.metrics.paired import Discordant, influences_of_difference, p_signed_rank
from autointerp.run import Run
from autointerp.sequential import Decision, counts_in_means
from autointerp.trials import AnyTrials, Trials
from autointerp.types import Json, Metrics


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """One scorer on one explainer's explanations."""

    explainer: str
    scorer: str
    n_scored: int
    ends: dict[str, int]
    """Features that ended here, by status."""
    headline: str
    """Name of the number that the score is; empty where nothing is scored."""
    value: MeanOver | None
    """Mean of the headline, its interval over features and documents. None too where no feature is in the panel."""
    chance: float | None
    bounds: tuple[float, float] | None
    """Means of the headline if every unreadable answer were wrong, and if every one were right."""
    values: dict[str, MeanOver]
    """Mean over features of each number, by name; like all below but `over`, with intervals over features."""
    strata: dict[str, MeanOver]
    """Of windows chosen to be hard."""
    bands: dict[str, MeanOver]
    over: dict[str, MeanOver]
    """The headline over `eligible` (enough windows), `alive` and `all` features that are sampled. One without a
    score is worth chance: nobody can tell its windows from others by an explanation. Those still to be scored are
    left out. Empty where chance is not known."""
    by_density: dict[str, MeanOver]
    """The headline of features by the power of ten of their density, the rarest first."""
    n_tested: int
    """Features with a p-value."""
    n_claimed: int
    """Of these, how many may be called above chance (`metrics/claims.py`)."""
    n_trials: int
    n_unreadable: int
    n_unreliable: int
    """Features with too many unreadable answers."""
    protocol: str
    n_graded: int
    """Of the scored features, those whose contrast is graded."""
    verdicts: Verdicts | None
    """Of a sequential scorer; None of another."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the sequential test said. Means are over the features of its panel alone: elsewhere the number of trials
    depends on the answers, and a mean would be biased."""

    n_by_decision: dict[str, int]
    n_panel: int
    """Of the scored features, those that are in the panel."""
    mean_trials: float | None
    """A feature outside the panel; None where there is none."""


@dataclass(frozen=True, slots=True)
class PairSummary:
    """Two explainers under one scorer, on the features that both have a score of."""

    first: str
    second: str
    scorer: str
    difference: MeanOver
    """Of the headlines, first less second; its interval over features and documents."""
    p_value: float | None
    """Wilcoxon's signed-rank test over features, two-sided."""
    discordant: Discordant
    """Questions that one alone answers right, over all these features."""


@dataclass(frozen=True, slots=True)
class Beside:
    """How many features there are, scored or not."""

    n_explainable: int
    n_alive: int
    n_sampled: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where the scores of a dictionary's features lie."""

    run: Run
    dictionary: str
    asked: Mapping[str, str]
    """Unit of each feature."""
    without_windows: Set[str]
    """Features with too few of them to be tested."""
    _explained: dict[str, tuple[Counter[str], int]] = field(
        default_factory=dict[str, tuple[Counter[str], int]]
    )

    def records(self, explainer: str, scorer: str) -> Iterator[tuple[str, dict[str, Json]]]:
        """(unit, its records by key, ascending) of the features asked for. Memory: one unit's."""
        journal = self.run.existing("score", self.dictionary, explainer, scorer)
        for unit in sorted(set(self.asked.values())):
            records = journal.read(unit)
            yield unit, {key: records[key] for key in sorted(records) if key in self.asked}

    def explanations(self, explainer: str) -> tuple[Counter[str], int]:
        """How many there are of features with windows, by status, and how many of features without. Read once."""
        if explainer not in self._explained:
            self._explained[explainer] = self._count_explanations(explainer)
        return self._explained[explainer]

    def _count_explanations(self, explainer: str) -> tuple[Counter[str], int]:
        journal = self.run.existing("explain", self.dictionary, explainer)
        statuses: Counter[str] = Counter()
        n_untestable = 0
        for unit in sorted(set(self.asked.values())):
            for key, one in journal.read(unit).items():
                if key in self.without_windows:
                    n_untestable += key in self.asked and one["status"] == "ok"
                elif key in self.asked:
                    statuses[one["status"]] += 1
        return statuses, n_untestable


_AT_ONCE: Final = 256
"""Features whose trials are taken together."""


@dataclass(slots=True)
class _Sums:
    """What is added up, record by record."""

    headline: str = ""
    protocol: str = ""
    pooled: Population = field(default_factory=Population)
    ends: Counter[str] = field(default_factory=Counter[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    decisions: Counter[str] = field(default_factory=Counter[str])
    chances: list[float] = field(default_factory=list[float])
    worst: list[float] = field(default_factory=list[float])
    best: list[float] = field(default_factory=list[float])
    p_values: list[float] = field(default_factory=list[float])
    numbers: defaultdict[tuple[str, str], list[float]] = field(
        default_factory=lambda: defaultdict(list[float])
    )
    """By what it is (`value`, `stratum`, `band`, `density`) and name."""
    waiting: list[tuple[float, Trials]] = field(default_factory=list[tuple[float, Trials]])
    """Not in `pooled` yet."""

    def add(self, record: Json) -> None:
        if not self.protocol or record["contrast"] == "silent":
            self.protocol = record["protocol"]
        # As it is stored: a run has a hundred thousand, and making objects of each would take most of the time.
        metrics: Json | None = record["metrics"]
        if metrics is not None:
            self.counts["trials"] += metrics["n"]
            self.counts["unreadable"] += metrics["n_unreadable"]
            self.counts["unreliable"] += "unreliable" in metrics["flags"]
        value: Json | None = None if metrics is None else metrics["values"].get(metrics["headline"])
        if record["status"] != "ok" or metrics is None or value is None:
            self.ends[record["status"]] += 1
            return
        self.headline = metrics["headline"]
        self.counts["scored"] += 1
        self.counts["graded"] += record["contrast"] == "graded"
        if metrics["p_value"] is not None:
            self.p_values.append(metrics["p_value"])
        if (sequential := record.get("sequential")) is not None:
            self.decisions[sequential["decision"]] += 1
            if not counts_in_means(record):
                self.counts["trials outside"] += metrics["n"]
                return
        self._add_influences(value["value"], trial_records.of(record["trials"]))
        if metrics["bounds"] is not None:
            self.worst.append(metrics["bounds"][0])
            self.best.append(metrics["bounds"][1])
        if metrics["chance"] is not None:
            self.chances.append(metrics["chance"])
        self._add_numbers(metrics, value["value"], record["facts"]["density"])

    def _add_influences(self, value: float, trials: AnyTrials) -> None:
        if not isinstance(trials, Trials) or self.headline == "accuracy":
            self.pooled.add(value, influences(trials, self.headline))
            return
        self.waiting.append((value, trials))
        if len(self.waiting) == _AT_ONCE:
            self.add_waiting()

    def add_waiting(self) -> None:
        """Behind the last record."""
        if self.waiting:
            values, trials = zip(*self.waiting, strict=True)
            self.pooled.add_many(values, *of_many_judged(trials))
            self.waiting.clear()

    def _add_numbers(self, metrics: Json, value: float, density: float) -> None:
        numbers, groups = self.numbers, metrics["groups"]
        for name, one in metrics["values"].items():
            if one is not None:
                numbers["value", name].append(one["value"])
        for name, one in groups.get("band", {}).items():
            if one["value"] is not None:
                numbers["band", name].append(one["value"]["value"])
        for name, one in groups.get("stratum", {}).items():
            if one["value"] is not None and name not in HEADLINE_STRATA:
                numbers["stratum", name].append(one["value"]["value"])
        if density > 0:
            numbers["density", str(math.floor(math.log10(density)))].append(value)

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


def score_summary(places: Places, explainer: str, scorer: str, beside: Beside) -> ScoreSummary:
    """Reads the journal once."""
    sums = _Sums()
    for _, records in places.records(explainer, scorer):
        for record in records.values():
            sums.add(record)
    sums.add_waiting()
    seed = places.run.recipe.seed  # one for all, so that equal scores have equal intervals
    n, n_scored = len(sums.pooled.values), sums.counts["scored"]
    chance = math.fsum(sums.chances) / n if n and len(sums.chances) == n else None
    explained, n_untestable = places.explanations(explainer)
    n_open = beside.n_explainable - explained.total() + explained["ok"] - n_scored - sums.ends.total()
    ends = dict(sums.ends) | ({"no_windows": n_untestable} if n_untestable else {})
    densities = sums.means("density", seed)
    return ScoreSummary(
        explainer=explainer,
        scorer=scorer,
        n_scored=n_scored,
        ends=ends,
        headline=sums.headline,
        value=sums.pooled.mean(seed=seed, purpose="headline"),
        chance=chance,
        bounds=(math.fsum(sums.worst) / n, math.fsum(sums.best) / n) if n and len(sums.worst) == n else None,
        values=sums.means("value", seed),
        strata=sums.means("stratum", seed),
        bands=sums.means("band", seed),
        over={} if chance is None else _over(sums.pooled, n_scored, chance, beside, n_open, seed),
        by_density={f"1e{power}": densities[power] for power in sorted(densities, key=int)},
        n_tested=len(sums.p_values),
        n_claimed=sum(claimed(sums.p_values)),
        n_trials=sums.counts["trials"],
        n_unreadable=sums.counts["unreadable"],
        n_unreliable=sums.counts["unreliable"],
        protocol=sums.protocol,
        n_graded=sums.counts["graded"],
        verdicts=sums.verdicts(),
    )


def _over(
    pooled: Population, n_scored: int, chance: float, beside: Beside, n_open: int, seed: int
) -> dict[str, MeanOver]:
    """A panel stands for all that are scored: it gets its part of those that are not."""
    part = len(pooled.values) / max(n_scored, 1)
    counts = {"eligible": beside.n_explainable, "alive": beside.n_alive, "all": beside.n_sampled}
    found: dict[str, MeanOver] = {}
    for name, n in counts.items():
        n_more = round(max(n - n_open - n_scored, 0) * part)
        mean = pooled.mean(seed=seed, purpose="headline", n_more=n_more, worth=chance)
        if mean is not None:
            found[name] = mean
    return found


@dataclass(slots=True)
class Paired:
    """Two scores of the same features, as they come."""

    pooled: Population = field(default_factory=Population)
    """Of the differences, first less second."""
    first: Population = field(default_factory=Population)
    second: Population = field(default_factory=Population)
    discordant: Discordant = field(default_factory=Discordant)

    def add(self, one: Json, other: Json) -> None:
        """Two records of a feature; left out where either is no score, or may have stopped early."""
        pair = one, other
        if not all(map(counts_in_means, pair)):
            return
        values = [
            Metrics.of(record["metrics"]).value if record["status"] == "ok" else None for record in pair
        ]
        if values[0] is None or values[1] is None:
            return
        headline: str = one["metrics"]["headline"]
        trials = [trial_records.of(record["trials"]) for record in pair]
        self.first.add(values[0].value, influences(trials[0], headline))
        self.second.add(values[1].value, influences(trials[1], headline))
        self.discordant.add(*trials)
        parts = influences_of_difference(trials[0], trials[1], headline)
        self.pooled.add(values[0].value - values[1].value, parts)


def pair_summary(places: Places, first: str, second: str, scorer: str) -> PairSummary | None:
    """None where no feature has both scores. Of a sequential scorer, features of the panel are compared."""
    found = Paired()
    for (_, ones), (_, others) in zip(
        places.records(first, scorer), places.records(second, scorer), strict=True
    ):
        for key in sorted(ones.keys() & others.keys()):
            found.add(ones[key], others[key])
    difference = found.pooled.mean(seed=places.run.recipe.seed, purpose="difference")
    if difference is None:
        return None
    p_value = p_signed_rank(found.pooled.values)
    return PairSummary(first, second, scorer, difference, p_value, found.discordant)
