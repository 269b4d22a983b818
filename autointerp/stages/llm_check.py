"""What an LLM can do, and whether it can judge, before money is spent on it."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

import orjson
import yaml

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest
from autointerp.llm.exchange import Reply, Request
from autointerp.llm.front import InFront
from autointerp.llm.protocol import LLM, Backend
from autointerp.llm.spending import Spent
from autointerp.metrics import measure
from autointerp.prompting import View
from autointerp.results import Interval
from autointerp.scorers import question
from autointerp.trials import Trials
from autointerp.types import Json, Window

TEMPLATE: Final = "score/detection"
WINDOWS_A_PROMPT: Final = 8
FIT_TO_JUDGE: Final = 0.85
"""Balanced accuracy on the anchor questions below which a judge is called unfit: small open models that follow
the format reach .9 and more."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Anchor questions answered, every one as often as it was asked."""

    accuracy: Interval | None
    """Balanced; None where no answer could be read."""
    n: int
    n_unreadable: int
    wrong: list[str]
    """Excerpts that were misjudged most of the time, with their explanations."""


@dataclass(frozen=True, slots=True)
class LLMCheck:
    """What a probe found. Whether a schema is kept and log-probabilities are given is None where the LLM refused
    to be asked."""

    llm: str
    label_logprobs: bool | None
    keeps_schema: bool | None
    left_out: tuple[str, ...]
    """Settings that the server refused, and that are not sent any more."""
    judged: Judged
    first_s: float
    """Until the first answer."""
    rate: float
    """Requests a second, as many in flight as there were."""
    spent: Spent

    @property
    def is_fit(self) -> bool:
        accuracy = self.judged.accuracy
        return accuracy is not None and accuracy.value >= FIT_TO_JUDGE


async def check_llm(backend: Backend, *, n_rounds: int = 6, seed: int = 0) -> LLMCheck:
    """Asks for two probes and `n_rounds` times all anchor questions, each time in another order. Raises
    LLMErrors."""
    connected = backend.connect()
    llm = _Counted(connected)
    try:
        began = time.monotonic()
        labels = await _label_logprobs(llm)
        first_s = time.monotonic() - began
        schema = await _keeps_schema(llm)
        before, began = llm.spent.n_requests, time.monotonic()
        judged = await _judge(llm, n_rounds, seed)
        seconds = time.monotonic() - began
        return LLMCheck(
            llm=str(llm.identity),
            label_logprobs=labels,
            keeps_schema=schema,
            left_out=llm.capabilities.left_out,
            judged=judged,
            first_s=first_s,
            rate=(llm.spent.n_requests - before) / max(seconds, 1e-9),
            spent=llm.spent,
        )
    finally:
        await connected.close()


# --- probes ----------------------------------------------------------------------------------------------


async def _label_logprobs(llm: LLM) -> bool | None:
    asking = Asking(llm, "check")
    prompt = asking.prompt(TEMPLATE, explanation="Names of animals.", views=[View(_window("the fox ran"))])
    try:
        reply = await llm.generate(prompt, max_tokens=8, label_tokens=["1", "yes", "no"])
    except LLMBadRequest:
        return None
    return bool(reply.label_logprobs)


_SCHEMA: Final[Json] = {
    "type": "object",
    "properties": {"fires": {"type": "boolean"}},
    "required": ["fires"],
    "additionalProperties": False,
}


async def _keeps_schema(llm: LLM) -> bool | None:
    """Where a server ignores the schema, the answer has the lines that the prompt asks for."""
    asking = Asking(llm, "check")
    prompt = asking.prompt(TEMPLATE, explanation="Names of animals.", views=[View(_window("the fox ran"))])
    try:
        reply = await llm.generate(prompt, max_tokens=30, schema=_SCHEMA)
    except LLMBadRequest:
        return None
    try:
        return isinstance(orjson.loads(reply.text)["fires"], bool)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


# --- anchors ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def anchors() -> list[tuple[str, list[str], list[str]]]:
    """Explanation, excerpts that fit, excerpts that don't."""
    content = resources.files("autointerp.llm").joinpath("anchors.yaml").read_text(encoding="utf-8")
    return [(entry["explanation"], entry["fits"], entry["not"]) for entry in yaml.safe_load(content)]


async def _judge(llm: LLM, n_rounds: int, seed: int) -> Judged:
    async def once(number: int, explanation: str, views: list[View]) -> Sequence[bool | None]:
        asking = Asking(llm, explanation, seed + number)
        said = await question.ask(
            views, explanation, TEMPLATE, asking, packing=WINDOWS_A_PROMPT, purpose="anchors"
        )
        return said.answers

    cases = [
        (number, explanation, fits, others)
        for number in range(n_rounds)
        for explanation, fits, others in anchors()
    ]
    said = await asyncio.gather(
        *(
            once(number, explanation, [View(_window(text)) for text in (*fits, *others)])
            for number, explanation, fits, others in cases
        )
    )
    truths: list[bool] = []
    answers: list[bool | None] = []
    misses: dict[tuple[str, str], int] = {}
    for (_, explanation, fits, others), its in zip(cases, said, strict=True):
        truth = [True] * len(fits) + [False] * len(others)
        for text, right, answer in zip((*fits, *others), truth, its, strict=True):
            truths.append(right)
            answers.append(answer)
            misses[explanation, text] = misses.get((explanation, text), 0) + (answer is not right)
    n = len(truths)
    metrics = measure(
        Trials(
            window=list(range(n)),
            truth=truths,
            answer=answers,
            probability=[None] * n,
            band=[None] * n,
            stratum=[None if truth else "random" for truth in truths],
            marks=[[]] * n,
            offset=[None] * n,
            document=[""] * n,
            maximum=[0.0] * n,
            length=[0] * n,
        )
    )
    wrong = [
        f"{explanation} {text!r}" for (explanation, text), n_wrong in misses.items() if n_wrong * 2 > n_rounds
    ]
    return Judged(metrics.value, n, metrics.n_unreadable, wrong)


def _window(text: str) -> Window:
    words = tuple(text[start:end] for start, end in _words(text))
    return Window("0" * 16, 0, tuple(range(len(words))), words, (0.0,) * len(words), None, "random")


def _words(text: str) -> list[tuple[int, int]]:
    """Each word with the space before it."""
    starts = [0, *(n for n, character in enumerate(text) if n and character == " ")]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


class _Counted(InFront):
    """Sums what its requests took."""

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm)
        self.spent = Spent()

    async def answer(self, request: Request) -> Reply:
        reply = await request.to(self._llm)
        self.spent.add(reply.usage)
        return reply
