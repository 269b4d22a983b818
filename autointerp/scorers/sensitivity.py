"""Sensitivity: of texts written for the explanation, how many activate the feature? (arXiv 2509.23717, "Measuring
Sparse Autoencoder Feature Sensitivity".)

    write    the judge's LLM writes texts on which the feature should fire; one request
    probe    the subject reads them, in a device stage (`stages/probe.py`)
    judge    the share on which the feature is active

It tests the other direction than detection: whether whatever answers to the explanation activates the feature, also
what the corpus has none of. As in the paper ten texts are written, and one counts where the feature fires on it
at all (its code takes 1e-6 for zero: nathanhu0/sae-sensitivity, src/run.py). Differs: the paper's LLM writes from
activating examples, without an explanation, to ask how sensitive the feature is; here a bad score may be the
explanation's fault or the feature's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, cast

from autointerp.asking import Asking
from autointerp.errors import RecipeError, Refused, Unreadable
from autointerp.evidence import ScorerNeed
from autointerp.llm.exchange import Reply
from autointerp.llm.protocol import Capabilities
from autointerp.prompting import inert
from autointerp.splits import Heldout, Probed
from autointerp.trials import Responses, to_4_digits

TOKENS_A_TEXT: Final = 80
"""Answer tokens allowed a text."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Has texts written for the explanation and asks on how many of them the feature fires."""

    n: int = 10
    """Texts."""
    active: Literal["as sampled", "above 0"] = "above 0"
    """From what activation on a text counts: any at all, as in the paper; or the smallest maximum of any active
    window that was sampled, so that it is as active as what is called active elsewhere: the smaller share."""
    prompt: str = "score/sensitivity"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    needs: ClassVar[frozenset[ScorerNeed]] = frozenset({"probe"})

    def __post_init__(self) -> None:
        if self.n < 1:
            raise RecipeError(f"sensitivity: n is {self.n}; at least 1 text must be written.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    def protocol(self, capabilities: Capabilities) -> str:
        active = {
            "as sampled": "at least the smallest maximum of the feature's sampled active windows",
            "above 0": "any activation",
        }
        how = f"{self.n} texts written for the explanation; active: {active[self.active]}"
        return f"sensitivity {self.version}: {how}"

    async def write(self, explanation: str, asking: Asking) -> list[str]:
        """At most `n` texts, none of them blank. Raises Unreadable, Refused, and the LLM's own errors."""
        reply = Reply("")
        for attempt in range(2):
            reply = await asking.llm.generate(
                asking.prompt(self.prompt, explanation=explanation, n=self.n, again=attempt > 0),
                max_tokens=self.n * TOKENS_A_TEXT,
                index=attempt,
            )
            if reply.finish_reason == "content_filter":
                raise Refused("the LLM's content filter stopped the reply")
            if texts := read_texts(reply.text):
                return texts[: self.n]
        raise Unreadable(
            f"no JSON list of texts, and no numbered lines in the reply, asked twice; it begins: "
            f"{inert(reply.text.strip()[:80])}"
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Responses:
        """A trial a text that was asked for; None of one that was not written, or that has no token to look at."""
        probed = heldout.probed or Probed((), (), 0.0)
        threshold = to_4_digits(probed.smallest) if self.active == "as sampled" else 0.0
        maxima = [*probed.maxima, *[None] * (self.n - len(probed.maxima))]
        return Responses(
            text=[*probed.texts, *[""] * (self.n - len(probed.texts))],
            maximum=[0.0 if one is None else one for one in maxima],
            active=[None if one is None else one > 0 and one >= threshold for one in maxima],
            threshold=[threshold] * self.n,
        )


_LINE: Final = re.compile(r"^[ \t]*[0-9]{1,3}[.):][ \t]+(\S.*?)[ \t\r]*$", re.MULTILINE)


def read_texts(reply: str) -> list[str]:
    """The texts of a JSON list, or of numbered lines, as some models write all the same; none where it is neither."""
    begin, end = reply.find("["), reply.rfind("]")
    try:
        found: Any = json.loads(reply[begin : end + 1]) if 0 <= begin < end else None
    except ValueError:
        found = None
    if isinstance(found, list):
        written = cast(list[Any], found)
        if not all(isinstance(text, str) for text in written):
            return []
        return [text for text in written if text.strip()]
    return _LINE.findall(reply)
