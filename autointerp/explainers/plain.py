"""Plain: one look at active windows, one sentence (arXiv 2410.13928, section 3; EleutherAI/delphi,
explainers/default).

As there, tokens above 0.3 of their window's maximum are marked and listed with their strength from 1 to 10,
and the temperature is 0. Differs: windows are shuffled, so that rank is no cue, the prompt is ours, and a
reply that can't be read is asked for once more and then is a failure, not a text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import RecipeError, Refused, Unreadable
from autointerp.evidence import Evidence
from autointerp.explainers.protocol import Explained
from autointerp.llm.clauses import start_of
from autointerp.llm.protocol import Reply
from autointerp.prompting import View, inert
from autointerp.types import Window

LABEL_WORDS = 6
N_STRENGTHS = 10
"""Most tokens a window lists, the strongest."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Shows an LLM active windows with the firing tokens marked and asks for one sentence and a label."""

    threshold: float = 0.3
    """Tokens above this share of their window's maximum are marked."""
    max_tokens: int = 300
    temperature: float = 0.0
    prompt: str = "explain/plain"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise RecipeError(f"plain: threshold is {self.threshold}; it must be at least 0 and below 1.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Asks once more, with a reminder of the format, if the reply can't be read."""
        shown = evidence.shown
        strongest = max(window.maximum for window in shown.active)
        order = asking.order(len(shown.active), "explain")
        examples = [example(shown.active[n], self.threshold, strongest) for n in order]
        reply = Reply("")
        for attempt in range(2):
            # `shown` is not for the template: a backend without a language model answers from it
            prompt = asking.prompt(self.prompt, examples=examples, again=attempt > 0, shown=shown)
            reply = await asking.llm.generate(
                prompt, max_tokens=self.max_tokens, temperature=self.temperature, index=attempt
            )
            if reply.finish_reason == "content_filter":
                raise Refused("the LLM's content filter stopped the reply")
            explained = read_reply(reply.text)
            if explained is not None:
                return explained
        raise Unreadable(self._fault(reply))

    def _fault(self, reply: Reply) -> str:
        if not reply.text.strip():
            return f"the reply is empty, asked twice (finish reason: {reply.finish_reason})"
        cut = f", cut off at max_tokens={self.max_tokens}" if reply.finish_reason == "length" else ""
        start = inert(reply.text.strip()[:80])
        return f"no single line 'EXPLANATION: ...' in the reply, asked twice{cut}; it begins: {start}"


@dataclass(frozen=True, slots=True)
class Example:
    """An active window as the prompt shows it."""

    view: View
    strengths: list[tuple[str, int]]
    """Marked tokens, in their order in the window, with strength from 1 to 10."""


def example(window: Window, threshold: float, strongest: float) -> Example:
    """`strongest`: the largest activation of all windows shown, which gets strength 10."""
    floor = threshold * window.maximum
    marks = tuple(n for n, activation in enumerate(window.activations) if activation > floor)
    listed: dict[int, float] = {}
    for mark in marks:
        start = start_of(window.texts, mark)
        listed[start] = max(window.activations[mark], listed.get(start, 0.0))
    kept = sorted(listed, key=lambda n: (-listed[n], n))[:N_STRENGTHS]
    strengths = [(window.texts[n], _strength(listed[n] / strongest)) for n in sorted(kept)]
    return Example(View(window, marks), strengths)


def _strength(share: float) -> int:
    """A share of the largest activation, in (0, 1], as 1 to 10."""
    return max(1, math.ceil(10 * share - 1e-9))  # 10 * 0.3 is a hair above 3


_LINE = re.compile(r"^[ \t]*(EXPLANATION|LABEL):[ \t]*(.*?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)


def read_reply(text: str) -> Explained | None:
    """The explanation in a reply, or None: there must be one line `EXPLANATION: ...`, no more.

    Other lines are passed over. A label of more than six words is cut; where there is no single one, the
    explanation's first six words stand for it.
    """
    lines: dict[str, list[str]] = {"EXPLANATION": [], "LABEL": []}
    for name, content in _LINE.findall(text):
        lines[name.upper()].append(content)
    match lines["EXPLANATION"]:
        case [explanation] if explanation:
            label = lines["LABEL"][0] if len(lines["LABEL"]) == 1 else ""
            return Explained(explanation, " ".join((label or explanation).split()[:LABEL_WORDS]))
        case _:
            return None
