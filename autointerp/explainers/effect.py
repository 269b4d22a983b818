"""Effect: what pushing the feature makes the model write (arXiv 2410.13928, section 4; EleutherAI/sae-auto-interp,
branch article_version, counterfactuals).

As there, several explanations are drawn at temperature 0.7 from the tokens that the push raises and from what the
model then writes on ten prompts. There the best is chosen on the prompts it is tested on, which flatters it; here
on prompts of the select split, by the intervention scorer's own measure, and the test prompts are never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.effects import SceneTexts
from autointerp.errors import NoEvidence, RecipeError, Refused
from autointerp.evidence import Evidence, Need
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import read_reply, unread
from autointerp.llm.exchange import Reply
from autointerp.scorers.told import mean_gain, told


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its continuations; None where no strength was found for the target."""

    prompt: str
    clean: str
    weak: str | None
    strong: str | None


@dataclass(frozen=True, slots=True)
class Effect:
    """Shows an LLM the tokens that pushing the feature raises and what the model then writes; keeps the best of n."""

    n_candidates: int = 5
    """Explanations drawn; above 1 the judge, or without one the LLM that explains, must give log-probabilities to
    choose by."""
    temperature: float = 0.7
    """Of all but a single one, which is the likeliest."""
    max_tokens: int = 200
    prompt: str = "explain/effect"
    measure: str = "score/intervention"
    """The template that candidates are compared with: the scorer's."""

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n_candidates < 1:
            raise RecipeError(f"effect: n_candidates is {self.n_candidates}; it must be 1 or more.")

    @property
    def needs(self) -> frozenset[Need]:
        alone: frozenset[Need] = frozenset({"effects"})
        to_choose: frozenset[Need] = frozenset({"effects", "logprobs"})
        return alone if self.n_candidates == 1 else to_choose

    @property
    def chooses(self) -> bool:
        """By the judge where it is another LLM: that one must give log-probabilities then, not who explains."""
        return self.n_candidates > 1

    def templates(self) -> tuple[str, ...]:
        return (self.prompt, self.measure)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Raises Unreadable or Refused where no candidate can be read, NoEvidence for a feature that could not be
        pushed."""
        if evidence.effects is None:
            raise NoEvidence("the feature has too few prompts, or no direction, to be pushed")
        candidates = await self._candidates(evidence.effects.shown, asking)
        if len(candidates) == 1:
            return candidates[0]
        judging = asking.of_judge()
        gains = [await self._gain(one, evidence.effects.select, judging) for one in candidates]
        return candidates[gains.index(max(gains))]

    async def _candidates(self, scene: SceneTexts, asking: Asking) -> list[Explained]:
        """Those that can be read, each text once, in the order they were drawn; with none, one more is asked for
        with a reminder of the format."""
        found: dict[str, Explained] = {}
        reply = Reply("")
        for index in range(self.n_candidates + 1):
            is_last = index == self.n_candidates
            if is_last and found:
                break
            reply = await asking.llm.generate(
                asking.prompt(self.prompt, **variables_of(scene), again=is_last),
                max_tokens=self.max_tokens,
                temperature=self.temperature if self.n_candidates > 1 else 0.0,
                seed=asking.seed,
                index=index,
            )
            if reply.finish_reason == "content_filter":
                raise Refused("the LLM's content filter stopped the reply")
            if (explained := read_reply(reply.text)) is not None:
                found.setdefault(explained.text, explained)
        if not found:
            fault = f"no single line 'EXPLANATION: ...' in any of {self.n_candidates + 1} replies"
            raise unread(reply.text, fault)
        return list(found.values())

    async def _gain(self, candidate: Explained, select: SceneTexts, asking: Asking) -> float:
        """On prompts of the select split, over all targets that were reached."""
        clean = await told(select, select.clean, candidate.text, self.measure, asking)
        pushed = [
            await told(select, one.texts, candidate.text, self.measure, asking)
            for one in select.of("feature")
            if one.status == "ok"
        ]
        return mean_gain(pushed, clean) if pushed else 0.0


def variables_of(scene: SceneTexts) -> dict[str, object]:
    """What the prompt gets. Raised tokens are those of the weakest push, which breaks the text least; `weak` is the
    middle one of those that were reached (the second of four), whose texts differ already."""
    pushes = scene.of("feature")
    reached = [one for one in pushes if one.status == "ok"]
    weak = reached[len(reached) // 2 - 1] if len(reached) > 1 else None
    strong = reached[-1] if reached else None
    return {
        "raised": pushes[0].raised if pushes else (),
        "examples": [
            Example(prompt, scene.clean[n], weak and weak.texts[n], strong and strong.texts[n])
            for n, prompt in enumerate(scene.prompts)
        ],
    }
