"""The answer that explainers ask for: a line `EXPLANATION: ...` and a line `LABEL: ...`, read strictly.

A reply that can't be read is asked for once more, with a reminder of the format, and then is a failure, not a text.
"""

from __future__ import annotations

import re
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import Refused, Unreadable
from autointerp.explainers.protocol import Explained
from autointerp.llm.protocol import Reply
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
    raise Unreadable(_fault(reply, max_tokens))


def _fault(reply: Reply, max_tokens: int) -> str:
    if not reply.text.strip():
        return f"the reply is empty, asked twice (finish reason: {reply.finish_reason})"
    cut = f", cut off at max_tokens={max_tokens}" if reply.finish_reason == "length" else ""
    start = inert(reply.text.strip()[:80])
    return f"no single line 'EXPLANATION: ...' in the reply, asked twice{cut}; it begins: {start}"


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
