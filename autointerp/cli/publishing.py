"""Verbs that take runs to others, and back: publish, import."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from autointerp.cli.apps import Jobs, RunFolder, app, console, errors, say, stoppable
from autointerp.cli.running import print_outcome

_NEURONPEDIA: Final = "neuronpedia:"


class Prediction(StrEnum):
    """What a published prediction means."""

    answer = "answer"
    right = "right"


@app.command("publish")
def publish_run(
    run: RunFolder,
    to: Annotated[str, typer.Option(help="Dataset on the Hugging Face hub: ORG/NAME.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make it in, and to go on from; default: RUN-published.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make the folder; upload nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to publish to; default: main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As a pull request.")] = False,
    no_examples: Annotated[bool, typer.Option("--no-examples", help="No windows of the corpus.")] = False,
    max_quote: Annotated[
        int | None, typer.Option(help="Characters of each window that are quoted at most.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of another run's set, or of other files, there.")
    ] = False,
    licence: Annotated[
        str, typer.Option("--license", help="Of the dataset, as the hub names licences.")
    ] = "unknown",
    jobs: Jobs = None,
) -> None:
    """Put a run on the Hugging Face hub: tables, every trial, and a card that says how it was made.

    Example: autointerp publish outputs/demo --to ORG/NAME --dry-run
    """
    with errors():
        from autointerp.publish.hub import Target
        from autointerp.publish.manifest import Options
        from autointerp.publish.publishing import publish
        from autointerp.report.progress import TerminalProgress
        from autointerp.run import Run
        from autointerp.spread import n_cores

        folder = out or run.with_name(f"{run.resolve().name}-published")
        again = f"what was made and uploaded stays. Go on: autointerp publish {run} --to {to}"
        with stoppable(again) as stop:
            outcome = publish(
                Run.open(run),
                folder,
                Target(to, revision, private, create_pr),
                Options(examples=not no_examples, max_quote=max_quote),
                licence=licence,
                dry_run=dry_run,
                replace=replace,
                jobs=jobs or n_cores(),
                progress=TerminalProgress(console()),
                stop=stop,
            )
        files, made = outcome.built.manifest.files, outcome.built.n_made
        n_bytes = sum(file.bytes for file in files.values())
        typer.echo(f"{len(files):,} files, {n_bytes / 1e6:,.2f} MB, in {folder} ({made:,} tables made anew)")
        done = outcome.uploaded
        if done is None:
            typer.echo(f"Read it: {folder / 'README.md'}")
            typer.echo(f"Next: autointerp publish {run} --to {to}")
        elif not done.n_commits:
            typer.echo(f"Nothing changed: {done.url}")
        else:
            typer.echo(f"{done.n_files:,} files in {done.n_commits:,} commits: {done.url}")


@app.command("import")
def import_results(
    source: Annotated[
        str,
        typer.Argument(
            help="hub:ORG/NAME[@REVISION] or a folder, as `publish` makes them; neuronpedia:DIR, features that "
            "SAEDashboard or Neuronpedia exported; or results of delphi: a folder with explanations/ and scores/."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run to make.")],
    prediction: Annotated[
        Prediction | None,
        typer.Option(help="What `prediction` holds in delphi's files, where they don't tell."),
    ] = None,
) -> None:
    """Make a run of published explanations and scores, to measure, compare and show them.

    Example: autointerp import hub:ORG/NAME --out outputs/published

    Example: autointerp import results/llama --out outputs/published

    Example: autointerp import neuronpedia:gpt2-small/0-res-jb --out outputs/res-jb
    """
    with errors():
        if source.startswith(_NEURONPEDIA):
            from autointerp.neuronpedia.importing import import_neuronpedia

            made = import_neuronpedia(Path(source.removeprefix(_NEURONPEDIA)), out)
            say(made.notes)
            print_outcome(made.run, {})
            typer.echo(f"Next: autointerp explain --out {out} --llm openai:MODEL")
            return
        from autointerp.publish.hub import PREFIX, fetch
        from autointerp.publish.importing import import_published
        from autointerp.publish.manifest import NAME
        from autointerp.published.importing import import_delphi

        folder = fetch(source) if source.startswith(PREFIX) else Path(source)
        if source.startswith(PREFIX) or (folder / NAME).is_file():
            found = import_published(folder, out)
        else:
            found = import_delphi(folder, out, None if prediction is None else prediction.value)
        say(found.notes)
        print_outcome(found.run, {})
