"""The command line: one short function a verb. All work is done elsewhere; torch is never loaded here (but by
transformers, whose tokenizers `prefetch` needs)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from autointerp.pipeline import Outcome, Stage
    from autointerp.prefetch import Prefetched
    from autointerp.progress import Stop
    from autointerp.run import Run

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
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the plan, and stop.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; an existing run is extended.")] = None,
) -> None:
    """Explain and score features; run it again, killed or not, and it goes on.

    Example: autointerp explain --sae demo --n-features 200

    Example: autointerp explain --sae EleutherAI/sae-x:layers.12 --corpus data.jsonl --llm openai:MODEL
    """
    with _errors():
        from autointerp.pipeline import prepare

        files = _files(activations, delphi_cache)
        mapping = _mapping(recipe, sae, hook, model, corpus, files)
        mapping = _with_choices(mapping, n_features, features, first, llm, explainer_llm, judge_llm)
        mapping = _with_plugins(mapping, explainer, scorer, settings)
        mapping = _with_top_up(mapping, top_up)
        mapping = _with_limits(mapping, max_cost, max_tokens, reuse_requests)
        folder = out or Path("outputs") / _run_name(sae, mapping)
        mapping, folder = _with_shard(mapping, folder, shard)
        resolved, run = prepare(mapping, folder, until=until.value)
        _print_plan(run, resolved, rate)
        if not dry_run:
            _run(run, until.value, resolved)


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
    with _errors():
        from autointerp.errors import Interrupted
        from autointerp.prefetch import prefetch as fetch
        from autointerp.progress import Stop
        from autointerp.report.terminal import TerminalProgress

        mapping = _with_plugins(_mapping(recipe, sae, hook, model, corpus, {}), None, None, settings)
        stop = Stop()
        with _signals(stop):
            try:
                got = fetch(mapping, TerminalProgress(_console()), stop)
            except (Interrupted, KeyboardInterrupt):
                typer.echo("\nStopped; what was fetched is kept. Type the same again to go on.", err=True)
                raise typer.Exit(130) from None
        _print_prefetched(got)
        given = {"--recipe": [recipe], "--sae": sae, "--model": [model], "--hook": [hook]}
        given |= {"--corpus": [corpus], "--set": settings}
        words = [word for flag, values in given.items() for v in values or [] if v for word in (flag, v)]
        typer.echo(f"Next, where there is no network: HF_HUB_OFFLINE=1 autointerp explain {join(words)} ...")


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
    with _errors():
        from autointerp.run import Run

        opened = Run.open(run)
        opened.check()
        if max_cost is not None or max_tokens is not None:
            opened = opened.within(max_cost, max_tokens)
            with opened.lock():
                opened.save()  # the next resume keeps to them
        _run(opened, until.value)


@app.command()
def status(run: RunFolder) -> None:
    """How far a run is, and what it found so far.

    Example: autointerp status outputs/demo
    """
    with _errors():
        from autointerp.report.plan import spending
        from autointerp.run import Run
        from autointerp.stages.spent import spent

        opened = Run.open(run)
        _print_outcome(opened, {})
        if by_place := spent(opened):
            _console().print(spending(by_place))


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
    with _errors():
        from autointerp.merge import merge
        from autointerp.report.terminal import TerminalProgress

        merged = merge(runs, out, TerminalProgress(_console()))
        _say(merged.notes)
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
    with _errors():
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
    with _errors():
        from autointerp.repair import repair as repair_run
        from autointerp.report.kept import repaired, verified
        from autointerp.report.terminal import TerminalProgress
        from autointerp.run import Run
        from autointerp.verify import verify

        opened, progress = Run.open(run), TerminalProgress(_console())
        found = verify(opened, progress)
        _say(verified(opened, found))
        if repair and (found.faults or found.leftovers):
            with _stoppable(f"{_KEPT} autointerp cache verify {run} --repair") as stop:
                _say(repaired(opened, repair_run(opened, found, progress, stop)))
            found = verify(opened, progress)
            _say(list(verified(opened, found))[-1:])
        if found.faults:
            raise typer.Exit(1)


@llm_app.command("answers")
def llm_answers(
    run: RunFolder,
    files: Annotated[list[Path], typer.Argument(help="Answers: OpenAI's batch format, a line each.")],
) -> None:
    """Take in answers to a run's batch files that were made by any means, complete or not, in any order.

    A line is what OpenAI's batches and `vllm run-batch` write, or {"custom_id": ..., "text": ...}.

    Example: autointerp llm answers outputs/demo answers.jsonl
    """
    with _errors():
        from autointerp.llm.batch import FOLDER
        from autointerp.llm.batch_import import import_answers
        from autointerp.llm.batch_jobs import said_of
        from autointerp.run import Run

        opened = Run.open(run)
        with opened.lock():
            taken = import_answers(opened.path / FOLDER, files)
        _say(said_of(path, one) for path, one in zip(files, taken, strict=True))
        typer.echo(f"Next: autointerp resume {run}")


@sae_app.command("inspect")
def sae_inspect(
    sae: Annotated[str, typer.Argument(help="Folder, file, hub id or 'demo'.")],
) -> None:
    """What a checkpoint is, from its headers: format, model, site, width, selector, conventions.

    Example: autointerp sae inspect ckpt/layers.12
    """
    with _errors():
        from autointerp.report.dictionary import inspected

        for what, value in inspected(sae):
            typer.echo(f"{what:12} {value}")


@sae_app.command("convert")
def sae_convert(
    sae: Annotated[str, typer.Argument(help="Folder, file or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
) -> None:
    """Write a dictionary of any format as safetensors in SAELens' layout, or ours where that has no place.

    Example: autointerp sae convert ckpt/ae.pt converted/layers.12
    """
    with _errors():
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
    with _errors():
        from autointerp.check import check_dictionaries
        from autointerp.report.fits import print_fits
        from autointerp.report.terminal import TerminalProgress

        mapping = _with_plugins(_mapping(None, sae, hook, model, corpus, {}), None, None, settings)
        with _stoppable("a check writes nothing; type the same again.") as stop:
            checked = check_dictionaries(mapping, n_tokens, TerminalProgress(_console()), stop)
        for one in checked:
            print_fits(_console(), one.name, one.spec, one.fits)


@llm_app.command("check")
def llm_check(
    llm: Annotated[str, typer.Argument(help="As --llm of 'explain': openai:MODEL, vllm:MODEL.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option of it: --set base_url=http://node7:8000/v1.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each anchor question is asked.")] = 6,
) -> None:
    """What an LLM can do, how fast it answers, and whether it judges well: some 60 requests.

    Example: autointerp llm check openai:gpt-4.1-mini
    """
    with _errors():
        import asyncio

        from autointerp.recipe import instance, merge, setting
        from autointerp.report.llm_check import checked
        from autointerp.stages.llm_check import check_llm
        from autointerp.stages.llms import llm_section

        section = llm_section(llm)
        for text in settings or []:
            section = merge(section, setting(text))
        found = asyncio.run(check_llm(instance("llm", section), n_rounds=rounds))
        _say(checked(found))
        if not found.is_fit:
            raise typer.Exit(1)


bench = typer.Typer(
    no_args_is_help=True, help="Measure this machine, on made-up input.\n\nExample: autointerp bench sample"
)
app.add_typer(bench, name="bench")


@bench.command("cache")
def bench_cache(
    tokens: Annotated[int, typer.Option(help="Tokens to cache.")] = 200_000,
    width: Annotated[int, typer.Option(help="Features of the TopK dictionary.")] = 16_384,
    k: Annotated[int, typer.Option(help="How many of them fire on a token.")] = 32,
    d_model: Annotated[int, typer.Option(help="Width of the made-up GPT-NeoX model.")] = 256,
    layers: Annotated[int, typer.Option(help="Its layers; the dictionary reads the last but one.")] = 4,
    compare: Annotated[bool, typer.Option(help="Measure the bare work too.")] = True,
) -> None:
    """What caching costs a token, beside the work that nobody can avoid.

    Example: autointerp bench cache --tokens 60000
    """
    with _errors():
        from autointerp.bench.cache import bench_cache as measure
        from autointerp.bench.size import Size
        from autointerp.report.bench import print_cache_bench

        size = Size(d_model=d_model, n_layers=layers, width=width, k=k, layer=max(0, layers - 2))
        print_cache_bench(_console(), measure(tokens, size, compare=compare), size)


@bench.command("sample")
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
    with _errors():
        from autointerp.bench.sample import bench_sample as measure
        from autointerp.report.bench import print_sample_bench

        print_sample_bench(_console(), measure(n_features=features, n_tokens=tokens, compare=compare))


@bench.command("llm")
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
    with _errors():
        from autointerp.bench.llm import bench_llm as measure
        from autointerp.report.bench import print_llm_bench

        print_llm_bench(_console(), measure(features, in_flight, compare=compare))


# --- from flags to a recipe ----------------------------------------------------------------------------


def _files(activations: str | None, delphi_cache: str | None) -> dict[str, Any]:
    """The recipe's section `activations`; empty where there is none."""
    from autointerp.errors import RecipeError
    from autointerp.resolve import local

    if activations and delphi_cache:
        raise RecipeError("--activations and --delphi-cache exclude each other: give one of them.")
    path = activations or delphi_cache
    return {"path": local(path), "format": "folder" if activations else "delphi"} if path else {}


