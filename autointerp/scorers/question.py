"""The one question under every binary scorer: does a window answer to an explanation, yes or no?

A scorer chooses windows and how each is rendered; how many of them share a prompt is the packing:

    one   a window a prompt, in a template of its own (`<template>_one`): P(yes) is read from the answer token
    k     k windows a prompt, numbered, answered as JSON `{"1":"yes","2":"no"}`: an answer each, no probability
    all   every window in one prompt
    auto  all where that costs a backend nothing, else k = 10; a new run writes down what its judge's prices
          make the cheapest (`stages/packing.py`)

Windows are shuffled by a keyed draw that doesn't depend on the explanation, so two explanations of a feature
are judged on the same prompts. Answers are constrained where the backend can. A reply is read strictly: what
can't be read is asked once more, packed together and in another order, and then stays None. A missing answer
is never a no.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from autointerp.asking import Asking
from autointerp.errors import Pending, RecipeError
from autointerp.llm.exchange import Reply
from autointerp.llm.protocol import Capabilities
from autointerp.prompting import View
from autointerp.trials import Trials, bands, documents, lengths, maxima, offsets, strata
from autointerp.types import Json

_T = TypeVar("_T")

Packing = int | Literal["auto", "one", "all"]
"""Windows a prompt; 1 is `one`."""

DEFAULT_K: Final = 10
"""Windows a prompt where nobody knows better: as many as judges read well."""
LABELS: Final = ("yes", "no")
LEAST_MASS: Final = 0.5
"""Of probability on yes and no together: with less, the judge was about to say something else."""
ONE_MAX_TOKENS: Final = 4
"""Of the answer to one window: some templates put white space before it."""
SLACK_TOKENS: Final = 16
"""Answer tokens allowed beyond those of the windows."""
TOKENS_A_WINDOW: Final = 10
"""Answer tokens allowed a window."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said of each view: columns."""

    answers: list[bool | None]
    """None where no answer could be read, also on asking once more."""
    probabilities: list[float | None]
    """Raw P(yes), with yes and no the only answers; None where the backend gives none or windows share a
    prompt."""


async def ask(
    views: Sequence[View],
    explanation: str,
    template: str,
    asking: Asking,
    *,
    purpose: str,
    packing: Packing = "auto",
) -> Said:
    """What the judge says of the views, in their order. `purpose` keys the shuffle. Template `template` gets
    `explanation` and `views`, `<template>_one` gets `explanation`, `view`, and `again` when asked once more.

    Prompts run concurrently. Raises the LLM's own errors, after every prompt has ended.
    """
    size = packed(packing, asking.llm.capabilities)
    said = Said([None] * len(views), [None] * len(views))
    for attempt in range(2):
        unknown = [n for n, answer in enumerate(said.answers) if answer is None]
        if not unknown:
            break
        order = [unknown[n] for n in asking.order(len(unknown), purpose, attempt)]
        step = len(views) if size is None else size
        packs = [order[start : start + step] for start in range(0, len(order), step)]
        asked = ([views[n] for n in pack] for pack in packs)
        if size == 1:
            replies = await all_of(
                [_ask_one(view, explanation, template, asking, attempt) for (view,) in asked]
            )
        else:
            replies = await all_of(
                [_ask_several(chosen, explanation, template, asking, attempt) for chosen in asked]
            )
        for pack, reply in zip(packs, replies, strict=True):
            for n, answer, probability in zip(pack, reply.answers, reply.probabilities, strict=True):
                said.answers[n], said.probabilities[n] = answer, probability
    return said


async def _ask_several(
    views: Sequence[View], explanation: str, template: str, asking: Asking, attempt: int
) -> Said:
    reply = await asking.llm.generate(
        asking.prompt(template, explanation=explanation, views=views),
        max_tokens=len(views) * TOKENS_A_WINDOW + SLACK_TOKENS,
        schema=answer_schema(len(views)),
        index=attempt,
    )
    return Said(read_answers(reply.text, len(views)), [None] * len(views))


async def _ask_one(view: View, explanation: str, template: str, asking: Asking, attempt: int) -> Said:
    reply = await asking.llm.generate(
        asking.prompt(one_of(template), explanation=explanation, view=view, again=attempt > 0),
        max_tokens=ONE_MAX_TOKENS,
        choices=LABELS,  # a server that gives log-probabilities gets the labels instead
        label_tokens=LABELS,
        index=attempt,
    )
    answer, probability = read_one(reply)
    return Said([answer], [probability])


