"""Verbs that set scores beside others: controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.apps import KEPT, RunFolder, app, console, errors, say, stoppable


@app.command()
def controls(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the control runs; default: RUN-controls.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Features of the random dictionary; default: as many.")
    ] = None,
) -> None:
    """What a run's scores would be where there is nothing to find: a random dictionary, and a random model.

    Example: autointerp controls outputs/demo
    """
    with errors():
        from autointerp.controls import controls_of, run_control, save, table
        from autointerp.report.controls import controls_table, notes
        from autointerp.report.terminal import TerminalProgress
        from autointerp.run import Run

        opened, terminal = Run.open(run), console()
        folder = out or run.with_name(f"{run.resolve().name}-controls")
        made: dict[str, Run] = {}
        with stoppable(f"{KEPT} autointerp controls {run}") as stop:
            for control in controls_of(opened, folder, width):
                typer.echo(f"{control.name}: {control.folder}")
                made[control.name] = run_control(control, TerminalProgress(terminal), stop)
        rows = table(opened, made)
        save(opened, rows)
        terminal.print(controls_table(rows))
        say(notes(rows))
