"""What work on features asks: an LLM, and the memory of its paid replies that stands in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autointerp.journal import Journal
from autointerp.llm.protocol import LLM, Delayed, NoLLM
from autointerp.llm.replay import Elsewhere, Replayed
from autointerp.run import Run


@dataclass(frozen=True, slots=True)
class Asked:
    """An LLM that answers, and whether its answers are paid for and therefore kept."""

    llm: LLM
    paid: bool
    delayed: Delayed | None = None
    """The same LLM, where its answers come between two passes."""


NOBODY = Asked(NoLLM(), paid=False)


class Memories:
    """The memories of one unit, one an explainer and scorer: opened when first asked, closed together."""

    def __init__(self, run: Run, unit: str) -> None:
        self._run, self._unit = run, unit
        self._open: dict[tuple[Path, str], Replayed] = {}

    def of(self, journal: Journal, asked: Asked) -> LLM:
        """In front of the LLM that is asked for this journal's records."""
        if not asked.paid:
            return asked.llm
        place = journal.folder, str(asked.llm.identity)  # a fallback's replies lie beside the first one's
        known = self._open.get(place)
        if known is None:
            requests, usage = (self._run.beside(kind, journal) for kind in ("requests", "usage"))
            known = Replayed(asked.llm, requests, usage, self._unit, self._elsewhere(journal))
            self._open[place] = known
        return known

    @property
    def n_reused(self) -> int:
        """Answers of units that are open which another run had paid for."""
        return sum(memory.n_reused for memory in self._open.values())

    def close(self) -> None:
        for memory in self._open.values():
            memory.close_files()
        self._open.clear()

    def _elsewhere(self, journal: Journal) -> Elsewhere | None:
        reuse = self._run.recipe.resources.reuse_requests
        if reuse is None:
            return None
        stage = journal.folder.relative_to(self._run.path).parts[0]
        return Elsewhere(Path(reuse) / "requests" / stage, self._unit)
