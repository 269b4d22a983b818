"""One number a feature -> its mean over features, with a 95% interval over features and documents.

Two things are drawn: the features of a dictionary, and the documents their windows are from. Features share
documents, so their errors are not independent: an odd document moves many scores at once, and a bootstrap over
features alone would not see it. Both are resampled (two-way clustering: Owen 2007, "The pigeonhole bootstrap",
Annals of Applied Statistics 1; Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering"):

    mean* = mean + s (A* + B*)

A* is how the mean of the features' numbers moves when features are drawn with replacement; B* how it moves when
documents are, to first order (`influence.py`), so that no trial is looked at again. What is particular to one
feature in one document is in both; s takes it out once: s^2 = (V_A + V_B - V_AB) / (V_A + V_B), but never so
much that less than the larger of both is left. Few documents make B* too narrow, as any percentile bootstrap of
few is, so it is widened by sqrt(n / (n-1)) and Student's quantile over the normal one (Hesterberg 2015, "What
teachers should know about the bootstrap", The American Statistician 69).

An end is never beyond what a number can be (`LIMITS`): the two moves are added, so near a limit they can reach past
it, where no mean of any features lies.

Documents are bundled by the first hex digits of their ids, 4096 bundles at most: a bundle of documents drawn
together is a coarser cluster, and 1e5 features of 1e6 documents cost what few do.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics.rates import TAIL
from autointerp.types import digest

N_RESAMPLES = 2000
"""Bootstrap resamples. Their noise moves an end by about 1/65 of the interval's width (one sd)."""

_N_DISTINCT = 1 << 11
"""Most values that resamples are counts of."""

_N_CELLS = 1 << 20
"""Most cells of a chunk of resamples: 8 MiB of int64 counts."""

_DIGITS = 3
"""Hex digits of a document's id that name its bundle."""
_N_BUNDLES = 16**_DIGITS

_MOST_OPEN = 2**20
"""What 256 features of documents in every bundle have."""

_ROUNDING = 1e-12
"""What is left of influences that cancel, as those of two equal scores do."""

_Floats = NDArray[np.float64]

UNLIMITED: Final = (-math.inf, math.inf)
_SHARE: Final = (0.0, 1.0)
LIMITS: Final[dict[str, tuple[float, float]]] = {
    "balanced_accuracy": _SHARE,
    "accuracy": _SHARE,
    "auroc": _SHARE,
    "sensitivity": _SHARE,
    "correlation": (-1.0, 1.0),
}
"""Of headlines, the least and the most; of one that isn't here nothing is known."""


@dataclass(frozen=True, slots=True)
class MeanOver:
    """The mean of a number over n features, and the ends of its 95% interval.

    The interval is about features (would others of this dictionary give the same mean?), so one feature
    has none: low and high are None for n = 1.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def _no_bundles() -> _Floats:
    return np.zeros(_N_BUNDLES)


@dataclass(slots=True)
class Population:
    """Numbers of features, as they come. Memory: a number a feature, and at most some 11 MB."""

    values: list[float] = field(default_factory=list[float])
    _by_bundle: _Floats = field(default_factory=_no_bundles)
    """[_N_BUNDLES], summed influences of each bundle of documents."""
    _squares: float = 0.0
    """Sum of the squared influences of each bundle in each feature."""
    _bundles: array[int] = field(default_factory=lambda: array("H"))
    """Of influences that are in neither sum yet: the bundle of each, one a feature."""
    _parts: array[float] = field(default_factory=lambda: array("d"))
    limits: tuple[float, float] = UNLIMITED
    """The least and the most that a number can be."""

    def add(self, value: float, influences: Iterable[tuple[str, float]] = ()) -> None:
        """A feature's number, and (document, what it adds to it to first order)."""
        self.add_bundled(value, bundled(influences))

    def add_bundled(self, value: float, influences: Iterable[tuple[int, float]]) -> None:
        """The same of (bundle, what its documents add)."""
        self.values.append(value)
        parts: dict[int, float] = {}
        for bundle, part in influences:
            parts[bundle] = parts.get(bundle, 0.0) + part
        self._bundles.extend(parts)
        self._parts.extend(parts.values())
        if len(self._parts) > _MOST_OPEN:
            self._settle()

    def extend(self, other: Population) -> None:
        """As if all that the other was given had come here, in its order: to the last bit where that was no more
        than 256 features, a unit's."""
        self.values += other.values
        self._settle()
        self._by_bundle += other._by_bundle
        self._squares += other._squares
        self._bundles, self._parts = other._bundles[:], other._parts[:]
        if other.values:
            self.limits = other.limits

    def _settle(self) -> None:
        """Adds one by one, in order: how they came in pieces changes no bit."""
        if not self._parts:
            return
        parts = np.array(self._parts)
        np.add.at(self._by_bundle, np.array(self._bundles), parts)
        self._squares = float(np.cumsum(np.append(self._squares, parts * parts))[-1])
        self._bundles, self._parts = array("H"), array("d")

    def mean(self, *, seed: int, purpose: str, n_more: int = 0, worth: float = 0.0) -> MeanOver | None:
        """Over the features added, and `n_more` that have no number and count as `worth`. None for none.

        The resamples are a keyed function of (seed, purpose), and the order of the features changes
        nothing (beyond the last bits).
        """
        self._settle()
        values = self.values + [worth] * n_more
        n = len(values)
        if not n:
            return None
        mean = math.fsum(values) / n
        if n == 1:
            return MeanOver(mean, None, None, 1)
        rng = np.random.Generator(np.random.PCG64(int(digest(seed, purpose), 16)))
        by_features = resampled_means(values, rng) - mean
        moved = self._by_bundle[np.abs(self._by_bundle) > _ROUNDING] / n
        of_features, in_both = float(np.var(values)) / n, self._squares / n**2
        low, high = _ends(mean, by_features, of_features, moved, in_both, rng)
        least, most = self.limits
        # Of a mean rounded past its limit the ends still hold it.
        return MeanOver(mean, min(max(low, least), mean), max(min(high, most), mean), n)

    def less(self, other: Population, *, seed: int, purpose: str) -> tuple[float, float | None, float | None]:
        """How much larger this mean is than that of other features, and the ends of its 95% interval; there are none
        where either has a single feature. Features of each are drawn by themselves; documents that both have move
        both. Neither may be empty."""
        self._settle()
        other._settle()
        n = len(self.values), len(other.values)
        means = [math.fsum(of.values) / len(of.values) for of in (self, other)]
        value = means[0] - means[1]
        if min(n) == 1:
            return value, None, None
        rng = np.random.Generator(np.random.PCG64(int(digest(seed, purpose), 16)))
        drawn = [
            resampled_means(of.values, rng) - mean for of, mean in zip((self, other), means, strict=True)
        ]
        moved = self._by_bundle / n[0] - other._by_bundle / n[1]
        of_features = float(np.var(self.values)) / n[0] + float(np.var(other.values)) / n[1]
        in_both = self._squares / n[0] ** 2 + other._squares / n[1] ** 2
        moved = moved[np.abs(moved) > _ROUNDING / max(n)]
        return value, *_ends(value, drawn[0] - drawn[1], of_features, moved, in_both, rng)


