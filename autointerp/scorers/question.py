"""The one question under every binary scorer: numbered windows, an explanation, yes or no for each.

Windows are shuffled by a keyed draw that doesn't depend on the explanation, so two explanations of a feature
are judged on the same prompts. A reply is read strictly: what can't be read is asked once more, packed
together and in another order, and then stays None. A missing answer is never a no.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from autointerp.asking import Asking
from autointerp.errors import Pending, RecipeError
from autointerp.llm.protocol import Capabilities
from autointerp.prompting import View
from autointerp.trials import Trials, bands, documents, lengths, maxima, offsets, strata
from autointerp.types import Heldout

_T = TypeVar("_T")

SLACK_TOKENS = 16
"""Answer tokens allowed beyond those of the windows."""
TOKENS_A_WINDOW = 8
"""Answer tokens allowed a window."""


async def ask(
    views: Sequence[View],
    explanation: str,
    template: str,
    asking: Asking,
    *,
    windows_per_prompt: int,
    purpose: str,
    max_tokens_per_window: int = TOKENS_A_WINDOW,
) -> list[bool | None]:
    """What the judge says of each view, in their order; None where no answer could be read, also on asking
    once more. `purpose` keys the shuffle. Template `template` gets `explanation` and `views`.

    Prompts run concurrently. Raises the LLM's own errors, after every prompt has ended.
    """

    async def ask_together(chosen: Sequence[int], attempt: int) -> list[bool | None]:
        reply = await asking.llm.generate(
            asking.prompt(template, explanation=explanation, views=[views[n] for n in chosen]),
            max_tokens=len(chosen) * max_tokens_per_window + SLACK_TOKENS,
            index=attempt,
        )
        return read_answers(reply.text, len(chosen))

    answers: list[bool | None] = [None] * len(views)
    for attempt in range(2):
        unknown = [n for n, answer in enumerate(answers) if answer is None]
        if not unknown:
            break
        order = [unknown[n] for n in asking.order(len(unknown), purpose, attempt)]
        size = len(views) if asking.llm.capabilities.all_windows_at_once else windows_per_prompt
        packs = [order[start : start + size] for start in range(0, len(order), size)]
        said = await all_of([ask_together(pack, attempt) for pack in packs])
        for pack, its_answers in zip(packs, said, strict=True):
            for n, answer in zip(pack, its_answers, strict=True):
                answers[n] = answer
    return answers


_ANSWER = re.compile(r"\s*([0-9]{1,9})\s*:\s*(.*?)\s*")
_YES_NO = {"yes": True, "yes.": True, "no": False, "no.": False}


def read_answers(text: str, n: int) -> list[bool | None]:
    """The answers to windows 1 to n in a reply of lines like `3: yes`.

    Lines of other shape and numbers out of range are passed over. A number is None if it is missing, if
    anything but yes or no (in any case) stands behind it, or if it is answered in two ways.
    """
    said: dict[int, set[bool | None]] = {}
    for line in text.split("\n"):
        if match := _ANSWER.fullmatch(line):
            said.setdefault(int(match[1]), set()).add(_YES_NO.get(match[2].lower()))
    found = (said.get(number, {None}) for number in range(1, n + 1))
    return [next(iter(one)) if len(one) == 1 else None for one in found]


def trials(
    heldout: Heldout, asked: Sequence[int], views: Sequence[View], answers: Sequence[bool | None]
) -> Trials:
    """Trials of the views of held-out windows `asked` (the active ones first, then the silent ones)."""
    windows = [view.window for view in views]
    return Trials(
        window=list(asked),
        truth=[n < len(heldout.active) for n in asked],
        answer=list(answers),
        probability=[None] * len(views),
        band=bands(windows),
        stratum=strata(windows),
        marks=[list(view.marks) for view in views],
        offset=offsets(windows),
        document=documents(windows),
        maximum=maxima(windows),
        length=lengths(windows),
    )


def packing(windows_per_prompt: int, capabilities: Capabilities) -> str:
    """How many windows a prompt holds, in words for a score's protocol."""
    if capabilities.all_windows_at_once:
        return "all windows in one prompt"
    return (
        f"{windows_per_prompt} windows a prompt, shuffled" if windows_per_prompt > 1 else "1 window a prompt"
    )


def check_windows_per_prompt(scorer: str, windows_per_prompt: int) -> None:
    """Raises RecipeError below 1."""
    if windows_per_prompt < 1:
        raise RecipeError(f"{scorer}: windows_per_prompt is {windows_per_prompt}; it must be 1 or more.")


async def all_of(coroutines: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Their results. All run to their end before the first error is raised: a paid reply is kept, and a
    backend that only notes requests down (`Pending`) has seen every one of them."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if not isinstance(error, Pending)), errors[0])
    return [result for result in results if not isinstance(result, BaseException)]
