"""Detection: does each window activate? (arXiv 2410.13928, section 4; EleutherAI/delphi, scorers/classifier.)

Tests what a feature's windows are about, not on which token it fires. Differs from delphi: the order is drawn
for each feature, a prompt holds ten windows or one instead of five, and an unreadable answer is no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.llm.protocol import Capabilities
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import View
from autointerp.scorers import question
from autointerp.scorers.blocks import ADDED, Judging, Question, judged, packing_of
from autointerp.sequential import Sequential
from autointerp.splits import Heldout
from autointerp.trials import Trials
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Detection:
    """Shows the judge windows without marks and asks in which of them the feature fires."""

    packing: question.Packing = "auto"
    """Windows a prompt: a number, `one` (with the answer's probability), `all`; `auto` goes by the judge."""
    prompt: str = "score/detection"
    sequential: Sequential | None = None
    """Windows are asked about in blocks until a test has decided (`sequential.py`). None: all of them."""

    version: ClassVar[str] = "3"
    needs_llm: ClassVar[bool] = True
    judges_strata: ClassVar[bool] = True
    added: ClassVar[Json] = ADDED

    def __post_init__(self) -> None:
        question.check_packing("detection", self.packing)

    def templates(self) -> tuple[str, ...]:
        return question.templates(self.prompt, self._packing)

    def protocol(self, capabilities: Capabilities) -> str:
        packing = question.described(self._packing, capabilities)
        how = f"; {self.sequential.described()}, and on the hard ones" if self.sequential else ""
        return (
            f"detection {self.version}: {packing}; negatives: silent windows; hard ones in prompts of their "
            f"own{how}"
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Trials:
        """One trial a held-out window: yes is right for the active ones.

        Windows chosen to be hard stand in prompts of their own: what a judge is asked about the others, and
        so the headline, is the same with and without them.
        """
        questions = [
            Question(
                n,
                View(window),
                n < len(heldout.active),
                "detection" if window.stratum in HEADLINE_STRATA else "detection, hard",
            )
            for n, window in enumerate(heldout.active + heldout.silent)
        ]
        return await judged(
            Judging(explanation, self.prompt, self._packing, asking), questions, self.sequential
        )

    @property
    def _packing(self) -> question.Packing:
        return packing_of(self.packing, self.sequential)
