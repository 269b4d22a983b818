"""What a sample says of a feature besides its windows.

Shape letters: P features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autointerp.activations import statistics
from autointerp.activations.firings import Firings
from autointerp.activations.histogram import N_BINS
from autointerp.activations.statistics import TopTokens
from autointerp.sampling.text import Ints, Text


@dataclass(frozen=True, slots=True)
class Described:
    """Columns over P features."""

    n_fired: Ints
    n_rows: Ints
    n_documents: Ints
    maximum: NDArray[np.float32]
    mean: NDArray[np.float64]
    histogram: Ints
    """[P, N_BINS]"""
    top: TopTokens
    rates: NDArray[np.float64]
    """[P, N_RANGES], NaN where the corpus has no token there."""

    def of(self, at: Ints) -> Described:
        return Described(
            self.n_fired[at],
            self.n_rows[at],
            self.n_documents[at],
            self.maximum[at],
            self.mean[at],
            self.histogram[at],
            TopTokens(self.top.ids[at], self.top.counts[at]),
            self.rates[at],
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Fields of each feature's `Sample`."""
        columns = (self.n_fired, self.n_rows, self.n_documents, self.maximum, self.mean)
        names = ("n_fired", "n_rows", "n_documents", "maximum", "mean")
        numbers = zip(*(column.tolist() for column in columns), strict=True)
        tops = zip(self.top.ids.tolist(), self.top.counts.tolist(), strict=True)
        of_each = zip(numbers, tops, self.histogram.tolist(), self.rates.tolist(), strict=True)
        for values, (ids, counts), histogram, rates in of_each:
            yield dict(zip(names, values, strict=True)) | {
                "histogram": {name: n for name, n in zip(_BINS, histogram, strict=True) if n},
                "top_tokens": [pair for pair in zip(ids, counts, strict=True) if pair[0] >= 0],
                "rates": [rate if rate == rate else None for rate in rates],
            }


_BINS: Final = tuple(map(str, range(N_BINS)))


def describe(firings: Firings, text: Text, tokens_by_position: Ints) -> Described:
    """`tokens_by_position`: of `statistics.tokens_by_position`, for the whole corpus."""
    by_position = statistics.firings_by_position(firings, text.context_length)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.where(tokens_by_position > 0, by_position / tokens_by_position, np.nan)
    return Described(
        n_fired=firings.n_fired,
        n_rows=firings.n_rows,
        n_documents=statistics.n_documents(firings, text.document, text.n_documents, text.context_length),
        maximum=statistics.maxima(firings),
        mean=firings.total / np.maximum(firings.n_fired, 1),
        histogram=firings.histogram,
        top=statistics.top_tokens(firings, text.rows.token_at(firings.tokens)),
        rates=rates,
    )
