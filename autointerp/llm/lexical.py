"""No language model: corpus statistics that answer prompts from their variables.

The embedded default, and the baseline every LLM must beat. `explain_lexically` looks for what sets the shown
active windows apart from the shown silent ones and writes it down with every pattern as a JSON string;
`matches` reads such patterns out of any explanation and says whether a window fits. Both ends speak the
language an LLM is asked for, so explainers and scorers can't tell the difference.

How an explanation is read. It is cut into clauses at `;` and at the ends of sentences (outside of quotes),
and it fits where one of its clauses does. Inside a clause patterns in quotes are conditions that must hold
together, told apart by the words before them:

    "x", "y"                    the token is one of these
    ... after "x", "y"          the token before it is one of these
    ... in text with "x", "y"   one of these words stands in the window

So `The tokens "(", "[" after "print"; any token after "@".` fits a bracket behind print, and whatever stands
behind an at sign. An explanation without quotes is a clause of its content words.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import ClassVar, Final

import numpy as np

from autointerp.errors import LLMBadRequest
from autointerp.llm.protocol import Capabilities, LLMIdentity, Reply
from autointerp.prompting import Prompt, View
from autointerp.types import Shown

VERSION: Final = "1"
"""Raise it when the same windows would give another explanation or another verdict."""


@dataclass(frozen=True, slots=True)
class Lexical:
    """Corpus statistics instead of a language model: free, instant, deterministic."""

    version: ClassVar[str] = VERSION
    paid: ClassVar[bool] = False

    def identity(self) -> LLMIdentity:
        return LLMIdentity("lexical", VERSION)

    def connect(self) -> LexicalLLM:
        return LexicalLLM()


class LexicalLLM:
    """Answers `explain/...` prompts from `shown`, `score/...` prompts from `explanation` and `views`."""

    @property
    def identity(self) -> LLMIdentity:
        return LLMIdentity("lexical", VERSION)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(all_windows_at_once=True)

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        choices: Sequence[str] | None = None,
        label_tokens: Sequence[str] | None = None,
        seed: int | None = None,
        index: int = 0,
    ) -> Reply:
        """Raises LLMBadRequest for a prompt that is neither an explainer's nor a binary scorer's."""
        match prompt.template.name.partition("/")[0], dict(prompt.variables):
            case "explain", {"shown": Shown() as shown}:
                text, label = explain_lexically(shown)
                return Reply(f"EXPLANATION: {text}\nLABEL: {label}")
            case "score", {"explanation": str() as explanation, "views": [*views]}:
                verdicts = ("yes" if matches(explanation, view) else "no" for view in views)
                return Reply("\n".join(f"{n}: {verdict}" for n, verdict in enumerate(verdicts, 1)))
            case _:
                raise LLMBadRequest(
                    f"the lexical backend can't answer prompt '{prompt.template.name}'. It answers explain/ prompts"
                    " with a variable 'shown' and score/ prompts with 'explanation' and 'views'."
                )

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise LLMBadRequest("the lexical backend has no log-probabilities")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMBadRequest("the lexical backend has no embeddings")

    async def close(self) -> None:
        """Nothing to free."""


# --- reading an explanation ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clause:
    """Conditions on a token that must hold together; an empty one always holds."""

    tokens: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    context: tuple[str, ...] = ()


_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+"'
_PIECE = re.compile(
    rf"(?P<string>{_STRING})|(?P<end>;|[.!?](?=\s|$))|(?P<after>\b(?:after|following|follows?|preceded by)\b)"
    r"|(?P<context>\b(?:in texts? with|near)\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    ["a", "about", "activates", "active", "all", "also", "an", "and", "any", "are", "as", "at", "be", "before", "but", "by", "can", "each", "especially", "feature", "fires", "for", "from", "has", "have", "how", "in", "into", "is", "it", "its", "like", "mentions", "may", "mostly", "not", "of", "often", "on", "one", "or", "other", "particularly", "phrases", "references", "related", "such", "text", "texts", "that", "the", "their", "them", "these", "they", "this", "those", "to", "token", "tokens", "used", "various", "when", "where", "which", "while", "with", "word", "words"]
)


@lru_cache(maxsize=1024)
def read(explanation: str) -> tuple[Clause, ...]:
    """The clauses of an explanation; none if there is nothing in it to go by."""
    found: list[dict[str, list[str]]] = [{}]
    kind = "tokens"
    for piece in _PIECE.finditer(explanation):
        if piece["string"]:
            # an explainer LLM saw line breaks as ⏎ and quotes them so
            found[-1].setdefault(kind, []).append(json.loads(piece["string"]).replace("⏎", "\n"))
        elif piece["end"]:
            found.append({})
            kind = "tokens"
        else:
            kind = str(piece.lastgroup)
    clauses = tuple(
        Clause(**{kind: tuple(names) for kind, names in clause.items()}) for clause in found if clause
    )
    if clauses:
        return clauses
    words = tuple(w for w in _WORD.findall(explanation.lower()) if w not in _STOP_WORDS)
    return (Clause(tokens=words),) if words else ()


def matches(explanation: str, view: View) -> bool:
    """Does the window hold a token that the explanation fits; if it has marks, is a marked token one?"""
    fitting = {n for clause in read(explanation) for n in _positions(clause, view.window.texts)}
    return bool(fitting.intersection(view.marks) if view.marks else fitting)


def _positions(clause: Clause, texts: tuple[str, ...]) -> set[int]:
    """Positions of the tokens that a clause fits."""
    if clause.context and not any(_spans(pattern, texts) for pattern in clause.context):
        return set()
    fitting = set(range(len(texts)))
    if clause.tokens:
        fitting = {
            n for p in clause.tokens for first, last in _spans(p, texts) for n in range(first, last + 1)
        }
    if clause.after:
        fitting &= {last + 1 for pattern in clause.after for _, last in _spans(pattern, texts)}
    return fitting


def _spans(pattern: str, texts: tuple[str, ...]) -> list[tuple[int, int]]:
    """First and last position of every place where a pattern stands.

    It is a token where the window has that very token, else whole words in any case.
    """
    exact = [(n, n) for n, text in enumerate(texts) if text == pattern]
    words = _as_words(pattern)
    if exact or words is None:
        return exact
    ends = list(accumulate(map(len, texts)))
    return [
        (bisect_right(ends, match.start()), bisect_left(ends, match.end()))
        for match in words.finditer("".join(texts))
    ]


@lru_cache(maxsize=1 << 14)
def _as_words(pattern: str) -> re.Pattern[str] | None:
    """Finds a pattern's words in running text; None for one without letters or digits, which has no borders."""
    words = _WORD.findall(pattern)
    if not words:
        return None
    stripped = pattern.strip()
    left, right = (
        (r"(?<!\w)" if stripped[0] == words[0][0] else ""),
        (r"(?!\w)" if stripped[-1] == words[-1][-1] else ""),
    )
    return re.compile(left + r"\s+".join(map(re.escape, stripped.split())) + right, re.IGNORECASE)


