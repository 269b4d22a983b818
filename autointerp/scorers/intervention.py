"""Intervention: does pushing the feature make the model write what the explanation says? (arXiv 2410.13928, section
4; EleutherAI/sae-auto-interp, branch article_version, counterfactuals.)

The score is the mean over held-out prompts of log P(explanation | steered text) - log P(explanation | clean text)
under the judge's LLM, which reads four examples first. It tests what a feature does, not what it fires on, so an
explanation that detection likes may gain nothing here: compare the effect explainer with `plain` on this scorer.

Two controls are arms of its own, set against the feature at equal KL, on the same prompts, with the same random
numbers:

    random     the explanation behind a push along a random direction of the same norm
    other      behind a push along another feature's decoder row, drawn from the whole dictionary

What another explanation gains behind the feature's own push is asked as of every scorer, on the panel (`panel.py`):
`shuffled` there is another feature's, by the same explainer and so of the same form. A gain is a sum over tokens, and
lists and sentences differ in these: `gain_per_token` stands beside it.

Differs: texts are drawn with common random numbers instead of independently, and what is shown to explainers,
chosen by and tested on are prompts of three splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.effects import SceneTexts, Written
from autointerp.evidence import ScorerNeed
from autointerp.llm.protocol import Capabilities
from autointerp.scorers.told import Likelihoods, told
from autointerp.splits import Heldout
from autointerp.trials import Differences


@dataclass(frozen=True, slots=True)
class Intervention:
    """Reads what the model writes while the feature is pushed, and asks how likely the explanation is behind it."""

    controls: bool = True
    """Random and other directions: three times the requests."""
    prompt: str = "score/intervention"

    version: ClassVar[str] = "2"
    needs_llm: ClassVar[bool] = True
    needs: ClassVar[frozenset[ScorerNeed]] = frozenset({"logprobs", "effects"})
    as_control: ClassVar[Mapping[str, object]] = MappingProxyType({"controls": False})

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    def protocol(self, capabilities: Capabilities) -> str:
        controls = "; controls at equal KL: random direction, another feature's row"
        return (
            f"intervention {self.version}: decoder row added from the last prompt token on, strengths by KL(clean || "
            f"steered), texts drawn; log P(explanation | steered) - log P(explanation | clean)"
            + (controls if self.controls else "")
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Differences:
        """An entry a push and prompt; without a probability where no strength was found for the target. None at all
        for a feature that has too few prompts."""
        found = Differences()
        scene = heldout.pushed
        if scene is None:
            return found
        clean = await told(scene, scene.clean, explanation, self.prompt, asking)
        for one in scene.steered if self.controls else scene.of("feature"):
            await self._add(found, one.arm, one, scene, explanation, clean, asking)
        if (scene := heldout.ablated) is not None:
            clean = await told(scene, scene.clean, explanation, self.prompt, asking)
            for one in scene.of("ablated"):
                await self._add(found, "ablated", one, scene, explanation, clean, asking)
        return found

    async def _add(
        self,
        found: Differences,
        arm: str,
        one: Written,
        scene: SceneTexts,
        explanation: str,
        clean: Likelihoods,
        asking: Asking,
    ) -> None:
        pushed: Sequence[float | None] = [None] * len(scene.prompts)
        if one.status == "ok":
            pushed = (await told(scene, one.texts, explanation, self.prompt, asking)).logp
        n = len(scene.prompts)
        found.arm.extend([arm] * n)
        found.prompt.extend(range(n))
        found.document.extend(document[:8] for document in scene.documents)
        # What is ablated has no target: it can't be made stronger.
        found.target_kl.extend([0.0 if one.target_kl is None else one.target_kl] * n)
        found.kl.extend([one.kl if one.status == "ok" else None] * n)
        found.logp_steered.extend(pushed)
        found.logp_clean.extend(clean.logp)
        found.n_tokens.extend([clean.n_tokens] * n)
