"""Whether the LLMs can do what explainers and scorers need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from autointerp.errors import RecipeError
from autointerp.evidence import needs_of
from autointerp.llm.protocol import LLM
from autointerp.plugins import Kind
from autointerp.recipe import PluginSection, instance
from autointerp.run import Run
from autointerp.stages.asked import Asked

_WHAT: Final = {"logprobs": "log-probabilities", "embed": "embeddings"}


def check_abilities(run: Run, llms: Mapping[str, Asked]) -> None:
    """`llms` by role. Raises RecipeError that lists every plug-in whose needs its LLM doesn't meet."""
    asked: list[tuple[Kind, dict[str, PluginSection], LLM]] = [
        ("scorers", run.recipe.scorers, llms["judge"].llm),
        ("explainers", run.recipe.explainers, llms["explainer"].llm),
    ]
    faults = [
        f"{kind}.{name}: it needs {what}, which {llm.identity} doesn't give"
        for kind, sections, llm in asked
        for name, section in sections.items()
        for need, what in _WHAT.items()
        if need in needs_of(instance(kind, section)) and not getattr(llm.capabilities, need)
    ]
    if faults:
        raise RecipeError(
            "the recipe can't be run:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nName an LLM that does (--llm vllm:MODEL and --llm transformers:MODEL give log-probabilities; "
            "--judge-llm and --explainer-llm choose one each), or leave these out."
        )
