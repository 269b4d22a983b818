"""Running a run, and what is printed when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from autointerp.cli.apps import KEPT, console, stoppable

if TYPE_CHECKING:
    from autointerp.pipeline import Outcome, Stage
    from autointerp.run import Run


def run_to(run: Run, until: Stage, resolved: Any = None) -> None:
    from autointerp.pipeline import run_line
    from autointerp.report.progress import TerminalProgress

    with stoppable(f"{KEPT} autointerp resume {run.path}") as stop:
        progress = TerminalProgress(console())
        outcome = run_line(run, until=until, progress=progress, stop=stop, resolved=resolved)
    print_outcome(run, outcome.seconds)
    end(run, outcome)


def print_outcome(run: Run, seconds: dict[str, float]) -> None:
    from autointerp.report.summary import summarise
    from autointerp.report.terminal import print_summary

    terminal = console()
    for dictionary in run.recipe.dictionaries:
        print_summary(terminal, summarise(run, dictionary), seconds)
    if run.is_published:
        typer.echo(
            "Windows are those that were published on Neuronpedia; silent ones are also other features', where a "
            "random window is silent with p >= 0.9 (`show` has each feature's)."
        )
    typer.echo(f"Run: {run.path}")


def end(run: Run, outcome: Outcome) -> None:
    """What to type next; exit code 1 where features stayed open, or wait for answers by other means."""
    from autointerp.report.feature import worth_showing

    if run.recipe.resources.shard:
        folder = run.path.parent
        typer.echo(
            f"Next, when all portions are there: "
            f"autointerp merge {folder}/shard-*-of-{run.portion.of} --out {folder}"
        )
    feature = worth_showing(run)
    if feature is not None:
        typer.echo(f"Next: autointerp show {run.path} {feature}")
    if outcome.open:
        for reason, n in outcome.open.items():
            typer.echo(f"{n:,} open: {reason}", err=True)
    if outcome.awaited:
        from autointerp.report.awaited import lines

        for line in lines(run.path, outcome.awaited):
            typer.echo(line, err=True)
    if outcome.open or outcome.awaited:
        typer.echo(f"Go on: autointerp resume {run.path}", err=True)
        raise typer.Exit(1)
