"""The command line: one short function a verb. All work is done elsewhere; torch is never loaded here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from autointerp.pipeline import Outcome, Stage
    from autointerp.progress import Stop
    from autointerp.run import Run
    from autointerp.stages.preflight import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Explain what the features of a sparse dictionary do, and score the explanations.\n\n"
    "Example: autointerp explain --sae demo --n-features 200",
)


class Until(StrEnum):
    """Stages a run can end after."""

    cache = "cache"
    sample = "sample"
    explain = "explain"
    score = "score"


RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.")]


@app.command()
def explain(
    sae: Annotated[
        list[str] | None, typer.Option(help="Folder, hub id or 'demo'; NAME=PATH names it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Subject model; default: what the checkpoint says.")
    ] = None,
    hook: Annotated[str | None, typer.Option(help="Where the SAE reads; default: what it says.")] = None,
    corpus: Annotated[str | None, typer.Option(help="File, folder or hub dataset the model reads.")] = None,
    n_features: Annotated[int | None, typer.Option(help="A seeded sample of so many features.")] = None,
    features: Annotated[
        str | None, typer.Option(help="These: 0,5,100-200, or @FILE with one a line.")
    ] = None,
    first: Annotated[int | None, typer.Option(help="The first so many.")] = None,
    llm: Annotated[str | None, typer.Option(help="Explains and judges: openai:MODEL, lexical, ...")] = None,
    explainer_llm: Annotated[str | None, typer.Option(help="Explains.")] = None,
    judge_llm: Annotated[str | None, typer.Option(help="Judges.")] = None,
    explainer: Annotated[list[str] | None, typer.Option(help="How to explain; see 'plugins'.")] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="How to score; see 'plugins'.")] = None,
    recipe: Annotated[str | None, typer.Option(help="YAML file, or the name of a shipped recipe.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One field: --set sampling.n_shown=20.")
    ] = None,
    until: Annotated[Until, typer.Option(help="Stop behind this stage.")] = Until.score,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the plan, and stop.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; an existing run is extended.")] = None,
) -> None:
    """Explain and score features; run it again, killed or not, and it goes on.

    Example: autointerp explain --sae demo --n-features 200

    Example: autointerp explain --sae EleutherAI/sae-x:layers.12 --corpus data.jsonl --llm openai:MODEL
    """
    with _errors():
        from autointerp.pipeline import prepare

        mapping = _mapping(recipe, sae, hook, model, corpus)
        mapping = _with_choices(mapping, n_features, features, first, llm, explainer_llm, judge_llm)
        mapping = _with_plugins(mapping, explainer, scorer, settings)
        folder = out or Path("outputs") / _run_name(sae, mapping)
        resolved, run = prepare(mapping, folder, until=until.value)
        _print_plan(run, resolved)
        if not dry_run:
            _run(run, until.value, resolved)


@app.command()
def resume(
    run: RunFolder, until: Annotated[Until, typer.Option(help="Stop behind this stage.")] = Until.score
) -> None:
    """Go on with a run that was killed, stopped, or met a dead server.

    Example: autointerp resume outputs/demo
    """
    with _errors():
        from autointerp.run import Run

        opened = Run.open(run)
        opened.check()
        _run(opened, until.value)


@app.command()
def status(run: RunFolder) -> None:
    """How far a run is, and what it found so far.

    Example: autointerp status outputs/demo
    """
    with _errors():
        from autointerp.run import Run

        _print_outcome(Run.open(run), {})


@app.command()
def show(
    run: RunFolder,
    feature: Annotated[str, typer.Argument(help="An index, or an id such as layers.2/17.")],
) -> None:
    """One feature in full: explanations, windows with activations shaded, every trial.

    Example: autointerp show outputs/demo 17
    """
    with _errors():
        from autointerp.report.feature import print_feature
        from autointerp.run import Run

        print_feature(_console(), Run.open(run), feature)


@app.command()
def plugins() -> None:
    """Which dictionary formats, explainers, scorers and LLM backends there are.

    Example: autointerp plugins
    """
    with _errors():
        from autointerp.plugins import SINGULAR, names, summary

        for kind, singular in SINGULAR.items():
            typer.echo(f"{singular}:")
            for name in names(kind):
                typer.echo(f"  {name:12} {summary(kind, name)}")


bench = typer.Typer(no_args_is_help=True, help="Measure this machine, on made-up input.")
app.add_typer(bench, name="bench")


@bench.command("sample")
def bench_sample(
    features: Annotated[int, typer.Option(help="Features to sample.")] = 10_000,
    tokens: Annotated[
        int, typer.Option(help="Tokens of the made-up cache; two features fire on each.")
    ] = 10_000_000,
) -> None:
    """How many features a second are sampled, in how much memory, and how many bytes each takes.

    Example: autointerp bench sample --features 2000 --tokens 2000000
    """
    with _errors():
        from autointerp.bench.sample import bench_sample as measure
        from autointerp.report.bench import print_sample_bench

        print_sample_bench(_console(), measure(n_features=features, n_tokens=tokens))


# --- from flags to a recipe ----------------------------------------------------------------------------


def _mapping(
    recipe: str | None, sae: list[str] | None, hook: str | None, model: str | None, corpus: str | None
) -> dict[str, Any]:
    from autointerp.errors import RecipeError
    from autointerp.pipeline import sae_sections
    from autointerp.recipe import check_shape, merge, read_file
    from autointerp.resolve import local

    mapping: dict[str, Any] = read_file(recipe) if recipe else {}
    check_shape(mapping)
    over: dict[str, Any] = {}
    if sae:
        mapping.pop("dictionaries", None)
        over["dictionaries"] = sae_sections(sae)
    if hook:
        sections = over.get("dictionaries") or mapping.get("dictionaries")
        if not sections:
            raise RecipeError("--hook says where a dictionary reads: give the dictionary too, --sae PATH.")
        over["dictionaries"] = {name: section | {"hook": hook} for name, section in sections.items()}
    if model:
        over["model"] = {"path": local(model)}
    if corpus:
        over["corpus"] = {"path": local(corpus)}
    return merge(mapping, over)


def _with_choices(
    mapping: dict[str, Any],
    n_features: int | None,
    features: str | None,
    first: int | None,
    llm: str | None,
    explainer_llm: str | None,
    judge_llm: str | None,
) -> dict[str, Any]:
    from autointerp.errors import RecipeError
    from autointerp.pipeline import llm_section
    from autointerp.recipe import merge

    over: dict[str, Any] = {}
    if sum(choice is not None for choice in (n_features, features, first)) > 1:
        raise RecipeError("--n-features, --features and --first exclude each other: give one of them.")
    if n_features is not None or features is not None or first is not None:
        ids = None if features is None else _feature_list(features)
        over["features"] = {"n": n_features, "first": first, "ids": ids}
    roles = {"explainer": explainer_llm or llm, "judge": judge_llm or llm}
    over["llms"] = {role: llm_section(text) for role, text in roles.items() if text}
    return merge(mapping, over)


def _with_plugins(
    mapping: dict[str, Any],
    explainer: list[str] | None,
    scorer: list[str] | None,
    settings: list[str] | None,
) -> dict[str, Any]:
    from autointerp.recipe import merge, setting

    for section, names in (("explainers", explainer), ("scorers", scorer)):
        if names:
            mapping.pop(section, None)
            mapping[section] = {name.rpartition(":")[2].lower(): {"use": name} for name in names}
    for text in settings or []:
        mapping = merge(mapping, setting(text))
    return mapping


def _feature_list(text: str) -> list[str]:
    from autointerp.errors import RecipeError

    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"--features {text}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"--features {text}: the file is not UTF-8 text ({error.reason}).") from error
    return [part.strip() for line in text.splitlines() for part in line.split(",") if part.strip()]


def _run_name(sae: list[str] | None, mapping: dict[str, Any]) -> str:
    import re

    sections = mapping.get("dictionaries") or {}
    named = sae[0] if sae else next((str(s.get("path", "")) for s in sections.values()), "run")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(named.rpartition("=")[2]).name or named).strip("-.")
    return name or "run"


# --- running and showing -------------------------------------------------------------------------------


def _run(run: Run, until: Stage, resolved: Any = None) -> None:
    from autointerp.errors import Interrupted
    from autointerp.pipeline import run_line
    from autointerp.progress import Stop
    from autointerp.report.terminal import TerminalProgress

    stop = Stop()
    with _signals(stop):
        try:
            outcome = run_line(
                run, until=until, progress=TerminalProgress(_console()), stop=stop, resolved=resolved
            )
        except (Interrupted, KeyboardInterrupt):
            typer.echo(
                f"\nStopped; all that was finished is written. Go on: autointerp resume {run.path}", err=True
            )
            raise typer.Exit(130) from None
    _print_outcome(run, outcome.seconds)
    _end(run, outcome)


@contextmanager
def _signals(stop: Stop) -> Generator[None]:
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


def _print_plan(run: Run, resolved: Any) -> None:
    from autointerp.stages.preflight import plan

    planned: Plan = plan(run, resolved)
    recipe, names = run.recipe, ", ".join(run.recipe.dictionaries)
    typer.echo(
        f"Plan: {planned.n_features:,} features of {names}{_all_there_are(run)} on {recipe.model.path}; "
        f"{planned.n_tokens:,} tokens of {recipe.corpus.path if recipe.corpus else ''} "
        f"in contexts of {planned.context_length}; "
        f"about {planned.n_requests:,} LLM requests; about {planned.disk_bytes / 1e9:.2f} GB of disk in "
        f"{run.path}"
    )


def _all_there_are(run: Run) -> str:
    asked, widths = run.recipe.features.n, run.identities.widths
    return f" (all there are; {asked:,} asked for)" if asked and asked > max(widths.values()) else ""


def _print_outcome(run: Run, seconds: dict[str, float]) -> None:
    from autointerp.report.summary import summarise
    from autointerp.report.terminal import print_summary

    console = _console()
    for dictionary in run.recipe.dictionaries:
        print_summary(console, summarise(run, dictionary), seconds)
    typer.echo(f"Run: {run.path}")


def _end(run: Run, outcome: Outcome) -> None:
    """What to type next; exit code 1 where features stayed open."""
    from autointerp.report.feature import worth_showing

    feature = worth_showing(run)
    if feature is not None:
        typer.echo(f"Next: autointerp show {run.path} {feature}")
    if outcome.open:
        for reason, n in outcome.open.items():
            typer.echo(f"{n:,} open: {reason}", err=True)
        typer.echo(f"Go on: autointerp resume {run.path}", err=True)
        raise typer.Exit(1)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextmanager
def _errors() -> Generator[None]:
    """A user's error is one message and exit code 2."""
    from autointerp.errors import AutointerpError

    try:
        yield
    except AutointerpError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
