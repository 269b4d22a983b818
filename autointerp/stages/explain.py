"""Explain: what is shown of a feature -> a sentence. One journal an explainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, Refused, Unreadable
from autointerp.evidence import Evidence
from autointerp.explainers.protocol import Explainer
from autointerp.run import Run
from autointerp.stages.asked import NOBODY, Asked
from autointerp.types import Explanation, ExplanationStatus, Json

_FIELDS: Final = [
    field.name for field in dataclasses.fields(Explanation) if field.name != "feature"
]  # the key says it

Explaining = Callable[[Evidence, Asking], Awaitable[Json]]
"""One feature's work: what is known of it and an LLM in, its record out. Raises LLMErrors."""


def explaining(run: Run, name: str, explainer: Explainer, asked: Asked) -> tuple[Explaining, Asked]:
    """What the explainer of this name does with a feature, and whom it asks."""
    asked = asked if explainer.needs_llm else NOBODY
    prompts, llm = run.templates(explainer), str(asked.llm.identity)

    async def work(evidence: Evidence, asking: Asking) -> Json:
        status: ExplanationStatus = "ok"
        explained = reason = None
        try:
            explained = await explainer.explain(evidence, asking)
        except Unreadable as signal:
            status, reason = "unreadable", str(signal)
        except Refused as signal:
            status, reason = "refused", str(signal)
        except LLMBadRequest as error:
            status, reason = "bad_request", str(error)
        explanation = Explanation(
            feature=asking.feature,
            explainer=name,
            status=status,
            text=explained.text if explained else None,
            label=explained.label if explained else None,
            llm=llm,
            prompts=prompts,
            reason=reason,
        )
        return {name: getattr(explanation, name) for name in _FIELDS}

    return work, asked
