"""What `show` prints of a feature's trials, kind by kind: what was asked, what is true, what was answered."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import random
import re

from asked import asking, heldout_of, views_in
from rich.console import Console

from autointerp import trials as trial_records
from autointerp.metrics import measure
from autointerp.prompting import Prompt, marked
from autointerp.report.trials import Beside, print_trials
from autointerp.scorers.intruder import Intruder
from autointerp.scorers.similar import ranked
from autointerp.splits import Heldout
from autointerp.trials import AnyTrials, Choices
from autointerp.types import Json


def with_documents(heldout: Heldout) -> Heldout:
    def named(windows: tuple, first: int) -> tuple:  # type: ignore[type-arg]  # of windows
        return tuple(window._replace(document=f"{first + n:016x}"[::-1]) for n, window in enumerate(windows))

    return Heldout(named(heldout.active, 0), named(heldout.silent, 1000))


HELDOUT = with_documents(heldout_of(10, 6, random.Random(3)))


def record_of(trials: AnyTrials) -> Json:
    return {
        "explainer": "plain", "scorer": "it", "status": "ok", "reason": None,
        "metrics": dataclasses.asdict(measure(trials)), "trials": trial_records.record(trials),
    }  # fmt: skip


def printed(trials: AnyTrials, scorer: object = None) -> str:
    to = asking(lambda prompt, index: "")
    console = Console(file=io.StringIO(), width=400)
    print_trials(console, record_of(trials), Beside(HELDOUT, 1.0, scorer, to))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def picked(scorer: Intruder) -> Choices:
    """By a judge who knows the intruder, but for the first prompt it can't read and the second it gets wrong."""
    seen: list[Prompt] = []

    def answer(prompt: Prompt, index: int) -> str:
        if index == 0:
            seen.append(prompt)
        first = seen.index(prompt) if index == 0 else 0
        if first == 0:
            return "no idea"
        (place,) = (n for n, view in enumerate(views_in(prompt)) if view.window.band is None)
        return str(place + 1 if first > 1 else (place + 1) % 5 + 1)

    return asyncio.run(scorer.judge("", HELDOUT, asking(answer)))


def test_a_line_up_is_seen_with_the_truth_and_the_answer() -> None:
    scorer = Intruder(per_band=4)
    trials = picked(scorer)
    text = printed(trials, scorer)
    assert len(trials) == 4 and trials.chosen[0] is None and trials.chosen[1] not in (0, None)
    heads = re.findall(r"^(right|WRONG|unreadable) +line-up (\d), band 0(.*)$", text, re.MULTILINE)
    assert [head[0] for head in heads] == ["unreadable", "WRONG", "right", "right"]
    assert heads[0][2] == "" and heads[2][2] == ": picked 1, the intruder is 1"
    assert heads[1][2] == f": picked {(trials.chosen[1] or 0) + 1}, the intruder is 1"
    # Every window of every line-up stands there as the judge saw it, the intruder first.
    lineups = scorer.lineups(HELDOUT, asking(lambda prompt, index: ""))
    shown = [line for line in text.splitlines() if "judge saw" in line]
    views = [view for lineup in lineups for view in lineup.views]
    assert len(shown) == len(views) == 20
    for line, view in zip(shown, views, strict=True):
        assert line.endswith(marked(view.window.texts, view.marks))
        assert ("intruder" in line) == (view.window.band is None)
    assert sum("picked" in line for line in shown) == 3


def test_a_line_up_that_cannot_be_drawn_again_is_told_without_its_windows() -> None:
    """Of another number of line-ups a band than now, or without the scorer."""
    trials = picked(Intruder(per_band=4))
    for scorer in (None, Intruder(per_band=1)):
        text = printed(trials, scorer)
        assert len(re.findall("line-up", text)) == 4
        assert text.count("judge saw") in (0, 5)


def test_ranked_windows_stand_in_the_order_of_their_likeness() -> None:
    values = [0.9, 0.2, *[0.5] * 8, 0.7, *[0.1] * 5]
    text = printed(ranked(HELDOUT, values))
    lines = [line for line in text.splitlines() if line.startswith("likeness")]
    assert len(lines) == 16
    assert [line.split()[1] for line in lines[:2]] == ["0.900", "0.700"]
    assert "truth yes" in lines[0] and "truth no" in lines[1] and "silent" in lines[1]
    assert [float(line.split()[1]) for line in lines] == sorted(values, reverse=True)
