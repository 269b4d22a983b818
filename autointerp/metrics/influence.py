"""What each document adds to a feature's headline.

A headline changes, to first order, by the sum of the influences of its trials when these get other weights.
So how a run's mean would move with other documents can be had from sums over documents, without looking at any
trial again (`features.py`). Influences of a feature sum to 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.metrics import predicted, steered
from autointerp.metrics.judged import HEADLINE_STRATA
from autointerp.metrics.ranking import Placements
from autointerp.trials import AnyTrials, Choices, Differences, Predictions, Ranked, Trials

Influences = Iterator[tuple[str, float]]
"""(document, what it adds); a document may come several times."""


def influences(trials: AnyTrials, headline: str = "") -> Influences:
    """Of the headline, over readable trials: `accuracy`, or what is the kind's own. None where a text has no document
    (`Responses`)."""
    match trials:
        case Trials() if headline == "accuracy":
            yield from _of_plain_accuracy(trials)
        case Trials():
            yield from _of_judged(trials)
        case Ranked():
            yield from _of_ranked(trials)
        case Choices():
            yield from _of_chosen(trials)
        case Predictions():
            yield from predicted.by_document(trials)
        case Differences():
            yield from steered.by_document(trials)
        case _:
            return


def _of_judged(trials: Trials) -> Influences:
    """Of (tpr + tnr) / 2: (right - rate) / (2 n), rate and n those of the trial's truth."""
    right: dict[bool, list[tuple[str, bool]]] = {True: [], False: []}
    columns = zip(trials.truth, trials.answer, trials.stratum, trials.document, strict=True)
    for truth, answer, stratum, document in columns:
        if answer is not None and (truth or stratum in HEADLINE_STRATA):
            right[truth].append((document, answer == truth))
    for of_truth in right.values():
        n = len(of_truth)
        rate = sum(hit for _, hit in of_truth) / max(n, 1)
        yield from ((document, (hit - rate) / (2 * n)) for document, hit in of_truth)


def of_many_judged(
    trials: Sequence[Trials],
) -> tuple[NDArray[np.int64], list[str], NDArray[np.float64]]:
    """`influences` of many at once, of their balanced accuracies: which of `trials` each is of, its document, what it
    adds. Twenty times as fast as one by one."""
    which = np.repeat(np.arange(len(trials)), [len(one) for one in trials])
    truth = np.fromiter(chain.from_iterable(one.truth for one in trials), bool, len(which))
    answers = chain.from_iterable(one.answer for one in trials)
    answer = np.fromiter(map(_CODES.__getitem__, answers), np.int8, len(which))
    strata = chain.from_iterable(one.stratum for one in trials)
    counts = np.fromiter(map(HEADLINE_STRATA.__contains__, strata), bool, len(which))
    at = np.flatnonzero((answer != _CODES[None]) & (truth | counts))
    hit = (answer[at] == truth[at]).astype(np.float64)
    group = which[at] * 2 + truth[at]
    n = np.bincount(group, minlength=2 * len(trials))
    rate = np.bincount(group, hit, minlength=2 * len(trials)) / np.maximum(n, 1)
    documents = list(chain.from_iterable(one.document for one in trials))
    return which[at], list(map(documents.__getitem__, at.tolist())), (hit - rate[group]) / (2 * n[group])


_CODES: Final[dict[bool | None, int]] = {False: 0, True: 1, None: 2}


def _of_plain_accuracy(trials: Trials) -> Influences:
    """(right - accuracy) / n."""
    columns = zip(trials.truth, trials.answer, trials.stratum, trials.document, strict=True)
    right = [
        (document, answer == truth)
        for truth, answer, stratum, document in columns
        if answer is not None and (truth or stratum in HEADLINE_STRATA)
    ]
    rate = sum(hit for _, hit in right) / max(len(right), 1)
    yield from ((document, (hit - rate) / len(right)) for document, hit in right)


def _of_ranked(trials: Ranked) -> Influences:
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


def _of_chosen(trials: Choices) -> Influences:
    """Of the accuracy, shared out among the documents of the windows offered."""
    columns = zip(trials.right, trials.chosen, trials.documents, strict=True)
    hits = [(right == chosen, documents) for right, chosen, documents in columns if chosen is not None]
    rate = sum(hit for hit, _ in hits) / max(len(hits), 1)
    for hit, documents in hits:
        for document in documents:
            yield document, (hit - rate) / len(hits) / len(documents)
