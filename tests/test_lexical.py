"""What the lexical backend promises: it finds what is planted, and judges by what stands in quotes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp import plugins
from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest
from autointerp.explainers.two_lines import read_reply
from autointerp.llm.clauses import Clause, matches, quoted, read
from autointerp.llm.lexical import Lexical, LexicalLLM
from autointerp.llm.lexical_explaining import explain_lexically, log_odds_z
from autointerp.llm.protocol import LLMIdentity
from autointerp.prompting import Prompt, View, load_template
from autointerp.scorers.detection import Detection
from autointerp.scorers.fuzzing import Fuzzing
from autointerp.scorers.protocol import Scorer
from autointerp.splits import Heldout, Shown
from autointerp.trials import Trials
from autointerp.types import Window

quick = settings(max_examples=100, derandomize=True, database=None)


def make_window(texts: Sequence[str], firing: dict[int, float] | None = None) -> Window:
    firing = firing or {}
    return Window(
        document="0123456789abcdef",
        position=0,
        token_ids=tuple(range(len(texts))),
        texts=tuple(texts),
        activations=tuple(firing.get(n, 0.0) for n in range(len(texts))),
        band=0 if firing else None,
        stratum=None if firing else "random",
    )


def fits(explanation: str, texts: Sequence[str], *marks: int) -> bool:
    return matches(explanation, View(make_window(texts), marks))


# --- reading an explanation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explanation", "clauses"),
    [
        ('The token " import".', [Clause(tokens=(" import",))]),
        (
            'The tokens "a", "b" (81% of its firings); any token after "(" (9% of its firings).',
            [Clause(tokens=("a", "b")), Clause(after=("(",))],
        ),
        ('"self" following "(" in text with "class".', [Clause(("self",), ("(",), ("class",))]),
        ('Brackets such as "(" after "print". Also "[".', [Clause(("(",), ("print",)), Clause(("[",))]),
        (r'The tokens "\"; after", "\\\n", "\u00e9".', [Clause(tokens=('"; after', "\\\n", "é"))]),
        ('A line break, "⏎".', [Clause(tokens=("\n",))]),
        ('"" and " alone', [Clause(tokens=("alone",))]),
        ("Mentions of the Rivers, and their banks.", [Clause(tokens=("rivers", "banks"))]),
        ("The token of a.", []),
        ("", []),
    ],
)
def test_an_explanation_is_read_as_clauses(explanation: str, clauses: list[Clause]) -> None:
    """Quoted patterns by the words before them; content words where nothing is quoted."""
    assert list(read(explanation)) == clauses


@given(st.lists(st.text(min_size=1).filter(lambda text: "⏎" not in text), min_size=1, max_size=4))
@quick
def test_any_token_can_be_quoted(patterns: list[str]) -> None:
    """Quotes, backslashes, line breaks and characters of every script come back as they were, on one line."""
    texts = ["x", *patterns, "y"]
    explanation = f"The tokens {quoted(patterns)}; any token after {quoted(patterns[:1])}."
    assert read(explanation) == (Clause(tokens=tuple(patterns)), Clause(after=(patterns[0],)))
    assert len(explanation.splitlines()) == 1
    assert fits(f"The token {quoted(patterns[-1:])}.", texts)
    assert fits(f"The token {quoted(patterns[-1:])}.", texts, len(patterns))


@pytest.mark.parametrize(
    ("explanation", "texts", "is_in"),
    [
        ('"bank"', ["the", "bank"], True),
        ('"bank"', ["the", " Bank", "."], True),
        ('"bank"', ["em", "bank", "ment"], True),
        ('"bank"', ["em", "ban", "kment"], False),
        ('" Bank"', ["the", " ban", "k", "\n"], True),
        ('"import os"', ["import", " ", " os", ","], True),
        ('"("', ["f", "(", ")"], True),
        ('"("', ["f", "()", ")"], False),
        ('any token after "("', ["f", "(", ")"], True),
        ('any token after "("', ["f", "("], False),
        ('"x" after "("', ["x", "(", "y"], False),
        ('"x" after "("', ["x", "(", "x"], True),
        ('any token in text with "sea"', ["The", " Sea", " again"], True),
        ('any token in text with "sea"', ["The", " search"], False),
        ('"x" in text with "sea"', ["The", " sea"], False),
        ("Rivers and seas", ["two", " rivers"], True),
        ("Rivers and seas", ["two", " river", "beds"], False),
        ("The of a.", ["The", " of", " a"], False),
    ],
)
def test_which_windows_an_explanation_fits(explanation: str, texts: list[str], is_in: bool) -> None:
    """A pattern is a token where the window has it, else whole words in any case."""
    assert fits(explanation, texts) is is_in


def test_with_marks_a_marked_token_must_fit() -> None:
    """One of them; a mark inside a character counts for the token that begins it."""
    texts = ["The", " river", " bank", " 🙂", "", "."]
    assert fits('"bank"', texts, 2) and fits('"bank"', texts, 1, 2)
    assert not fits('"bank"', texts, 1) and not fits('"bank"', texts, 0, 3)
    assert fits('any token after "river"', texts, 2) and not fits('any token after "river"', texts, 1)
    assert fits('" 🙂"', texts, 4)


# --- finding what is planted ---------------------------------------------------------------------------

Rule = Callable[[list[str], random.Random], list[int]]
"""Plants something in a window, in place, and says where the feature fires."""
WORDS = [f" {a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("l", "nt", "rk", "st")]
COMMON = [".", ",", "(", "\n"]
TOPIC = (" reef", " tide", " coral", " kelp")


def plant(pieces: Sequence[str], fires_at: int) -> Rule:
    def rule(texts: list[str], rng: random.Random) -> list[int]:
        at = rng.randrange(4, len(texts) - 4)
        texts[at : at + len(pieces)] = pieces
        return [at + fires_at]

    return rule


def either(*rules: Rule) -> Rule:
    return lambda texts, rng: rng.choice(rules)(texts, rng)


def behind_an_at_sign(texts: list[str], rng: random.Random) -> list[int]:
    at = rng.randrange(4, len(texts) - 4)
    texts[at] = "@"
    return [at + 1]


def in_a_topic(texts: list[str], rng: random.Random) -> list[int]:
    for word in rng.sample(TOPIC, 2):
        texts[rng.randrange(0, 10)] = word
    return rng.sample(range(10, len(texts)), 3)


def anywhere(texts: list[str], rng: random.Random) -> list[int]:
    return rng.sample(range(len(texts)), rng.randint(1, 3))


def planted(rule: Rule, n: int, seed: int) -> tuple[Shown, Heldout]:
    rng = random.Random(seed)
    frequency = [1 / (k + 3) for k in range(len(WORDS))] + [0.15] * len(COMMON)

    def draw(active: bool) -> Window:
        texts = rng.choices(WORDS + COMMON, frequency, k=32)
        firing = rule(texts, rng) if active else []
        return make_window(texts, {at: rng.uniform(0.5, 1.0) for at in firing})

    sets = [tuple(draw(active) for _ in range(n)) for active in (True, False, True, False)]
    return Shown(*sets[:2]), Heldout(*sets[2:])


def balanced_accuracy(scorer: Scorer, explanation: str, heldout: Heldout) -> float:
    trials: Trials = asyncio.run(scorer.judge(explanation, heldout, Asking(LexicalLLM(), "layers.0/1")))
    right = Counter(
        (truth, truth == answer) for truth, answer in zip(trials.truth, trials.answer, strict=True)
    )
    return sum(right[truth, True] / trials.truth.count(truth) for truth in (True, False)) / 2


@pytest.mark.parametrize(
    ("rule", "clauses"),
    [
        (plant([" zebra"], 0), [Clause(tokens=(" zebra",))]),
        (plant(['"; after "'], 0), [Clause(tokens=('"; after "',))]),
        (plant(["\\\n\t"], 0), [Clause(tokens=("\\\n\t",))]),
        (either(*(plant([text], 0) for text in (" über", " Über", " ÜBER"))), [Clause(tokens=("über",))]),
        (either(*(plant([text], 0) for text in (" one", "zwei", "三"))), None),
        (behind_an_at_sign, [Clause(after=("@",))]),
        (plant([" os", "."], 1), [Clause(tokens=(".",), after=(" os",))]),
        (in_a_topic, None),
    ],
    ids=["token", "quotes", "whitespace", "any case", "three tokens", "context", "pair", "topic"],
)
def test_what_is_planted_is_named_and_found_again(rule: Rule, clauses: list[Clause] | None) -> None:
    """The explanation of 40 + 40 windows says just what was planted, and tells apart 50 + 50 others."""
    shown, _ = planted(rule, 40, seed=1)
    _, heldout = planted(rule, 50, seed=2)
    text, label = explain_lexically(shown)
    if clauses is not None:
        assert list(read(text)) == clauses
    assert balanced_accuracy(Detection(), text, heldout) > 0.85
    assert balanced_accuracy(Fuzzing(), text, heldout) > 0.85
    assert len(label.split()) <= 6


def test_all_of_several_tokens_are_named() -> None:
    """Each adds windows that the others don't have."""
    shown, _ = planted(either(*(plant([text], 0) for text in (" one", "zwei", "三"))), 40, seed=1)
    text, label = explain_lexically(shown)
    assert {name for clause in read(text) for name in clause.tokens} == {" one", "zwei", "三"}
    assert text.startswith("The tokens ") and "(100% of its firings)" in text
    assert sorted(label.replace('"', "").split(", ")) == ["one", "zwei", "三"]


