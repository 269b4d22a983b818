"""`autointerp sae`: look at a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.apps import console, errors, sae_app, stoppable
from autointerp.cli.flags import mapping_of, with_plugins


@sae_app.command("inspect")
def sae_inspect(
    sae: Annotated[str, typer.Argument(help="Folder, file, hub id or 'demo'.")],
    identity: Annotated[
        bool,
        typer.Option(
            "--identity", help="Of a file on the hub read what its identity takes too, up to 64 MiB."
        ),
    ] = False,
) -> None:
    """What a checkpoint is, from its headers: format, model, site, width, selector, conventions.

    Example: autointerp sae inspect ckpt/layers.12
    """
    with errors():
        from autointerp.report.dictionary import inspected

        for what, value in inspected(sae, identity=identity):
            typer.echo(f"{what:12} {value}")


@sae_app.command("convert")
def sae_convert(
    sae: Annotated[str, typer.Argument(help="Folder, file or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
) -> None:
    """Write a dictionary of any format as safetensors in SAELens' layout, or ours where that has no place.

    Example: autointerp sae convert ckpt/ae.pt converted/layers.12
    """
    with errors():
        from autointerp.dictionaries.convert import convert

        done = convert(sae, out)
        spec = done.spec
        typer.echo(f"Written: {out} ({spec.selector}, {spec.width:,} features, identity {spec.identity})")
        typer.echo(f"In {done.layout}.")


@sae_app.command("check")
def sae_check(
    sae: Annotated[list[str], typer.Argument(help="As for 'explain --sae'.")],
    model: Annotated[str | None, typer.Option(help="As for 'explain'.")] = None,
    hook: Annotated[str | None, typer.Option(help="As for 'explain'.")] = None,
    corpus: Annotated[str | None, typer.Option(help="As for 'explain'.")] = None,
    n_tokens: Annotated[int, typer.Option(min=100, help="Tokens to check it on.")] = 20_000,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One field: --set cache.prepend_bos=false.")
    ] = None,
) -> None:
    """Whether a dictionary fits its model: L0, explained variance, dead features; and read otherwise.

    Example: autointerp sae check ckpt/layers.12 --model org/model --corpus text.jsonl
    """
    with errors():
        from autointerp.check import check_dictionaries
        from autointerp.errors import RecipeError
        from autointerp.report.fits import print_fits
        from autointerp.report.progress import TerminalProgress

        if any(setting.startswith("cache.n_tokens=") for setting in settings or ()):
            raise RecipeError(
                "a check reads as many tokens as --n-tokens says; cache.n_tokens changes nothing here."
            )
        mapping = with_plugins(mapping_of(None, sae, hook, model, corpus, {}), None, None, settings)
        with stoppable("a check writes nothing; type the same again.") as stop:
            checked = check_dictionaries(mapping, n_tokens, TerminalProgress(console()), stop)
        for one in checked:
            print_fits(console(), one.name, one.spec, one.fits, one.left_out)
