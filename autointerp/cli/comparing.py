"""Verbs that set scores beside others: controls, bridge, compare."""

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
        from autointerp.controls import controls_of, run_control
        from autointerp.floors import save, table
        from autointerp.report.controls import controls_table, notes
        from autointerp.report.progress import TerminalProgress
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


@app.command()
def bridge(
    run: RunFolder,
    protocols: Annotated[
        str, typer.Option(help="Two of: recipe files, names of shipped ones, 'own' for the run's; A,B.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs made; default: RUN-bridge.")] = None,
) -> None:
    """Score the same features under two protocols, and print the paired difference.

    Example: autointerp bridge outputs/demo --protocols delphi,delphi-corrected
    """
    with errors():
        from autointerp.bridge import under
        from autointerp.comparison import compare
        from autointerp.errors import RecipeError
        from autointerp.report.comparison import comparison_table, notes
        from autointerp.report.progress import TerminalProgress
        from autointerp.run import Run

        names = [name.strip() for name in protocols.split(",")]
        if len(names) != 2 or not all(names):
            raise RecipeError(
                f"--protocols {protocols}: write two, e.g. --protocols delphi,delphi-corrected."
            )
        opened, terminal = Run.open(run), console()
        folder = out or run.with_name(f"{run.resolve().name}-bridge")
        made: list[Run] = []
        with stoppable(f"{KEPT} autointerp bridge {run} --protocols {protocols}") as stop:
            for name in names:
                typer.echo(f"protocol {name}:")
                made.append(under(opened, name, folder, TerminalProgress(terminal), stop))
        rows = compare(made[0], made[1])
        terminal.print(comparison_table(rows, (names[0], names[1])))
        say(notes(rows))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two runs; or one, with --explainers.")],
    explainers: Annotated[str | None, typer.Option(help="Two explainers of one run: A,B.")] = None,
    same_features: Annotated[
        bool | None,
        typer.Option(
            "--same-features/--other-features",
            help="Whether features of equal numbers are the same; default: as the runs' identities say.",
        ),
    ] = None,
) -> None:
    """How much better one explainer, judge or dictionary is: paired where features are the same.

    Example: autointerp compare outputs/demo --explainers plain,lexical
    """
    with errors():
        from autointerp.comparison import compare as compare_runs
        from autointerp.comparison import compare_explainers
        from autointerp.errors import RecipeError
        from autointerp.report.comparison import comparison_table, notes
        from autointerp.run import Run

        opened = [Run.open(run) for run in runs]
        if explainers is not None and len(opened) == 1:
            first, comma, second = (part.strip() for part in explainers.partition(","))
            if not comma or not second:
                raise RecipeError(f"--explainers {explainers}: write two, e.g. --explainers plain,lexical.")
            names, rows = (first, second), compare_explainers(opened[0], first, second)
        elif explainers is None and len(opened) == 2:
            names = (str(runs[0]), str(runs[1]))
            rows = compare_runs(opened[0], opened[1], same_features=same_features)
        else:
            raise RecipeError("give two runs, or one run and --explainers A,B.")
        console().print(comparison_table(rows, names))
        say(notes(rows))