def test_a_topic_is_named_by_its_words() -> None:
    shown, _ = planted(in_a_topic, 40, seed=1)
    (clause,) = read(explain_lexically(shown)[0])
    assert not clause.tokens and set(clause.context) <= {word.strip() for word in TOPIC}
    assert len(clause.context) >= 3


def test_random_windows_score_a_half() -> None:
    """Windows that differ in nothing are told apart by chance: 40 features of 20 + 20 trials, whose mean has
    a standard deviation of at most sqrt(2 * 0.25 / 20) / 2 / sqrt(40) = 0.0125; 4 are allowed."""
    sums = [0.0, 0.0]
    for seed in range(40):
        shown, heldout = planted(anywhere, 20, seed)
        text, _ = explain_lexically(shown)
        for n, scorer in enumerate((Detection(), Fuzzing())):
            sums[n] += balanced_accuracy(scorer, text, heldout) / 40
    assert abs(sums[0] - 0.5) < 0.05 and abs(sums[1] - 0.5) < 0.05


tokens = st.text(alphabet='ab "\\\n;.é三🙂\u2028\u200b@(', max_size=3)
windows = st.lists(tokens, min_size=1, max_size=8)


@given(
    st.lists(windows, min_size=1, max_size=6),
    st.lists(windows, max_size=4),
    st.randoms(use_true_random=False),
)
@quick
def test_something_is_always_said(
    active: list[list[str]], silent: list[list[str]], rng: random.Random
) -> None:
    """One sentence on one line, in quotes unless no firing token has any text; the same each time."""
    fired = [make_window(texts, {rng.randrange(len(texts)): 1.0}) for texts in active]
    shown = Shown(tuple(fired), tuple(map(make_window, silent)))
    text, label = explain_lexically(shown)
    assert (text, label) == explain_lexically(shown)
    assert len(text.splitlines()) == len(label.splitlines()) == 1
    assert 1 <= len(label.split()) <= 6
    assert '"' in text or text == "Any token (100% of its firings)."


