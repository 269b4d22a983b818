"""Fuzzing: are the marked tokens those the feature fires on? (arXiv 2410.13928, section 4; EleutherAI/delphi,
scorers/classifier/fuzz.py.)

Tests the token, not the topic. Two variants, by what carries the wrong marks:

    silent   windows in which the feature is silent: the headline. Whoever knows the topic gets by
    active   the same active windows, marked where the feature is silent: the topic is right in every one,
             so only the token tells them apart. Harder; each window is asked about twice, in two prompts

A judge must not get by on how many tokens are marked or where: delphi marks each wrong window at the same few
positions and by another count than the right ones. Here wrong marks are other windows' right ones (`marks.py`); only
a recipe marked `replica` may mark as delphi does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.llm.protocol import Capabilities
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import View
from autointerp.scorers import question
from autointerp.scorers.blocks import ADDED, Judging, Question, judged, packing_of
from autointerp.scorers.marks import counted, lent_to_active, lent_to_silent, pattern_of
from autointerp.sequential import Sequential
from autointerp.splits import Heldout
from autointerp.trials import Trials
from autointerp.types import Json

Variant = Literal["silent", "active"]
Marks = Literal["lent", "delphi", "paper"]
HEADLINE: Final[Variant] = "silent"


@dataclass(frozen=True, slots=True)
class Fuzzing:
    """Shows the judge windows with marked tokens and asks in which of them the marks are right."""

    wrong: Variant = HEADLINE
    """What carries the wrong marks: silent windows, or active ones where they don't fire."""
    packing: question.Packing = "auto"
    """Windows a prompt: a number, `one` (with the answer's probability), `all`; `auto` goes by the judge."""
    threshold: float = 0.3
    """Tokens above this share of their window's maximum are marked."""
    marks: Marks = "lent"
    """How silent windows are marked: at the places of active windows' marks; or, only in a replica, as
    EleutherAI/delphi does or did for the paper, at the same places in every window (`marks.counted`)."""
    prompt: str = "score/fuzzing"
    sequential: Sequential | None = None
    """Windows are asked about in blocks until a test has decided (`sequential.py`). None: all of them."""

    version: ClassVar[str] = "4"
    needs_llm: ClassVar[bool] = True
    judges_strata: ClassVar[bool] = False
    added: ClassVar[Json] = ADDED | {"marks": "lent"}
    replica_only: ClassVar[Json] = {"marks": "lent"}

    def __post_init__(self) -> None:
        question.check_packing("fuzzing", self.packing)
        if not 0 <= self.threshold < 1:
            raise RecipeError(f"fuzzing: threshold is {self.threshold}; it must be at least 0 and below 1.")
        if self.marks != "lent" and self.wrong != HEADLINE:
            raise RecipeError(
                f"fuzzing: marks: {self.marks} goes with wrong: {HEADLINE} (found {self.wrong})."
            )

    @property
    def controlled(self) -> bool:
        return self.wrong == HEADLINE

    def templates(self) -> tuple[str, ...]:
        return question.templates(self.prompt, self._packing)

    def protocol(self, capabilities: Capabilities) -> str:
        how = {
            "lent": "at the positions of active ones (headline variant)",
            "delphi": "as delphi does: as many tokens as active ones fire on, at the same places in all",
            "paper": "as for the paper: as many tokens as active ones fire on, at the same places in all",
        }
        wrong = {
            "silent": f"silent windows marked {how[self.marks]}",
            "active": "active windows marked where silent, at the positions of others (harder variant)",
        }
        return (
            f"fuzzing {self.version}: {question.described(self._packing, capabilities)}; tokens above "
            f"{self.threshold:g} of the window's maximum marked; negatives: {wrong[self.wrong]}"
            + (f"; {self.sequential.described()}" if self.sequential else "")
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Trials:
        """One trial a window and marking: yes is right where the marks are.

        Windows chosen to be hard are left out: what makes them hard is their text, and a wrong mark asks
        about one token. They would take patterns from the others, too.
        """
        questions = (_on_silent if self.wrong == "silent" else _on_active)(self, heldout, asking)
        if all(one.is_right for one in questions):
            return Trials()  # where a feature fires on nearly every token no mark is wrong
        return await judged(
            Judging(explanation, self.prompt, self._packing, asking), questions, self.sequential
        )

    @property
    def _packing(self) -> question.Packing:
        return packing_of(self.packing, self.sequential)


_HALVES: Final = ("fuzzing 0", "fuzzing 1")
"""Purposes of questions that must not share a prompt."""


def _on_silent(scorer: Fuzzing, heldout: Heldout, asking: Asking) -> list[Question]:
    lent = [pattern_of(window, scorer.threshold) for window in heldout.active]
    right = [
        Question(n, View(window, pattern.marks), True, _HALVES[0])
        for n, (window, pattern) in enumerate(zip(heldout.active, lent, strict=True))
    ]
    silent = [
        (len(right) + n, window)
        for n, window in enumerate(heldout.silent)
        if window.stratum in HEADLINE_STRATA
    ]
    windows = [window for _, window in silent]
    if scorer.marks == "lent":
        marks = lent_to_silent(lent, windows, asking)
    else:
        marks = counted(heldout.active, windows, scorer.threshold, pinned=scorer.marks == "delphi")
    wrong = [
        Question(n, View(window, its), False, _HALVES[0])
        for (n, window), its in zip(silent, marks, strict=True)
        if its
    ]
    return right + wrong


def _on_active(scorer: Fuzzing, heldout: Heldout, asking: Asking) -> list[Question]:
    """Every active window once with its own marks and once with another's: in two halves, for in one prompt
    the two would tell on each other."""
    lent = [pattern_of(window, scorer.threshold) for window in heldout.active]
    wrong = lent_to_active(lent, heldout.active, asking)
    able = [n for n, marks in enumerate(wrong) if marks]
    order = [able[n] for n in asking.order(len(able), "halves")]
    right_in_first = set(order[: len(order) // 2])
    questions: list[Question] = []
    for n in able:
        window, first = heldout.active[n], n in right_in_first
        questions.append(Question(n, View(window, lent[n].marks), True, _HALVES[not first]))
        questions.append(Question(n, View(window, wrong[n]), False, _HALVES[first]))
    return questions
