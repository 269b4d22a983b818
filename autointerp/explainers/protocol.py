"""What an explainer is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, NoEvidence, Refused, Unreadable
from autointerp.evidence import Evidence
from autointerp.results import ExplanationStatus
from autointerp.types import Json


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation, and the same in at most six words."""

    text: str
    label: str
    details: Json = field(default_factory=dict[str, Any])
    """What else was found, as the explainer's docstring says; kept in the explanation's record."""


def status_of(failure: Unreadable | Refused | NoEvidence | LLMBadRequest) -> ExplanationStatus:
    """How a record calls the reason why there is no explanation."""
    match failure:
        case Unreadable():
            return "unreadable"
        case Refused():
            return "refused"
        case NoEvidence():
            return "no_evidence"
        case LLMBadRequest():
            return "bad_request"


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
        """Raises Unreadable or Refused where the LLM gave nothing to use, NoEvidence where there is nothing to ask it
        about, and the LLM's own errors.

        May be called again from the start after a crash: replies already paid for are served again.
        """
        ...
