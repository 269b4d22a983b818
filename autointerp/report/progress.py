"""A run's progress on a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

_PLAIN_EVERY_S: Final = 30.0


@dataclass(slots=True)
class _Stage:
    """One that is under way."""

    name: str
    unit: str
    total: int
    done: int
    before: int
    began: float
    bar: Any = None
    """Where there are bars."""

    @property
    def rate(self) -> float:
        """Units a second."""
        return (self.done - self.before) / max(time.monotonic() - self.began, 1e-9)


class TerminalProgress:
    """A bar a stage on a terminal; elsewhere one plain line a stage, and one every 30 s."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._stages: dict[str, _Stage] = {}
        self._said = 0.0

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        now = self._said = time.monotonic()
        begun = self._stages[stage] = _Stage(stage, unit, total, done, done, now)
        if self._console.is_terminal:
            if self._bars is None:
                self._bars = Bars(
                    TextColumn("[progress.description]{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]}"),
                    TextColumn("{task.fields[rate]}"),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                    console=self._console,
                    transient=True,
                )
                self._bars.start()
            begun.bar = self._bars.add_task(stage, total=total, completed=done, unit=unit, rate="")
        elif done:
            self.note(f"{stage}: {done:,} of {total:,} {unit} are there already")

    def advance(self, n: int = 1, stage: str = "") -> None:
        moved = self._stages[stage or next(reversed(self._stages))]
        moved.done += n
        if self._bars is not None:
            self._bars.update(moved.bar, completed=moved.done, rate=f"{moved.rate:,.0f}/s")
        elif time.monotonic() - self._said > _PLAIN_EVERY_S:
            self._said = time.monotonic()
            for one in self._stages.values():
                left = max(one.total - one.done, 0) / max(one.rate, 1e-9)
                self.note(
                    f"{one.name}: {one.done:,} of {one.total:,} {one.unit}, {one.rate:,.1f}/s, "
                    f"about {left:,.0f} s left"
                )

    def note(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True, highlight=False)

    def end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        stages, self._stages = self._stages, {}
        for one in stages.values():
            if n_new := one.done - one.before:
                seconds = time.monotonic() - one.began
                self.note(f"{one.name}: {n_new:,} {one.unit} in {seconds:.1f} s")
