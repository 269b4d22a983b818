"""The way of a dictionary's features from asked for to scored, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from autointerp.report.summary import MEANINGS, ScoreSummary, Summary
from autointerp.run import NO_EXPLAINER


@dataclass(frozen=True, slots=True)
class Step:
    """How many features came so far."""

    name: str
    n: int
    others: str
    """What became of those that didn't; empty where there are none."""
    kind: Literal["features", "explained", "scored"] = "features"


def steps(summary: Summary) -> Iterator[Step]:
    """In the order of the line."""
    by = summary.by_status
    yield Step("asked for", summary.n_asked, ends({}, summary.n_asked - summary.n_sampled))
    yield Step("alive", summary.n_alive, ends(summary.dead))
    short = {name: by.get(name, 0) for name in ("too_few", "dense")}
    yield Step("enough windows", summary.n_explainable, ends(short))
    for one in summary.explainers:
        yield Step(f"explained by {one.explainer}", one.n_explained, ends(one.ends, one.n_open), "explained")
    for score in summary.scores:
        of = "" if score.explainer == NO_EXPLAINER else f" of {score.explainer}"
        others = ends(score.ends, n_unscored(summary, score), lack(summary))
        yield Step(f"scored{of} by {score.scorer}", score.n_scored, others, "scored")


def ends(by_status: Mapping[str, int], n_open: int = 0, word: str = "not done yet") -> str:
    """In words, with how many each. `n_open`: to be done yet."""
    parts = [f"{n:,} {MEANINGS.get(status, status)}" for status, n in by_status.items() if n]
    return "; ".join([*parts, *([f"{n_open:,} {word}"] if n_open > 0 else [])])


def lack(summary: Summary, word: str = "not done yet") -> str:
    """What is said of features that this step lacks: the word, or that nobody will make them."""
    return "not in the files it was imported from" if summary.is_imported else word


def n_unscored(summary: Summary, score: ScoreSummary) -> int:
    """Features that this scorer has still before it. What needs no explanation is scored of every feature with
    enough windows."""
    explained = {one.explainer: one.n_explained for one in summary.explainers}
    n_to_score = explained.get(score.explainer, summary.n_explainable)
    return n_to_score - score.n_scored - sum(score.ends.values())


def n_open(summary: Summary) -> int:
    """Steps that features still have before them; none in an import, which can't go on."""
    if summary.is_imported:
        return 0
    n_unsampled = summary.n_asked - summary.n_sampled
    n_unexplained = sum(one.n_open for one in summary.explainers)
    return n_unsampled + n_unexplained + sum(max(n_unscored(summary, one), 0) for one in summary.scores)
