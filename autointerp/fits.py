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
"""Another convention fits better whose FVU is below so many times that of the one taken, and below 1."""
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


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Which tokens a check doesn't look at."""

    first: bool
    """Position 0 of each row."""
    bos: bool
    """Rows begin with BOS."""
    n_massive: int
    """Tokens of more than `sink_ratio` times the median norm."""
    sink_ratio: float | None

    @property
    def sentence(self) -> str:
        """Which, and how they are looked at."""
        parts: list[str] = []
        if self.first:
            what = "position 0 of each row" + " (BOS)" * self.bos
            parts.append(f"{what}, which --set cache.mask_first=false includes")
        if self.n_massive:
            tokens = f"{self.n_massive:,} token{'s' * (self.n_massive > 1)}"
            parts.append(
                f"{tokens} of more than {self.sink_ratio:g} times the median norm, which --set "
                f"cache.sink_ratio=null includes"
            )
        return f"Left out: {'; '.join(parts)}." if parts else "No token was left out."


def density(l0: float, width: int) -> str | None:
    """What a dense dictionary is, for behind `it is`; None of one that isn't. `l0`: features a token, of which a
    signed one has both poles once."""
    if l0 <= DENSE_FROM * width:
        return None
    return (
        f"dense: a token has {l0:,.1f} of its {width:,} features, so each fires on {l0 / width:.0%} of the tokens "
        f"on average. Of a feature that leaves hardly a window silent an explanation can only say what makes it "
        f"strong or weak (a graded contrast), not where it fires."
    )


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
    if (dense := density(as_read.l0, spec.width)) is not None:
        yield f"It is {dense}"
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
    if best is not None and best.fvu is not None and best.fvu < min(BETTER * as_read.fvu, 1.0):
        yield (
            f"Read {best.convention} it would fit better: FVU {best.fvu:.3g} instead of {as_read.fvu:.3g}, "
            f"{best.l0:,.1f} features a token instead of {as_read.l0:,.1f}. Nothing was switched; check how it "
            f"was trained."
        )


def _near(value: float, stated: float) -> bool:
    return stated / FAR_OFF <= value <= stated * FAR_OFF
