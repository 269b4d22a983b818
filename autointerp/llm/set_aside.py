"""What a budget sets aside for one request, from before it is sent until what it used is noted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from autointerp.llm.exchange import Usage
from autointerp.llm.in_flight import Slots
from autointerp.llm.metering import Meter, current

if TYPE_CHECKING:
    from autointerp.llm.spending import Bound, Budget


class Share(Meter):
    """What is set aside for a request's next try, and the meter of those it has made."""

    def __init__(
        self, budget: Budget, bound: Bound, name: str, slots: Slots | None, *, tells_when_sent: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.held: Bound | None = None
        self.is_sent = False
        self.slot: int | None = None
        self._budget, self._bound, self._slots = budget, bound, slots
        self._tells_when_sent = tells_when_sent
        self._around = current()

    def settled(self, usage: Usage) -> Usage:
        """Takes what a try used out of the budget, and nothing is aside for it any more. With what it can have used
        at most, where that is not known."""
        taken = self._budget.take(usage, self._bound)
        self._budget.release(self)
        self.is_sent = False
        if self._slots is not None:
            self._slots.disown(self.name)
        if self._slots is not None and self.slot is not None:
            self._around.when_noted(partial(self._slots.free, self.slot))
            self.slot = None
        return taken

    def use(self, usage: Usage) -> None:
        super().use(taken := self.settled(usage))
        self._around.use(taken)

    async def may_try(self) -> None:
        """Sets aside what a try may cost, if it isn't yet. Raises as `Budget.aside`."""
        await self._around.may_try()
        if self.held is None:
            self.held = await self._budget.reserve(self._bound)
            if not self._tells_when_sent:
                self.sends()

    def sends(self) -> None:
        self._around.sends()
        self.is_sent = True
        if self._slots is not None and self.slot is None and self.held is not None:
            self.slot = self._slots.take(self.name, self.held.cost, self.held.n_tokens)

    def wait(self) -> None:
        """The answer is to come by other means."""
        if self._slots is not None and self.slot is not None and self.held is not None:
            self._slots.wait(self.slot, self.name, self.held.cost, self.held.n_tokens)

    def unsent(self) -> None:
        self.is_sent = False
        if self._slots is not None and self.slot is not None:
            self._slots.free(self.slot)
            self.slot = None

    def when_noted(self, call: Callable[[], None]) -> None:
        self._around.when_noted(call)
