"""Refine: an explanation, tried on the *select* windows, shown its mistakes and written again (after delphi's
unmerged `iterative_explainer`, which shows at most 20 false positives and 20 false negatives).

    draft by an inner explainer -> detection on select -> windows it missed and hit wrongly -> a better one? -> ...

The text with the highest balanced accuracy on select is kept, of equals the earlier. That figure is biased up, for it
was chosen by (and for later drafts the LLM saw those windows): it is kept in the record and is no score. Scores are
measured on held-out windows, of other documents.

Details of the record: `drafts`, in order, each with text, label and balanced accuracy on `select`; `kept`, which it
is; `ended`, where a rewrite could not be had. An inner explainer's own details are `draft`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, RecipeError, Refused, Unreadable
from autointerp.evidence import Evidence
from autointerp.explainers.examples import THRESHOLD, check_threshold, example
from autointerp.explainers.inner import Held, OnSelectWindows, inner_explainer, inner_scorer
from autointerp.explainers.judged import OnSelect, judge_on_select
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import ask
from autointerp.prompting import View
from autointerp.sections import PluginSection
from autointerp.splits import Shown
from autointerp.types import Json, Window


@dataclass(frozen=True, slots=True)
class Refine(OnSelectWindows):
    """Shows an LLM where its explanation was wrong on select windows and keeps the better text."""

    draft: PluginSection = field(default_factory=lambda: {"use": "plain"})
    """The explainer of the first text."""
    rounds: int = 2
    """Rewrites, at most: none follows a text without mistakes."""
    n_missed: int = 10
    n_wrong: int = 10
    """Windows shown of each kind of mistake."""
    scorer: PluginSection = field(default_factory=lambda: {"use": "detection"})
    """How select windows are judged."""
    threshold: float = THRESHOLD
    """Tokens of missed windows above this share of their maximum are marked."""
    max_tokens: int = 300
    temperature: float = 0.0
    prompt: str = "explain/refine"

    needs_llm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_threshold("refine", self.threshold)
        for name in ("rounds", "n_missed", "n_wrong"):
            if getattr(self, name) < 1:
                raise RecipeError(f"refine: {name} is {getattr(self, name)}; it must be 1 or more.")
        self.inner()  # raises

    def templates(self) -> tuple[str, ...]:
        return (self.prompt, *self.inner().templates())

    def inner(self) -> Held:
        return Held({"draft": inner_explainer("draft", self.draft)}, inner_scorer("scorer", self.scorer))

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Raises what the inner explainer raises. A rewrite that can't be had ends the rounds."""
        inner = self.inner()
        assert evidence.select is not None  # declared
        drafts = [await inner.explainers["draft"].explain(inner.evidence("draft", evidence), asking)]
        judged = [await judge_on_select(inner.scorer, drafts[0].text, evidence.select, asking)]
        best, ended = 0, None
        for _ in range(self.rounds):
            missed, wrong = self._mistakes(judged[best], asking, len(drafts))
            if not missed and not wrong:
                break
            try:
                draft = await self._again(drafts[best].text, missed, wrong, evidence.shown, asking)
                on_select = await judge_on_select(inner.scorer, draft.text, evidence.select, asking)
            except (Unreadable, Refused, LLMBadRequest) as signal:
                ended = str(signal)
                break
            drafts.append(draft)
            judged.append(on_select)
            if judged[-1].beats(judged[best]):
                best = len(drafts) - 1
        details: Json = {
            "drafts": [
                {"text": draft.text, "label": draft.label, "select": on.accuracy}
                for draft, on in zip(drafts, judged, strict=True)
            ],
            "kept": best,
        }
        if asking.judge is not None:
            details["judge"] = str(asking.judge.identity)
        if ended is not None:
            details["ended"] = ended
        if drafts[0].details:
            details["draft"] = drafts[0].details
        return Explained(drafts[best].text, drafts[best].label, details)

    def _mistakes(
        self, judged: OnSelect, asking: Asking, number: int
    ) -> tuple[Sequence[Window], Sequence[Window]]:
        """As many as are shown, drawn anew each round."""

        def some(windows: tuple[Window, ...], n: int, kind: str) -> list[Window]:
            return [windows[at] for at in asking.order(len(windows), kind, number)[:n]]

        return some(judged.missed, self.n_missed, "missed"), some(judged.wrong, self.n_wrong, "wrong")

    async def _again(
        self, text: str, missed: Sequence[Window], wrong: Sequence[Window], shown: Shown, asking: Asking
    ) -> Explained:
        strongest = max((window.maximum for window in missed), default=1.0)
        return await ask(
            asking,
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            explanation=text,
            missed=[example(window, self.threshold, strongest) for window in missed],
            wrong=[View(window) for window in wrong],
            # A backend without a language model learns from the mistakes as from what was shown.
            shown=Shown((*shown.active, *missed), (*shown.silent, *wrong)),
        )