def test_log_odds_by_hand() -> None:
    """3 of 10 against 1 of 30: 0.4 pseudo-counts here and there, odds 3.4 / 10.6 and 1.4 / 32.6."""
    assert log_odds_z(3, 10, 1, 30) == pytest.approx(2.0024, abs=1e-4)
    assert log_odds_z(1, 30, 3, 10) == pytest.approx(-2.0024, abs=1e-4)
    assert log_odds_z(5, 10, 10, 20) == pytest.approx(0.0)
    assert log_odds_z(10, 10, 20, 20) == 0.0


# --- as a backend --------------------------------------------------------------------------------------


def reply_to(name: str, **variables: object) -> str:
    llm = Lexical().connect()
    return asyncio.run(llm.generate(Prompt(load_template(name), variables), max_tokens=10)).text


def test_it_answers_in_the_format_of_an_llm() -> None:
    """From the prompt's variables: the prompt itself is never rendered."""
    shown, heldout = planted(plant([" zebra"], 0), 10, seed=1)
    text, label = explain_lexically(shown)
    assert read_reply(reply_to("explain/plain", shown=shown)) is not None
    assert reply_to("explain/plain", shown=shown) == f"EXPLANATION: {text}\nLABEL: {label}"
    views = [View(heldout.silent[0]), View(heldout.active[0])]
    assert reply_to("score/detection", explanation=text, views=views) == "1: no\n2: yes"
    assert reply_to("score/detection", explanation=text, views=[]) == ""


def test_what_it_is() -> None:
    """Free, so never journalled; named with its version; any number of windows at once."""
    assert plugins.find("llm", "lexical") is Lexical and "clauses" not in plugins.names("llm")
    assert Lexical().identity() == Lexical().connect().identity == LLMIdentity("lexical", Lexical.version)
    assert not Lexical.paid
    can = Lexical().connect().capabilities
    assert can.all_windows_at_once and not can.logprobs and not can.embed


def test_what_it_can_not_do_is_a_bad_request() -> None:
    llm = Lexical().connect()
    with pytest.raises(LLMBadRequest, match="prompt 'explain/plain'"):
        reply_to("explain/plain", windows=[])
    with pytest.raises(LLMBadRequest):
        asyncio.run(llm.logprobs(Prompt(load_template("explain/plain"), {}), "yes"))
    with pytest.raises(LLMBadRequest):
        asyncio.run(llm.embed(["yes"]))
    asyncio.run(llm.close())