# --- writing an explanation ----------------------------------------------------------------------------

FIRING: Final = 0.3
"""Share of a window's maximum above which a token counts as firing."""

Z: Final = 2.0
Z_CONTEXT: Final = 3.0
PRIOR: Final = 10.0
GAIN: Final = 0.06
MOST = {"tokens": 8, "after": 4, "pair": 4, "context": 4}
N_CANDIDATES = 60
N_SEEN = 2


def log_odds_z(count: int, total: int, other: int, other_total: int) -> float:
    """z-score of the log-odds ratio of a pattern seen `count` of `total` times here, `other` of `other_total`
    times elsewhere, under a Dirichlet prior of PRIOR pseudo-counts spread as the pattern is overall.

    Monroe, Colaresi and Quinn 2008, "Fightin' Words", Political Analysis 16, equations 16, 20 and 22.
    """
    overall = (count + other) / (total + other_total)
    here, there = count + PRIOR * overall, other + PRIOR * overall
    if overall == 1.0:
        return 0.0
    log_odds = math.log(here / (total + PRIOR - here)) - math.log(there / (other_total + PRIOR - there))
    return log_odds / math.sqrt(1 / here + 1 / there)


def explain_lexically(shown: Shown) -> tuple[str, str]:
    """What sets the active windows apart from the silent ones: a sentence, and a label of at most six words.

    Candidates are patterns at firing tokens and words in active windows whose z-score is high enough; of them
    those are taken, one after another, that add most to what `matches` gets right on the same windows.
    """
    clauses = _chosen(shown)
    merged: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for clause in clauses:
        kind = _kind(clause)
        key = (kind, clause.after if kind == "pair" else ())
        merged.setdefault(key, []).extend(clause.tokens or clause.after or clause.context)
    whole = [
        Clause(tokens=tuple(n), after=k[1]) if k[0] in ("pair", "tokens") else Clause(**{k[0]: tuple(n)})
        for k, n in merged.items()
    ]
    text = "; ".join(f"{_phrase(c)} ({_share(c, shown):.0%} of its firings)" for c in whole)
    return text[0].upper() + text[1:] + ".", _label(whole[0])


def _firing(window):
    return {n for n, a in enumerate(window.activations) if a > FIRING * window.maximum}


