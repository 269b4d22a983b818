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
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import LLMBadRequest
from autointerp.llm.protocol import Capabilities, LLMIdentity, Reply
from autointerp.prompting import Prompt, View
from autointerp.types import Shown, Window

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


Kind = Literal["tokens", "after", "pair", "context"]


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
        return "pair" if self.tokens and self.after else "tokens" if self.tokens else "after"


_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+"'
_PIECE = re.compile(
    rf"(?P<string>{_STRING})|(?P<end>;|[.!?](?=\s|$))|(?P<after>\b(?:after|following|follows?|preceded by)\b)"
    r"|(?P<context>\b(?:in texts? with|near)\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    "a about activates active all also an and any are as at be before but by can each especially feature fires for"
    " from has have how in into is it its like mentions may mostly not of often on one or other particularly"
    " phrases references related such text texts that the their them these they this those to token tokens used"
    " various when where which while with word words".split()
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
    clauses = tuple(Clause(**{kind: tuple(names) for kind, names in clause.items()}) for clause in found if clause)
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
        fitting = {n for p in clause.tokens for first, last in _spans(p, texts) for n in range(first, last + 1)}
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
    left, right = (r"(?<!\w)" if stripped[0] == words[0][0] else ""), (r"(?!\w)" if stripped[-1] == words[-1][-1] else "")
    return re.compile(left + r"\s+".join(map(re.escape, stripped.split())) + right, re.IGNORECASE)


# --- writing an explanation ----------------------------------------------------------------------------

Fits = NDArray[np.bool_]
"""[clauses, windows, tokens]: which tokens a clause fits."""

FIRING: Final = 0.3
"""Share of a window's maximum above which a token counts as firing."""

LEAST_Z: Final[dict[Kind, float]] = {"tokens": 2.0, "pair": 2.0, "after": 2.0, "context": 3.0}
MOST: Final[dict[Kind, int]] = {"tokens": 8, "pair": 4, "after": 4, "context": 4}
PRIOR: Final = 10.0
LEAST_GAIN: Final = 0.06
N_CANDIDATES: Final = 60
LEAST_WINDOWS: Final[dict[Kind, int]] = {"tokens": 2, "pair": 2, "after": 2, "context": 3}


def explain_lexically(shown: Shown) -> tuple[str, str]:
    """What sets the active windows apart from the silent ones: a sentence, and a label of at most six words.

    Candidates are tokens that fire, tokens before those, both together, and words of active windows, all with a
    z-score that is high enough. Of them those are taken, one after another, that most raise the balanced accuracy
    `matches` would have on the same windows.
    """
    clauses = _merged(_cover(shown, _candidates(shown)) or _most_frequent(shown.active))
    phrases = [f"{_phrase(clause)} ({_share(clause, shown.active):.0%} of its firings)" for clause in clauses]
    text = "; ".join(phrases)
    return text[0].upper() + text[1:] + ".", _label(clauses[0])


def log_odds_z(count: int, total: int, other: int, other_total: int) -> float:
    """z-score of the log-odds ratio of a pattern seen `count` of `total` times here, `other` of `other_total`
    times there, under a Dirichlet prior of PRIOR pseudo-counts that are spread as the patterns are overall.

    Monroe, Colaresi and Quinn 2008, "Fightin' Words", Political Analysis 16, equations 15, 19 and 21.
    """
    pseudo = PRIOR * (count + other) / (total + other_total)
    here, there = count + pseudo, other + pseudo
    odds_here, odds_there = here / (total + PRIOR - here), there / (other_total + PRIOR - there)
    return math.log(odds_here / odds_there) / math.sqrt(1 / here + 1 / there)


def _firing(window: Window) -> list[int]:
    floor = FIRING * window.maximum
    return [n for n, activation in enumerate(window.activations) if activation > floor]


def _candidates(shown: Shown) -> list[Clause]:
    """Clauses of a single pattern that go with firing, the highest z first."""
    found = _around_firings(shown) + _in_windows(shown)
    found.sort(key=lambda one: (-one[0], repr(one[1])))
    return [clause for z, clause in found if z >= LEAST_Z[clause.kind]][:N_CANDIDATES]


def _around_firings(shown: Shown) -> list[tuple[float, Clause]]:
    """z of the patterns at firing tokens, against all other tokens of all windows."""
    here, there, n_windows = Counter[Clause](), Counter[Clause](), Counter[Clause]()
    total = other_total = 0
    for window in shown.active + shown.silent:
        firing = set(_firing(window))
        fired: set[Clause] = set()
        for n in range(len(window.texts)):
            patterns = _patterns_at(window.texts, n)
            if n in firing:
                here.update(patterns)
                fired.update(patterns)
            else:
                there.update(patterns)
        n_windows.update(fired)
        total, other_total = total + len(firing), other_total + len(window.texts) - len(firing)
    return [
        (log_odds_z(count, total, there[clause], other_total), clause)
        for clause, count in here.items()
        if n_windows[clause] >= LEAST_WINDOWS[clause.kind]
    ]


def _patterns_at(texts: tuple[str, ...], n: int) -> list[Clause]:
    """The token at n, its word in any case, the token before it, and both together."""
    text, before = texts[n], texts[n - 1] if n else ""
    if not text:
        return []
    patterns = [Clause(tokens=(text,))]
    word = text.strip().lower()
    if word != text and word.isalnum():
        patterns.append(Clause(tokens=(word,)))
    if before:
        patterns += [Clause(after=(before,)), Clause(tokens=(text,), after=(before,))]
    return patterns


def _in_windows(shown: Shown) -> list[tuple[float, Clause]]:
    """z of words and pairs of words: in how many active windows, in how many silent ones."""
    here, there = (
        Counter(words for window in windows for words in _words_in(window.text))
        for windows in (shown.active, shown.silent)
    )
    return [
        (log_odds_z(count, len(shown.active), there[words], len(shown.silent)), Clause(context=(words,)))
        for words, count in here.items()
        if count >= LEAST_WINDOWS["context"] and count + there[words] < len(shown.active) + len(shown.silent)
    ]


def _words_in(text: str) -> set[str]:
    words = [match for match in _WORD.finditer(text.lower()) if match[0] not in _STOP_WORDS]
    pairs = (
        (left, right) for left, right in pairwise(_WORD.finditer(text.lower())) if right.start() - left.end() == 1
    )
    return {match[0] for match in words} | {f"{left[0]}{left.string[left.end()]}{right[0]}" for left, right in pairs}


def _cover(shown: Shown, candidates: Sequence[Clause]) -> list[Clause]:
    """A few candidates, any of which may fit, that tell the shown windows apart as well as a greedy choice can.

    What is raised is the sum of four rates: windows that hold a fitting token (detection) and windows with a fitting
    token among the marked ones (fuzzing), active ones less silent ones. On a silent window as many marks as on
    the mean active one are thought of, anywhere.
    """
    active, silent = _fitting(candidates, shown.active), _fitting(candidates, shown.silent)
    firing = np.zeros(active.shape[1:], np.bool_)
    for n, window in enumerate(shown.active):
        firing[n, _firing(window)] = True
    n_marks = firing.sum(1).mean()
    n_tokens = np.array([len(window.texts) for window in shown.silent])

    def rates(active: Fits, silent: Fits) -> NDArray[np.float64]:
        right = active.any(2).mean(1) + (active & firing).any(2).mean(1)
        if not shown.silent:
            return right
        by_chance = 1 - (1 - silent.sum(2) / n_tokens) ** n_marks
        return right - silent.any(2).mean(1) - by_chance.mean(1)

    chosen: list[Clause] = []
    room = dict(MOST)
    so_far, covered, wrongly = 0.0, np.zeros_like(active[:1]), np.zeros_like(silent[:1])
    while candidates:
        gains = rates(active | covered, silent | wrongly) - so_far
        gains[[clause in chosen or not room[clause.kind] for clause in candidates]] = -np.inf
        best = int(gains.argmax())
        if gains[best] < LEAST_GAIN:
            break
        so_far += gains[best]
        covered, wrongly = covered | active[best], wrongly | silent[best]
        chosen.append(candidates[best])
        room[candidates[best].kind] -= 1
    return chosen


def _fitting(clauses: Sequence[Clause], windows: Sequence[Window]) -> Fits:
    fits = np.zeros((len(clauses), len(windows), max((len(w.texts) for w in windows), default=0)), np.bool_)
    for n, clause in enumerate(clauses):
        for k, window in enumerate(windows):
            fits[n, k, list(_positions(clause, window.texts))] = True
    return fits


def _most_frequent(active: Sequence[Window]) -> list[Clause]:
    """The three most frequent firing tokens: what is said where nothing sets them apart."""
    tokens = Counter(window.texts[n] for window in active for n in _firing(window) if window.texts[n])
    return [Clause(tokens=(text,)) for text, _ in sorted(tokens.items(), key=lambda one: (-one[1], one[0]))[:3]]


def _merged(clauses: Sequence[Clause]) -> list[Clause]:
    """One clause a kind, and one a predecessor for pairs: what fits stays the same, in fewer words."""
    merged: dict[tuple[Kind, tuple[str, ...]], Clause] = {}
    for new in clauses:
        key = (new.kind, new.after if new.kind == "pair" else ())
        old = merged.get(key, Clause())
        after = new.after if new.kind == "pair" else old.after + new.after
        merged[key] = Clause(old.tokens + new.tokens, after, old.context + new.context)
    return list(merged.values())


def _phrase(clause: Clause) -> str:
    """In the words that `read` understands."""
    several = "s" if len(clause.tokens) > 1 else ""
    phrase = f"the token{several} {_quoted(clause.tokens)}" if clause.tokens else "any token"
    phrase += f" after {_quoted(clause.after)}" if clause.after else ""
    return phrase + (f" in text with {_quoted(clause.context)}" if clause.context else "")


def _share(clause: Clause, active: Sequence[Window]) -> float:
    """Share of firing tokens that a clause fits."""
    fits = [n in fitting for w in active for fitting in [_positions(clause, w.texts)] for n in _firing(w)]
    return sum(fits) / len(fits)


def _label(clause: Clause) -> str:
    """At most six words, however many words a pattern has."""
    lead, patterns = {
        "tokens": ("", clause.tokens),
        "after": ("after ", clause.after),
        "pair": ("", clause.tokens),
        "context": ("text with ", clause.context),
    }[clause.kind]
    label = lead + quote(patterns[0].strip() or patterns[0])
    for pattern in patterns[1:3]:
        longer = f"{label}, {quote(pattern.strip() or pattern)}"
        label = longer if len(longer.split()) <= 6 else label
    return label


def _quoted(patterns: Sequence[str]) -> str:
    return ", ".join(map(quote, patterns))


def quote(text: str) -> str:
    """`text` as a JSON string on one line, in which only what can't be seen is escaped."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in written)
