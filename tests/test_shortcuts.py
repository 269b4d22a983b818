"""A judge that takes a short cut gets chance: no verdict that goes by anything but what a window says, and where
its marks are, is worth more than half.

Each shortcut is tried on many features. Where right and wrong windows are the same by construction (marks are
another window's marks) it gets exactly half; else half within its interval.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from asked import asking, heldout_of, judge, judged, views_in
from made_up import C, Made, make

from autointerp.llm.scripted import Answer
from autointerp.prompting import Prompt, View
from autointerp.sampling.sample import Sampled
from autointerp.sampling.settings import SamplingSettings, WindowKind
from autointerp.sampling.text import SPLITS
from autointerp.scorers.detection import Detection
from autointerp.scorers.fuzzing import Fuzzing
from autointerp.scorers.protocol import Scorer
from autointerp.splits import Heldout
from autointerp.types import Window

LENGTHS = (8, 16, 24, 32, 32, 32)
SCORERS: dict[str, Scorer] = {
    "detection": Detection(),
    "detection, one window a prompt": Detection(packing="one"),
    "detection, all windows in a prompt": Detection(packing="all"),
    "fuzzing on silent windows": Fuzzing("silent"),
    "fuzzing on active windows": Fuzzing("active"),
    "fuzzing on active windows, all in a prompt": Fuzzing("active", packing="all"),
}
FUZZING = [name for name in SCORERS if name.startswith("fuzzing")]


@cache
def features(lengths: tuple[int, ...], n: int) -> list[Heldout]:
    """Of 20 active and 20 silent windows of these lengths, in that ratio among both."""
    rng = random.Random(7)
    return [heldout_of(20, 20, rng, lengths) for _ in range(n)]


def balanced_accuracies(scorer: Scorer, answer: Answer, heldouts: Sequence[Heldout]) -> list[float]:
    values: list[float] = []
    for index, heldout in enumerate(heldouts):
        trials = judged(scorer, heldout, asking(answer, f"layers.0/{index}"))
        right = Counter(
            (truth, truth == answer) for truth, answer in zip(trials.truth, trials.answer, strict=True)
        )
        rates = [right[truth, True] / trials.truth.count(truth) for truth in (True, False)]
        values.append(sum(rates) / 2)
    return values


def is_chance(values: Sequence[float]) -> bool:
    """Whether 0.5 lies within 3.3 standard errors of their mean: a test in a thousand fails by chance, and
    the draws are keyed, so one that passes passes for ever."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return abs(float(np.mean(values)) - 0.5) <= 3.3 * error + 1e-12


def by_place(says: Callable[[int, int], bool]) -> Answer:
    """Answers by number of the window in the prompt and number of windows."""

    def answer(prompt: Prompt, index: int) -> str:
        views = views_in(prompt)
        place = {id(view): says(k, len(views)) for k, view in enumerate(views, 1)}
        return judge(lambda view: place[id(view)])(prompt, index)

    return answer


# --- exactly half ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("verdict", [True, False])
def test_always_the_same_answer_is_worth_exactly_half(name: str, verdict: bool) -> None:
    assert set(balanced_accuracies(SCORERS[name], judge(lambda view: verdict), features((32,), 3))) == {0.5}


BY_MARKS: dict[str, Callable[[View], bool]] = {
    "number": lambda view: len(view.marks) > 2,
    "first": lambda view: view.marks[0] > 16,
    "parity": lambda view: view.marks[-1] % 2 == 0,
    "mean": lambda view: sum(view.marks) / len(view.marks) > 20,
    "spread": lambda view: view.marks[-1] - view.marks[0] > 1,
    "a fixed place": lambda view: 24 in view.marks,
}


@pytest.mark.parametrize("name", FUZZING)
@pytest.mark.parametrize("marks", BY_MARKS)
def test_a_judge_who_looks_at_the_marks_alone_gets_exactly_half(name: str, marks: str) -> None:
    """Any function of the pattern does: both kinds of window have the same patterns."""
    values = balanced_accuracies(SCORERS[name], judge(BY_MARKS[marks]), features((32,), 3))
    assert values == pytest.approx([0.5] * 3)


def test_a_judge_who_looks_at_the_text_alone_gets_exactly_half_from_active_windows() -> None:
    """Each window is asked about as often with right marks as with wrong ones: the topic tells nothing."""
    active = {id(window) for heldout in features((32,), 3) for window in heldout.active}
    knows_the_topic = judge(lambda view: id(view.window) in active and view.window.texts[0] == " a")
    assert balanced_accuracies(Fuzzing("active"), knows_the_topic, features((32,), 3)) == [0.5] * 3
    on_silent = balanced_accuracies(
        Fuzzing("silent"), judge(lambda v: id(v.window) in active), features((32,), 3)
    )
    assert on_silent == [1.0] * 3  # the other variant can't say that


# --- half within its interval ------------------------------------------------------------------------------

