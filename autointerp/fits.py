"""How well a dictionary fits its model, and what to make of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from autointerp.dictionaries.caveats import silence
from autointerp.dictionaries.spec import DictionarySpec

CHECKED: Final = "checked.json"
"""Where the device's child leaves its fits."""

DENSE_FROM: Final = 0.25
"""A dictionary whose tokens have more than this share of its features is dense."""
BETTER: Final = 0.8
"""Another convention fits better whose FVU is at most so many times that of the one taken."""
FAR_OFF: Final = 1.5
"""An L0 or FVU is not what the checkpoint states if it is so many times as large, or small."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a dictionary does on some tokens, read by one convention."""

    convention: str
    n_tokens: int
    l0: float
    fvu: float | None
    """None where what it predicts is not known or not here."""
    n_dead: int
    """Features that fire on none of these tokens, poles counted apart."""
    norm_ratio: float | None
    """Mean over tokens of |reconstruction| / |what it reconstructs|."""
    thresholds: tuple[float, float] | None = None
    """Of a dictionary that stores none: the lowest and the highest that these tokens gave."""


def verdicts(spec: DictionarySpec, fits: list[Fit]) -> Iterator[str]:
    """What a person should know, a sentence each; none where nothing is odd. `fits`: as read, then others."""
    as_read, *others = fits
    if spec.calibration is not None and as_read.thresholds is not None:
        low, high = as_read.thresholds
        yield (
            f"It stores no threshold. It was calibrated on these {as_read.n_tokens:,} tokens "
            f"({spec.calibration.rule}: {low:.4g}{f' to {high:.4g}' * (high > low)}); a run calibrates it on "
            f"cache.calibration_tokens of its own."
        )
    if (silent := silence(spec, as_read.n_tokens, as_read.l0)) is not None:
        yield f"It is silent: {silent}."
    if as_read.l0 > DENSE_FROM * spec.width:
        yield (
            f"It is dense: a token has {as_read.l0:,.0f} of its {spec.width:,} features. Nearly every feature "
            f"fires nearly everywhere, so explanations can only say what makes it strong or weak (a graded "
            f"contrast), not where it fires."
        )
    expected = spec.expected
    if expected.l0 is not None and not _near(as_read.l0, expected.l0):
        yield f"The checkpoint states {expected.l0:,.4g} features a token; here it has {as_read.l0:,.4g}."
    if as_read.fvu is None:
        yield "What it reconstructs is not known here, so only its codes could be checked."
        return
    if expected.fvu is not None and not _near(as_read.fvu, expected.fvu):
        yield f"The checkpoint states an FVU of {expected.fvu:.3g}; here it is {as_read.fvu:.3g}."
    if as_read.fvu >= 1:
        yield (
            "Its reconstruction is no better than the mean: it is another model's or another site's, or is "
            "read wrongly."
        )
    best = min(others, key=lambda fit: fit.fvu if fit.fvu is not None else 1.0, default=None)
    if best is not None and best.fvu is not None and best.fvu <= BETTER * as_read.fvu:
        yield (
            f"Read {best.convention} it would fit better: FVU {best.fvu:.3g} instead of {as_read.fvu:.3g}, "
            f"{best.l0:,.1f} features a token instead of {as_read.l0:,.1f}. Nothing was switched; check how it "
            f"was trained."
        )


def _near(value: float, stated: float) -> bool:
    return stated / FAR_OFF <= value <= stated * FAR_OFF