def one_of(template: str) -> str:
    """The template for prompts that hold one window."""
    return f"{template}_one"


def answer_schema(n: int) -> Json:
    """JSON schema of the answer to n windows."""
    numbers = [str(number) for number in range(1, n + 1)]
    return {
        "type": "object",
        "properties": {number: {"type": "string", "enum": list(LABELS)} for number in numbers},
        "required": numbers,
        "additionalProperties": False,
    }


# --- reading ---------------------------------------------------------------------------------------------

_PAIR = re.compile(r'"([0-9]{1,9})"\s*:\s*"([^"\n]*)"')
_LINE = re.compile(r"^[ \t]*([0-9]{1,9})[ \t]*:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_YES_NO = {"yes": True, "yes.": True, "no": False, "no.": False}


def read_answers(text: str, n: int) -> list[bool | None]:
    """The answers to windows 1 to n in a reply of pairs `"3":"yes"`, or of lines `3: yes`, as some models
    write all the same.

    What has another shape and numbers out of range are passed over, so a reply that breaks off loses only
    what is missing. A number is None if it is missing, if anything but yes or no (in any case) stands behind
    it, or if it is answered in two ways.
    """
    pairs: list[tuple[str, str]] = _PAIR.findall(text) + _LINE.findall(text)
    said: dict[int, set[bool | None]] = {}
    for number, word in pairs:
        said.setdefault(int(number), set()).add(_YES_NO.get(word.strip().lower()))
    found = (said.get(number, {None}) for number in range(1, n + 1))
    return [next(iter(one)) if len(one) == 1 else None for one in found]


def read_one(reply: Reply) -> tuple[bool | None, float | None]:
    """The answer to one window and its probability; by the text alone where the backend gave none."""
    probability = yes_of(reply.label_logprobs)
    if probability is not None:
        return probability > 0.5, probability
    return _YES_NO.get(reply.text.strip().lower()), None


def yes_of(logprobs: Mapping[str, float] | None) -> float | None:
    """P(yes) with yes and no the only answers; None where they have less than LEAST_MASS together."""
    if logprobs is None:
        return None
    yes, no = (math.exp(logprobs.get(label, -math.inf)) for label in LABELS)
    return yes / (yes + no) if yes + no >= LEAST_MASS else None


# --- what scorers share ----------------------------------------------------------------------------------


def trials(asked: Sequence[int], views: Sequence[View], truth: Sequence[bool], said: Said) -> Trials:
    """Trials of the views of held-out windows `asked` (numbered with the active ones first)."""
    windows = [view.window for view in views]
    return Trials(
        window=list(asked),
        truth=list(truth),
        answer=said.answers,
        probability=said.probabilities,
        band=bands(windows),
        stratum=strata(windows),
        marks=[list(view.marks) for view in views],
        offset=offsets(windows),
        document=documents(windows),
        maximum=maxima(windows),
        length=lengths(windows),
    )


def packed(packing: Packing, capabilities: Capabilities) -> int | None:
    """Windows a prompt; None: all."""
    match packing:
        case "auto":
            return None if capabilities.all_windows_at_once else DEFAULT_K
        case "all":
            return None
        case "one":
            return 1
        case k:
            return k


def templates(template: str, packing: Packing) -> tuple[str, ...]:
    """Those that `ask` uses; `auto` never puts one window into a prompt by itself."""
    return (one_of(template) if packing in ("one", 1) else template,)


def described(packing: Packing, capabilities: Capabilities) -> str:
    """How many windows a prompt holds, in words for a score's protocol."""
    match packed(packing, capabilities):
        case None:
            return "all windows in one prompt, shuffled"
        case 1:
            how = "P(yes) of the answer token" if capabilities.label_logprobs else "by the answer's text"
            return f"1 window a prompt, {how}"
        case k:
            return f"{k} windows a prompt, shuffled"


def check_packing(scorer: str, packing: Packing) -> None:
    """Raises RecipeError for a number below 1."""
    if isinstance(packing, int) and packing < 1:
        raise RecipeError(
            f"{scorer}: packing is {packing}; it must be 1 or more windows a prompt, or auto, one, all."
        )


async def all_of(coroutines: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Their results. All run to their end before the first error is raised: a paid reply is kept, and a
    backend that only notes requests down (`Pending`) has seen every one of them."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if not isinstance(error, Pending)), errors[0])
    return [result for result in results if not isinstance(result, BaseException)]
