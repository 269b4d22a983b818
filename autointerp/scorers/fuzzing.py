"""Fuzzing: are the marked tokens those the feature fires on? (arXiv 2410.13928, section 4; EleutherAI/delphi,
scorers/classifier/fuzz.py.)

Tests the token, not the topic. A judge must not get by on how many tokens are marked or where: delphi marks
each wrong window at the same few positions and by another count than the right ones. Here a wrong window is a
silent one that carries the marks of a right one, so both kinds have the same patterns, each as often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.llm.protocol import Capabilities
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import View
from autointerp.scorers import question
from autointerp.trials import Trials
from autointerp.types import Heldout, Window


@dataclass(frozen=True, slots=True)
class Pattern:
    """Where an active window is marked."""

    marks: tuple[int, ...]
    """Positions of the marked tokens, ascending, at least one."""
    length: int
    """Tokens of the window."""


@dataclass(frozen=True, slots=True)
class Fuzzing:
    """Shows the judge windows with marked tokens and asks in which of them the marks are right."""

    windows_per_prompt: int = 10
    threshold: float = 0.3
    """Tokens above this share of their window's maximum are marked."""
    prompt: str = "score/fuzzing"

    version: ClassVar[str] = "2"
    needs_llm: ClassVar[bool] = True
    judges_strata: ClassVar[bool] = False

    def __post_init__(self) -> None:
        question.check_windows_per_prompt("fuzzing", self.windows_per_prompt)
        if not 0 <= self.threshold < 1:
            raise RecipeError(f"fuzzing: threshold is {self.threshold}; it must be at least 0 and below 1.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    def protocol(self, capabilities: Capabilities) -> str:
        packing = question.packing(self.windows_per_prompt, capabilities)
        return (
            f"fuzzing {self.version}: {packing}; tokens above {self.threshold:g} of the window's maximum"
            " marked; negatives: silent windows marked at the positions of active ones"
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Trials:
        """One trial a held-out window of the headline: yes is right for the active ones, marked where the
        feature fires.

        Windows chosen to be hard are left out: what makes them hard is their text, and a wrong mark asks
        about one token. They would take patterns from the others, too.
        """
        windows = heldout.active + heldout.silent
        n_active = len(heldout.active)
        silent = [
            n for n, window in enumerate(windows) if n >= n_active and window.stratum in HEADLINE_STRATA
        ]
        lent = [Pattern(firing(window, self.threshold), len(window.texts)) for window in heldout.active]
        marks = dict(enumerate(pattern.marks for pattern in lent))
        marks |= dict(zip(silent, borrowed(lent, [windows[n] for n in silent], asking), strict=True))
        asked = [n for n, its_marks in marks.items() if its_marks]
        views = [View(windows[n], marks[n]) for n in asked]
        answers = await question.ask(
            views,
            explanation,
            self.prompt,
            asking,
            windows_per_prompt=self.windows_per_prompt,
            purpose="fuzzing",
        )
        return question.trials(heldout, asked, views, answers)


def firing(window: Window, threshold: float) -> tuple[int, ...]:
    """Tokens of an active window above that share of its maximum."""
    floor = threshold * window.maximum
    return tuple(n for n, a in enumerate(window.activations) if a > floor)


def borrowed(patterns: Sequence[Pattern], silent: Sequence[Window], asking: Asking) -> list[tuple[int, ...]]:
    """Marks for each silent window: one of the patterns, or none where no pattern that is left fits.

    Each pattern is lent equally often, give or take one, by a keyed permutation. Where windows are of several
    lengths, a silent one gets the pattern of an active one of the same length if there is one left, else of
    the nearest that fits. The shortest choose first: if any assignment serves all windows, this one does.
    """
    n_rounds = -(-len(silent) // len(patterns)) if patterns else 0
    left = [patterns[n] for turn in range(n_rounds) for n in asking.order(len(patterns), "marks", turn)]
    left = left[: len(silent)]
    marks: list[tuple[int, ...]] = [()] * len(silent)
    for n in sorted(range(len(silent)), key=lambda n: len(silent[n].texts)):
        length = len(silent[n].texts)
        fitting = [pattern for pattern in left if pattern.marks[-1] < length]
        if fitting:
            nearest = min(fitting, key=lambda pattern: abs(pattern.length - length))
            left.remove(nearest)
            marks[n] = nearest.marks
    return marks
