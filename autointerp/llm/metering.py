"""What requests use beside what a Reply tells of: tries that were lost, embeddings, probabilities of given texts.

Whoever counts puts a meter around a call, and whoever sends tells the innermost one. It stands in a context variable
and not in arguments, since between the two stand limits, retries and plug-ins that have nothing to do with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar

from autointerp.llm.exchange import Usage

UNCOUNTED = Usage(counted=False)
"""Of a try that may be billed, and of which nothing is known."""


class Meter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.used: list[Usage] = []
        self._when_noted: list[Callable[[], None]] = []

    def use(self, usage: Usage) -> None:
        """What a try used, as soon as it has ended."""
        self.used.append(usage)

    async def may_try(self) -> None:
        """Asked before each try; may wait. Raises LLMErrors where there must be none."""

    def sends(self) -> None:
        """A try is sent now: from here on it may be charged for."""

    def unsent(self) -> None:
        """What was sent last was refused, and costs nothing."""

    def when_noted(self, call: Callable[[], None]) -> None:
        """`call`, as soon as what was used so far stands in a journal."""
        self._when_noted.append(call)

    def noted(self) -> None:
        """All that was used stands in a journal."""
        for call in self._when_noted:
            call()
        self._when_noted.clear()


class InParts(Meter):
    """Of a request that is sent in parts, whose answers are told to the meter around it together."""

    def __init__(self) -> None:
        super().__init__()
        self.is_sent = False
        """Whether a part is in flight."""
        self._n_answered = 0
        self._around = current()

    def answered(self) -> None:
        """The part that was sent last."""
        self.is_sent = False
        self._n_answered += 1

    def use(self, usage: Usage) -> None:
        self.is_sent = False
        self._around.use(usage)

    async def may_try(self) -> None:
        await self._around.may_try()

    def sends(self) -> None:
        self.is_sent = True
        self._around.sends()

    def unsent(self) -> None:
        self.is_sent = False
        if not self._n_answered:  # else the parts before it cost something
            self._around.unsent()

    def when_noted(self, call: Callable[[], None]) -> None:
        self._around.when_noted(call)


_around: ContextVar[Meter | None] = ContextVar("meter", default=None)


def current() -> Meter:
    """The innermost meter; one that nobody reads where there is none."""
    return _around.get() or Meter()


@contextmanager
def metered_by(meter: Meter) -> Generator[None]:
    """What is used inside is told to this meter, and to none around it."""
    token = _around.set(meter)
    try:
        yield
    finally:
        _around.reset(token)


def total(usages: Iterable[Usage]) -> Usage:
    """Of several tries. The cost is that of those whose cost is known; None where none is."""
    found = list(usages)
    if not found:
        return UNCOUNTED
    sums = {
        field.name: sum(getattr(usage, field.name) for usage in found)
        for field in dataclasses.fields(Usage)
        if field.name not in ("cost", "counted")
    }
    costs = [usage.cost for usage in found if usage.cost is not None]
    return Usage(**sums, cost=sum(costs) if costs else None, counted=all(usage.counted for usage in found))
