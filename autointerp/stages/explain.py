"""Explain: what is shown of a feature -> a sentence. One journal an explainer."""

from __future__ import annotations

import dataclasses

from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, Refused, Unreadable
from autointerp.explainers.protocol import Explainer
from autointerp.fill import Filled
from autointerp.progress import Progress, Stop
from autointerp.recipe import instance
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.stages.asked import NOBODY, Asked, Todo, run_over_features
from autointerp.stages.sample import by_unit
from autointerp.types import EXPLAINABLE, Explanation, ExplanationStatus, Json


def explain_todo(run: Run, dictionary: str, name: str) -> Todo:
    """Sampled features that can be explained and aren't yet."""
    left: dict[str, list[str]] = {}
    n_done = 0
    journal = run.explain(dictionary, name)
    for unit, features in by_unit(run.asked(dictionary)):
        samples, done = run.sample(dictionary).read(unit), journal.read(unit)
        keys = [str(feature) for feature in features]
        able = [key for key in keys if key in samples and samples[key]["status"] in EXPLAINABLE]
        left[unit] = [key for key in able if key not in done]
        n_done += len(able) - len(left[unit])
    return Todo(left, n_done)


async def run_explain(
    run: Run, dictionary: str, name: str, asked: Asked, progress: Progress, stop: Stop
) -> Filled:
    """Explains what is missing. Raises what `fill` raises."""
    explainer: Explainer = instance("explainers", run.recipe.explainers[name])
    asked = asked if explainer.needs_llm else NOBODY
    prompts = run.templates(explainer)

    async def work(windows: Windows, _: Json, asking: Asking) -> Json:
        shown = windows.shown(asking.feature)
        status: ExplanationStatus = "ok"
        explained = reason = None
        try:
            explained = await explainer.explain(shown, asking)
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
            llm=str(asked.llm.identity),
            prompts=prompts,
            reason=reason,
        )
        record = dataclasses.asdict(explanation)
        del record["feature"]  # the key says it
        return record

    journal, before = run.explain(dictionary, name), run.sample(dictionary)
    todo, stage = explain_todo(run, dictionary, name), f"explain · {name}"
    return await run_over_features(run, dictionary, stage, journal, before, todo, work, asked, progress, stop)
