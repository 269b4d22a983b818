"""The scores of a run in numbers: means over features with intervals, and differences between explainers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autointerp.metrics import MeanOver
from autointerp.metrics.claims import claimed
from autointerp.metrics.features import Population
from autointerp.metrics.paired import Discordant, p_signed_rank
from autointerp.metrics.records import Against
from autointerp.report.sums import Explained, Sums, Verdicts


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


def score_summary(
    explainer: str, scorer: str, sums: Sums, explained: Explained, beside: Beside, seed: int
) -> ScoreSummary:
    """`seed`: one for all, so that equal scores have equal intervals."""
    n, n_scored = len(sums.pooled.values), sums.counts["scored"]
    chance = math.fsum(sums.chances) / n if n and len(sums.chances) == n else None
    statuses, n_untestable = explained.with_windows, explained.n_untestable
    n_open = beside.n_explainable - statuses.total() + statuses["ok"] - n_scored - sums.ends.total()
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
        protocol=sums.protocol(),
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


def pair_summary(first: str, second: str, scorer: str, found: Against, seed: int) -> PairSummary | None:
    """None where no feature has both scores."""
    difference = found.pooled.mean(seed=seed, purpose="difference")
    if difference is None:
        return None
    p_value = p_signed_rank(found.pooled.values)
    return PairSummary(first, second, scorer, difference, p_value, found.discordant)
