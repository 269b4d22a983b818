"""How a dictionary fits, in a terminal."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.table import Table

from autointerp.dictionaries.caveats import caveats
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.fits import Fit, LeftOut, verdicts


def print_fits(console: Console, name: str, spec: DictionarySpec, fits: list[Fit], left_out: LeftOut) -> None:
    """`fits`: as read, then by other conventions."""
    as_read = fits[0]
    table = Table(title=f"{name} on {as_read.n_tokens:,} tokens", title_justify="left")
    table.add_column("read")
    for column in ("features a token (L0)", "unexplained (FVU)", "never fire", "|output| / |target|"):
        table.add_column(column, justify="right")
    for fit in fits:
        dead = f"{fit.n_dead / spec.n_columns:.1%}"
        table.add_row(fit.convention, f"{fit.l0:,.1f}", _number(fit.fvu), dead, _number(fit.norm_ratio))
    expected = spec.expected
    if expected.l0 is not None or expected.fvu is not None:
        l0 = "not stated" if expected.l0 is None else f"{expected.l0:,.4g}"
        fvu = "not stated" if expected.fvu is None else _number(expected.fvu)
        table.add_row("as the checkpoint states", l0, fvu, "", "")
    console.print(table)
    console.print(left_out.sentence, markup=False)
    # That it was calibrated stands among the verdicts, with the thresholds.
    for sentence in (*caveats(replace(spec, calibration=None)), *verdicts(spec, fits)):
        console.print(sentence, markup=False)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
