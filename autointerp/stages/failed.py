"""Keys that stayed open, and why: `failed/` has a journal of them beside each of the stage's."""

from __future__ import annotations

from pathlib import Path

from autointerp.fill import Item
from autointerp.journal import Part
from autointerp.run import Run


class Failed:
    """The journals of keys that stayed open, one an explainer and scorer."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parts: dict[Path, Part] = {}

    def note(self, item: Item, reason: str) -> None:
        folder = item.journal.folder
        if folder not in self._parts:
            self._parts[folder] = Part(self._run.beside("failed", item.journal), "open")
        self._parts[folder].append(item.key, {"reason": reason})

    def close(self) -> None:
        for part in self._parts.values():
            part.close()
