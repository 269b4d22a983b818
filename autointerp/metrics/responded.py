"""Texts written for an explanation -> how many of them activate the feature (arXiv 2509.23717).

sensitivity  the headline: share of usable texts that do. What it is worth by chance is not known: it
             depends on how often the feature fires on any text.
"""

from __future__ import annotations

from autointerp.metrics.rates import Rate, clopper_pearson
from autointerp.metrics.unreadable import flags
from autointerp.results import Metrics
from autointerp.trials import Responses


def measure_responded(trials: Responses) -> Metrics:
    n, hits = len(trials), trials.active.count(True)
    n_usable = n - trials.active.count(None)
    return Metrics(
        headline="sensitivity",
        values={"sensitivity": clopper_pearson(Rate(hits, n_usable)) if n_usable else None},
        n=n,
        n_positive=n,
        n_unreadable=n - n_usable,
        bounds=(hits / n, (hits + n - n_usable) / n) if n else None,
        flags=flags(n, n - n_usable),
    )
