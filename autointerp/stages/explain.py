"""Explain: what is shown of a feature -> a sentence. One journal an explainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, NoEvidence, Refused, Unreadable
from autointerp.evidence import Evidence
from autointerp.explainers.protocol import Explainer, status_of
from autointerp.results import Explanation, ExplanationStatus
from autointerp.run import Run
from autointerp.stages.asked import NOBODY, Asked
from autointerp.types import Json

_FIELDS: Final = [
    field.name for field in dataclasses.fields(Explanation) if field.name != "feature"
]  # the key says it
_LEFT_OUT: Final = ("details", "refused_by")
"""Where they are empty, as they mostly are."""

Explaining = Callable[[Evidence, Sequence[Asking]], Awaitable[Json]]
"""One feature's work: what is known of it and LLMs in, its record out. Each LLM but the first is asked where all
before it refused, by a filter or in words; not where an answer could not be read. Raises LLMErrors."""


def explaining(run: Run, name: str, explainer: Explainer, asked: Asked) -> tuple[Explaining, Asked]:
    """What the explainer of this name does with a feature, and whom it asks."""
    asked = asked if explainer.needs_llm else NOBODY
    prompts = run.templates(explainer)

    async def work(evidence: Evidence, askings: Sequence[Asking]) -> Json:
        status: ExplanationStatus = "ok"
        explained = reason = None
        refused_by: list[str] = []
        asking = askings[0]
        for asking in askings:
            status, explained, reason = "ok", None, None
            try:
                explained = await explainer.explain(evidence, asking)
            except (Unreadable, Refused, NoEvidence, LLMBadRequest) as failure:
                status, reason = status_of(failure), str(failure)
            if status != "refused":
                break
            refused_by.append(str(asking.llm.identity))
        explanation = Explanation(
            feature=asking.feature,
            explainer=name,
            status=status,
            text=explained.text if explained else None,
            label=explained.label if explained else None,
            llm=str(asking.llm.identity),
            prompts=prompts,
            reason=reason,
            details=explained.details if explained else {},
            refused_by=refused_by,
        )
        return explanation_record(explanation)

    return work, asked


def explanation_record(explanation: Explanation) -> Json:
    """As it stands in a journal."""
    record = {name: getattr(explanation, name) for name in _FIELDS}
    return {name: value for name, value in record.items() if value or name not in _LEFT_OUT}