WITHOUT_READING: dict[str, Answer] = {
    "first half of the prompt": by_place(lambda k, n: k <= n // 2),
    "every second window": by_place(lambda k, n: k % 2 == 0),
    "first window": by_place(lambda k, n: k == 1),
    "last window": by_place(lambda k, n: k == n),
    "length": judge(lambda view: len(view.window.texts) > 16),
    "near the end": judge(lambda view: bool(view.marks) and len(view.window.texts) - view.marks[-1] < 4),
    "second half": judge(lambda view: bool(view.marks) and 2 * view.marks[0] > len(view.window.texts)),
}


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("shortcut", WITHOUT_READING)
def test_place_and_length_are_worth_nothing(name: str, shortcut: str) -> None:
    """Position in the prompt, length of the window, and marks seen against that length."""
    assert is_chance(balanced_accuracies(SCORERS[name], WITHOUT_READING[shortcut], features(LENGTHS, 60)))


# --- on windows as the sampler draws them -----------------------------------------------------------------

SETTINGS = SamplingSettings(
    width=16, context_before=5, n_shown=4, n_shown_silent=4, n_select=2, n_heldout=20, n_heldout_silent=20,
    n_same_token=0, n_neighbour=0, minimum=12, minimum_full=30, minimum_documents=4, minimum_split=2,
    contrast="silent",
)  # fmt: skip
FEATURES = [n for n in range(40) if n % 3]
"""Of the made-up features those that fire each by itself."""


@cache
def sampled(kind: WindowKind) -> list[Heldout]:
    """Held-out windows of features that fire anywhere: nothing in a text tells where."""
    made = make(5, 500, dict.fromkeys(FEATURES, 0.006))
    return heldouts_of(made, made.sample(dataclasses.replace(SETTINGS, window=kind), FEATURES))


SAMPLED: dict[str, Callable[[View], bool]] = {
    "document's beginning": lambda view: view.window.position < 8,
    "document's end": lambda view: view.window.position > 60,
    "parity of the place": lambda view: view.window.position % 2 == 0,
    "length": lambda view: len(view.window.texts) < 16,
    "offset": lambda view: bool(view.marks) and view.marks[0] >= 10,
    "offset by parity": lambda view: bool(view.marks) and view.marks[0] % 2 == 0,
    "first token": lambda view: view.window.token_ids[0] % 2 == 0,
    "some token": lambda view: 7 in view.window.token_ids,
    "a token at a place": lambda view: view.window.token_ids[min(9, len(view.window.texts) - 1)] < 30,
    "offset in the row": lambda view: bool(view.marks) and (view.window.position + view.marks[0]) % 8 < 4,
}


def heldouts_of(made: Made, found: Sampled) -> list[Heldout]:
    """A window's position is that in its row; its text says nothing but which tokens it has."""
    windows, firings = found.windows, found.firings
    heldouts: list[Heldout] = []
    for group in range(len(found.samples)):
        both: tuple[list[Window], list[Window]] = ([], [])
        for n in np.flatnonzero(
            (windows.group == group) & (windows.split == SPLITS.index("heldout"))
        ).tolist():
            row, start = int(windows.places.row[n]), int(windows.places.start[n])
            ids = made.ids(row, start, int(windows.places.length[n]))
            activations = [0.0] * len(ids)
            for at in range(int(windows.low[n]), int(windows.high[n])):
                activations[int(firings.tokens[at]) - row * C - start] = float(firings.values[at])
            is_silent = bool(windows.stratum[n] >= 0)
            both[is_silent].append(
                Window(
                    f"{row:016x}",
                    start,
                    tuple(ids),
                    tuple(chr(0x4E00 + token) for token in ids),
                    tuple(activations),
                    None if is_silent else int(windows.band[n]),
                    "random" if is_silent else None,
                )
            )
        if min(map(len, both)) >= 10:
            heldouts.append(Heldout(tuple(both[0]), tuple(both[1])))
    return heldouts


@pytest.mark.parametrize("kind", ["anchored", "aligned"])
@pytest.mark.parametrize("name", SCORERS)
def test_sampled_windows_have_no_tell(name: str, kind: WindowKind) -> None:
    """Where a window lies, how long it is, which tokens stand in it and at what offset the marks are: each is the
    same for right and wrong ones, as the sampler cuts them."""
    heldouts = sampled(kind)
    assert len(heldouts) >= 24
    assert {len(window.texts) for heldout in heldouts for window in heldout.active} > {16}
    for shortcut, says in SAMPLED.items():
        values = balanced_accuracies(SCORERS[name], judge(says), heldouts)
        assert is_chance(values), (shortcut, float(np.mean(values)))


def test_the_audit_can_fail() -> None:
    """A judge who is told which windows are active is found out, and so is a lean of a few percent."""
    heldouts = sampled("anchored")
    knows = judge(lambda view: view.window.band is not None)
    assert not is_chance(balanced_accuracies(Detection(), knows, heldouts))
    leans = judge(lambda view: view.window.token_ids[0] % 10 == 0 or (view.window.band in (0, 1)))
    assert not is_chance(balanced_accuracies(Detection(), leans, heldouts))
