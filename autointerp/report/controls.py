"""Scores beside their floors, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from autointerp.floors import Row
from autointerp.metrics import MeanOver
from autointerp.metrics.differences import Difference


def controls_table(rows: list[Row]) -> Table:
    """A line an instance; of each control its score and how far the real one is above it."""
    names = [floor.control for floor in rows[0].floors] if rows else []
    table = Table(title="Scores and their floors (mean over features, 95% interval)", title_justify="left")
    for column in ("dictionary", "explainer", "scorer", "number"):
        table.add_column(column)
    for column in ("real", *(part for name in names for part in (name, f"real above {name}"))):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [row.instance.dictionary, row.instance.explainer, row.instance.scorer]
        cells += [row.headline.replace("_", " "), _mean(row.real, row.n_asked)]
        for floor in row.floors:
            cells += [_mean(floor.mean, floor.n_asked), difference(floor.above)]
        table.add_row(*cells)
    return table


def notes(rows: list[Row]) -> Iterator[str]:
    """What the numbers alone don't say."""
    for row in rows:
        where = f"{row.instance.explainer} · {row.instance.scorer} on {row.instance.dictionary}"
        for floor in row.floors:
            if floor.mean is None:
                yield f"{where}: none of the {floor.n_asked:,} features of the {floor.control} could be scored"
            elif floor.above is not None and floor.above.low is not None and floor.above.low <= 0:
                yield f"{where}: not shown to be above the {floor.control}"


def _mean(mean: MeanOver | None, n_asked: int) -> str:
    if mean is None:
        return f"none of {n_asked:,}"
    return f"{mean.value:.3f}{_ends(mean.low, mean.high)} ({mean.n:,} of {n_asked:,})"


def difference(found: Difference | None) -> str:
    """With its sign, and with its interval where there is one."""
    return "" if found is None else f"{found.value:+.3f}{_ends(found.low, found.high, '+')}"


def _ends(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
