"""What explain and score have in common: work on features that asks an LLM.

Per unit of features one memory of paid replies is opened and closed again; open keys are written to the
`failed` journal with their reasons.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from autointerp.asking import Asking
from autointerp.fill import Filled, Item, fill
from autointerp.journal import Journal, Part
from autointerp.llm.protocol import LLM, Delayed, NoLLM
from autointerp.llm.replay import Replayed
from autointerp.progress import Progress, Stop
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.stages.sample import load_vocabulary, unit_windows
from autointerp.types import Json

FEATURES_AT_ONCE: Final = 256
"""Unless the recipe says otherwise: an explanation is one request, and engines take hundreds."""

Work = Callable[[Windows, Json, Asking], Awaitable[Json]]
"""One feature's work: its windows, its record of the stage before, and an LLM in; its record out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An LLM that answers, and whether its answers are paid for and therefore kept."""

    llm: LLM
    paid: bool
    delayed: Delayed | None = None
    """The same LLM, where its answers come between two passes."""


NOBODY = Asked(NoLLM(), paid=False)


@dataclass(frozen=True, slots=True)
class Todo:
    """Features without a record by unit, and how many have one."""

    by_unit: dict[str, list[str]]
    n_done: int

    @property
    def n_left(self) -> int:
        return sum(map(len, self.by_unit.values()))


async def run_over_features(
    run: Run,
    dictionary: str,
    stage: str,
    journal: Journal,
    before: Journal,
    todo: Todo,
    work: Work,
    asked: Asked,
    progress: Progress,
    stop: Stop,
) -> Filled:
    """Runs `work` for each feature in `todo`; `before` is the journal of the stage before. Raises what
    `fill` raises."""
    replays = _Replays(run, journal, asked)
    progress.begin(stage, todo.n_done + todo.n_left, "features", done=todo.n_done)
    try:
        return await fill(
            journal,
            _items(run, dictionary, before, todo, work, replays),
            n_in_flight=run.recipe.resources.n_in_flight or FEATURES_AT_ONCE,
            stop=stop.event(),
            on_done=lambda key: progress.advance(),
            on_open=replays.failed,
            on_unit_done=replays.close,
        )
    finally:
        replays.close_all()
        progress.end()


def _items(
    run: Run, dictionary: str, before: Journal, todo: Todo, work: Work, replays: _Replays
) -> Iterator[Item]:
    if not todo.n_left:
        return
    vocabulary = load_vocabulary(run)
    for unit, features in todo.by_unit.items():
        if not features:
            continue
        windows = unit_windows(run, dictionary, unit, features, vocabulary)
        records = before.read(unit)
        llm = replays.open(unit)
        for feature in features:
            asking = Asking(llm, feature, run.recipe.seed, run.prompts)
            yield Item(unit, feature, partial(work, windows[feature], records[feature], asking))


class _Replays:
    """The memories of the units that are open now."""

    def __init__(self, run: Run, journal: Journal, asked: Asked) -> None:
        self._asked = asked
        self._requests = run.beside("requests", journal)
        self._usage = run.beside("usage", journal)
        self._failed = Part(run.beside("failed", journal), "open")
        self._open: dict[str, Replayed] = {}

    def open(self, unit: str) -> LLM:
        if not self._asked.paid:
            return self._asked.llm
        self._open[unit] = Replayed(self._asked.llm, self._requests, self._usage, unit)
        return self._open[unit]

    def close(self, unit: str) -> None:
        if replayed := self._open.pop(unit, None):
            replayed.close_files()

    def close_all(self) -> None:
        for unit in list(self._open):
            self.close(unit)
        self._failed.close()

    def failed(self, feature: str, reason: str) -> None:
        self._failed.append(feature, {"reason": reason})
