"""Which LLMs a run asks: written short, chosen by default, checked, connected."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, get_args

from autointerp import recipe as recipes
from autointerp.errors import RecipeError
from autointerp.llm import vllm
from autointerp.llm.dialects import Addressed, written_out
from autointerp.llm.exchange import Prices
from autointerp.llm.in_flight import FILE as IN_FLIGHT
from autointerp.llm.in_flight import Slots
from autointerp.llm.left_out import FILE as LEFT_OUT
from autointerp.llm.left_out import left_out, refused
from autointerp.llm.protocol import LLM, Backend, Delayed, Place, Role
from autointerp.llm.replay import Limited
from autointerp.llm.spending import Budget
from autointerp.llm.within_budget import Budgeted, DelayedWithinBudget, check_is_priced
from autointerp.progress import Progress
from autointerp.recipe import Recipe
from autointerp.resolve import local
from autointerp.run import Run
from autointerp.scorers.protocol import role_of
from autointerp.sections import (
    FALLBACK,
    PluginSection,
    fallback_of,
    fallbacks_of,
    instance,
    without_fallback,
)
from autointerp.stages.asked import NOBODY, Asked
from autointerp.stages.cut_off import settle
from autointerp.stages.spent import spent_in_all


def llm_section(text: str) -> dict[str, Any]:
    """`openai:MODEL` -> its section of the recipe; a backend without a model stands alone."""
    use, colon, model = text.partition(":")
    section: dict[str, Any] = {"use": use}
    if use == "vllm":  # written out: a run keeps the model that was the default when it began
        return section | {"model": local(model) if colon else vllm.DEFAULT_MODEL}
    if colon:
        section["function" if use == "scripted" else "model"] = model
    return section


def with_dialects(recipe: Recipe) -> Recipe:
    """What is known of the models and their servers, written into the sections that leave it open. Raises
    LLMErrors for an address or a table that can't be read."""
    sections = {role: _with_dialect(getattr(recipe.llms, role)) for role in get_args(Role)}
    return dataclasses.replace(recipe, llms=dataclasses.replace(recipe.llms, **sections))


def _with_dialect(section: PluginSection | None) -> PluginSection | None:
    if section is None:
        return None
    if (other := _with_dialect(fallback_of(section))) is not None:
        section = {**section, FALLBACK: other}
    backend = instance("llm", section)
    return written_out(section, backend.addresses()[0]) if isinstance(backend, Addressed) else section


def _unnamed(recipe: Recipe) -> dict[str, list[str]]:
    """Roles that need an LLM where the recipe names none, with the plug-ins that need it."""
    needs: dict[Role, list[str]] = {
        "explainer": [n for n, s in recipe.explainers.items() if instance("explainers", s).needs_llm],
        "judge": _scorers_that_ask("judge", recipe),
        "embedder": _scorers_that_ask("embedder", recipe),
    }
    return {role: names for role, names in needs.items() if names and recipe.llms.of(role) is None}


def _scorers_that_ask(role: Role, recipe: Recipe) -> list[str]:
    scorers = {name: instance("scorers", section) for name, section in recipe.scorers.items()}
    return [name for name, scorer in scorers.items() if scorer.needs_llm and role_of(scorer) == role]


def with_default_llm(recipe: Recipe) -> Recipe:
    """Where no LLM is named at all and some are needed: vLLM with its default model, if it can run here."""
    if recipe.llms.explainer or recipe.llms.judge or not _unnamed(recipe) or not vllm.is_default_here():
        return recipe
    section = llm_section("vllm")
    return dataclasses.replace(recipe, llms=recipes.LLMSections(explainer=section, judge=section))


def check_llms_are_named(recipe: Recipe) -> None:
    """Raises RecipeError where an explainer or scorer needs an LLM and the recipe names none."""
    if missing := _unnamed(recipe):
        who = "; ".join(f"the {role} LLM, for {', '.join(names)}" for role, names in missing.items())
        raise RecipeError(
            f"no LLM is chosen ({who}). Ways to choose:\n"
            "  --llm vllm:MODEL     vLLM on this machine's GPUs, a folder or hub id (pip install '.[vllm]');\n"
            f"                       `--llm vllm` takes {vllm.DEFAULT_MODEL}\n"
            "  --llm openai:MODEL   any OpenAI-compatible server: set OPENAI_BASE_URL and OPENAI_API_KEY\n"
            "                       (a `vllm serve` of your own: http://localhost:8000/v1 and no key)\n"
            "  --llm batch:MODEL    the same in OpenAI's batches, at half the price and within a day\n"
            "  --llm lexical        no language model: corpus statistics, the baseline an LLM must beat\n"
            "  --explainer-llm and --judge-llm choose one each. Who embeds texts, where it is not the judge:\n"
            "  --set llms.embedder.use=sentence_transformers   (pip install '.[embed]')"
        )


