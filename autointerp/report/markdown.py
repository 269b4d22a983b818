"""Text from outside inside a Markdown document: it is read, and does nothing."""

from __future__ import annotations

import re
from typing import Final

from autointerp.prompting import inert

_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "&#64;", "`": "&#96;"}
_ACTIVE: Final = str.maketrans(_ENTITIES | {letter: f"\\{letter}" for letter in "\\*_[]~$"})
_AT_THE_START: Final = re.compile(r"^(\s*)([#+\-=]|\d+[.)])")
_LINKS: Final = re.compile(r"://|www\.", re.IGNORECASE)
LONGEST: Final = 600


def escaped(text: object, longest: int = LONGEST) -> str:
    """On one line, with no markup, link, mention, HTML or formula in it. Cut where it is longer."""
    said = inert(str(text)).replace("\t", " ")
    if len(said) > longest:
        said = said[: longest - 1] + "…"
    said = said.translate(_ACTIVE)
    said = _LINKS.sub(lambda match: match[0].replace(":", "&#58;").replace(".", "&#46;"), said)
    return _AT_THE_START.sub(lambda match: f"{match[1]}&#{ord(match[2][0])};{match[2][1:]}", said)


def code(text: object, longest: int = LONGEST) -> str:
    """A name as inline code. (Backslashes escape nothing there, but entities would be shown as they are.)"""
    said = inert(str(text)).replace("\t", " ").replace("`", "ˋ").replace("|", "¦")[:longest]
    return f"`{said or ' '}`"


def fenced(text: str, language: str = "") -> str:
    """A block of code, in a fence longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    sound = text.encode("utf-8", "replace").decode().replace("\0", "\N{SYMBOL FOR NULL}")
    return f"{fence}{language}\n{sound.rstrip()}\n{fence}"
