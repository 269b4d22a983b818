"""The commands that there are, and what all verbs have in common: options, errors, signals, printing."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from autointerp.progress import Stop


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Explain what the features of a sparse dictionary do, and score the explanations.\n\n"
    "Example: autointerp explain --sae demo --n-features 200",
)
cache_app = typer.Typer(
    no_args_is_help=True,
    help="Look after a run's files.\n\nExample: autointerp cache verify outputs/demo",
)
app.add_typer(cache_app, name="cache")
sae_app = typer.Typer(
    no_args_is_help=True,
    help="Look at a dictionary.\n\nExample: autointerp sae inspect ckpt/layers.12",
)
app.add_typer(sae_app, name="sae")
llm_app = typer.Typer(
    no_args_is_help=True,
    help="LLMs that explain and judge.\n\nExample: autointerp llm check openai:MODEL",
)
app.add_typer(llm_app, name="llm")
bench_app = typer.Typer(
    no_args_is_help=True, help="Measure this machine, on made-up input.\n\nExample: autointerp bench sample"
)
app.add_typer(bench_app, name="bench")


class Until(StrEnum):
    """Stages a run can end after."""

    cache = "cache"
    sample = "sample"
    explain = "explain"
    score = "score"


MaxCost = Annotated[
    float | None, typer.Option(help="US dollars that LLM requests may cost in all: the run stops before.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens that they may take in all, prompts and answers.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at most. Default: the cores, up to 8.")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.")]


@contextmanager
def errors() -> Generator[None]:
    """A user's error is one message and exit code 2."""
    from autointerp.errors import AutointerpError, TooManyFiles
    from autointerp.files import TOO_MANY

    try:
        yield
    except AutointerpError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno not in TOO_MANY:
            raise
        typer.echo(f"Error: {TooManyFiles()}", err=True)
        raise typer.Exit(2) from None


def say(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


KEPT = "all that was finished is written. Go on:"


@contextmanager
def stoppable(then: str) -> Generator[Stop]:
    """Work that a signal ends with exit code 130; `then` says what is kept and what to type."""
    from autointerp.errors import Interrupted
    from autointerp.progress import Stop

    stop = Stop()
    with signals(stop):
        try:
            yield stop
        except (Interrupted, KeyboardInterrupt):
            typer.echo(f"\nStopped; {then}", err=True)
            raise typer.Exit(130) from None


@contextmanager
def signals(stop: Stop) -> Generator[None]:
    """Ctrl-C and SIGTERM finish what is being written; a second one ends at once."""

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        typer.echo("\nStopping: finishing what is in flight (again to end at once) ...", err=True)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
