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


def claimed(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of them may be claimed."""
    if not p_values:
        return []
    adjusted = cast(Any, stats).false_discovery_control(np.asarray(p_values), method="bh")
    return (adjusted <= level).tolist()
