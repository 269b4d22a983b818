"""`autointerp bench`: measure this machine, on made-up input."""

from __future__ import annotations

from typing import Annotated

import typer

from autointerp.cli.apps import Jobs, bench_app, console, errors


@bench_app.command("cache")
def bench_cache(
    tokens: Annotated[int, typer.Option(help="Tokens to cache.")] = 200_000,
    width: Annotated[int, typer.Option(help="Features of the TopK dictionary.")] = 16_384,
    k: Annotated[int, typer.Option(help="How many of them fire on a token.")] = 32,
    d_model: Annotated[int, typer.Option(help="Width of the made-up GPT-NeoX model.")] = 256,
    layers: Annotated[int, typer.Option(help="Its layers; the dictionary reads the last but one.")] = 4,
    compare: Annotated[
        bool,
        typer.Option(
            help="Measure the bare work too; else what memory grows by from a quarter of the tokens."
        ),
    ] = True,
) -> None:
    """What caching costs a token, beside the work that nobody can avoid.

    Example: autointerp bench cache --tokens 60000
    """
    with errors():
        from autointerp.bench.cache import bench_cache as measure
        from autointerp.bench.size import Size
        from autointerp.report.bench import print_cache_bench

        size = Size(d_model=d_model, n_layers=layers, width=width, k=k, layer=max(0, layers - 2))
        print_cache_bench(console(), measure(tokens, size, compare=compare), size)


@bench_app.command("sample")
def bench_sample(
    features: Annotated[int, typer.Option(help="Features to sample.")] = 10_000,
    tokens: Annotated[
        int, typer.Option(help="Tokens of the made-up cache; two features fire on each.")
    ] = 10_000_000,
    compare: Annotated[bool, typer.Option(help="Measure plain Python too.")] = True,
) -> None:
    """How many features a second are sampled, in how much memory, and how many bytes each takes.

    Example: autointerp bench sample --features 2000 --tokens 2000000
    """
    with errors():
        from autointerp.bench.sample import bench_sample as measure
        from autointerp.report.bench import print_sample_bench

        print_sample_bench(console(), measure(n_features=features, n_tokens=tokens, compare=compare))


@bench_app.command("llm")
def bench_llm(
    features: Annotated[int, typer.Option(help="Features to explain and score; 25 requests each.")] = 1_000,
    in_flight: Annotated[int, typer.Option(help="Requests at once, and features at once.")] = 256,
    compare: Annotated[
        bool, typer.Option(help="Measure the bare SDK too, and what the path spends where.")
    ] = True,
) -> None:
    """How many requests a second explaining and scoring makes, beside the bare SDK, and in how much memory.

    Example: autointerp bench llm --features 200
    """
    with errors():
        from autointerp.bench.llm import bench_llm as measure
        from autointerp.report.bench import print_llm_bench

        print_llm_bench(console(), measure(features, in_flight, compare=compare))


@bench_app.command("view")
def bench_view(
    features: Annotated[int, typer.Option(min=1, help="Features of the made-up run.")] = 2_000,
    jobs: Jobs = None,
) -> None:
    """What writing the explorer costs a feature, and how fast it is in Chromium, where that is there.

    Example: autointerp bench view --features 100000
    """
    with errors():
        from autointerp.bench.view import bench_view as measure
        from autointerp.report.bench import print_view_bench
        from autointerp.spread import n_cores

        print_view_bench(console(), measure(features, jobs or n_cores()))
