"""Published: the explanation that came with an imported feature.

Importing writes its records; asked for a feature that came without one it has nothing to say. So what others wrote
is scored beside what one's own LLM writes, on the same windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.errors import NoEvidence
from autointerp.evidence import Evidence
from autointerp.explainers.protocol import Explained


@dataclass(frozen=True, slots=True)
class Published:
    """What was published with an imported feature; no LLM."""

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = False

    def templates(self) -> tuple[str, ...]:
        return ()

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Raises NoEvidence: what was published is recorded when it is imported."""
        raise NoEvidence("no explanation of it was published")
