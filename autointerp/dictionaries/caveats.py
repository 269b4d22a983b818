"""What whoever reads explanations should know of how a dictionary's codes were made, in sentences. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from autointerp.dictionaries.outside import OUTSIDE
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.dictionaries.thresholds import Calibration
from autointerp.types import Json

CAVEATS: Final = "caveats"
"""Their key in a run's records."""
RAREST: Final = 100_000
"""On tokens enough that a feature firing on one of so many would have been seen, some feature must have fired."""
FEWEST: Final = 1_000
"""On fewer tokens nothing is said of silence."""


def caveats(spec: DictionarySpec) -> Iterator[str]:
    """None of a dictionary that is as it was trained, with thresholds of its own."""
    if spec.approximation:
        yield f"It is an approximation of what was trained: {spec.approximation.strip().rstrip('.')}."
    if spec.gradient_weight is not None:
        yield (
            f"Features are chosen by their effect on the model's loss, too (gradient_weight "
            f"{spec.gradient_weight:g}): what fires on a token depends on the tokens behind it as well."
        )
    if spec.calibration is not None:
        yield _calibrated(spec.calibration)


def kept_caveats(spec: DictionarySpec) -> Json:
    """As a run keeps them, beside what the dictionary does on the first tokens; nothing where there are none."""
    found = list(caveats(spec))
    return {CAVEATS: found} if found else {}


def _calibrated(calibration: Calibration) -> str:
    pool = calibration.pool
    of = (
        ""
        if pool is None
        else f" among the {pool:,} features with the largest scores there, and no others ever fire"
    )
    return (
        f"It stores no threshold: what fires is decided by thresholds that were found on the run's own tokens "
        f"({calibration.rule}, {calibration.k:g} a token{of}) and are the same ever since."
    )


def silence(spec: DictionarySpec, n_tokens: int, l0: float) -> str | None:
    """What was seen and what to look at where nothing fires on tokens enough; else None."""
    if l0 > 0 or n_tokens < FEWEST or n_tokens * spec.n_columns < RAREST:
        return None
    look_at = "whether the checkpoint is complete, and the scale of the inputs that it was trained on"
    if spec.selector == "jumprelu":
        look_at = "its thresholds, and the scale of the inputs that it was trained on (normalize_activations)"
    elif spec.selector == "custom" and OUTSIDE.fullmatch(spec.format):
        look_at = "what its encode gives: only values above 0 fire (with has_signs those below, too)"
    return (
        f"on {n_tokens:,} tokens none of its {spec.width:,} features fires (L0 0). Look at {look_at}; and at "
        f"--model, --hook and cache.prepend_bos"
    )
