"""What detection and fuzzing put to the judge: all questions at once, or in blocks until a test has decided.

    positives, negatives   each in a keyed order in which any beginning holds its deciles equally often, give or
                           take one
    block                  half of it the next positives, half the next negatives: of two tests the one with larger
                           blocks asks what the other asks, and more

Blocks follow one another, so a feature takes as long as its looks; features of the panel, which are asked
everything, get all blocks at once. Windows chosen to be hard are in no look, and only the panel is asked about them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from autointerp.asking import Asking
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import View
from autointerp.scorers import question
from autointerp.sequential import Sequential, is_in_panel
from autointerp.trials import InBlocks, Trials
from autointerp.types import Json

ADDED: Final[Json] = {"sequential": None}
"""Options that scorers of earlier versions had not, at what makes them do the same."""
DEFAULT_K: Final = 20
"""Windows a prompt where nobody knows better: a block."""


@dataclass(frozen=True, slots=True)
class Question:
    """Is a yes right of this view?"""

    window: int
    """Index into the held-out windows, the active ones first."""
    view: View
    is_right: bool
    purpose: str
    """Keys the shuffle. Questions of two purposes never share a prompt."""
    look: int | None = None
    """At which look of a sequential test it is new; None: at none."""


@dataclass(frozen=True, slots=True)
class Judging:
    """How they are put: the settings of a scorer, and the explanation."""

    explanation: str
    template: str
    packing: question.Packing
    asking: Asking

    async def ask(self, questions: Sequence[Question], part: str = "") -> list[_Answered]:
        """Their answers, in some order; prompts run concurrently. `part` tells apart the shuffles of blocks."""
        purposes = dict.fromkeys(one.purpose for one in questions)
        groups = [[one for one in questions if one.purpose == purpose] for purpose in purposes]
        said = await question.all_of(
            [
                question.ask(
                    [one.view for one in group],
                    self.explanation,
                    self.template,
                    self.asking,
                    packing=self.packing,
                    purpose=purpose + part,
                )
                for purpose, group in zip(purposes, groups, strict=True)
            ]
        )
        return [
            _Answered(one, answer, probability)
            for group, its in zip(groups, said, strict=True)
            for one, answer, probability in zip(group, its.answers, its.probabilities, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Answered:
    question: Question
    answer: bool | None
    probability: float | None


async def judged(judging: Judging, questions: Sequence[Question], rule: Sequential | None) -> Trials:
    """A trial a question that was asked, those first of which yes is right; each in the order of the windows.

    Raises the LLM's own errors.
    """
    if rule is None:
        return _trials(await judging.ask(questions))
    in_panel = is_in_panel(rule, judging.asking.seed, judging.asking.feature)
    beside, *blocks = in_blocks(questions, rule, judging.asking)
    if in_panel:
        parts = [(block, f", block {n}") for n, block in enumerate(blocks)] + [(beside, "")]
        said = await question.all_of([judging.ask(*part) for part in parts])
        return _in_blocks([one for part in said for one in part], rule, in_panel=True)
    answered: list[_Answered] = []
    for number, block in enumerate(blocks):
        answered += await judging.ask(block, f", block {number}")
        if rule.has_decided(_in_blocks(answered, rule, in_panel=False).looks()[-1]):
            break
    return _in_blocks(answered, rule, in_panel=False)


def in_blocks(questions: Sequence[Question], rule: Sequential, asking: Asking) -> list[list[Question]]:
    """Those in no look, then those that are new at each look; looks for which nothing is left are left out."""
    is_headline = [one.is_right or one.view.window.stratum in HEADLINE_STRATA for one in questions]
    beside = [one for one, counts in zip(questions, is_headline, strict=True) if not counts]
    blocks: list[list[Question]] = [[] for _ in rule.blocks]
    for right in (True, False):
        of_truth = [
            one
            for one, counts in zip(questions, is_headline, strict=True)
            if counts and one.is_right is right
        ]
        ordered = _balanced(of_truth, asking)
        begin = 0
        for look, n in enumerate(rule.blocks):
            new, begin = ordered[begin : n // 2], n // 2
            blocks[look] += [dataclasses.replace(one, look=look) for one in new]
        beside += ordered[begin:]
    return [beside, *(block for block in blocks if block)]


def _balanced(questions: list[Question], asking: Asking) -> list[Question]:
    """Deciles in turn; which of a decile comes first is drawn, and which decile in each turn."""
    drawn = [questions[n] for n in asking.order(len(questions), "blocks")]
    n_before: Counter[int | None] = Counter()
    turns: list[int] = []
    for one in drawn:
        turns.append(n_before[one.view.window.band])
        n_before[one.view.window.band] += 1
    return [drawn[n] for n in sorted(range(len(drawn)), key=turns.__getitem__)]


def _in_blocks(said: Sequence[_Answered], rule: Sequential, *, in_panel: bool) -> InBlocks:
    trials = _trials(said)
    columns = {field.name: getattr(trials, field.name) for field in dataclasses.fields(Trials)}
    return InBlocks(
        **columns, look=[one.question.look for one in _sorted(said)], rule=rule, in_panel=in_panel
    )


def _sorted(said: Sequence[_Answered]) -> list[_Answered]:
    return sorted(said, key=lambda one: (not one.question.is_right, one.question.window))


def _trials(said: Sequence[_Answered]) -> Trials:
    said = _sorted(said)
    return question.trials(
        [one.question.window for one in said],
        [one.question.view for one in said],
        [one.question.is_right for one in said],
        question.Said([one.answer for one in said], [one.probability for one in said]),
    )


def packing_of(packing: question.Packing, rule: Sequential | None) -> question.Packing:
    """Where it is left open, a block is one prompt: fewer beginnings are paid, and fewer answers awaited."""
    return packing if rule is None or packing != "auto" else DEFAULT_K
