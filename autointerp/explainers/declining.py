"""Refusals in words: what models without a content filter write when they decline.

Only the opening of a reply in which no explanation was found is looked at, so an explanation that speaks of
apologies is never one. The list is short and errs to the side of `unreadable`: of "I can't see what these have in
common" nobody knows whether the LLM would not or could not.
"""

from __future__ import annotations

import re
from typing import Final

_NOT: Final = r"(?:can(?:no|')t|can not|could(?: not|n't)|won't|will not|would not|wouldn't)"
_UNABLE: Final = r"(?:am|'m) (?:unable|not able|not allowed|not permitted|not willing|not going)\b"
_DO: Final = (
    r"(?:help|assist|comply|fulfill?|provide|continue|engage|analy[sz]e|discuss|generate|create|produce|write|"
    r"answer|respond|participate|support|do (?:that|this)|complete|share|offer|give|describe|explain|process|work)"
)
_OPENINGS: Final = (
    r"(?:i'm|i am|we're|we are)(?: \w+)? sorry\b",  # I'm very sorry, but
    r"sorry\b",
    r"(?:i|we) (?:\w+ )?apologi[sz]e\b",
    r"(?:my|our) apologies\b",
    rf"(?:i|we) (?:\w+ )?{_NOT} (?:\w+ )?{_DO}\b",
    rf"i ?{_UNABLE}",
    r"i(?:'m| am) not comfortable\b",
    r"i (?:do not|don't) feel comfortable\b",
    r"i(?:'d| would) (?:rather|prefer) not\b",
    r"i (?:must|have to|need to|will|respectfully)?(?: \w+)? ?(?:decline|refuse)\b",
    r"as an? (?:\w+ )?(?:ai|language model|assistant)\b",
    r"(?:this|the|your) (?:request|content|text|material|prompt)s? (?:\w+ )?(?:violates?|goes against|go against)\b",
    r"(?:很抱歉|抱歉|对不起|我(?:无法|不能))",
)
_LEAD: Final = r"[\s\"'*_#>“]*(?:unfortunately,? )?(?:no,? )?"
_DECLINES: Final = re.compile(_LEAD + "(?:" + "|".join(_OPENINGS) + ")")


def declines(reply: str) -> bool:
    """Whether a reply without an explanation opens as refusals do, in English or Chinese."""
    return _DECLINES.match(reply[:200].lower().replace("’", "'")) is not None