def _mapping(
    recipe: str | None,
    sae: list[str] | None,
    hook: str | None,
    model: str | None,
    corpus: str | None,
    files: dict[str, Any],
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
        if not sections and files.get("format") == "delphi":
            sections = {"auto": dict[str, Any]()}
        if not sections:
            raise RecipeError("--hook says where a dictionary reads: give the dictionary too, --sae PATH.")
        over["dictionaries"] = {name: section | {"hook": hook} for name, section in sections.items()}
    if model:
        over["model"] = {"path": local(model)}
    if corpus:
        over["corpus"] = {"path": local(corpus)}
    if files:
        over["activations"] = files
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
    from autointerp.recipe import merge
    from autointerp.stages.llms import llm_section

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


def _with_top_up(mapping: dict[str, Any], n_tokens: int | None) -> dict[str, Any]:
    from autointerp.recipe import merge

    return mapping if n_tokens is None else merge(mapping, {"cache": {"top_up": n_tokens}})


def _with_shard(mapping: dict[str, Any], folder: Path, shard: str | None) -> tuple[dict[str, Any], Path]:
    """A portion has a folder of its own inside the run's, which `merge` fills."""
    from autointerp.portion import Portion
    from autointerp.recipe import merge

    if shard is None:
        return mapping, folder
    return merge(mapping, {"resources": {"shard": shard}}), folder / Portion.parse(shard).folder


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


def _with_limits(
    mapping: dict[str, Any], max_cost: float | None, max_tokens: int | None, reuse_requests: str | None
) -> dict[str, Any]:
    from autointerp.recipe import merge

    given = {"max_cost": max_cost, "max_tokens": max_tokens, "reuse_requests": reuse_requests}
    return merge(mapping, {"resources": {name: most for name, most in given.items() if most is not None}})


def _run_name(sae: list[str] | None, mapping: dict[str, Any]) -> str:
    import re

    sections = mapping.get("dictionaries") or {}
    paths = [s["path"] for s in (*sections.values(), mapping.get("activations") or {}) if s.get("path")]
    named = sae[0] if sae else str(paths[0]) if paths else "run"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(named.rpartition("=")[2]).name or named).strip("-.")
    return name or "run"


