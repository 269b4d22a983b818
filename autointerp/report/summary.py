"""A run in numbers: the funnel from asked to scored with reasons, and mean scores with intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from autointerp.journal import unit_of_feature
from autointerp.metrics import HEADLINE_STRATA, MeanOver, mean_over_features
from autointerp.run import Run
from autointerp.types import EXPLAINABLE, Metrics

MEANINGS: Final[dict[str, str]] = {
    "dead": "never fire on this corpus",
    "too_few": "too few active windows or documents",
    "dense": "fire nearly everywhere: no silent windows",
    "unreadable": "the LLM's answer could not be read",
    "refused": "the LLM declined",
    "bad_request": "the server would not take the request",
    "no_windows": "explained without windows, so there is nothing to test on",
}
"""What a status that ends a feature's way means."""


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
    values: dict[str, MeanOver]
    """Mean over features of each number, by name."""
    n_trials: int
    n_unreadable: int
    protocol: str
    n_graded: int
    """Of the scored features, those whose contrast is graded."""
    strata: dict[str, MeanOver]
    """Mean of the groups `stratum`."""


@dataclass(frozen=True, slots=True)
class ExplainerSummary:
    explainer: str
    n_explained: int
    ends: dict[str, int]
    n_open: int
    """Explainable features that have no record yet."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One dictionary of a run, over the features the recipe asks for."""

    dictionary: str
    n_asked: int
    n_sampled: int
    by_status: dict[str, int]
    explainers: list[ExplainerSummary]
    scores: list[ScoreSummary]

    @property
    def n_alive(self) -> int:
        return self.n_sampled - self.by_status.get("dead", 0)

    @property
    def n_explainable(self) -> int:
        return sum(self.by_status.get(status, 0) for status in EXPLAINABLE)


def summarise(run: Run, dictionary: str) -> Summary:
    """Reads the journals. Memory: one unit's records, and a number a score."""
    asked = {str(feature): unit_of_feature(feature.index) for feature in run.asked(dictionary)}
    units = sorted(set(asked.values()))
    statuses: Counter[str] = Counter()
    without_windows: set[str] = set()
    for unit in units:
        records = run.existing("sample", dictionary).read(unit)
        statuses.update(record["status"] for key, record in records.items() if key in asked)
        without_windows.update(key for key, record in records.items() if record["status"] not in EXPLAINABLE)
    explainers = [
        _explainer(run, dictionary, name, asked, without_windows, statuses.total())
        for name in run.recipe.explainers
    ]
    scores = [
        _score(run, dictionary, explainer, scorer, asked, without_windows)
        for explainer, scorer in run.scored()
    ]
    return Summary(dictionary, len(asked), statuses.total(), dict(statuses), explainers, scores)


def _explainer(
    run: Run, dictionary: str, name: str, asked: dict[str, str], without_windows: set[str], n_sampled: int
) -> ExplainerSummary:
    statuses: Counter[str] = Counter()
    explains_all = False
    for unit in sorted(set(asked.values())):
        records = run.existing("explain", dictionary, name).read(unit)
        statuses.update(record["status"] for key, record in records.items() if key in asked)
        explains_all = explains_all or not without_windows.isdisjoint(records)
    n_able = n_sampled if explains_all else n_sampled - len(without_windows.intersection(asked))
    n_open = n_able - statuses.total()
    n_explained = statuses.pop("ok", 0)
    return ExplainerSummary(name, n_explained, dict(statuses), n_open)


def _n_explained(run: Run, dictionary: str, explainer: str, unit: str, among: set[str]) -> int:
    records = run.existing("explain", dictionary, explainer).read(unit)
    return sum(records[key]["status"] == "ok" for key in among.intersection(records))


def _score(
    run: Run, dictionary: str, explainer: str, scorer: str, asked: dict[str, str], without_windows: set[str]
) -> ScoreSummary:
    ends: Counter[str] = Counter()
    headline = ""
    values: dict[str, list[float]] = {}
    n_scored = n_trials = n_unreadable = n_graded = 0
    strata: dict[str, list[float]] = {}
    protocol = ""
    for unit in sorted(set(asked.values())):
        scored = run.existing("score", dictionary, explainer, scorer).read(unit)
        ends["no_windows"] += _n_explained(run, dictionary, explainer, unit, without_windows - scored.keys())
        for key, record in sorted(scored.items()):
            if key not in asked:
                continue
            if not protocol or record["contrast"] == "silent":
                protocol = record["protocol"]
            metrics = None if record["metrics"] is None else Metrics.of(record["metrics"])
            if metrics is not None:
                n_trials += metrics.n
                n_unreadable += metrics.n_unreadable
            if record["status"] != "ok" or metrics is None:
                ends[record["status"]] += 1
                continue
            n_scored += 1
            headline = metrics.headline
            n_graded += record["contrast"] == "graded"
            for name, value in metrics.values.items():
                if value is not None:
                    values.setdefault(name, []).append(value.value)
            for name, stratum in metrics.groups.get("stratum", {}).items():
                if stratum.value is not None and name not in HEADLINE_STRATA:
                    strata.setdefault(name, []).append(stratum.value.value)
    seed = run.recipe.seed  # one for all, so that equal scores have equal intervals
    return ScoreSummary(
        explainer=explainer,
        scorer=scorer,
        n_scored=n_scored,
        ends=dict(+ends),
        headline=headline,
        values={
            name: mean
            for name, of in values.items()
            if (mean := mean_over_features(of, seed=seed, purpose=name)) is not None
        },
        n_trials=n_trials,
        n_unreadable=n_unreadable,
        protocol=protocol,
        n_graded=n_graded,
        strata={
            name: mean
            for name, values in sorted(strata.items())
            if (mean := mean_over_features(values, seed=seed, purpose=f"stratum {name}")) is not None
        },
    )
