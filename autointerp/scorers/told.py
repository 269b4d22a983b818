"""How likely an LLM finds an explanation behind a text: what intervention scores by, and `effect` chooses by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.asking import Asking
from autointerp.effects import SceneTexts
from autointerp.prompting import inert
from autointerp.scorers.question import all_of


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of each prompt the log-probability of the explanation, summed over its tokens, nats."""

    logp: list[float]
    n_tokens: int
    """Of the explanation."""


async def told(
    scene: SceneTexts, texts: Sequence[str], explanation: str, template: str, asking: Asking
) -> Likelihoods:
    """Template `template` gets the `prompt` and its continuation `written`; its reply is the explanation.

    Requests run concurrently. Raises the LLM's own errors, LLMBadRequest where it knows no probabilities.
    """
    shown = inert(explanation)
    found = await all_of(
        [
            asking.llm.logprobs(asking.prompt(template, prompt=prompt, written=written), shown)
            for prompt, written in zip(scene.prompts, texts, strict=True)
        ]
    )
    return Likelihoods([round(sum(one), 5) for one in found], len(found[0]) if found else 0)


def mean_gain(pushed: Sequence[Likelihoods], clean: Likelihoods) -> float:
    """Mean over pushes and prompts of log P(explanation | pushed text) - log P(explanation | clean text)."""
    gains = [after - before for one in pushed for after, before in zip(one.logp, clean.logp, strict=True)]
    return sum(gains) / len(gains)
