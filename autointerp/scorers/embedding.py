"""Embedding: is an explanation nearer to active windows than to silent ones? (arXiv 2410.13928, section 4;
EleutherAI/delphi, scorers/embedding.)

The cosine of the explanation's vector with each window's; the score is the area under the ROC curve. Cheap, and it
sees the topic of a window alone, not the token (correlation with people's ratings .32). Differs from the paper: the
instruction in front of the explanation is an option, for models trained without one are worse off with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.evidence import ScorerNeed
from autointerp.llm.protocol import Capabilities, Role
from autointerp.scorers.similar import ranked, texts_of, unit_vectors
from autointerp.splits import Heldout
from autointerp.trials import Ranked


@dataclass(frozen=True, slots=True)
class Embedding:
    """Ranks windows by the likeness of their embedding to the explanation's."""

    instruction: str = ""
    """In front of the explanation, for models that want one, e.g. `Find texts that fit this description.`"""
    prompt: str = "score/embedding"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    needs: ClassVar[frozenset[ScorerNeed]] = frozenset({"embed"})
    role: ClassVar[Role] = "embedder"
    judges_strata: ClassVar[bool] = True

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    def protocol(self, capabilities: Capabilities) -> str:
        behind = f"behind '{self.instruction}'" if self.instruction else "alone"
        return f"embedding {self.version}: cosine of each window with the explanation {behind}; AUROC"

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Ranked:
        """One trial a held-out window, those of every stratum."""
        prompt = asking.prompt(self.prompt, explanation=explanation, instruction=self.instruction)
        query = "\n".join(turn.content for turn in prompt.messages)
        x_NK = await unit_vectors([query, *texts_of(heldout.active + heldout.silent)], asking)
        return ranked(heldout, (x_NK[1:] @ x_NK[0]).tolist())
