"""The language in which `lexical` explains and judges: patterns in quotes, and the words before them.

An explanation is cut into clauses at `;` and at the ends of sentences (outside of quotes), and it fits where
one of its clauses does. Inside a clause the patterns, JSON strings, are conditions that must hold together:

    "x", "y"                    the token is one of these
    ... after "x", "y"          the token before it is one of these
    ... in text with "x", "y"   one of these words stands in the window

So `The tokens "(", "[" after "print"; any token after "@".` fits a bracket behind print, and whatever stands
behind an at sign. A pattern is a token where the window has that very token, else whole words in any case. An
explanation without quotes is a clause of its content words, each a pattern. Any prose can be read that way.

Two choices were measured on clusters of a small model's residual stream (see `lexical.py`), by the balanced
accuracy of detection and fuzzing: 0.8583. Words of the window may fit by themselves: if not, it is
0.8587, but features that go by topic have nothing left. A pattern that is no token of the window is taken for
words: as a token only it is 0.8572, always as both 0.8584.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from autointerp.prompting import View

LABEL_WORDS = 6

Kind = Literal["tokens", "after", "pair", "context"]
"""What a clause goes by: the token, the one before it, both together, or words of the window."""


@dataclass(frozen=True, slots=True)
class Clause:
    """Conditions on a token that must hold together; an empty one always holds."""

    tokens: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    context: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        if self.context:
            return "context"
        if self.after:
            return "pair" if self.tokens else "after"
        return "tokens"

    def __str__(self) -> str:
        """In words that `read` understands."""
        several = "s" if len(self.tokens) > 1 else ""
        phrase = f"the token{several} {quoted(self.tokens)}" if self.tokens else "any token"
        phrase += f" after {quoted(self.after)}" if self.after else ""
        return phrase + (f" in text with {quoted(self.context)}" if self.context else "")

    @property
    def label(self) -> str:
        """Up to three of its patterns, in at most six words."""
        patterns = list(dict.fromkeys(p.strip() or p for p in self.tokens or self.after or self.context))
        lead = {"after": "after ", "context": "text with "}.get(self.kind, "")
        tail = f" after {quoted(self.after[:1])}" if self.kind == "pair" else ""
        labels = [f"{lead}{quoted(patterns[:n])}{tail}" for n in (3, 2, 1)] if patterns else ["any token"]
        shortest = " ".join(labels[-1].split()[:LABEL_WORDS])
        return next((label for label in labels if len(label.split()) <= LABEL_WORDS), shortest)

    def positions(self, texts: tuple[str, ...]) -> set[int]:
        """Positions of the tokens that it fits."""
        if self.context and not any(_spans(pattern, texts) for pattern in self.context):
            return set()
        fitting = set(range(len(texts)))
        if self.tokens:
            spans = (span for pattern in self.tokens for span in _spans(pattern, texts))
            fitting = {n for first, last in spans for n in range(first, last + 1)}
        if self.after:
            fitting &= {last + 1 for pattern in self.after for _, last in _spans(pattern, texts)}
        return fitting


def merged(clauses: Sequence[Clause]) -> list[Clause]:
    """One clause a kind, and one a predecessor for pairs: what fits stays the same, in fewer words."""
    found: dict[tuple[Kind, tuple[str, ...]], Clause] = {}
    for new in clauses:
        key = (new.kind, new.after if new.kind == "pair" else ())
        old = found.get(key, Clause())
        after = new.after if new.kind == "pair" else old.after + new.after
        found[key] = Clause(old.tokens + new.tokens, after, old.context + new.context)
    return list(found.values())


def quoted(patterns: Sequence[str]) -> str:
    """The patterns as JSON strings, in which only what can't be seen is escaped."""
    written = (json.dumps(pattern, ensure_ascii=False) for pattern in patterns)
    return ", ".join("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text) for text in written)


_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_PIECE = re.compile(
    rf"(?P<string>{_STRING})|(?P<end>;|[.!?](?=\s|$))"
    r"|(?P<after>\b(?:after|following|follows?|preceded by)\b)|(?P<context>\bin texts? with\b)",
    re.IGNORECASE,
)
WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    "a about activates active all also an and any are as at be before but by can each especially feature"
    " fires firings for from has have how in into is it its like mentions may mostly not of often on one or"
    " other particularly phrases references related such text texts that the their them these they this those"
    " to token tokens used various when where which while with word words".split()
)