# --- running and showing -------------------------------------------------------------------------------


def _run(run: Run, until: Stage, resolved: Any = None) -> None:
    from autointerp.pipeline import run_line
    from autointerp.report.terminal import TerminalProgress

    with _stoppable(f"{_KEPT} autointerp resume {run.path}") as stop:
        progress = TerminalProgress(_console())
        outcome = run_line(run, until=until, progress=progress, stop=stop, resolved=resolved)
    _print_outcome(run, outcome.seconds)
    _end(run, outcome)


_KEPT = "all that was finished is written. Go on:"


@contextmanager
def _stoppable(then: str) -> Generator[Stop]:
    """Work that a signal ends with exit code 130; `then` says what is kept and what to type."""
    from autointerp.errors import Interrupted
    from autointerp.progress import Stop

    stop = Stop()
    with _signals(stop):
        try:
            yield stop
        except (Interrupted, KeyboardInterrupt):
            typer.echo(f"\nStopped; {then}", err=True)
            raise typer.Exit(130) from None


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


def _print_plan(run: Run, resolved: Any, rate: float | None) -> None:
    import asyncio

    from autointerp.report.plan import planned
    from autointerp.stages.expected import expected
    from autointerp.stages.preflight import plan

    _say(planned(run, plan(run, resolved), asyncio.run(expected(run)), rate))


def _print_prefetched(got: list[Prefetched]) -> None:
    for one in got:
        where = f"in {one.place}" if one.place else "nothing to fetch"
        kept = " (local: must be readable there too)" if one.is_local and one.place else ""
        typer.echo(f"{one.what}: {one.name}, {one.n_bytes / 1e6:,.1f} MB, {where}{kept}")


def _print_outcome(run: Run, seconds: dict[str, float]) -> None:
    from autointerp.report.summary import summarise
    from autointerp.report.terminal import print_summary

    console = _console()
    for dictionary in run.recipe.dictionaries:
        print_summary(console, summarise(run, dictionary), seconds)
    typer.echo(f"Run: {run.path}")


def _end(run: Run, outcome: Outcome) -> None:
    """What to type next; exit code 1 where features stayed open, or wait for answers by other means."""
    from autointerp.report.feature import worth_showing

    if run.recipe.resources.shard:
        folder = run.path.parent
        typer.echo(
            f"Next, when all portions are there: "
            f"autointerp merge {folder}/shard-*-of-{run.portion.of} --out {folder}"
        )
    feature = worth_showing(run)
    if feature is not None:
        typer.echo(f"Next: autointerp show {run.path} {feature}")
    if outcome.open:
        for reason, n in outcome.open.items():
            typer.echo(f"{n:,} open: {reason}", err=True)
    if outcome.awaited:
        from autointerp.report.awaited import lines

        for line in lines(run.path, outcome.awaited):
            typer.echo(line, err=True)
    if outcome.open or outcome.awaited:
        typer.echo(f"Go on: autointerp resume {run.path}", err=True)
        raise typer.Exit(1)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


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
