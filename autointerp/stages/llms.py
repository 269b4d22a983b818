"""Which LLMs a run asks: written short, chosen by default, checked, connected."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from autointerp import recipe as recipes
from autointerp.errors import RecipeError
from autointerp.llm import vllm
from autointerp.llm.protocol import Backend, Delayed, Place
from autointerp.llm.replay import Limited
from autointerp.progress import Progress
from autointerp.recipe import Recipe
from autointerp.resolve import local
from autointerp.run import Run
from autointerp.stages.asked import NOBODY, Asked


def llm_section(text: str) -> dict[str, Any]:
    """`openai:MODEL` -> its section of the recipe; a backend without a model stands alone."""
    use, colon, model = text.partition(":")
    section: dict[str, Any] = {"use": use}
    if use == "vllm":  # written out: a run keeps the model that was the default when it began
        return section | {"model": local(model) if colon else vllm.DEFAULT_MODEL}
    if colon:
        section["function" if use == "scripted" else "model"] = model
    return section


def _unnamed(recipe: Recipe) -> dict[str, list[str]]:
    """Roles that need an LLM where the recipe names none, with the plug-ins that need it."""
    needs = {
        "explainer": [n for n, s in recipe.explainers.items() if recipes.instance("explainers", s).needs_llm],
        "judge": [n for n, s in recipe.scorers.items() if recipes.instance("scorers", s).needs_llm],
    }
    return {role: names for role, names in needs.items() if names and getattr(recipe.llms, role) is None}


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
            "  --explainer-llm and --judge-llm choose one each."
        )


@asynccontextmanager
async def connected(run: Run, progress: Progress) -> AsyncGenerator[dict[str, Asked]]:
    """The run's LLMs by role; two roles with the same section share one connection."""
    sections = {"explainer": run.recipe.llms.explainer, "judge": run.recipe.llms.judge}
    backends: list[tuple[Any, Backend]] = []
    for section in sections.values():
        if section is not None and all(section != known for known, _ in backends):
            backends.append((section, recipes.instance("llm", section)))
    n_local = sum(backend.local for _, backend in backends)
    place = Place(run.recipe.resources.engine, n_local, run.path)
    living: list[tuple[Any, Asked]] = []
    try:
        for section, backend in backends:
            llm = backend.connect(place)
            if backend.local:
                progress.note(f"{llm.identity} starts on this machine when it is first asked.")
            delayed = llm if isinstance(llm, Delayed) else None
            # Nothing is gained by limiting what queues by itself, is computed here at once, or only noted down.
            limited = backend.paid and not backend.local and delayed is None
            asked = Limited(llm, run.recipe.resources.n_in_flight) if limited else llm
            living.append((section, Asked(asked, backend.paid, delayed)))
        yield {
            role: next((asked for known, asked in living if known == section), NOBODY)
            for role, section in sections.items()
        }
    finally:
        for _, asked in living:
            await asked.llm.close()
