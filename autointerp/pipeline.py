"""The line, on one page.

    corpus ──cache──▶ shards ──sample──▶ windows ──explain──▶ explanations ──score──▶ trials, metrics
             GPU                          │  ▲      LLM                      LLM
                                      intervene└──── one flow, feature by feature ────┘
                                         GPU, where effects are needed

Texts that a scorer wants the subject to read are written in that flow; then comes the probe stage, on the GPU, and
the flow once more.

`explain` is what `import autointerp` offers; `run_line` is what it and the command line run. Everything
done is passed over, so running again is resuming.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from autointerp import recipe as recipes
from autointerp.errors import RecipeError
from autointerp.fill import Filled
from autointerp.llm.protocol import Awaited
from autointerp.needs import check_needs, with_hard_windows
from autointerp.pack import check_made_here, check_packed
from autointerp.progress import Progress, Silent, Stop, until_stopped
from autointerp.recipe import Recipe
from autointerp.resolve import Resolved, hub_of, resolve, resolve_published
from autointerp.run import Run
from autointerp.run.names import IDENTITIES, RECIPE
from autointerp.shorthand import named, sae_sections, with_demo_llm
from autointerp.stages.asked import Asked
from autointerp.stages.control import run_controls
from autointerp.stages.delayed import answers_between, delayed_of, open_all
from autointerp.stages.device import run_on_device
from autointerp.stages.flow import run_flow
from autointerp.stages.llms import (
    check_llms_are_named,
    connected,
    llm_section,
    with_default_llm,
    with_dialects,
)
from autointerp.stages.packing import with_packing
from autointerp.stages.preflight import check_disk, plan, preflight
from autointerp.stages.sample import run_sample
from autointerp.subject.corpus import check_first_documents
from autointerp.tracking import check_tracking, tracked

Stage = Literal["cache", "sample", "intervene", "explain", "score"]
STAGES: Final[tuple[Stage, ...]] = ("cache", "sample", "intervene", "explain", "score")


@dataclass(slots=True)
class Outcome:
    """What one call did."""

    run: Run
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Wall time a stage, of this call. Explaining and scoring are one: they go on at the same time."""
    open: dict[str, int] = field(default_factory=dict[str, int])
    """Why features stayed open, counted by message."""
    awaited: list[Awaited] = field(default_factory=list[Awaited])
    """Files of requests that somebody else is to answer."""

    def add(self, filled: Filled) -> int:
        """Counts what one stage left open; returns how many items wait for answers."""
        for reason, n in filled.reasons.items():
            self.open[reason] = self.open.get(reason, 0) + n
        return filled.n_pending


def run_line(
    run: Run,
    *,
    until: Stage = "score",
    progress: Progress | None = None,
    stop: Stop | None = None,
    resolved: Resolved | None = None,
) -> Outcome:
    """Runs what is missing of a run, up to and including the stage `until`.

    `resolved` is what a new or extended run points to; without it the run's own recipe goes on. Raises
    AutointerpErrors and Interrupted; what is done stays done.
    """
    progress, stop = progress or Silent(), stop or Stop()
    outcome = Outcome(run)
    wanted = STAGES[: STAGES.index(until) + 1]
    if run.recipe.resources.shard and "sample" in wanted:
        raise RecipeError(
            f"{run.path} is portion {run.portion} of a cache, and what comes behind needs all of it. Stop there "
            f"with --until cache, merge the portions (`autointerp merge`), and resume the merged run."
        )
    if run.is_published and "explain" in wanted:
        check_llms_are_named(run.recipe)  # importing needs none
    with run.lock(), tracked(run, progress) as progress:
        extending = resolved is not None
        if extending:
            run.check()
        if run.is_packed:
            check_packed(run)
        elif not run.is_cached_whole():
            if resolved is None:
                resolved = resolve(run.recipe)
                Run.of(run.path, resolved).check()  # the model, dictionary and corpus are still the same
            check_disk(run, plan(run, resolved))
            if "explain" in wanted:
                _anywhere(lambda: preflight(run, progress, stop), stop)
            stop.check()
            if extending:
                run.save()  # not before the checks: a run that is refused leaves nothing to resume
                extending = False
            with _timed(outcome, "cache"):
                run_on_device(run, "cache", progress, stop)
        if extending:
            run.save()
        if "sample" in wanted:
            with _timed(outcome, "sample"):
                for dictionary in run.recipe.dictionaries:
                    run_sample(run, dictionary, progress, stop)
        pushes = "intervene" in wanted and run.needs_effects
        if pushes and any(map(run.without_effects, run.recipe.dictionaries)):
            with _timed(outcome, "intervene"):
                run_on_device(run, "intervene", progress, stop)
        if "explain" in wanted:
            _anywhere(lambda: _ask(run, wanted, outcome, progress, stop), stop)
        if "score" in wanted and any(any(run.without_responses(name)) for name in run.recipe.dictionaries):
            with _timed(outcome, "probe"):
                run_on_device(run, "probe", progress, stop)
            _anywhere(lambda: _ask(run, wanted, outcome, progress, stop), stop)
    return outcome


