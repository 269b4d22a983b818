"""What steering does to the probability of an explanation (arXiv 2410.13928, section 4: intervention).

The gain of a prompt is log P(explanation | steered) - log P(explanation | clean), in nats, averaged over the
target KLs for which a strength was found.

    gain            the headline: mean over prompts of the arm `feature`
    gain_per_token  the same a token of the explanation
    over_<arm>      mean over prompts of how much larger it is than that of a control, on prompts and targets
                    that both have
    ablated         where the feature's own contribution was taken away, on prompts behind its first firing:
                    log P(explanation | clean) - log P(explanation | ablated). Above 0 where the explanation
                    names what the feature does there

    groups          arm (`ablated` among them: its gain is less than 0 where that is above), target_kl (of the arm
                    `feature`)  the mean gain

Prompts are the units: intervals are Student's over documents, each the mean of its prompts, so there is none
(None) for fewer than two documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.rates import TAIL
from autointerp.metrics.unreadable import flags
from autointerp.results import GroupMetrics, Interval, Metrics
from autointerp.trials import Differences

PER_TOKEN = "gain_per_token"

FEATURE = "feature"
"""The arm that counts; the others are controls, but for:"""
ABLATED = "ablated"
"""It has prompts of its own and no target, so it can't be paired with the others."""


def measure_steered(trials: Differences) -> Metrics:
    gains = _gains(trials)
    arms = sorted(set(trials.arm))
    of_feature = [n for n, arm in enumerate(trials.arm) if arm == FEATURE]
    headline, p_value = _over_documents(trials, {n: gains[n] for n in of_feature})
    n_unreadable = sum(gains[n] is None for n in of_feature)
    a_token = _per_token(trials)
    values = {"gain": headline, PER_TOKEN: _over_documents(trials, {n: a_token[n] for n in of_feature})[0]}
    for arm in arms:
        if arm == ABLATED:
            lost = {
                n: None if (gain := gains[n]) is None else -gain
                for n, of in enumerate(trials.arm)
                if of == arm
            }
            values[arm] = _over_documents(trials, lost)[0]
        elif arm != FEATURE:
            values[f"over_{arm}"] = _over_documents(trials, _paired(trials, gains, of_feature, arm))[0]
    return Metrics(
        headline="gain",
        values=values,
        groups={
            "arm": {arm: _group(trials, gains, lambda n, arm=arm: trials.arm[n] == arm) for arm in arms},
            "target_kl": {
                f"{kl:g}": _group(
                    trials, gains, lambda n, kl=kl: trials.arm[n] == FEATURE and trials.target_kl[n] == kl
                )
                for kl in sorted({trials.target_kl[n] for n in of_feature})
            },
        },
        n=len(of_feature),
        n_unreadable=n_unreadable,
        chance=0.0,
        p_value=p_value,
        flags=flags(len(of_feature), n_unreadable),
    )


def _gains(trials: Differences) -> list[float | None]:
    """Of each entry; None where no strength was found or a probability is missing."""
    return [
        None if kl is None or steered is None or clean is None else steered - clean
        for kl, steered, clean in zip(trials.kl, trials.logp_steered, trials.logp_clean, strict=True)
    ]


def _per_token(trials: Differences) -> list[float | None]:
    """A token of the explanation."""
    return [
        None if gain is None else gain / n for gain, n in zip(_gains(trials), trials.n_tokens, strict=True)
    ]


def _paired(
    trials: Differences, gains: list[float | None], of_feature: Iterable[int], arm: str
) -> dict[int, float | None]:
    """Gain of the feature less that of the control at the same prompt and target, by entry."""
    control = {
        (trials.prompt[n], trials.target_kl[n]): gain for n, gain in enumerate(gains) if trials.arm[n] == arm
    }
    found: dict[int, float | None] = {}
    for n in of_feature:
        gain, other = gains[n], control.get((trials.prompt[n], trials.target_kl[n]))
        found[n] = None if gain is None or other is None else gain - other
    return found


def _group(trials: Differences, gains: list[float | None], belongs: Callable[[int], bool]) -> GroupMetrics:
    own = {n: gain for n, gain in enumerate(gains) if belongs(n)}
    lost = sum(gain is None for gain in own.values())
    return GroupMetrics(_over_documents(trials, own)[0], len(own), lost)


def _over_documents(
    trials: Differences, values: dict[int, float | None]
) -> tuple[Interval | None, float | None]:
    """Mean of the documents' means of their prompts' means, and how likely it is so large where it is 0."""
    means = np.array(list(_document_means(trials, values).values()))
    n = len(means)
    if n < 2:
        return None, None
    value, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(n)
    half = cast(float, stats.t.ppf(1 - TAIL, n - 1)) * error
    p_value = float(stats.t.sf(value / error, n - 1)) if error > 0 else None
    return Interval(value, value - half, value + half), p_value


def by_document(trials: Differences, headline: str = "") -> Iterator[tuple[str, float]]:
    """What each document adds to the headline: the gain, or `PER_TOKEN`."""
    gains = _per_token(trials) if headline == PER_TOKEN else _gains(trials)
    means = _document_means(trials, {n: gains[n] for n, arm in enumerate(trials.arm) if arm == FEATURE})
    total = sum(means.values())
    for document, mean in means.items():
        yield document, (mean - total / len(means)) / len(means)


def _document_means(trials: Differences, values: dict[int, float | None]) -> dict[str, float]:
    prompts: dict[tuple[str, int], list[float]] = {}
    for n, value in values.items():
        if value is not None:
            prompts.setdefault((trials.document[n], trials.prompt[n]), []).append(value)
    documents: dict[str, list[float]] = {}
    for (document, _), of_prompt in prompts.items():
        documents.setdefault(document, []).append(sum(of_prompt) / len(of_prompt))
    return {document: sum(of) / len(of) for document, of in documents.items()}
