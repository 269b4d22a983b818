"""Detection: does each window activate? (arXiv 2410.13928, section 4; EleutherAI/delphi, scorers/classifier.)

Tests what a feature's windows are about, not on which token it fires. Differs from delphi: the order is drawn
for each feature, a prompt holds ten windows instead of five, and an unreadable answer is no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.llm.protocol import Capabilities
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import View
from autointerp.scorers import question
from autointerp.trials import Trials
from autointerp.types import Heldout


@dataclass(frozen=True, slots=True)
class Detection:
    """Shows the judge windows without marks and asks in which of them the feature fires."""

    windows_per_prompt: int = 10
    prompt: str = "score/detection"

    version: ClassVar[str] = "2"
    needs_llm: ClassVar[bool] = True
    judges_strata: ClassVar[bool] = True

    def __post_init__(self) -> None:
        question.check_windows_per_prompt("detection", self.windows_per_prompt)

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    def protocol(self, capabilities: Capabilities) -> str:
        packing = question.packing(self.windows_per_prompt, capabilities)
        return f"detection {self.version}: {packing}; negatives: silent windows; hard ones in prompts of their own"

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Trials:
        """One trial a held-out window: yes is right for the active ones.

        Windows chosen to be hard stand in prompts of their own: what a judge is asked about the others, and
        so the headline, is the same with and without them.
        """
        views = [View(window) for window in heldout.active + heldout.silent]
        hard = [n for n, view in enumerate(views) if view.window.stratum not in HEADLINE_STRATA]
        headline = [n for n, view in enumerate(views) if view.window.stratum in HEADLINE_STRATA]
        answers: list[bool | None] = [None] * len(views)
        said = await question.all_of(
            [
                question.ask(
                    [views[n] for n in asked],
                    explanation,
                    self.prompt,
                    asking,
                    windows_per_prompt=self.windows_per_prompt,
                    purpose=purpose,
                )
                for asked, purpose in ((headline, "detection"), (hard, "detection, hard"))
            ]
        )
        for n, answer in zip(headline + hard, said[0] + said[1], strict=True):
            answers[n] = answer
        return question.trials(heldout, range(len(views)), views, answers)
