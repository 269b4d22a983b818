"""What `rescore` changed, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autointerp.rescore import Rescored

_MOST_SHOWN = 5


def lines(found: Sequence[Rescored], *, dry_run: bool) -> Iterator[str]:
    """One line an explainer and scorer, and the features whose headline changes most."""
    verb = "would change" if dry_run else "changed"
    for one in found:
        yield f"{one.place}: {len(one.changes):,} of {one.n_records:,} records {verb}"
        moved = [change for change in one.changes if change.before != change.after]
        moved.sort(key=lambda change: -abs((change.before or 0.0) - (change.after or 0.0)))
        for change in moved[:_MOST_SHOWN]:
            yield f"  {change.key}: {_said(change.before)} -> {_said(change.after)}"
        if len(moved) > _MOST_SHOWN:
            yield f"  and {len(moved) - _MOST_SHOWN:,} more whose headline moves less"
    n = sum(len(one.changes) for one in found)
    if not n:
        yield "All numbers are what their trials say."
    elif dry_run:
        yield f"{n:,} records would change. Nothing was written."


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
