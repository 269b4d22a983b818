"""One of several windows picked -> how often it was the right one.

accuracy  the headline; its chance is the mean of 1 / number of options

groups    band  accuracy of each decile

Line-ups of a decile that share a window, or a document, go right together. How far nobody knows, so intervals and
p-values take those that hang together for one: the number of trials is that of such clusters (the effective number
of Korn and Graubard 1998, Survey Methodology 24, at its least).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.ranking import proportion
from autointerp.metrics.unreadable import flags
from autointerp.results import GroupMetrics, Interval, Metrics
from autointerp.trials import Choices


def measure_chosen(trials: Choices) -> Metrics:
    hits = [
        None if chosen is None else chosen == right
        for right, chosen in zip(trials.right, trials.chosen, strict=True)
    ]
    n, n_read, n_right = len(hits), len(hits) - hits.count(None), hits.count(True)
    read = [at for at, hit in enumerate(hits) if hit is not None]
    bands = sorted({band for band in trials.band if band is not None})
    chances = [1 / n for n in trials.n_options]
    return Metrics(
        headline="accuracy",
        values={"accuracy": _accuracy(trials, read)},
        groups={"band": {str(band): _of_band(trials, band) for band in bands}},
        n=n,
        n_unreadable=n - n_read,
        bounds=(n_right / n, (n_right + n - n_read) / n) if n else None,
        chance=sum(chances) / n if n else None,
        p_value=_p_value(trials, read),
        flags=flags(n, n - n_read),
    )


def _of_band(trials: Choices, band: int) -> GroupMetrics:
    own = [at for at, its_band in enumerate(trials.band) if its_band == band]
    read = [at for at in own if trials.chosen[at] is not None]
    return GroupMetrics(_accuracy(trials, read), len(own), len(own) - len(read))


def _accuracy(trials: Choices, read: Sequence[int]) -> Interval | None:
    return proportion(_share(trials, read), n_clusters(trials, read)) if read else None


def _share(trials: Choices, read: Sequence[int]) -> float:
    return sum(trials.chosen[at] == trials.right[at] for at in read) / len(read)


def n_clusters(trials: Choices, these: Sequence[int]) -> int:
    """Of those line-ups: groups of one decile that no document holds together."""
    clusters: list[tuple[int | None, set[str]]] = []
    for at in these:
        band, documents = trials.band[at], set(trials.documents[at])
        near = [one for one in clusters if one[0] == band and one[1] & documents]
        clusters = [one for one in clusters if one not in near]
        clusters.append((band, documents.union(*(its for _, its in near))))
    return len(clusters)


def _p_value(trials: Choices, read: Sequence[int]) -> float | None:
    """Exact binomial test on whole hits. Where numbers of options differ the largest chance stands for all:
    conservative."""
    if not read:
        return None
    n = n_clusters(trials, read)
    n_right = math.floor(_share(trials, read) * n + 1e-9)
    return float(stats.binom.sf(n_right - 1, n, max(1 / trials.n_options[at] for at in read)))