@lru_cache(maxsize=1024)
def read(explanation: str) -> tuple[Clause, ...]:
    """The clauses of an explanation; none if there is nothing in it to go by."""
    found: list[dict[str, list[str]]] = [{}]
    condition = "tokens"
    for piece in _PIECE.finditer(explanation):
        if piece["string"]:
            # an explainer LLM sees line breaks as ⏎ and quotes them so
            if pattern := str(json.loads(piece["string"])).replace("⏎", "\n"):
                found[-1].setdefault(condition, []).append(pattern)
        elif piece["end"]:
            found.append({})
            condition = "tokens"
        else:
            condition = str(piece.lastgroup)
    clauses = tuple(Clause(**{name: tuple(its) for name, its in one.items()}) for one in found if one)
    if clauses:
        return clauses
    words = tuple(word for word in WORD.findall(explanation.lower()) if word not in _STOP_WORDS)
    return (Clause(tokens=words),) if words else ()


def matches(explanation: str, view: View) -> bool:
    """Does the window hold a token that the explanation fits? If it has marks: is a marked token one?"""
    texts = view.window.texts
    fitting = {n for clause in read(explanation) for n in clause.positions(texts)}
    return bool(fitting.intersection(start_of(texts, mark) for mark in view.marks) if view.marks else fitting)


_AROUND = (
    ("We looked at it once more and found", "where nobody had left anything."),
    ("On the second day there was", "again, as the list said."),
    ("Nothing else is needed here but", "and then the next line."),
)
"""Beginnings and ends of made-up texts, in turn."""


def written_for(explanation: str, number: int) -> str:
    """A text that the explanation fits: its clauses in turn, and of each its patterns."""
    clauses = read(explanation) or (Clause(),)
    turn, at = divmod(number, len(clauses))
    clause = clauses[at]
    token, before, context = (
        patterns[turn % len(patterns)] if patterns else ""
        for patterns in (clause.tokens, clause.after, clause.context)
    )
    pattern = before + (token if not before or token[:1] != " " or before[-1:] != " " else token[1:])
    begin, end = _AROUND[number % len(_AROUND)]
    space = "" if pattern[:1].isspace() else " "
    return f"{context + ': ' if context else ''}{begin}{space}{pattern} {end}"


def start_of(texts: Sequence[str], position: int) -> int:
    """Position of the token that begins the character a token belongs to; mostly its own."""
    while position > 0 and not texts[position]:
        position -= 1
    return position


def _spans(pattern: str, texts: tuple[str, ...]) -> list[tuple[int, int]]:
    """First and last token of every place where a pattern stands."""
    if pattern in texts:
        return [(n, n) for n, text in enumerate(texts) if text == pattern]
    words = _as_words(pattern)
    if words is None:
        return []
    ends = list(accumulate(map(len, texts)))
    found = (match.span() for match in words.finditer("".join(texts)))
    return [(bisect_right(ends, start), bisect_left(ends, end)) for start, end in found]


@lru_cache(maxsize=1 << 14)
def _as_words(pattern: str) -> re.Pattern[str] | None:
    """Finds a pattern's words in running text; None where it has no letters or digits, so no borders."""
    words = pattern.split()
    if not WORD.search(pattern):
        return None
    left = r"(?<!\w)" if WORD.match(words[0]) else ""
    right = r"(?!\w)" if WORD.match(words[-1][-1]) else ""
    return re.compile(left + r"\s+".join(map(re.escape, words)) + right, re.IGNORECASE)


def odd_one_out(views: Sequence[View]) -> int:
    """The place of the view whose marked tokens, and after them the words of whose text, are least like those of
    the others: by the mean Jaccard index. Of several the first. There must be at least one."""
    tokens = [{view.window.texts[n].strip().lower() for n in view.marks} for view in views]
    words = [set(WORD.findall(view.window.text.lower())) for view in views]

    def likeness(n: int, of: Sequence[set[str]]) -> float:
        others = [other for k, other in enumerate(of) if k != n]
        return sum(len(of[n] & other) / max(1, len(of[n] | other)) for other in others) / max(1, len(others))

    return min(range(len(views)), key=lambda n: (likeness(n, tokens), likeness(n, words), n))
