"""Texts that a scorer has written for an explanation, for the subject to read (`stages/probe.py`)."""

from __future__ import annotations

from typing import Any, cast

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, Refused, Unreadable
from autointerp.scorers.protocol import Scorer
from autointerp.subject.corpus import normalise
from autointerp.types import Json, digest


async def texts_of(scorer: Scorer, explanation: str, asking: Asking) -> list[str]:
    """Raises what the scorer's `write` raises."""
    return await cast(Any, scorer).write(explanation, asking)


async def written(scorer: Scorer, explanation: str, asking: Asking) -> Json:
    """The record: texts, none where they could not be had. Raises LLMErrors."""
    texts: list[str] = []
    reason = None
    try:
        texts = [normalise(text) for text in await texts_of(scorer, explanation, asking)]
    except (Unreadable, Refused, LLMBadRequest) as failure:
        reason = str(failure)
    return {
        "texts": texts,
        "explanation": digest(explanation),
        "llm": str(asking.llm.identity),
        "reason": reason,
    }
