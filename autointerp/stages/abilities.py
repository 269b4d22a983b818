"""Whether the LLMs can do what explainers and scorers need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from autointerp.errors import RecipeError
from autointerp.evidence import needs_of
from autointerp.run import Run
from autointerp.run.made_from import judge_of_candidates
from autointerp.scorers.protocol import role_of
from autointerp.sections import instance
from autointerp.stages.asked import NOBODY, Asked

_WHAT: Final = {"logprobs": "log-probabilities", "embed": "embeddings"}


def check_abilities(run: Run, llms: Mapping[str, Asked]) -> None:
    """`llms` by role. Raises RecipeError that lists every plug-in whose needs its LLM doesn't meet."""
    scorers = {name: instance("scorers", section) for name, section in run.recipe.scorers.items()}
    explainers = {name: instance("explainers", section) for name, section in run.recipe.explainers.items()}
    asked = [
        *(
            (f"scorers.{name}", scorer, llms.get(role_of(scorer), NOBODY).llm)
            for name, scorer in scorers.items()
        ),
        *(
            (f"explainers.{name}", explainer, _chooser(run, llms, explainer).llm)
            for name, explainer in explainers.items()
        ),
    ]
    faults = [
        f"{place}: it needs {what}, which {llm.identity} doesn't give"
        for place, plugin, llm in asked
        for need, what in _WHAT.items()
        if need in needs_of(plugin) and not getattr(llm.capabilities, need)
    ]
    if faults:
        raise RecipeError(
            "the recipe can't be run:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nName an LLM that does (--llm vllm:MODEL and --llm transformers:MODEL give log-probabilities; "
            "--judge-llm and --explainer-llm choose one each) or an embedder (--set "
            "llms.embedder.use=sentence_transformers), or leave these out."
        )


def _chooser(run: Run, llms: Mapping[str, Asked], explainer: object) -> Asked:
    """Who is asked for what an explainer needs of an LLM beside text: it needs that to choose by."""
    is_judged = judge_of_candidates(run.recipe.llms, explainer) is not None
    return llms["judge" if is_judged else "explainer"]
