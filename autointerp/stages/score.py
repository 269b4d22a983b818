"""Score: an explanation and what was held out -> trials and metrics. One journal an explainer and scorer."""

from __future__ import annotations

import dataclasses
from typing import Final

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, RecipeChanged
from autointerp.fill import Filled
from autointerp.metrics import measure
from autointerp.progress import Progress, Stop
from autointerp.recipe import instance
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.scorers.protocol import Scorer
from autointerp.stages.asked import NOBODY, Asked, Todo, run_over_features
from autointerp.stages.sample import by_unit
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


def score_todo(run: Run, dictionary: str, explainer: str, scorer: str) -> Todo:
    """Explanations that are there and aren't scored yet.

    Raises RecipeChanged where one is scored whose text has changed since.
    """
    left: dict[str, list[str]] = {}
    n_done = 0
    journal = run.score(dictionary, explainer, scorer)
    for unit, features in by_unit(run.asked(dictionary)):
        explained, done = run.explain(dictionary, explainer).read(unit), journal.read(unit)
        keys = [str(feature) for feature in features]
        able = [key for key in keys if key in explained and explained[key]["status"] == "ok"]
        for key in able:
            if key in done and done[key]["explanation"] != digest(explained[key]["text"]):
                raise RecipeChanged(
                    f"the explanation of {key} by '{explainer}' changed since '{scorer}' scored it. Delete "
                    f"{journal.folder} to score anew."
                )
        left[unit] = [key for key in able if key not in done]
        n_done += len(able) - len(left[unit])
    return Todo(left, n_done)


async def run_score(
    run: Run, dictionary: str, explainer: str, name: str, asked: Asked, progress: Progress, stop: Stop
) -> Filled:
    """Scores what is missing. Raises what `fill` raises."""
    scorer: Scorer = instance("scorers", run.recipe.scorers[name])
    asked = asked if scorer.needs_llm else NOBODY
    protocol = scorer.protocol(asked.llm.capabilities) + _weaker(run)

    async def work(windows: Windows, explanation: Json, asking: Asking) -> Json:
        text: str = explanation["text"]
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
            llm=str(asked.llm.identity),
            metrics=metrics,
            trials=trials,
            reason=reason,
        )
        record = dataclasses.asdict(score)
        del record["feature"]  # the key says it
        return record

    journal, before = run.score(dictionary, explainer, name), run.explain(dictionary, explainer)
    todo, stage = score_todo(run, dictionary, explainer, name), f"score · {explainer} · {name}"
    return await run_over_features(run, dictionary, stage, journal, before, todo, work, asked, progress, stop)
