"""Multi-concept: one label a cluster of active windows, for features that fire on several things (PRISM, arXiv
2506.15538; lkopf/prism).

    windows shown -> vectors -> k-means -> an explanation of each cluster -> one text, and how far apart they are

As in PRISM each cluster is explained by itself, as `plain` explains a feature. Differs: PRISM clusters 1000 texts of
the top percent with embeddings of gte-Qwen2-1.5B and k = 5; here it is what is shown (40 windows by default), k = 3,
and tf-idf of token counts, unless the LLM's backend has embeddings. Clusters of one window are left out.

Details of the record: `concepts` (text, label, n_windows, the largest first), `polysemanticity` = 1 - mean cosine
between the labels' vectors (by `embed`) or the clusters' mean vectors (tf-idf; None where there is one), `vectors`.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.evidence import Evidence
from autointerp.explainers.examples import THRESHOLD, check_threshold, shuffled
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import ask
from autointerp.prompting import inert
from autointerp.scorers.question import all_of
from autointerp.splits import Shown
from autointerp.types import Window

FIRING_WEIGHT: Final = 3.0
"""Of a token above the threshold in the counts of a window, against 1 of the others: what it fires on says more than
what stands around it, and thirty tokens stand around it."""
MOST_ITERATIONS: Final = 50

Vectors = NDArray[np.float64]
"""[N, D], rows of length 1 (or 0)."""


@dataclass(frozen=True, slots=True)
class MultiConcept:
    """Clusters the active windows and explains each cluster."""

    n_clusters: int = 3
    """At most; fewer where there are fewer than twice as many windows."""
    threshold: float = THRESHOLD
    """Tokens above this share of their window's maximum are marked."""
    max_tokens: int = 300
    temperature: float = 0.0
    prompt: str = "explain/multi_concept"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_threshold("multi_concept", self.threshold)
        if self.n_clusters < 1:
            raise RecipeError(f"multi_concept: n_clusters is {self.n_clusters}; it must be 1 or more.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Raises Unreadable or Refused where that is how it goes with any cluster."""
        windows = evidence.shown.active
        has_embeddings = asking.llm.capabilities.embed
        if has_embeddings:
            texts = [inert(window.text) for window in windows]
            vectors = unit(np.array(await asking.llm.embed(texts), np.float64))
        else:
            vectors = tf_idf(windows, self.threshold)
        groups = clusters(vectors, min(self.n_clusters, max(1, len(windows) // 2)), asking)
        concepts = await all_of(
            [
                self._concept([windows[n] for n in group], evidence.shown.silent, asking, number)
                for number, group in enumerate(groups)
            ]
        )
        if has_embeddings:
            ends = unit(np.array(await asking.llm.embed([concept.label for concept in concepts]), np.float64))
        else:
            ends = unit(np.stack([vectors[group].mean(0) for group in groups]))
        details = {
            "concepts": [
                {"text": concept.text, "label": concept.label, "n_windows": len(group)}
                for concept, group in zip(concepts, groups, strict=True)
            ],
            "polysemanticity": polysemanticity(ends),
            "vectors": "embed" if has_embeddings else "tf-idf",
        }
        return Explained(_together(concepts), concepts[0].label, details)

    async def _concept(
        self, windows: Sequence[Window], silent: tuple[Window, ...], asking: Asking, number: int
    ) -> Explained:
        return await ask(
            asking,
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            examples=shuffled(windows, self.threshold, asking, "concept", number),
            shown=Shown(tuple(windows), silent),
        )


def _together(concepts: Sequence[Explained]) -> str:
    """Sentences behind each other, none twice."""
    sentences = dict.fromkeys(concept.text.rstrip(" .") for concept in concepts)
    return ". ".join(sentences) + "."


def tf_idf(windows: Sequence[Window], threshold: float) -> Vectors:
    """Of each window's tokens, in lower case and without white space; firing ones count FIRING_WEIGHT times."""
    counts: list[dict[str, float]] = []
    for window in windows:
        count: dict[str, float] = {}
        floor = threshold * window.maximum
        for text, activation in zip(window.texts, window.activations, strict=True):
            if word := text.strip().lower():
                count[word] = count.get(word, 0.0) + (FIRING_WEIGHT if activation > floor else 1.0)
        counts.append(count)
    in_windows = Counter(word for count in counts for word in count)
    words = {word: at for at, word in enumerate(sorted(in_windows))}
    vectors = np.zeros((len(windows), max(1, len(words))))
    for row, count in enumerate(counts):
        for word, n in count.items():
            vectors[row, words[word]] = n * (math.log((1 + len(windows)) / (1 + in_windows[word])) + 1)
    return unit(vectors)


def unit(vectors: Vectors) -> Vectors:
    """Rows divided by their length; those of zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def clusters(vectors: Vectors, k: int, asking: Asking) -> list[list[int]]:
    """Rows of each of at most k clusters of two or more, the largest first; all of them where there is none.

    K-means (Lloyd) from rows far apart: the first is drawn, each next one has the smallest largest cosine with those
    before it.
    """
    centres = [asking.order(len(vectors), "centre")[0]]
    while len(centres) < k:
        nearest = (vectors @ vectors[centres].T).max(1)
        if nearest.min() > 1 - 1e-9:
            break  # all that are left are like one of these
        centres.append(int(nearest.argmin()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster that lost all its rows is left out below
        _, labels = kmeans2(vectors, vectors[centres], iter=MOST_ITERATIONS, minit="matrix", missing="warn")
    groups = [np.flatnonzero(labels == number).tolist() for number in range(len(centres))]
    kept = sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))
    return kept or [list(range(len(vectors)))]


def polysemanticity(vectors: Vectors) -> float | None:
    """1 - mean cosine between rows, rounded; None for a single one."""
    cosines = [float(a @ b) for a, b in combinations(vectors, 2)]
    return round(1 - sum(cosines) / len(cosines), 6) if cosines else None