@contextmanager
def _budget(run: Run, progress: Progress) -> Generator[Budget | None]:
    """What is left of the run's, if it has one."""
    limits = run.recipe.resources.max_cost, run.recipe.resources.max_tokens
    if limits == (None, None):
        yield None
        return
    if (cut_off := settle(run)).aside_tokens:
        progress.note(
            f"requests were in flight when a process of this run was killed: up to {cut_off.aside_tokens:,} tokens"
            + (f" (${cut_off.aside_cost:,.4f})" if cut_off.aside_cost else "")
            + " count as spent."
        )
    slots = Slots.opened(run.path / IN_FLIGHT)
    try:
        yield Budget(*limits, spent_in_all(run), slots)
    finally:
        slots.close()


FREE: Final = Prices(input=0.0, output=0.0)
"""One's own cards."""
N_IN_FLIGHT: Final = 64
"""Requests at once to an LLM that doesn't limit itself."""


@asynccontextmanager
async def connected(run: Run, progress: Progress) -> AsyncGenerator[dict[str, Asked]]:
    """The run's LLMs by role or as fallbacks; two with the same section share one connection."""
    named = {role: run.recipe.llms.of(role) for role in get_args(Role)}
    sections: dict[str, PluginSection | None] = {
        role: None if section is None else without_fallback(section) for role, section in named.items()
    }
    sections |= fallbacks_of(run.recipe.llms.explainer)
    backends: list[tuple[Any, Backend]] = []
    for section in sections.values():
        if section is not None and all(section != known for known, _ in backends):
            backends.append((section, instance("llm", section)))
    resources = run.recipe.resources
    place = Place(
        resources.engine,
        n_sharing=sum(backend.local for _, backend in backends),
        n_servers=sum(len(one.addresses()) for _, one in backends if isinstance(one, Addressed)),
        n_in_flight=resources.n_in_flight,
        folder=run.path,
    )
    living: list[LLM] = []
    known = left_out(run.path)
    by_section: list[tuple[Any, Asked]] = []
    try:
        with _budget(run, progress) as budget:
            for section, backend in backends:
                living.append(backend.connect(place))
                if backend.local:
                    progress.note(f"{living[-1].identity} starts on this machine when it is first asked.")
                llm = _in_front_of(living[-1], backend, resources, budget)
                by_section.append((section, Asked(llm, backend.paid, _delayed(living[-1], budget))))
            yield {
                role: next((asked for known, asked in by_section if known == section), NOBODY)
                for role, section in sections.items()
            }
    finally:
        for llm in living:
            await llm.close()
        for llm, names in left_out(run.path).items():
            if names != known.get(llm):
                progress.note(
                    f"{refused(llm, names)} To have them tried again, delete {run.path / LEFT_OUT}."
                )


def _delayed(llm: LLM, budget: Budget | None) -> Delayed | None:
    if not isinstance(llm, Delayed):
        return None
    return llm if budget is None else DelayedWithinBudget(llm, budget)


def _in_front_of(llm: LLM, backend: Backend, resources: recipes.Resources, budget: Budget | None) -> LLM:
    """What limits an LLM. Raises LLMStopped where its cost is limited and not known."""
    # Nothing is gained by limiting what queues by itself, answers later, or is computed here at once.
    limited = backend.paid and not backend.queues and not isinstance(llm, Delayed)
    asked: LLM = Limited(llm, resources.n_in_flight or N_IN_FLIGHT) if limited else llm
    if budget is None or not backend.paid:
        return asked
    prices = FREE if backend.local else llm.capabilities.prices
    if resources.max_cost is not None:
        check_is_priced(str(llm.identity), prices)
    return Budgeted(asked, budget, prices)
