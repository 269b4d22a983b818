"""Verbs for a run that is there: resume, status, show, rescore, plugins, merge, pack, cache verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.apps import (
    KEPT,
    MaxCost,
    MaxTokens,
    RunFolder,
    Until,
    app,
    cache_app,
    console,
    errors,
    say,
    stoppable,
)
from autointerp.cli.running import print_outcome, run_to


@app.command()
def resume(
    run: RunFolder,
    until: Annotated[Until, typer.Option(help="Stop behind this stage.")] = Until.score,
    max_cost: MaxCost = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Go on with a run that was killed, stopped, or met a dead server.

    Example: autointerp resume outputs/demo
    """
    with errors():
        from autointerp.pack import check_made_here
        from autointerp.run import Run

        opened = Run.open(run)
        check_made_here(opened)
        opened.check()
        if max_cost is not None or max_tokens is not None:
            opened = opened.within(max_cost, max_tokens)
            with opened.lock():
                opened.save()  # the next resume keeps to them
        run_to(opened, until.value)


@app.command()
def status(run: RunFolder) -> None:
    """How far a run is, and what it found so far.

    Example: autointerp status outputs/demo
    """
    with errors():
        from autointerp.llm.batch import FOLDER
        from autointerp.llm.batch_requests import awaited
        from autointerp.llm.left_out import left_out, refused
        from autointerp.report.awaited import lines
        from autointerp.report.plan import spending
        from autointerp.run import Run
        from autointerp.stages.spent import spent

        opened = Run.open(run)
        print_outcome(opened, {})
        if by_place := spent(opened):
            console().print(spending(by_place))
        for llm, names in left_out(opened.path).items():
            typer.echo(refused(llm, names))
        if files := awaited(opened.path / FOLDER):
            for line in lines(opened.path, files):
                typer.echo(line)


@app.command()
def show(
    run: RunFolder,
    feature: Annotated[str, typer.Argument(help="An index, or an id such as layers.2/17.")],
) -> None:
    """One feature in full: explanations, windows with activations shaded, every trial.

    Example: autointerp show outputs/demo 17
    """
    with errors():
        from autointerp.report.feature import print_feature
        from autointerp.run import Run

        print_feature(console(), Run.open(run), feature)


@app.command("rescore")
def rescore_run(
    run: RunFolder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; write nothing.")] = False,
) -> None:
    """Make all numbers anew from the stored trials: no model, no corpus, no LLM.

    Example: autointerp rescore outputs/demo --dry-run
    """
    with errors():
        from autointerp.report.progress import TerminalProgress
        from autointerp.report.rescored import lines
        from autointerp.rescore import rescore
        from autointerp.run import Run

        opened = Run.open(run)
        say(lines(rescore(opened, dry_run=dry_run, progress=TerminalProgress(console())), dry_run=dry_run))


@app.command()
def plugins() -> None:
    """Which dictionary formats, explainers, scorers and LLM backends there are.

    Example: autointerp plugins
    """
    with errors():
        from autointerp.plugins import SINGULAR, names, summary

        for kind, singular in SINGULAR.items():
            typer.echo(f"{singular}:")
            width = max(map(len, names(kind)))
            for name in names(kind):
                typer.echo(f"  {name:{width}} {summary(kind, name)}")


@app.command("merge")
def merge_runs(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of the same settings.")],
    out: Annotated[Path, typer.Option(help="Folder that is to hold them all.")],
) -> None:
    """Unite runs: the portions of a cache, or features that several machines did.

    Example: autointerp merge outputs/demo/shard-*-of-4 --out outputs/demo
    """
    with errors():
        from autointerp.merge import merge
        from autointerp.report.progress import TerminalProgress

        merged = merge(runs, out, TerminalProgress(console()))
        say(merged.notes)
        typer.echo(f"Run: {merged.run.path} ({merged.n_parts:,} parts taken over)")
        typer.echo(f"Next: autointerp resume {merged.run.path}")


@app.command("pack")
def pack_run(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    with_requests: Annotated[bool, typer.Option(help="Take the LLM's replies along.")] = False,
) -> None:
    """Copy what explaining, scoring and reading need of a run, without its cache, to take it elsewhere.

    Example: autointerp pack outputs/demo packed/demo
    """
    with errors():
        from autointerp.pack import pack
        from autointerp.run import Run

        packed = pack(Run.open(run), out, with_requests=with_requests)
        typer.echo(f"Packed {packed.n_files:,} files, {packed.n_bytes / 1e6:,.1f} MB: {out}")
        typer.echo(f"Next, wherever it is taken: autointerp resume {out}")


@cache_app.command("verify")
def cache_verify(
    run: RunFolder,
    repair: Annotated[bool, typer.Option(help="Set aside what is spoiled and make it anew.")] = False,
) -> None:
    """Read every file of a run and name what is not as it was written: exit code 1 if anything is.

    Example: autointerp cache verify outputs/demo

    Example: autointerp cache verify outputs/demo --repair
    """
    with errors():
        from autointerp.repair import repair as repair_run
        from autointerp.report.kept import repaired, verified
        from autointerp.report.progress import TerminalProgress
        from autointerp.run import Run
        from autointerp.verify import verify

        opened, progress = Run.open(run), TerminalProgress(console())
        found = verify(opened, progress)
        say(verified(opened, found))
        if repair and (found.faults or found.leftovers):
            with stoppable(f"{KEPT} autointerp cache verify {run} --repair") as stop:
                say(repaired(opened, repair_run(opened, found, progress, stop)))
            found = verify(opened, progress)
            say(list(verified(opened, found))[-1:])
        if found.faults:
            raise typer.Exit(1)
