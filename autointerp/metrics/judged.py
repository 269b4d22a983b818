"""Yes-or-no answers -> balanced accuracy and what else they say.

Only trials with a readable answer enter a number, and of those whose right answer is no only the strata in
HEADLINE_STRATA; groups have counts of their own.

    true_positive_rate       TP / (TP + FN)            None without a readable positive
    true_negative_rate       TN / (TN + FP)            None without a readable negative
    balanced_accuracy        (tpr + tnr) / 2           the headline
    f1                       2 TP / (2 TP + FP + FN)   None without a readable positive
    auroc, auprc             of the probabilities      None where any readable answer came without one
    precision_at_prevalence  the share of windows called active that are, over the whole corpus:
                             p tpr / (p tpr + (1-p) fpr) with p = Facts.prevalence
    mass_recall              recall of each band, weighted by the activation that lies in it (Facts.mass)

    groups  stratum  false positive rate of each kind of silent windows, the hard ones included
            band     recall of each decile, `0` the strongest
            offset   recall by where in the window its strongest token stands

Of a sequential test that stopped when it had decided (`InBlocks`, not in the panel) the numbers are those of the
trials until then. Their intervals hold at every look at once, so also at the one it stopped at, whatever made it
stop: each leaves out a tail of 2.5% / looks (Bonferroni over repeated intervals: Jennison and Turnbull 1989, Journal
of the Royal Statistical Society B 51, "Interim analyses: the repeated confidence interval approach"). For the same
reason p-values are multiplied by the number of looks. `tests/test_sequential.py` works out how often they cover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.groups import offset_bin, rates_by
from autointerp.metrics.ranking import auroc, average_precision, proportion
from autointerp.metrics.rates import TAIL, Rate, balanced_accuracy, clopper_pearson, f1, precision
from autointerp.metrics.unreadable import flags
from autointerp.results import Facts, GroupMetrics, Interval, Metrics
from autointerp.trials import InBlocks, Trials
from autointerp.types import Stratum

HEADLINE_STRATA: frozenset[Stratum | None] = frozenset({"random", "graded", None})
"""Of the trials whose right answer is no, those that count. Windows chosen to be hard would change what the
headline means; they are reported beside it."""

CHANCE = 0.5


SEQUENTIAL = "sequential"
"""Flag of a score whose number of trials depends on the answers: its value leans to the side it stopped on."""


def n_looks(trials: Trials) -> int:
    """At how many times the trials may have ended, going by the answers until then."""
    return len(trials.rule.blocks) if isinstance(trials, InBlocks) and not trials.in_panel else 1


def measure_judged(trials: Trials, facts: Facts | None) -> Metrics:
    times = n_looks(trials)
    tail = TAIL / times
    cells = Counter(
        (truth, answer)
        for truth, answer, stratum in zip(trials.truth, trials.answer, trials.stratum, strict=True)
        if truth or stratum in HEADLINE_STRATA
    )
    tpr = Rate(hits=cells[True, True], n=cells[True, True] + cells[True, False])
    tnr = Rate(hits=cells[False, False], n=cells[False, False] + cells[False, True])
    bands = rates_by(
        (
            (band, answer)
            for truth, answer, band in zip(trials.truth, trials.answer, trials.band, strict=True)
            if truth and band is not None
        ),
        tail,
    )
    n_positive, n_negative = tpr.n + cells[True, None], tnr.n + cells[False, None]
    n_unreadable = cells[True, None] + cells[False, None]
    both = tpr.n and tnr.n
    areas = _areas(trials, tail)
    return Metrics(
        headline="balanced_accuracy",
        values={
            "balanced_accuracy": balanced_accuracy(tpr, tnr, tail) if both else None,
            "f1": f1(tpr, tnr, tail) if tpr.n else None,
            "true_positive_rate": clopper_pearson(tpr, tail) if tpr.n else None,
            "true_negative_rate": clopper_pearson(tnr, tail) if tnr.n else None,
            "auroc": areas[0] if areas else None,
            "auprc": areas[1] if areas else None,
            "precision_at_prevalence": _precision(tpr, tnr, facts, tail) if both else None,
            "mass_recall": mass_weighted(bands, facts.mass, tail) if facts else None,
        },
        groups={
            "stratum": _named(_by_stratum(trials, tail)),
            "band": {str(band): bands[band] for band in sorted(bands)},
            "offset": _named(_by_offset(trials, tail)),
        },
        n=n_positive + n_negative,
        n_positive=n_positive,
        n_negative=n_negative,
        n_unreadable=n_unreadable,
        bounds=_bounds(tpr, tnr, n_positive, n_negative),
        chance=CHANCE,
        p_value=min(1.0, times * _p_value(tpr, tnr)) if both else None,
        flags=flags(n_positive + n_negative, n_unreadable) + ([SEQUENTIAL] if times > 1 else []),
    )


def _named(groups: dict[str, GroupMetrics]) -> dict[str, GroupMetrics]:
    """In a fixed order: that of first numbers where names begin with one."""
    return dict(sorted(groups.items(), key=lambda item: (len(item[0].split("-")[0]), item[0])))


def _by_stratum(trials: Trials, tail: float) -> dict[str, GroupMetrics]:
    columns = zip(trials.truth, trials.answer, trials.stratum, strict=True)
    return rates_by(
        ((stratum, said) for truth, said, stratum in columns if not truth and stratum is not None), tail
    )


def _by_offset(trials: Trials, tail: float) -> dict[str, GroupMetrics]:
    columns = zip(trials.truth, trials.answer, trials.offset, strict=True)
    return rates_by(((offset_bin(at), said) for truth, said, at in columns if truth and at is not None), tail)


def _bounds(tpr: Rate, tnr: Rate, n_positive: int, n_negative: int) -> tuple[float, float] | None:
    if not n_positive or not n_negative:
        return None
    low = tpr.hits / n_positive + tnr.hits / n_negative
    high = (tpr.hits + n_positive - tpr.n) / n_positive + (tnr.hits + n_negative - tnr.n) / n_negative
    return low / 2, high / 2


def _areas(trials: Trials, tail: float) -> tuple[Interval, Interval] | None:
    """AUROC and AUPRC. Where only some answers have a probability, those would be another question."""
    positives: list[float] = []
    negatives: list[float] = []
    columns = (trials.truth, trials.answer, trials.probability, trials.stratum)
    for truth, answer, probability, stratum in zip(*columns, strict=True):
        if answer is None or not (truth or stratum in HEADLINE_STRATA):
            continue
        if probability is None:
            return None
        (positives if truth else negatives).append(probability)
    if not positives or not negatives:
        return None
    values = np.array(positives), np.array(negatives)
    return auroc(*values, tail), average_precision(*values, tail)


def _precision(tpr: Rate, tnr: Rate, facts: Facts | None, tail: float) -> Interval | None:
    if facts is None or facts.prevalence is None or tpr.hits + tnr.n - tnr.hits == 0:
        return None  # the last: nothing was called active
    return precision(tpr, tnr, facts.prevalence, tail)


def mass_weighted(
    bands: dict[int, GroupMetrics], mass: Sequence[float], tail: float = TAIL
) -> Interval | None:
    """Sum of weight * recall over the bands that have a readable trial, whose weights are made to sum to 1.

    The interval is that of a proportion of as many trials as have the same variance where all recalls are
    equal, 1 / sum(weight^2 / n) (Kish 1965, Survey Sampling), with Clopper and Pearson's ends.
    """
    known = [
        (mass[band], group.value.value, group.n - group.n_unreadable)
        for band, group in bands.items()
        if band < len(mass) and group.value is not None
    ]
    total = sum(weight for weight, _, _ in known)
    if not total > 0:
        return None
    value = sum(weight * recall for weight, recall, _ in known) / total
    n = 1 / sum((weight / total) ** 2 / n for weight, _, n in known)
    return proportion(min(max(value, 0.0), 1.0), n, tail)


def _p_value(tpr: Rate, tnr: Rate) -> float:
    """Fisher's exact test, one-sided: how likely so many of the yeses are on positives where a yes is as likely
    on either. Balanced accuracy above 0.5 is the same as tpr above fpr."""
    n_yes = tpr.hits + tnr.n - tnr.hits
    return float(cast(float, stats.hypergeom.sf(tpr.hits - 1, tpr.n + tnr.n, tpr.n, n_yes)))
