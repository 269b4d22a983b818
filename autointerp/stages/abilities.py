"""Whether the LLM that judges can do what the scorers need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from autointerp.errors import RecipeError
from autointerp.evidence import needs_of
from autointerp.recipe import instance
from autointerp.run import Run
from autointerp.scorers.protocol import role_of
from autointerp.stages.asked import NOBODY, Asked

_WHAT: Final = {"logprobs": "log-probabilities", "embed": "embeddings"}


def check_abilities(run: Run, llms: Mapping[str, Asked]) -> None:
    """`llms` by role. Raises RecipeError that lists every scorer whose needs the LLM doesn't meet."""
    scorers = {name: instance("scorers", section) for name, section in run.recipe.scorers.items()}
    asked = {name: llms.get(role_of(scorer), NOBODY).llm for name, scorer in scorers.items()}
    faults = [
        f"scorers.{name}: it needs {what}, which {asked[name].identity} doesn't give"
        for name, scorer in scorers.items()
        for need, what in _WHAT.items()
        if need in needs_of(scorer) and not getattr(asked[name].capabilities, need)
    ]
    if faults:
        raise RecipeError(
            "the recipe can't be run:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nName a judge LLM that does (--judge-llm vllm:MODEL gives log-probabilities) or an embedder (--set "
            "llms.embedder.use=sentence_transformers), or leave these out."
        )
