"""Judges of mixed quality, who answer for nobody: how many windows a sequential scorer asks about depends on how good
explanations are, which nobody knows before.

Accuracies are taken to be those of features in arXiv 2410.13928 (detection and fuzzing, a large judge): mean .76,
standard deviation .14.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import orjson

from autointerp import draw
from autointerp.llm.protocol import Reply, Request
from autointerp.prompting import View

ACCURACIES: Final = NormalDist(0.76, 0.14)
N_JUDGES: Final = 80
"""Features that are judged so, in all: the mean number of trials is off by three then (one sd)."""


@dataclass(frozen=True, slots=True)
class MixedJudge:
    """Answers each window by itself: right with a probability of `accuracy`, drawn by a keyed hash."""

    accuracy: float
    name: str

    async def __call__(self, request: Request) -> Reply:
        variables = request.prompt.variables
        if "view" in variables:
            return Reply(self._word(variables["view"]))
        words = {str(n): self._word(view) for n, view in enumerate(variables["views"], 1)}
        return Reply(orjson.dumps(words).decode())

    def _word(self, view: View) -> str:
        window = view.window
        is_right = window.band is not None and all(window.activations[mark] > 0 for mark in view.marks)
        drawn = draw.key(
            0, "mixed judge", self.name, window.document, window.position, str((is_right, view.marks))
        )
        says_so = drawn < self.accuracy * 2.0**64
        return "yes" if is_right is says_so else "no"


def mixed_judges(n_cases: int) -> list[list[MixedJudge]]:
    """Of each case its judges: over all of them, accuracies at even steps of probability."""
    n_each = -(-N_JUDGES // n_cases)
    n = n_cases * n_each
    accuracies = (min(max(ACCURACIES.inv_cdf((i + 0.5) / n), 0.0), 1.0) for i in range(n))
    judges = [MixedJudge(accuracy, str(number)) for number, accuracy in enumerate(accuracies)]
    return [judges[case::n_cases] for case in range(n_cases)]