async def _ask(run: Run, wanted: tuple[Stage, ...], outcome: Outcome, progress: Progress, stop: Stop) -> None:
    """Passes over the features: one, or with an LLM that answers later as many as it takes."""
    async with connected(run, progress) as llms:
        later = delayed_of(llms)
        await until_stopped(open_all(later, progress), stop)
        while not outcome.awaited and await _pass(run, llms, wanted, outcome, progress, stop) and later:
            outcome.awaited = await until_stopped(answers_between(later, progress), stop)


async def _pass(
    run: Run,
    llms: Mapping[str, Asked],
    wanted: tuple[Stage, ...],
    outcome: Outcome,
    progress: Progress,
    stop: Stop,
) -> int:
    """Does what can be done now; how many items wait for answers that come by other means."""
    with_scores = "score" in wanted
    outcome.open.clear()
    with _timed(outcome, "explain and score" if with_scores else "explain"):
        n_pending = outcome.add(await run_flow(run, llms, progress, stop, with_scores=with_scores))
        if with_scores:
            n_pending += outcome.add(await run_controls(run, llms, progress, stop))
    return n_pending


# --- from Python ---------------------------------------------------------------------------------------


def explain(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    *,
    sae: str | None = None,
    out: str | Path,
    n_features: int | None = None,
    llm: str | None = None,
    until: Stage = "score",
    progress: Progress | None = None,
) -> Run:
    """Explains and scores features; the same work as `autointerp explain`.

    `recipe`: a Recipe, a mapping of its sections, or a YAML file. `sae`, `n_features` and `llm` are short
    forms on top of it (`llm="openai:gpt-x"`). `out`: the run's folder; where it holds a run, that run is
    extended. Works inside a running event loop too (a notebook). Raises AutointerpErrors.
    """
    if isinstance(recipe, Recipe):
        mapping = recipes.to_mapping(recipe, defaults=False)
    elif isinstance(recipe, str | Path):
        mapping = recipes.read_file(str(recipe))
    else:
        mapping = dict(recipe or {})
    short: dict[str, Any] = {}
    if sae is not None:
        short["dictionaries"] = sae_sections([sae])
    if n_features is not None:
        short["features"] = {"n": n_features, "first": None, "ids": None}
    if llm is not None:
        short["llms"] = {"explainer": llm_section(llm), "judge": llm_section(llm)}
    resolved, run = prepare(recipes.merge(mapping, short), Path(out), until=until)
    return run_line(run, until=until, progress=progress, resolved=resolved).run


def prepare(mapping: Mapping[str, Any], out: Path, *, until: Stage = "score") -> tuple[Resolved, Run]:
    """Checks a recipe and what it points to; the run it makes of `out`, where nothing is written yet.

    Where `out` holds a run, `mapping` extends its recipe. Raises RecipeError, InputErrors, and
    RecipeChanged where that run holds results of other settings.
    """
    recipes.check_shape(mapping)
    before = Run.open(out) if all((out / name).is_file() for name in (RECIPE, IDENTITIES)) else None
    if before is not None:
        check_made_here(before)
        mapping = recipes.merge(recipes.to_mapping(before.recipe), named(mapping, before))
        if before.is_packed:  # told before model and corpus are looked for, which may not be here
            check_packed(Run(out, recipes.parse(mapping), before.identities))
    else:
        mapping = recipes.over_default_plugins(mapping)
    recipe = with_hard_windows(recipes.parse(with_demo_llm(mapping)))
    if STAGES.index(until) >= STAGES.index("explain"):
        recipe = with_default_llm(recipe)
        check_llms_are_named(recipe)
        recipe = with_dialects(recipe)
        if before is None:
            recipe = with_packing(recipe)
    check_tracking(recipe)
    if before is not None and before.is_published:
        resolved = resolve_published(recipe, before.recipe, before.identities)
    else:
        resolved = resolve(recipe)
    if STAGES.index(until) >= STAGES.index("explain"):
        check_needs(resolved)
    run = Run.of(out, resolved)
    if run.recipe.resources.reuse_requests == str(out.absolute()):
        raise RecipeError(
            f"resources.reuse_requests: {out} is this run itself; its own answers are used anyway."
        )
    run.check()
    corpus = resolved.recipe.corpus  # None where the tokens come with stored activations
    if corpus is not None and not run.has_all_rows() and not run.is_packed:
        check_first_documents(corpus, hub_of(recipe))
    return resolved, run


# --- running -------------------------------------------------------------------------------------------


@contextmanager
def _timed(outcome: Outcome, stage: str) -> Generator[None]:
    begin = time.monotonic()
    try:
        yield
    finally:
        outcome.seconds[stage] = outcome.seconds.get(stage, 0.0) + time.monotonic() - begin


def _anywhere(work: Callable[[], Coroutine[Any, Any, None]], stop: Stop) -> None:
    """Runs a coroutine to its end, also where an event loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, name="autointerp")
    thread.start()
    try:
        thread.join()
    except BaseException:  # the cell was interrupted: the work must not go on without its lock
        stop.set()
        thread.join()
        raise
    if failed:
        raise failed[0]
