"""The share of right answers, as SAEBench scores a feature (sae_bench/evals/autointerp/main.py).

It depends on how many of the windows are active: of 4 in 14 whoever always says no gets .714. So it is nobody's
headline but a replica's.
"""

from __future__ import annotations

import dataclasses

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.judged import HEADLINE_STRATA, n_looks
from autointerp.metrics.rates import TAIL, Rate, clopper_pearson
from autointerp.results import Metrics
from autointerp.trials import Trials


def by_plain_accuracy(metrics: Metrics, trials: Trials) -> Metrics:
    """The same with `accuracy` as the headline. Chance is what the better of always yes and always no gets."""
    right = [
        None if answer is None else answer == truth
        for truth, answer, stratum in zip(trials.truth, trials.answer, trials.stratum, strict=True)
        if truth or stratum in HEADLINE_STRATA
    ]
    n, n_right = len(right), right.count(True)
    n_read = n - right.count(None)
    times = n_looks(trials)
    chance = max(metrics.n_positive, metrics.n_negative) / n if n else None
    return dataclasses.replace(
        metrics,
        headline="accuracy",
        values=metrics.values
        | {"accuracy": clopper_pearson(Rate(n_right, n_read), TAIL / times) if n_read else None},
        bounds=(n_right / n, (n_right + n - n_read) / n) if n else None,
        chance=chance,
        p_value=None
        if chance is None or not n_read
        else min(1.0, times * float(stats.binom.sf(n_right - 1, n_read, chance))),
    )
