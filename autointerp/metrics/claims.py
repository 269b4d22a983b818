"""Claims about single features, of which a run makes thousands: which of them hold together.

Of claims with p below 0.05, one in twenty holds by luck where none is true. Benjamini and Hochberg 1995
(Journal of the Royal Statistical Society B 57) keep the expected share of false ones among those made below a
level. Features share documents, so their p-values go together rather than apart, which the procedure allows
(Benjamini and Yekutieli 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  there are none

LEVEL: Final = 0.05
"""Expected share of false claims among those made."""


def adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """The lowest level at which each may be claimed; None where it is."""
    known = [p_value for p_value in p_values if p_value is not None]
    if not known:
        return list(p_values)
    found = iter(cast(Any, stats).false_discovery_control(np.asarray(known), method="bh").tolist())
    return [None if p_value is None else next(found) for p_value in p_values]


def levels(p_values: Sequence[float | None]) -> dict[float, float]:
    """The same by p-value: equal ones have one level."""
    pairs = zip(p_values, adjusted(p_values), strict=True)
    return {p_value: level for p_value, level in pairs if p_value is not None and level is not None}


def claimed(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of them may be claimed."""
    return [value is not None and value <= level for value in adjusted(p_values)]