def _ends(
    value: float,
    by_features: _Floats,
    of_features: float,
    moved: _Floats,
    in_both: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Of the interval. How the value moves with other features [N_RESAMPLES], and its variance by them; `moved`: what
    each bundle of documents adds to it; `in_both`: the variance that is in both."""
    of_documents = float((moved**2).sum())
    if len(moved) > 1:
        both = of_features + of_documents
        left = max(both - in_both, of_features, of_documents)
        by_documents = _widening(len(moved)) * _resampled_sums(moved, rng)
        by_features = (by_features + by_documents) * math.sqrt(left / both)
    low, high = np.quantile(value + by_features, [TAIL, 1 - TAIL])
    return min(float(low), value), max(float(high), value)


def bundled(influences: Iterable[tuple[str, float]]) -> list[tuple[int, float]]:
    """By the bundle of each document: made once for all populations that a score is in."""
    return [(int(document[:_DIGITS], 16), part) for document, part in influences]


def _widening(n: int) -> float:
    """For a bootstrap of n > 1 documents; 1 as n grows."""
    student, normal = (float(of) for of in (stats.t.ppf(1 - TAIL, n - 1), stats.norm.ppf(1 - TAIL)))
    return math.sqrt(n / (n - 1)) * student / normal


def mean_over_features(values: Sequence[float], *, seed: int, purpose: str) -> MeanOver | None:
    """The same of numbers whose documents are not looked at: features alone are resampled.

    A feature whose number is None (see `Metrics`) is left out by the caller; `n` says how many are in.
    """
    return Population(list(values)).mean(seed=seed, purpose=purpose)


def resampled_means(values: Sequence[float], rng: np.random.Generator) -> _Floats:
    """[N_RESAMPLES] means of n values drawn with replacement.

    Drawn as counts of the distinct values, a multinomial: 50 + 50 trials know a few hundred balanced
    accuracies, so 1e6 features cost what 1e3 do. Numbers of which more are distinct are taken in runs of neighbours,
    each worth its mean: what is lost of the variance is a millionth.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    n = len(values)
    if len(distinct) > _N_DISTINCT:
        begins = np.arange(_N_DISTINCT) * len(distinct) // _N_DISTINCT
        sums, counts = np.add.reduceat(distinct * counts, begins), np.add.reduceat(counts, begins)
        distinct = sums / counts
    return _resampled(counts / n, n, distinct / n, rng)


def _resampled_sums(parts: _Floats, rng: np.random.Generator) -> _Floats:
    """[N_RESAMPLES] sums of as many parts drawn with replacement, less the sum of all: parts [n] sum to
    about 0."""
    n = len(parts)
    return _resampled(np.full(n, 1 / n), n, parts, rng) - parts.sum()


def _resampled(shares: _Floats, n: int, worth: _Floats, rng: np.random.Generator) -> _Floats:
    """[N_RESAMPLES] sums over counts drawn from a multinomial of n."""
    n_rows = max(1, _N_CELLS // len(shares))
    sizes = [min(n_rows, N_RESAMPLES - start) for start in range(0, N_RESAMPLES, n_rows)]
    return np.concatenate([rng.multinomial(n, shares, size=size) @ worth for size in sizes])