def _kind(c):
    return "context" if c.context else "pair" if c.tokens and c.after else "after" if c.after else "tokens"


def _patterns_at(texts, n):
    text = texts[n]
    if not text:
        return
    yield Clause(tokens=(text,))
    word = text.strip().lower()
    if word != text and word.isalnum():
        yield Clause(tokens=(word,))
    if n and texts[n - 1]:
        yield Clause(after=(texts[n - 1],))
        yield Clause(tokens=(text,), after=(texts[n - 1],))


def _words_in(window):
    words = list(_WORD.finditer(window.text))
    for w in words:
        if not w[0].isdigit():
            yield Clause(context=(w[0].lower(),))
    for a, b in pairwise(words):
        if b.start() - a.end() <= 2:
            yield Clause(context=(window.text[a.start() : b.end()].lower(),))


def _candidates(shown):
    fired, seen, elsewhere = Counter(), Counter(), Counter()
    n_fired = n_else = 0
    for window in shown.active + shown.silent:
        firing = _firing(window) if window.maximum else set()
        here = [p for n in firing for p in _patterns_at(window.texts, n)]
        fired.update(here)
        seen.update(set(here))
        n_fired += len(firing)
        n_else += len(window.texts) - len(firing)
        for n in range(len(window.texts)):
            if n not in firing:
                elsewhere.update(_patterns_at(window.texts, n))
    scored = [
        (log_odds_z(c, n_fired, elsewhere[p], n_else), p) for p, c in fired.items() if seen[p] >= N_SEEN
    ]
    scored = [(z, p) for z, p in scored if z >= Z]
    inside = Counter(p for w in shown.active for p in set(_words_in(w)))
    outside = Counter(p for w in shown.silent for p in set(_words_in(w)))
    for p, c in inside.items():
        if c >= 3:
            z = log_odds_z(c, len(shown.active), outside[p], len(shown.silent))
            if z >= Z_CONTEXT:
                scored.append((z, p))
    scored.sort(key=lambda e: (-e[0], repr(e[1])))
    return [p for _, p in scored[:N_CANDIDATES]]


def _masks(clauses, windows):
    width = max((len(w.texts) for w in windows), default=0)
    masks = np.zeros((len(clauses), len(windows), width), bool)
    for c, clause in enumerate(clauses):
        for n, window in enumerate(windows):
            fits = [k for k in _positions(clause, window.texts) if k < len(window.texts)]
            masks[c, n, fits] = True
    return masks


def _chosen(shown):
    clauses = _candidates(shown)
    A, Sl = _masks(clauses, shown.active), _masks(clauses, shown.silent)
    firing = np.zeros(A.shape[1:], bool)
    for n, w in enumerate(shown.active):
        firing[n, list(_firing(w))] = True
    k = firing.sum(1).mean()
    lengths = np.array([max(len(w.texts), 1) for w in shown.silent])

    def value(a, s):
        v = a.any(2).mean(1) + (a & firing).any(2).mean(1)
        if s.shape[1]:
            v = v - s.any(2).mean(1) - (1 - (1 - s.sum(2) / lengths) ** k).mean(1)
        return v

    left = dict(MOST)
    chosen, now = [], 0.0
    ca, cs = np.zeros(A.shape[1:], bool), np.zeros(Sl.shape[1:], bool)
    while clauses:
        v = value(ca | A, cs | Sl)
        for n, c in enumerate(clauses):
            if left[_kind(c)] == 0 or c in chosen:
                v[n] = -9
        b = int(v.argmax())
        if v[b] - now < GAIN:
            break
        now = v[b]
        chosen.append(clauses[b])
        left[_kind(clauses[b])] -= 1
        ca |= A[b]
        cs |= Sl[b]
    if not chosen:
        common = Counter(w.texts[n] for w in shown.active for n in _firing(w) if w.texts[n])
        chosen = [Clause(tokens=(t,)) for t, _ in common.most_common(3)]
    return chosen


def _quoted(names):
    return ", ".join(map(quote, names))


def quote(text):
    return "".join(
        c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(text, ensure_ascii=False)
    )


def _phrase(c):
    if c.context:
        return f"any token in text with {_quoted(c.context)}"
    t = f"the token{'s' * (len(c.tokens) > 1)} {_quoted(c.tokens)}" if c.tokens else "any token"
    return t + (f" after {_quoted(c.after)}" if c.after else "")


def _share(c, shown):
    hit = n = 0
    for w in shown.active:
        f = _firing(w)
        n += len(f)
        hit += len(f & _positions(c, w.texts))
    return hit / max(n, 1)


def _label(c):
    names = c.tokens or c.after or c.context
    return _quoted(names[:3])
