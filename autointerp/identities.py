"""What the results of a run depend on beyond its recipe, and which features the recipe asks for of that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.errors import FeatureError
from autointerp.recipe import DEFAULT_FEATURES, Recipe
from autointerp.types import FeatureId


@dataclass(frozen=True, slots=True)
class Identities:
    """What the results of a run depend on, beyond the recipe; kept in the run's folder."""

    model: str
    """Of activations from files: of the tokenizer."""
    corpus: str
    """Of activations from files: of these."""
    dictionaries: dict[str, str]
    widths: dict[str, int]
    """Number of features of each dictionary."""
    sites: dict[str, str]
    """Where each dictionary reads the model."""
    sliceable: dict[str, bool]
    """Whether each of a dictionary's features is a function of its own column alone."""
    poles: dict[str, int]
    """2 where activations have signs, so that each feature is two, else 1."""
    calibrated: dict[str, bool] = field(default_factory=dict[str, bool])
    """Whether a dictionary's thresholds come from the run's own tokens; none in runs from before there were
    such."""
    readers: dict[str, str] = field(default_factory=dict[str, str])
    """By whose rules, and which version of them, a dictionary is read, if not the first: `llamascopium 2`."""

    def n_columns(self, dictionary: str) -> int:
        """Features of a dictionary, poles counted apart."""
        return self.widths[dictionary] * self.poles[dictionary]

    def columns(self, features: Sequence[FeatureId]) -> NDArray[np.int64]:
        """Of features of one dictionary, where their firings lie."""
        return np.array([feature.column(self.poles[feature.dictionary]) for feature in features], np.int64)


def asked_features(recipe: Recipe, identities: Identities, dictionary: str) -> list[FeatureId]:
    """The features the recipe asks for of one dictionary, ascending. Raises FeatureError."""
    asked, n_poles, n = recipe.features, identities.poles[dictionary], identities.n_columns(dictionary)
    if asked.ids is not None:
        if not asked.ids:
            raise FeatureError("the list of features is empty: name some, e.g. --features 5,100-200.")
        columns = sorted({at for text in asked.ids for at in _columns(str(text), dictionary, identities)})
    elif asked.first is not None:
        columns = list(range(min(asked.first, n)))
    else:
        hashes = draw.mix(draw.key(recipe.seed, "features", dictionary), np.arange(n, dtype=np.uint64))
        columns = np.sort(draw.smallest(hashes, asked.n or DEFAULT_FEATURES)).tolist()
    return [FeatureId.of_column(dictionary, column, n_poles) for column in columns]


def _columns(text: str, dictionary: str, identities: Identities) -> Iterable[int]:
    """`d/17` and `d/17-` are a pole each, `17` and `10-17` are features with all their poles."""
    text, width, n_poles = text.strip(), identities.widths[dictionary], identities.poles[dictionary]
    if "/" in text:
        feature = FeatureId.parse(text)
        if feature.dictionary not in identities.widths:
            known = ", ".join(identities.widths)
            raise FeatureError(f"'{text}' is of no dictionary here. There are: {known}.")
        if feature.dictionary != dictionary:
            return ()
        _check_index(feature.index, dictionary, width)
        if feature.pole and n_poles == 1:
            raise FeatureError(f"'{text}': the activations of dictionary '{dictionary}' have no signs.")
        return (feature.column(n_poles),)
    low, dash, high = text.partition("-")
    if not _is_number(low) or (dash and not _is_number(high)):
        raise FeatureError(f"'{text}' names no feature. Examples: 17, 100-200, {dictionary}/17.")
    found = range(int(low), int(high if dash else low) + 1)
    if not found:
        raise FeatureError(f"the range {text} is empty: its end lies before its beginning.")
    _check_index(found[-1], dictionary, width)
    return range(found[0] * n_poles, (found[-1] + 1) * n_poles)


def _check_index(index: int, dictionary: str, width: int) -> None:
    if index >= width:
        raise FeatureError(
            f"feature {index} is out of range: dictionary '{dictionary}' has {width} features, "
            f"0 to {width - 1}."
        )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
