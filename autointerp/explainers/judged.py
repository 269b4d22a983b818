"""An explanation, judged on the windows that are there to choose by: what `race` and `refine` go by.

A scorer judges them as it would held-out windows, so a choice is made by the question that is asked in the end, and
the windows are others. The recipe's judge is asked, `llms.judge`, as in the end: who explains would judge its own
texts, and might choose those that only it understands. Where the recipe names no judge the explainer is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.asking import Asking
from autointerp.metrics import measure
from autointerp.scorers.protocol import Scorer
from autointerp.splits import Heldout, Select
from autointerp.trials import Trials
from autointerp.types import Window


@dataclass(frozen=True, slots=True)
class OnSelect:
    """What the judge said of select windows."""

    accuracy: float | None
    """The scorer's headline, of detection and fuzzing the balanced accuracy; None where too few answers could
    be read."""
    missed: tuple[Window, ...]
    """Active windows that the explanation was said not to fit."""
    wrong: tuple[Window, ...]
    """Silent windows that it was said to fit."""

    def beats(self, other: OnSelect) -> bool:
        """Strictly: of equals the earlier stays. One that could not be judged beats none."""
        return self.accuracy is not None and (other.accuracy is None or self.accuracy > other.accuracy)


async def judge_on_select(scorer: Scorer, text: str, select: Select, asking: Asking) -> OnSelect:
    """By `asking.judge`. Raises the LLM's own errors."""
    windows = select.active + select.silent
    # To the scorer they are held out, as they are from whoever wrote the first text.
    trials = await scorer.judge(text, Heldout(select.active, select.silent), asking.of_judge())
    headline = measure(trials).value
    if not isinstance(trials, Trials):  # no yes or no, so nothing to be wrong about
        return OnSelect(None if headline is None else headline.value, (), ())
    faults = {
        truth: dict.fromkeys(
            n
            for n, right, answer in zip(trials.window, trials.truth, trials.answer, strict=True)
            # An active window with wrong marks is no silent one, whatever was said of the marks.
            if right is truth and answer is (not truth) and truth is (n < len(select.active))
        )
        for truth in (True, False)
    }
    return OnSelect(
        accuracy=None if headline is None else headline.value,
        missed=tuple(windows[n] for n in faults[True]),
        wrong=tuple(windows[n] for n in faults[False]),
    )
