"""LLMs whose answers come between two passes over the features (`batch`): what happens there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autointerp.llm.protocol import Awaited, Delayed
from autointerp.progress import Progress
from autointerp.stages.asked import Asked


def delayed_of(llms: Mapping[str, Asked]) -> list[Delayed]:
    """Each once, also where it has two roles."""
    return list(dict.fromkeys(asked.delayed for asked in llms.values() if asked.delayed is not None))


async def open_all(llms: Iterable[Delayed], progress: Progress) -> None:
    """Before the first pass."""
    for llm in llms:
        await llm.open(progress)


async def answers_between(llms: Iterable[Delayed], progress: Progress) -> list[Awaited]:
    """Behind a pass that left items pending: hands over what it asked for and waits for the answers.

    Returns what the run can't wait for. Raises LLMErrors.
    """
    llms = list(llms)
    for llm in llms:  # all before anybody is waited for, which may take a day
        await llm.send(progress)
    return [awaited for llm in llms for awaited in await llm.fetch(progress)]
