"""Score: an explanation and what was held out -> trials and metrics. One journal an explainer and scorer."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, RecipeChanged
from autointerp.journal import Journal
from autointerp.metrics import measure
from autointerp.recipe import instance
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.scorers.protocol import Scorer
from autointerp.stages.asked import NOBODY, Asked
from autointerp.types import Json, Score, ScoreStatus, Trials, digest


def _weaker(run: Run) -> str:
    """What a reader must know of the split: blocks of one text are less apart than documents are."""
    given = run.recipe.activations
    if given is not None and given.documents == "rows":
        return "; held out by row of the files given, not by document (weaker)"
    corpus = run.recipe.corpus
    if corpus is None or corpus.document == "whole":
        return ""
    return f"; held out by {corpus.document} of a text, not by document (weaker)"


_GRADED: Final = "; graded contrast: windows of the top decile against those of the lower half"


_FIELDS: Final = [
    field.name for field in dataclasses.fields(Score) if field.name != "feature"
]  # the key says it

Scoring = Callable[[Windows, str, Asking], Awaitable[Json]]
"""One explanation's work: its unit's windows, its text and an LLM in, its record out. Raises LLMErrors."""


def scoring(run: Run, explainer: str, name: str, asked: Asked) -> tuple[Scoring, Asked]:
    """What the scorer of this name does with an explanation, and whom it asks."""
    scorer: Scorer = instance("scorers", run.recipe.scorers[name])
    asked = asked if scorer.needs_llm else NOBODY
    protocol = scorer.protocol(asked.llm.capabilities) + _weaker(run)
    llm = str(asked.llm.identity)

    async def work(windows: Windows, text: str, asking: Asking) -> Json:
        status: ScoreStatus = "ok"
        trials, metrics, reason = Trials(), None, None
        heldout = windows.heldout(asking.feature)
        graded = any(window.stratum == "graded" for window in heldout.silent)
        try:
            trials = await scorer.judge(text, heldout, asking)
            metrics = measure(trials)
            if metrics.balanced_accuracy is None:
                status, reason = "unreadable", f"{metrics.n_unreadable} of {len(trials)} answers unreadable"
        except LLMBadRequest as error:
            status, reason = "bad_request", str(error)
        score = Score(
            feature=asking.feature,
            explainer=explainer,
            scorer=name,
            status=status,
            explanation=digest(text),
            protocol=protocol + (_GRADED if graded else ""),
            contrast="graded" if graded else "silent",
            llm=llm,
            metrics=metrics,
            trials=trials,
            reason=reason,
        )
        # `dataclasses.asdict` would copy every column of the trials value by value.
        return {name: getattr(score, name) for name in _FIELDS}

    return work, asked


def check_unchanged(key: str, explanation: Json, score: Json, journal: Journal) -> None:
    """Raises RecipeChanged where a score is of another text."""
    if score["explanation"] != digest(explanation["text"]):
        raise RecipeChanged(
            f"the explanation of {key} by '{explanation['explainer']}' changed since it was scored. Delete "
            f"{journal.folder} to score anew."
        )
