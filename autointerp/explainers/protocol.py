"""What an explainer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from autointerp.asking import Asking
from autointerp.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation, and the same in at most six words."""

    text: str
    label: str


class Explainer(Protocol):
    """The plug-in: a frozen dataclass whose fields are its options in the recipe.

    Class attributes (or properties) that may be left out say what its `Evidence` holds beside the windows shown:
    `needs: ClassVar[frozenset[Need]]`, without which it can't work (a recipe that can't give it is refused), and
    `uses`, which it takes where it is there. `needs_windows = False`: it also explains features that have none.
    """

    version: ClassVar[str]
    """Digested: raise it when the same input would give another explanation or another prompt."""
    needs_llm: ClassVar[bool]

    def templates(self) -> tuple[str, ...]:
        """Names of the prompt templates it uses; their text is digested."""
        ...

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Raises Unreadable or Refused where the LLM gave nothing to use, and the LLM's own errors.

        May be called again from the start after a crash: replies already paid for are served again.
        """
        ...
