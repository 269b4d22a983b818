"""How a matching pursuit goes, and how many steps a checkpoint may ask of it: each takes time and room for every
token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autointerp.dictionaries.checkpoint import Settings


@dataclass(frozen=True, slots=True)
class Pursuit:
    """How matching pursuit goes: a step takes the feature whose decoder row has the largest product with what is
    left of the input, adds the product to the feature's code and subtracts that much of the row. A token's pursuit
    ends after k steps (d_in where k is None), or by one of these, looked at after each step."""

    residual_below: float = 0.0
    """What is left has a smaller norm than this; 0: never."""
    ends_on_repeat: bool = False
    """The step added no feature that the token did not have yet."""


ALL_STEPS: Final = Pursuit()


def pursuit_steps(
    settings: Settings, key: str, d_in: int, width: int, *, ends_on_repeat: bool = False
) -> int:
    """What `key` says. Raises CheckpointError: none, or more than dimensions and than features, unless it ends by
    itself when it repeats."""
    n_steps, most = settings.count(key), max(d_in, width)
    if n_steps > most and not ends_on_repeat:
        settings.refuse(
            key, f"of {width} features in {d_in} dimensions a pursuit takes {most} steps at most."
        )
    return n_steps
