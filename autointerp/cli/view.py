"""Looking at a run: view, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.apps import Jobs, RunFolder, app, console, errors


@app.command()
def view(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: RUN-view.")] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows kept of a feature, of those shown and of those held out each; and at most twice as "
            "many held out that a judge got wrong.",
        ),
    ] = None,
    single_file: Annotated[
        bool | None,
        typer.Option("--single-file/--folder", help="All in one page, or data beside it. Default: by size."),
    ] = None,
    jobs: Jobs = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a run as a page that opens in any browser, without a server or a network.

    Example: autointerp view outputs/demo --open
    """
    with errors():
        from autointerp.report.progress import TerminalProgress
        from autointerp.run import Run
        from autointerp.spread import n_cores
        from autointerp.view.folder import write_folder

        opened = Run.open(run)
        folder = out or run.resolve().with_name(f"{run.resolve().name}-view")
        progress = TerminalProgress(console())
        found = write_folder(
            opened, folder, n_windows=windows, single=single_file, jobs=jobs or n_cores(), progress=progress
        )
        kept = (
            ""
            if found.n_windows is None
            else f", at most {found.n_windows} windows of each split beside those judged wrongly"
        )
        typer.echo(
            f"{found.n_features:,} features{kept}: {found.n_files:,} files, {found.n_bytes / 1e6:,.1f} MB"
        )
        typer.echo(f"Open in a browser: {found.page}")
        if open_page:
            typer.launch(found.page.resolve().as_uri())


@app.command("report")
def write(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: RUN-report.")] = None,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Tables alone; needs no matplotlib.")] = False,
) -> None:
    """Write a run's scores, controls and funnel as Markdown with PNGs, for a README or a paper.

    Example: autointerp report outputs/demo
    """
    with errors():
        from autointerp.report.folder import write_report
        from autointerp.run import Run

        folder = out or run.resolve().with_name(f"{run.resolve().name}-report")
        found = write_report(Run.open(run), folder, with_plots=not no_plots)
        typer.echo(f"Read it: {found.report}" + (f" ({len(found.images)} plots)" if found.images else ""))
        if found.n_open:
            typer.echo(f"Not finished, {found.n_open:,} steps are open. Go on: autointerp resume {run}")
