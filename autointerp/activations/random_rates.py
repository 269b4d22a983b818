"""How often features fire on random tokens: counts beside a run's own cache, never the firings themselves.

One record a pass, in the dictionary's cache journal, with an array beside it: a row a feature that was counted,
also of those that never fired. What was asked for names the unit, so another number of tokens is another unit
and no digest knows of it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.shards import Sorted
from autointerp.errors import RunError
from autointerp.files import write_sealed
from autointerp.journal import Journal, Part
from autointerp.types import Json, digest

RANDOM_UNITS: Final = "random-"
"""Every unit of counts begins so."""
_COUNTED: Final = np.dtype([("feature", "<u4"), ("n_fired", "<u4"), ("maximum", "<f4")])


@dataclass(frozen=True, slots=True)
class RandomTokens:
    """Which random tokens are asked for."""

    n_tokens: int
    """BOS not counted."""
    distribution: Literal["unigram", "uniform"]
    seed: int

    @property
    def unit(self) -> str:
        return f"{RANDOM_UNITS}{self.distribution}-{self.n_tokens}-{self.seed}"


@dataclass(frozen=True, slots=True)
class RandomRate:
    """What one feature does on random tokens."""

    n_fired: int
    n_tokens: int
    """Looked at."""
    maximum: float
    """0.0 where it never fires."""

    @property
    def rate(self) -> float:
        return self.n_fired / self.n_tokens if self.n_tokens else 0.0


class RandomCounts:
    """Counts of one dictionary while random rows go through it. Memory: 12 bytes a feature."""

    def __init__(self, width: int) -> None:
        self._n_fired = np.zeros(width, np.int64)
        self._maximum = np.zeros(width, np.float32)
        self._n_tokens = 0

    def add(self, firings: Sorted, n_tokens: int) -> None:
        """What fires on one shard of rows, of which `n_tokens` were looked at."""
        self._n_tokens += n_tokens
        self._n_fired[firings.features] += np.diff(firings.offsets)
        if len(firings.features):
            highest = np.maximum.reduceat(firings.values, firings.offsets[:-1])
            self._maximum[firings.features] = np.maximum(self._maximum[firings.features], highest)

    def save(self, journal: Journal, unit: str, features: NDArray[np.int64]) -> None:
        """Writes the record of `features`, ascending, which are those that were looked at. The key follows
        them: processes that counted different features hold different records. Raises DiskFull."""
        counted = np.zeros(len(features), _COUNTED)
        counted["feature"] = features
        counted["n_fired"] = self._n_fired[features]
        counted["maximum"] = self._maximum[features]
        _save(journal, unit, counted, self._n_tokens)


def save_rates(journal: Journal, unit: str, rates: Mapping[int, RandomRate]) -> None:
    """Rates that were counted elsewhere, by feature; a record for each number of tokens. Raises DiskFull."""
    for n_tokens in sorted({rate.n_tokens for rate in rates.values()}):
        rows = [
            (feature, rate.n_fired, rate.maximum)
            for feature, rate in sorted(rates.items())
            if rate.n_tokens == n_tokens
        ]
        _save(journal, unit, np.array(rows, _COUNTED), n_tokens)


def _save(journal: Journal, unit: str, counted: NDArray[Any], n_tokens: int) -> None:
    content = io.BytesIO()
    np.save(content, counted)

    def write(path: Path) -> Json:
        return write_sealed(path, content.getbuffer())

    with Part(journal, unit) as part:
        seal = part.attach(".npy", write)
        key = f"{unit}:{digest(counted['feature'].tobytes())}"
        part.append(key, {"n_tokens": n_tokens, "n_counted": len(counted)} | seal)


class RandomRates:
    """What a journal holds of one unit."""

    def __init__(self, journal: Journal, unit: str) -> None:
        """Raises RunError where a file that the journal names is missing."""
        self._passes: list[tuple[int, dict[str, NDArray[Any]]]] = []
        for record, part in journal.located(unit).values():
            path = part.with_suffix(".npy")
            if not path.is_file():
                raise RunError(f"{path} is missing, though {part.name} tells of it: autointerp cache verify.")
            counted = np.load(path)
            columns = {name: np.ascontiguousarray(counted[name]) for name in _COUNTED.names or ()}
            self._passes.append((record["n_tokens"], columns))

    def holds(self, features: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[P]: which of these were counted."""
        found = np.zeros(len(features), bool)
        for _, columns in self._passes:
            found |= np.isin(features, columns["feature"])
        return found

    def of(self, feature: int) -> RandomRate | None:
        """None where it was not counted."""
        for n_tokens, columns in self._passes:
            at = int(np.searchsorted(columns["feature"], feature))
            if at < len(columns["feature"]) and columns["feature"][at] == feature:
                return RandomRate(int(columns["n_fired"][at]), n_tokens, float(columns["maximum"][at]))
        return None
