"""The index: a row a feature, in columns. Numbers are little-endian arrays in base64, texts lists.

Memory: what the columns hold, some hundred bytes a feature, mostly its explanations.
"""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from autointerp.sequential import counts_in_means
from autointerp.types import FeatureId, Json
from autointerp.view.packed import cut

_MISSING: Final = -(2**15)
_LARGEST: Final = 2**15 - 1
_DIGITS: Final = 4


def decimals(values: Sequence[float]) -> Json:
    """Numbers with up to 4 digits behind the point, in 16 bits: as many as the largest of them leaves room for.

    Whole multiples of a power of ten, so that a filter at 0.65 keeps a score of 0.65. NaN: there is none.
    """
    numbers = np.array(values, np.float64)
    known = numbers[~np.isnan(numbers)]
    peak = float(np.abs(known).max()) if len(known) else 1.0
    digits = min(_DIGITS, math.floor(math.log10(_LARGEST / max(peak, 1e-9))))
    scaled = np.where(np.isnan(numbers), _MISSING, np.rint(np.nan_to_num(numbers) * 10.0**digits))
    return {"kind": "decimal", "digits": digits, "data": _base64(scaled, "<i2")}


def numbers(values: Sequence[float], kind: str) -> Json:
    """As little-endian `kind`: f4, u4, u2 or u1."""
    return {"kind": kind, "data": _base64(np.asarray(values), f"<{kind}")}


def _base64(values: Any, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")


def _doubles() -> array[float]:
    return array("d")


@dataclass(frozen=True, slots=True)
class Headline:
    """A score's headline."""

    name: str = ""
    value: float = math.nan
    """NaN where there is none, as of the interval's ends."""
    low: float = math.nan
    high: float = math.nan
    is_early: bool = False
    """Whether a sequential test may have stopped it: then it is biased, and in no mean."""

    @classmethod
    def of(cls, record: Json) -> Headline:
        """From a score's record."""
        metrics: Json = record.get("metrics") or {}
        found = metrics.get("values", {}).get(metrics.get("headline")) or {}
        value, low, high = (found.get(end, math.nan) for end in ("value", "low", "high"))
        return cls(metrics.get("headline") or "", value, low, high, not counts_in_means(record))


_NO_SCORE: Final = Headline()


@dataclass(frozen=True, slots=True)
class Row:
    """What the index has of a sampled feature."""

    key: str
    status: str
    density: float
    maximum: float
    n_windows: int
    explained: dict[str, tuple[str, str]]
    """Label and text by explainer, of those that there are."""
    scored: dict[tuple[str, str], Headline]
    """By explainer and scorer, of those that there are."""

    @classmethod
    def of(
        cls, key: str, sample: Json, explained: dict[str, Json], scored: dict[tuple[str, str], Json]
    ) -> Row:
        """From a feature's records."""
        return cls(
            key,
            sample["status"],
            sample["n_fired"] / sample["n_tokens"] if sample["n_tokens"] else math.nan,
            sample["maximum"],
            sample["n_windows"],
            {
                name: (cut(one.get("label") or ""), cut(one.get("text") or ""))
                for name, one in explained.items()
            },
            {pair: Headline.of(record) for pair, record in scored.items()},
        )


@dataclass(slots=True)
class Scored:
    """The column of one explainer and scorer: the headline and the ends of its interval."""

    explainer: str
    scorer: str
    headline: str = ""
    value: array[float] = field(default_factory=_doubles)
    low: array[float] = field(default_factory=_doubles)
    high: array[float] = field(default_factory=_doubles)
    early: array[int] = field(default_factory=lambda: array("B"))

    def add(self, headline: Headline) -> None:
        self.headline = headline.name or self.headline
        self.value.append(headline.value)
        self.low.append(headline.low)
        self.high.append(headline.high)
        self.early.append(headline.is_early)

    def column(self) -> Json:
        return {
            "explainer": self.explainer,
            "scorer": self.scorer,
            "headline": self.headline,
            "value": decimals(self.value),
            "low": decimals(self.low),
            "high": decimals(self.high),
            "early": numbers(self.early, "u1") if any(self.early) else None,
        }


@dataclass(slots=True)
class Codes:
    """Few different names: each by its place in the list of them."""

    names: dict[str, int] = field(default_factory=dict[str, int])
    codes: array[int] = field(default_factory=lambda: array("B"))

    def add(self, name: str) -> None:
        self.codes.append(self.names.setdefault(name, len(self.names)))

    def column(self) -> Json:
        return {"names": list(self.names)} | numbers(self.codes, "u1")


@dataclass(slots=True)
class Explained:
    """What one explainer says of each feature."""

    explainer: str
    labels: list[str] = field(default_factory=list[str])
    texts: list[str] = field(default_factory=list[str])

    def add(self, label: str, text: str) -> None:
        self.labels.append(label)
        self.texts.append(text)


class Index:
    """Grows row by row."""

    def __init__(self, dictionaries: list[str], explainers: list[str], scored: list[tuple[str, str]]) -> None:
        self._dictionaries = dictionaries
        self._features: list[FeatureId] = []
        self._status = Codes()
        self._density, self._maximum = _doubles(), _doubles()
        self._windows = array("L")
        self._explained = [Explained(name) for name in explainers]
        self._scored = [Scored(explainer, scorer) for explainer, scorer in scored]

    def __len__(self) -> int:
        return len(self._features)

    def add(self, row: Row) -> None:
        self._features.append(FeatureId.parse(row.key))
        self._status.add(row.status)
        self._density.append(row.density)
        self._maximum.append(row.maximum)
        self._windows.append(row.n_windows)
        for column in self._explained:
            column.add(*row.explained.get(column.explainer, ("", "")))
        for column in self._scored:
            column.add(row.scored.get((column.explainer, column.scorer), _NO_SCORE))

    def texts(self) -> list[list[str]]:
        """What each explainer says of each feature, in full: most of the index, and only searched."""
        return [one.texts for one in self._explained]

    def content(self) -> Json:
        """What the page reads first."""
        places = {name: number for number, name in enumerate(self._dictionaries)}
        return {
            "n": len(self),
            "dictionaries": self._dictionaries,
            "dictionary": numbers([places[one.dictionary] for one in self._features], "u2"),
            "number": numbers([one.index for one in self._features], "u4"),
            "negative": numbers([one.pole == "-" for one in self._features], "u1"),
            "status": self._status.column(),
            "density": numbers(self._density, "f4"),
            "maximum": numbers(self._maximum, "f4"),
            "windows": numbers(self._windows, "u4"),
            "explained": [{"explainer": one.explainer, "labels": one.labels} for one in self._explained],
            "scored": [one.column() for one in self._scored],
        }
