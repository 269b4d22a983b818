"""The answer that explainers ask for: a line `EXPLANATION: ...` and a line `LABEL: ...`, read strictly.

A reply that can't be read is asked for once more, with a reminder of the format, and then is a failure, not a text:
a refusal where it declines in words (`declining.py`), which a fallback LLM is asked about, and else unreadable,
which it is not. Who can't keep to two lines seldom can for many features, and the fallback, taken to be asked about
few, may be dear; it is a sign to take another LLM.
"""

from __future__ import annotations

import re
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import Refused, Unreadable
from autointerp.explainers.declining import declines
from autointerp.explainers.protocol import Explained
from autointerp.llm.exchange import Reply
from autointerp.prompting import inert

LABEL_WORDS: Final = 6


async def ask(
    asking: Asking, template: str, *, max_tokens: int, temperature: float = 0.0, **variables: object
) -> Explained:
    """What an LLM answers to a template, which gets `again` beside the variables: True where the format is to be said
    once more.

    Raises Unreadable, Refused, and the LLM's own errors.
    """
    reply = Reply("")
    for attempt in range(2):
        prompt = asking.prompt(template, again=attempt > 0, **variables)
        reply = await asking.llm.generate(
            prompt, max_tokens=max_tokens, temperature=temperature, index=attempt
        )
        if reply.finish_reason == "content_filter":
            raise Refused("the LLM's content filter stopped the reply")
        explained = read_reply(reply.text)
        if explained is not None:
            return explained
    raise unread(reply.text, _fault(reply, max_tokens))


def unread(text: str, fault: str) -> Refused | Unreadable:
    """What is to be raised of a last reply without an explanation; `fault`: where it doesn't decline."""
    if declines(text):
        return Refused(f"the LLM declined in words: {_start(text)}")
    return Unreadable(fault)


def _start(text: str) -> str:
    return inert(text.strip()[:80])


def _fault(reply: Reply, max_tokens: int) -> str:
    if not reply.text.strip():
        return f"the reply is empty, asked twice (finish reason: {reply.finish_reason})"
    cut = f", cut off at max_tokens={max_tokens}" if reply.finish_reason == "length" else ""
    begins = _start(reply.text)
    return f"no single line 'EXPLANATION: ...' in the reply, asked twice{cut}; it begins: {begins}"


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
            return Explained(explanation, in_six_words(label or explanation))
        case _:
            return None


def in_six_words(text: str) -> str:
    """Its first six words."""
    return " ".join(text.split()[:LABEL_WORDS])
