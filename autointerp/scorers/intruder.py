"""Intruder: which of five excerpts does not belong? (arXiv 2507.08473; EleutherAI/delphi, scorers/intruder.)

Needs no explanation: it says whether a feature's active windows have anything in common that a judge can see. Four
active windows of one decile and a silent one stand in a prompt, all with marks; the judge picks one, and chance is
0.2. Differs from delphi: the silent window is marked where a fifth active window of the decile is, so that the
number and place of marks tell nothing, and a reply that can't be read is asked for once more in another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.llm.protocol import Capabilities
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import View
from autointerp.scorers import question
from autointerp.scorers.marks import is_wrong_on, pattern_of
from autointerp.splits import Heldout
from autointerp.trials import Choices
from autointerp.types import Window

N_MEMBERS: Final = 4
MAX_TOKENS: Final = 6


@dataclass(frozen=True, slots=True)
class Intruder:
    """Shows four marked active windows and a silent one and asks which does not belong; needs no explanation."""

    per_band: int = 2
    """Times each decile is asked about, with other windows each time where it has five more."""
    threshold: float = 0.3
    """Tokens above this share of their window's maximum are marked."""
    prompt: str = "score/intruder"

    version: ClassVar[str] = "2"
    needs_llm: ClassVar[bool] = True
    needs_explanation: ClassVar[bool] = False
    judges_strata: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.per_band < 1:
            raise RecipeError(f"intruder: per_band is {self.per_band}; it must be 1 or more.")
        if not 0 <= self.threshold < 1:
            raise RecipeError(f"intruder: threshold is {self.threshold}; it must be at least 0 and below 1.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    def protocol(self, capabilities: Capabilities) -> str:
        return (
            f"intruder {self.version}: {N_MEMBERS} active windows of a decile and a silent one, {self.per_band} "
            f"times a decile, with other windows where there are any; tokens above {self.threshold:g} of their "
            "window's maximum marked, the silent one at the positions of another active one; no explanation"
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Choices:
        """One trial a line-up; `explanation` is not looked at. None without a silent window, or where no decile
        has four active ones."""
        lineups = self.lineups(heldout, asking)
        picked = await question.all_of([self._pick(one, asking) for one in lineups])
        return Choices(
            right=[0] * len(lineups),
            chosen=picked,
            n_options=[len(one.views) for one in lineups],
            band=[one.band for one in lineups],
            documents=[[view.window.document[:8] for view in one.views] for one in lineups],
        )

    def lineups(self, heldout: Heldout, asking: Asking) -> list[Lineup]:
        """What the judge is asked about, trial by trial; no LLM is asked."""
        return list(_lineups(heldout, self, asking))

    async def _pick(self, lineup: Lineup, asking: Asking) -> int | None:
        """Which of its views the judge picks; asked once more, in another order, where that can't be read."""
        n = len(lineup.views)
        numbers = [str(number) for number in range(1, n + 1)]
        for attempt in range(2):
            order = asking.order(n, "intruder", lineup.number, attempt)
            reply = await asking.llm.generate(
                asking.prompt(self.prompt, views=[lineup.views[at] for at in order]),
                max_tokens=MAX_TOKENS,
                choices=numbers,
                index=attempt,
            )
            if (place := read_number(reply.text, n)) is not None:
                return order[place]
        return None


@dataclass(frozen=True, slots=True)
class Lineup:
    """Windows of which one does not belong."""

    number: int
    band: int
    views: tuple[View, ...]
    """The intruder first; how they are shown is drawn."""


def _lineups(heldout: Heldout, scorer: Intruder, asking: Asking) -> Iterator[Lineup]:
    silent = [window for window in heldout.silent if window.stratum in HEADLINE_STRATA]
    intruders = [silent[n] for n in asking.order(len(silent), "intruders")]
    by_band: dict[int, list[Window]] = {}
    for window in heldout.active:
        if window.band is not None:
            by_band.setdefault(window.band, []).append(window)
    number = 0
    for band in sorted(by_band):
        for turn in range(scorer.per_band):
            drawn = _drawn(by_band[band], band, turn, asking)
            if len(drawn) <= N_MEMBERS:
                break  # somebody shown would have to lend its marks, and two alike would give the intruder away
            views = _views(drawn[:N_MEMBERS], drawn[N_MEMBERS], intruders, number, scorer.threshold)
            if views:
                yield Lineup(number, band, views)
                number += 1


def _drawn(windows: Sequence[Window], band: int, turn: int, asking: Asking) -> list[Window]:
    """Members and who lends its marks: other windows each time, while there are any; then any of them, in another
    order."""
    used = turn * (N_MEMBERS + 1)
    if len(windows) - used > N_MEMBERS:
        return [windows[n] for n in asking.order(len(windows), "members", band)][used:]
    return [windows[n] for n in asking.order(len(windows), "members", band, turn)]


def _views(
    members: Sequence[Window], lender: Window, intruders: Sequence[Window], number: int, threshold: float
) -> tuple[View, ...]:
    """Empty where there is no silent window that the lender's marks fit."""
    marks = pattern_of(lender, threshold).marks
    turned = (
        [*intruders[number % len(intruders) :], *intruders[: number % len(intruders)]] if intruders else []
    )
    fitting = next((window for window in turned if is_wrong_on(window, marks)), None)
    if fitting is None:
        return ()
    return (View(fitting, marks), *(View(one, pattern_of(one, threshold).marks) for one in members))


_NUMBER: Final = re.compile(r"\s*([0-9]{1,3})\.?\s*")


def read_number(text: str, n: int) -> int | None:
    """The place, from 0, that a reply names: one number from 1 to n and nothing else."""
    match = _NUMBER.fullmatch(text)
    place = int(match[1]) - 1 if match else -1
    return place if 0 <= place < n else None
