"""Simulation: how well does an explanation foretell the activation of every token? (Bills et al. 2023, "Language
models can explain neurons in language models"; openai/automated-interpretability, simulator.py.)

The judge rates each token of a window from 0 to 10 as if it were the feature. What counts is the expected value over
the ratings, by their probabilities; the score is Pearson's correlation with the true activations over the tokens of
all windows one behind the other. Two ways:

    all_at_once      one forward pass a window: where the ratings belong stands `unknown`, and the judge's
                     probabilities of each rating in its place are read. Needs `logprobs`
    token_by_token   a request a token, with the ratings so far in the prompt: some 30 times as dear. Where a
                     server gives no log-probabilities of the answer's first token, its text is the rating

Differs: windows are from all deciles, not the top alone, for correlation on top and random ones rewards recall
(arXiv 2506.05774), and where the LLM's tokenizer has no token `10` the option `highest` is to be 9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from autointerp.asking import Asking
from autointerp.errors import RecipeError
from autointerp.evidence import ScorerNeed
from autointerp.llm.protocol import Capabilities
from autointerp.metrics import HEADLINE_STRATA
from autointerp.prompting import inert
from autointerp.scorers import question
from autointerp.splits import Heldout
from autointerp.trials import Predictions, bands, documents, strata, to_4_digits
from autointerp.types import Window

UNKNOWN: Final = "unknown"
LEAST_MASS: Final = 0.1
"""Of probability on all ratings together: with less, no rating was read."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Has the judge rate every token of some windows and correlates that with the activations."""

    way: Literal["all_at_once", "token_by_token"] = "all_at_once"
    n_active: int = 10
    """Active windows, of all deciles alike."""
    n_silent: int = 10
    highest: Literal[9, 10] = 10
    """The largest rating. 9 for LLMs whose tokenizer writes 10 as two tokens (Qwen, Gemma, Mistral)."""
    prompt: str = "score/simulation"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    judges_strata: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n_active < 1 or self.n_silent < 0:
            raise RecipeError(
                f"simulation: n_active is {self.n_active} and n_silent {self.n_silent}; there must be at least one "
                "active window and none or more silent ones."
            )

    @property
    def needs(self) -> frozenset[ScorerNeed]:
        return frozenset({"logprobs"} if self.way == "all_at_once" else ())

    @property
    def controlled(self) -> bool:
        """Token by token a control is too dear to be scored unasked."""
        return self.way == "all_at_once"

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    def protocol(self, capabilities: Capabilities) -> str:
        return (
            f"simulation {self.version}: ratings 0 to {self.highest}, expected value, {self.way.replace('_', ' ')}; "
            f"up to {self.n_active} active windows of all deciles and {self.n_silent} silent ones; correlation over "
            "tokens"
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Predictions:
        """One entry a window."""
        windows = chosen(heldout, self.n_active, self.n_silent, asking)
        rate = self._at_once if self.way == "all_at_once" else self._token_by_token
        predicted = await question.all_of([rate(window, explanation, asking) for window in windows])
        return Predictions(
            predicted=predicted,
            actual=[[to_4_digits(activation) for activation in window.activations] for window in windows],
            band=bands(windows),
            stratum=strata(windows),
            document=documents(windows),
        )

    @property
    def _ratings(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.highest + 1)))

    async def _at_once(self, window: Window, explanation: str, asking: Asking) -> list[float | None]:
        prompt = asking.prompt(self.prompt, explanation=explanation, highest=self.highest, tokens=[])
        pieces = [f"{'' if n == 0 else chr(10)}{_line(text)}" for n, text in enumerate(window.texts)]
        rated = await asking.llm.fill(prompt, pieces, UNKNOWN, self._ratings)
        return [expected_rating(one) for one in rated]

    async def _token_by_token(self, window: Window, explanation: str, asking: Asking) -> list[float | None]:
        """A token without a readable rating stands as 0 in the prompts behind it, and is None in the trials."""
        rated: list[float | None] = []
        for n in range(len(window.texts)):
            so_far = [
                f"{_line(text)}{round(value or 0.0)}"
                for text, value in zip(window.texts, rated, strict=False)
            ]
            reply = await asking.llm.generate(
                asking.prompt(
                    self.prompt,
                    explanation=explanation,
                    highest=self.highest,
                    tokens=[*so_far, _line(window.texts[n])],
                    window=window,
                    at=n,
                ),
                max_tokens=question.ONE_MAX_TOKENS,
                choices=self._ratings,
                label_tokens=self._ratings,
            )
            rated.append(_rating_of(reply.text, reply.label_logprobs, self.highest))
        return rated


def chosen(heldout: Heldout, n_active: int, n_silent: int, asking: Asking) -> list[Window]:
    """Active windows, decile by decile in turn, and random silent ones, by keyed draws."""
    by_band: dict[int, list[Window]] = {}
    for n in asking.order(len(heldout.active), "simulated"):
        by_band.setdefault(heldout.active[n].band or 0, []).append(heldout.active[n])
    turns = max(map(len, by_band.values()), default=0)
    active = [by_band[b][turn] for turn in range(turns) for b in sorted(by_band) if turn < len(by_band[b])]
    silent = [window for window in heldout.silent if window.stratum in HEADLINE_STRATA]
    order = asking.order(len(silent), "simulated, silent")
    return active[:n_active] + [silent[n] for n in order[:n_silent]]


def _line(text: str) -> str:
    """A token, as a rating follows it. White space at its ends shows as in the text."""
    return f"{inert(text)}\t"


def expected_rating(logprobs: Mapping[str, float]) -> float | None:
    """Mean of the ratings, by natural-log probabilities; None where they have next to none."""
    masses = {int(rating): math.exp(logprob) for rating, logprob in logprobs.items()}
    total = sum(masses.values())
    return sum(rating * mass for rating, mass in masses.items()) / total if total >= LEAST_MASS else None


def _rating_of(text: str, logprobs: Mapping[str, float] | None, highest: int) -> float | None:
    if logprobs is not None and (rating := expected_rating(logprobs)) is not None:
        return rating
    said = text.strip()
    return float(said) if said in map(str, range(highest + 1)) else None
