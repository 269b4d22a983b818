"""Differences between scores, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from autointerp.comparison import Compared
from autointerp.metrics.paired import Discordant
from autointerp.report.controls import difference


def comparison_table(rows: list[Compared], names: tuple[str, str]) -> Table:
    """A line a scorer. `names`: of what is compared."""
    first, second = names
    table = Table(title=f"{first} minus {second} (mean over features, 95% interval)", title_justify="left")
    for column in ("dictionary", "explainer", "scorer", "number"):
        table.add_column(column)
    for column in (first, second, "difference", "p", "features", "windows one alone has right", "McNemar p"):
        table.add_column(column, justify="right")
    table.add_column("how")
    for row in rows:
        found = row.difference
        cells = [_both(row.first.dictionary, row.second.dictionary)]
        cells += [_both(row.first.explainer, row.second.explainer), row.first.scorer]
        cells.append(_both(*row.headlines).replace("_", " "))
        if found is None:
            table.add_row(*cells, "", "", "no feature in common", "", "0", "", "", row.how)
            continue
        n = f"{found.n[0]:,}" if row.how == "paired" else f"{found.n[0]:,} and {found.n[1]:,}"
        of = _both(*(f"{n:,}" for n in row.n_scored))
        p_value = "" if found.p_value is None else f"{found.p_value:.2g}"
        table.add_row(
            *cells,
            f"{found.first:.3f}",
            f"{found.second:.3f}",
            difference(found),
            p_value,
            f"{n} of {of}",
            *_windows(row.discordant),
            row.how,
        )
    return table


def _windows(alone: Discordant) -> tuple[str, str]:
    if alone.p_value is None:
        return "", ""
    return f"{alone.first:,} | {alone.second:,}", f"{alone.p_value:.2g}"


def notes(rows: list[Compared]) -> Iterator[str]:
    """What else differs, each once; how features were matched."""
    yield from dict.fromkeys(note for row in rows for note in row.notes)
    if any(row.how != "paired" for row in rows):
        yield (
            "Features of different dictionaries are no pairs: in each half decade of density as many of one as of "
            "the other are compared, as two groups."
        )


def _both(one: str, other: str) -> str:
    return one if one == other else f"{one} | {other}"
