"""`autointerp export`: a run in the formats of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from autointerp.cli.apps import RunFolder, app, console, errors, say, stoppable

if TYPE_CHECKING:
    from autointerp.neuronpedia.naming import Asked
    from autointerp.run import Run

BULK: Final = "neuronpedia:"
API: Final = "neuronpedia-api"


@app.command("export")
def export_run(
    run: RunFolder,
    to: Annotated[
        str,
        typer.Option(help="neuronpedia:DIR, folders for its bulk import; or neuronpedia-api, its server."),
    ],
    model_id: Annotated[
        str | None, typer.Option(help="Of the model there; default: the model's name.")
    ] = None,
    source_set: Annotated[str | None, typer.Option(help="Default: site and width, e.g. res-16k.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="[DICTIONARY=]ID", help="Default: LAYER-SET, e.g. 12-res-16k.")
    ] = None,
    creator_id: Annotated[
        str | None, typer.Option(help="Of the bulk rows; default: whom a local Neuronpedia is seeded with.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Registered explanation type; default: eleuther_acts_top20.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Of the API; default: $NEURONPEDIA_BASE_URL, or Neuronpedia's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent.")] = False,
) -> None:
    """Write a run as Neuronpedia's tables, or send it to its server; again, and it goes on.

    Example: autointerp export outputs/demo --to neuronpedia:export

    Example: autointerp export outputs/demo --to neuronpedia-api --source 12-my-res-16k --dry-run
    """
    with errors():
        from autointerp.errors import PublishError
        from autointerp.neuronpedia.layout import DEFAULT_CREATOR
        from autointerp.neuronpedia.naming import Asked
        from autointerp.run import Run

        asked = Asked(model_id, source_set, source or (), creator_id or DEFAULT_CREATOR, kind)
        if to == API:
            _send(Run.open(run), asked, base_url, dry_run=dry_run)
        elif to.startswith(BULK) and to != BULK:
            if dry_run:
                raise PublishError(
                    "--dry-run is for neuronpedia-api: folders are written, and can be looked at."
                )
            _write(Run.open(run), asked, Path(to.removeprefix(BULK)))
        else:
            raise PublishError(f"--to {to}: no such place. There are: neuronpedia:DIR, neuronpedia-api.")


def _write(run: Run, asked: Asked, folder: Path) -> None:
    from autointerp.neuronpedia.bulk import export_bulk
    from autointerp.neuronpedia.kept import kept_source
    from autointerp.report.progress import TerminalProgress

    again = f"what was written stays. Go on: autointerp export {run.path} --to {BULK}{folder}"
    with stoppable(again) as stop:
        done = export_bulk(run, folder, asked, progress=TerminalProgress(console()), stop=stop)
    rows = ", ".join(f"{n:,} {table}" for table, n in done.n_rows.items())
    typer.echo(f"{rows} ({done.n_made:,} files made anew)")
    if done.n_without_value:
        typer.echo(f"{done.n_without_value:,} scores are no number, and are left out")
    typer.echo(
        "Types and models that explanations and scores name must be registered where they are imported; scores/ is a "
        "table that the import there doesn't read yet"
    )
    if any(kept_source(run, name) is None for name in run.recipe.dictionaries):
        typer.echo(
            "vector and logits_hist_* are empty: a run keeps neither decoder rows nor all logits. "
            "Steering by these features there wants the vectors from the dictionary"
        )
    say(f"Folder: {place}" for place in done.folders)


def _send(run: Run, asked: Asked, base_url: str | None, *, dry_run: bool) -> None:
    from autointerp.neuronpedia.server import address_of
    from autointerp.neuronpedia.upload import upload
    from autointerp.report.progress import TerminalProgress

    url = address_of(base_url)
    again = f"what the server took stays. Go on: autointerp export {run.path} --to {API}"
    with stoppable(again) as stop:
        progress = TerminalProgress(console())
        done = upload(run, url, asked, dry_run=dry_run, progress=progress, stop=stop)
    say(done.lines)
    said = "would be sent" if dry_run else "sent"
    typer.echo(f"{done.n_features:,} features {said} in {done.n_calls:,} calls to {url}")
    counts = {
        "features were taken before": done.n_before,
        "of these have changed since, and are not sent again: the server would keep both": done.n_changed,
        "features have no windows, which the server does not take": done.cuts.n_without_activations,
        "explanations were cut to 512 characters": done.cuts.n_explanations_cut,
        "windows were cut to 1,024 tokens": done.cuts.n_windows_cut,
        "tokens without text of their own were joined to the one before": done.cuts.n_tokens_joined,
    }
    say(f"{n:,} {what}" for what, n in counts.items() if n)
