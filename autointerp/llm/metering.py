"""What requests use beside what a Reply tells of: tries that were lost, embeddings, probabilities of given texts.

Whoever counts puts a meter around a call, and whoever sends tells the innermost one. It stands in a context variable
and not in arguments, since between the two stand limits, retries and plug-ins that have nothing to do with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar

from autointerp.llm.protocol import Usage

UNCOUNTED = Usage(counted=False)
"""Of a try that may be billed, and of which nothing is known."""


class Meter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.used: list[Usage] = []

    def use(self, usage: Usage) -> None:
        """What a try used, as soon as it has ended."""
        self.used.append(usage)

    async def may_try(self) -> None:
        """Asked before each try; may wait. Raises LLMErrors where there must be none."""


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
