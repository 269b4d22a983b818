"""One of several windows picked -> how often it was the right one.

accuracy  the headline; its chance is the mean of 1 / number of options

groups    band  accuracy of each decile
"""

from __future__ import annotations

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.groups import rates_by
from autointerp.metrics.rates import Rate, clopper_pearson
from autointerp.metrics.unreadable import flags
from autointerp.trials import Choices
from autointerp.types import Metrics


def measure_chosen(trials: Choices) -> Metrics:
    hits = [
        None if chosen is None else chosen == right
        for right, chosen in zip(trials.right, trials.chosen, strict=True)
    ]
    n, n_read, n_right = len(hits), len(hits) - hits.count(None), hits.count(True)
    bands = rates_by((band, hit) for band, hit in zip(trials.band, hits, strict=True) if band is not None)
    chances = [1 / n for n in trials.n_options]
    return Metrics(
        headline="accuracy",
        values={"accuracy": clopper_pearson(Rate(n_right, n_read)) if n_read else None},
        groups={"band": {str(band): bands[band] for band in sorted(bands)}},
        n=n,
        n_unreadable=n - n_read,
        bounds=(n_right / n, (n_right + n - n_read) / n) if n else None,
        chance=sum(chances) / n if n else None,
        p_value=_p_value(n_right, [c for c, hit in zip(chances, hits, strict=True) if hit is not None]),
        flags=flags(n, n - n_read),
    )


def _p_value(n_right: int, chances: list[float]) -> float | None:
    """Exact binomial test. Where numbers of options differ the largest chance stands for all: conservative."""
    if not chances:
        return None
    return float(stats.binom.sf(n_right - 1, len(chances), max(chances)))
