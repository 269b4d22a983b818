"""What each document adds to a feature's headline.

A headline changes, to first order, by the sum of the influences of its trials when these get other weights.
So how a run's mean would move with other documents can be had from sums over documents, without looking at any
trial again (`features.py`). Influences of a feature sum to 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from autointerp.metrics import predicted, steered
from autointerp.metrics.judged import HEADLINE_STRATA
from autointerp.metrics.ranking import Placements
from autointerp.trials import AnyTrials, Choices, Differences, Predictions, Ranked, Trials

Influences = Iterable[tuple[str, float]]
"""(document, what it adds); a document may come several times."""


def influences(trials: AnyTrials, headline: str = "") -> Influences:
    """Of the headline, over readable trials: `accuracy`, `gain_per_token`, or what is the kind's own. None where a
    text has no document (`Responses`)."""
    match trials:
        case Trials() if headline == "accuracy":
            return _of_plain_accuracy(trials)
        case Trials():
            return _of_judged(trials)
        case Ranked():
            return _of_ranked(trials)
        case Choices():
            return _of_chosen(trials)
        case Predictions():
            return predicted.by_document(trials)
        case Differences():
            return steered.by_document(trials, headline)
        case _:
            return ()


def _of_judged(trials: Trials) -> Influences:
    """Of (tpr + tnr) / 2: (right - rate) / (2 n), rate and n those of the trial's truth."""
    counted = _counted(trials)
    positive = _shares([(document, hit) for document, hit, truth in counted if truth], 2)
    return positive + _shares([(document, hit) for document, hit, truth in counted if not truth], 2)


def _of_plain_accuracy(trials: Trials) -> Influences:
    """(right - accuracy) / n."""
    return _shares([(document, hit) for document, hit, _ in _counted(trials)], 1)


def _counted(trials: Trials) -> list[tuple[str, bool, bool]]:
    """(document, whether the answer is right, truth) of each readable trial of the headline."""
    columns = zip(trials.truth, trials.answer, trials.stratum, trials.document, strict=True)
    return [
        (document, answer == truth, truth)
        for truth, answer, stratum, document in columns
        if answer is not None and (truth or stratum in HEADLINE_STRATA)
    ]


def _shares(right: list[tuple[str, bool]], n_rates: int) -> list[tuple[str, float]]:
    """(right - rate) / n of each, where the headline is the mean of so many rates."""
    n = max(len(right), 1)
    rate = sum([hit for _, hit in right]) / n
    of_right, of_wrong = ((hit - rate) / (n_rates * n) for hit in (1, 0))
    return [(document, of_right if hit else of_wrong) for document, hit in right]


def _of_ranked(trials: Ranked) -> Iterator[tuple[str, float]]:
    """Of the AUROC: (placement - AUROC) / n, n of the trial's truth (DeLong, DeLong and Clarke-Pearson 1988)."""
    values: dict[bool, list[float]] = {True: [], False: []}
    documents: dict[bool, list[str]] = {True: [], False: []}
    columns = zip(trials.truth, trials.value, trials.stratum, trials.document, strict=True)
    for truth, value, stratum, document in columns:
        if value is not None and (truth or stratum in HEADLINE_STRATA):
            values[truth].append(value)
            documents[truth].append(document)
    if not values[True] or not values[False]:
        return
    placements = Placements.of(np.array(values[True]), np.array(values[False]))
    for truth, placed in ((True, placements.positive), (False, placements.negative)):
        parts = (placed - placements.auroc) / len(placed)
        yield from zip(documents[truth], parts.tolist(), strict=True)


def _of_chosen(trials: Choices) -> Iterator[tuple[str, float]]:
    """Of the accuracy, shared out among the documents of the windows offered."""
    columns = zip(trials.right, trials.chosen, trials.documents, strict=True)
    hits = [(right == chosen, documents) for right, chosen, documents in columns if chosen is not None]
    rate = sum(hit for hit, _ in hits) / max(len(hits), 1)
    for hit, documents in hits:
        for document in documents:
            yield document, (hit - rate) / len(hits) / len(documents)
