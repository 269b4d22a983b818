"""`autointerp explain` and `prefetch`."""

from __future__ import annotations

from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autointerp.cli.apps import MaxCost, MaxTokens, Until, app, console, errors, say, signals
from autointerp.cli.flags import (
    files_given,
    mapping_of,
    run_name,
    with_choices,
    with_limits,
    with_plugins,
    with_shard,
    with_top_up,
)
from autointerp.cli.running import run_to

if TYPE_CHECKING:
    from autointerp.prefetch import Prefetched
    from autointerp.run import Run


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
    activations: Annotated[
        str | None, typer.Option(help="Folder of activations, instead of a corpus; see the README.")
    ] = None,
    delphi_cache: Annotated[
        str | None, typer.Option(help="Folder that delphi cached; needs no --sae and no model's weights.")
    ] = None,
    n_features: Annotated[int | None, typer.Option(help="A seeded sample of so many features.")] = None,
    features: Annotated[
        str | None, typer.Option(help="These: 0,5,100-200, or @FILE with one a line.")
    ] = None,
    first: Annotated[int | None, typer.Option(help="The first so many.")] = None,
    llm: Annotated[
        str | None, typer.Option(help="Explains and judges: vllm:MODEL, openai:MODEL, lexical, ...")
    ] = None,
    explainer_llm: Annotated[str | None, typer.Option(help="Explains.")] = None,
    judge_llm: Annotated[str | None, typer.Option(help="Judges.")] = None,
    explainer: Annotated[list[str] | None, typer.Option(help="How to explain; see 'plugins'.")] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="How to score; see 'plugins'.")] = None,
    recipe: Annotated[str | None, typer.Option(help="YAML file, or the name of a shipped recipe.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One field: --set sampling.n_shown=20.")
    ] = None,
    top_up: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Behind the cache so many tokens more, kept only of features that lack windows.",
        ),
    ] = None,
    until: Annotated[Until, typer.Option(help="Stop behind this stage.")] = Until.score,
    shard: Annotated[
        str | None, typer.Option(help="Cache the i-th of n portions, from 0: --until cache --shard 0/4.")
    ] = None,
    max_cost: MaxCost = None,
    max_tokens: MaxTokens = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second that the LLM answers: the plan tells hours.")
    ] = None,
    reuse_requests: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Take answers that another run has paid for from its folder."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            help="Check recipe, dictionary, model and corpus, print the plan, and stop: no LLM is asked."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; an existing run is extended.")] = None,
) -> None:
    """Explain and score features; run it again, killed or not, and it goes on.

    Example: autointerp explain --sae demo --n-features 200

    Example: autointerp explain --sae EleutherAI/sae-x:layers.12 --corpus data.jsonl --llm openai:MODEL
    """
    with errors():
        from autointerp.pipeline import prepare

        files = files_given(activations, delphi_cache)
        mapping = mapping_of(recipe, sae, hook, model, corpus, files)
        mapping = with_choices(mapping, n_features, features, first, llm, explainer_llm, judge_llm)
        mapping = with_plugins(mapping, explainer, scorer, settings)
        mapping = with_top_up(mapping, top_up)
        mapping = with_limits(mapping, max_cost, max_tokens, reuse_requests)
        folder = out or Path("outputs") / run_name(sae, mapping)
        mapping, folder = with_shard(mapping, folder, shard)
        resolved, run = prepare(mapping, folder, until=until.value)
        _print_plan(run, resolved, rate)
        if not dry_run:
            run_to(run, until.value, resolved)


@app.command()
def prefetch(
    recipe: Annotated[str | None, typer.Argument(help="YAML file, or the name of a shipped recipe.")] = None,
    sae: Annotated[list[str] | None, typer.Option(help="As for 'explain'.")] = None,
    model: Annotated[str | None, typer.Option(help="As for 'explain'.")] = None,
    hook: Annotated[str | None, typer.Option(help="As for 'explain'.")] = None,
    corpus: Annotated[str | None, typer.Option(help="As for 'explain'.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One field: --set cache.n_tokens=1000000.")
    ] = None,
) -> None:
    """Fetch what a run needs from Hugging Face, for machines without a network; again, and it goes on.

    Example: autointerp prefetch --sae org/sae:layers.12 --model org/model --corpus org/dataset
    """
    with errors():
        from autointerp.errors import Interrupted
        from autointerp.prefetch import prefetch as fetch
        from autointerp.progress import Stop
        from autointerp.report.progress import TerminalProgress

        mapping = with_plugins(mapping_of(recipe, sae, hook, model, corpus, {}), None, None, settings)
        stop = Stop()
        with signals(stop):
            try:
                got = fetch(mapping, TerminalProgress(console()), stop)
            except (Interrupted, KeyboardInterrupt):
                typer.echo("\nStopped; what was fetched is kept. Type the same again to go on.", err=True)
                raise typer.Exit(130) from None
        _print_prefetched(got)
        given = {"--recipe": [recipe], "--sae": sae, "--model": [model], "--hook": [hook]}
        given |= {"--corpus": [corpus], "--set": settings}
        words = [word for flag, values in given.items() for v in values or [] if v for word in (flag, v)]
        typer.echo(f"Next, where there is no network: HF_HUB_OFFLINE=1 autointerp explain {join(words)} ...")


def _print_plan(run: Run, resolved: Any, rate: float | None) -> None:
    import asyncio

    from autointerp.report.plan import planned
    from autointerp.stages.expected import expected
    from autointerp.stages.preflight import plan

    say(planned(run, plan(run, resolved), asyncio.run(expected(run)), rate))


def _print_prefetched(got: list[Prefetched]) -> None:
    for one in got:
        where = f"in {one.place}" if one.place else "nothing to fetch"
        kept = " (local: must be readable there too)" if one.is_local and one.place else ""
        typer.echo(f"{one.what}: {one.name}, {one.n_bytes / 1e6:,.1f} MB, {where}{kept}")
