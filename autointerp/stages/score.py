"""Score: an explanation and what was held out -> trials and metrics. One journal an explainer and scorer."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from autointerp import trials as trial_records
from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, RecipeChanged
from autointerp.journal import Journal
from autointerp.llm.protocol import Capabilities
from autointerp.metrics import measure
from autointerp.metrics.plain_accuracy import by_plain_accuracy
from autointerp.metrics.predicted import CONSTANT
from autointerp.results import Facts, Metrics, Score, ScoreStatus
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.scorers.protocol import Scorer
from autointerp.sequential import Stopping, stopping
from autointerp.splits import Heldout
from autointerp.stages.asked import NOBODY, Asked
from autointerp.trials import AnyTrials, InBlocks, Trials, to_4_digits
from autointerp.types import Json, digest


def _weaker(run: Run) -> str:
    """What a reader must know of the split: blocks of one text are less apart than documents are."""
    given = run.recipe.activations
    if given is not None and given.is_published:
        return _PUBLISHED
    if given is not None and given.documents == "rows":
        return "; held out by row of the files given, not by document (weaker)"
    corpus = run.recipe.corpus
    if corpus is None or corpus.document == "whole":
        return ""
    return f"; held out by {corpus.document} of a text, not by document (weaker)"


def _unsent(capabilities: Capabilities) -> str:
    """Settings that answers depend on and that the server would not take, but for log-probabilities: a scorer says
    itself how it does without."""
    names = [name for name in capabilities.left_out if name not in _SAID_OTHERWISE]
    return f"; without {', '.join(names)}, which the server refuses" if names else ""


_SAID_OTHERWISE: Final = ("logprobs", "top_logprobs", "max_tokens", "max_completion_tokens")


def _replica(run: Run) -> str:
    """What a published protocol does that a score should not."""
    recipe = run.recipe
    if recipe.replica is None:
        return ""
    pool, silence = recipe.sampling.pool, recipe.sampling.silence
    faults = [
        "some tested windows were shown to the explainer" if pool == "shared" else "",
        "tested windows may be of documents that were shown" if pool == "apart" else "",
        "windows called silent were not looked at" if silence == "assumed" else "",
    ]
    said = "; ".join(filter(None, faults))
    return f"replica of {recipe.replica}{f' ({said})' if said else ''}: "


_PUBLISHED: Final = (
    "; windows published on Neuronpedia, held out by window, not by document (weaker), bands among these; silent "
    "ones also of other features, where the feature is not looked at and a random window is silent with p >= 0.9"
)

_GRADED: Final = "; graded contrast: windows of the top decile against those of the lower half"


_FIELDS: Final = [
    field.name for field in dataclasses.fields(Score) if field.name != "feature"
]  # the key says it

Scoring = Callable[[Windows, Heldout, Json, str, Asking], Awaitable[Json]]
"""One explanation's work: its unit's windows, what is held out of its feature, the feature's sample record, its text
and an LLM in, its record out. Raises LLMErrors."""


def facts_of(sample: Json, windows: Windows, *, width: int, n_bands: int, are_chosen: bool = False) -> Facts:
    """What is known of a feature beside its trials.

    The prevalence is `n_windows` windows of `width` tokens over all tokens looked at: the share of the corpus
    that lies in active windows, which is their share among windows that tile it. With `aligned` windows that is
    exact but for short rows. With `anchored` ones it is a little too low, since of two that overlap one is
    dropped; and precision rises with prevalence, so what is said of it stays on the safe side. Where the cache
    kept only some rows of a feature, `n_windows` is an estimate by their weights. Of windows that somebody chose to
    publish (`are_chosen`) neither this nor the mass of their bands says anything of all.
    """
    n_tokens: int = sample["n_tokens"]
    prevalence: float | None = None
    if sample["contrast"] == "silent" and n_tokens and not are_chosen:
        prevalence = to_4_digits(min(1.0, sample["n_windows"] * width / n_tokens))
    return Facts(
        density=to_4_digits(sample["n_fired"] / n_tokens if n_tokens else 0.0),
        prevalence=prevalence,
        mass=[]
        if are_chosen
        else [to_4_digits(share) for share in windows.mass_by_band(sample["key"], n_bands)],
    )


def measured(
    trials: AnyTrials, facts: Facts, headline: Literal["accuracy"] | None = None
) -> tuple[ScoreStatus, Metrics, str | None]:
    """What trials say, and whether that is a score; why not, or what a reader must know of it. `headline`: as in the
    recipe."""
    metrics = measure(trials, facts)
    if headline == "accuracy" and isinstance(trials, Trials):
        metrics = by_plain_accuracy(metrics, trials)
    if metrics.value is None and not metrics.n_unreadable:
        return "untestable", metrics, "this scorer finds no windows of the feature to set against each other"
    if CONSTANT in metrics.flags:
        return "ok", metrics, "the same was predicted of every token, which is worth 0"
    if metrics.value is None:
        return "unreadable", metrics, f"{metrics.n_unreadable} of {metrics.n} answers unreadable"
    return "ok", metrics, None


def stopping_of(trials: AnyTrials) -> Stopping | None:
    """How the test of a sequential scorer ended; None where there was none."""
    if not isinstance(trials, InBlocks):
        return None
    return stopping(trials.rule, trials.looks(), in_panel=trials.in_panel)


def scoring(run: Run, explainer: str, name: str, scorer: Scorer, asked: Asked) -> tuple[Scoring, Asked]:
    """What a scorer, which the recipe has under this name, does with an explanation, and whom it asks."""
    asked = asked if scorer.needs_llm else NOBODY
    before, behind = _replica(run), _weaker(run)
    llm = str(asked.llm.identity)

    async def work(windows: Windows, heldout: Heldout, sample: Json, text: str, asking: Asking) -> Json:
        trials: AnyTrials = Trials()
        metrics: Metrics | None = None
        sampling = run.recipe.sampling
        facts = facts_of(
            sample,
            windows,
            width=sampling.width,
            n_bands=sampling.n_bands,
            are_chosen=run.is_published,
        )
        graded = any(window.stratum == "graded" for window in heldout.silent)
        try:
            trials = await scorer.judge(text, heldout, asking)
            status, metrics, reason = measured(trials, facts, run.recipe.headline)
        except LLMBadRequest as error:
            status, reason = "bad_request", str(error)
        # Not before it was asked: what its server refuses may have been learned from these very requests.
        capabilities = asked.llm.capabilities
        protocol = before + scorer.protocol(capabilities) + _unsent(capabilities) + behind
        score = Score(
            feature=asking.feature,
            explainer=explainer,
            scorer=name,
            status=status,
            explanation=digest(text),
            protocol=protocol + (_GRADED if graded else ""),
            contrast="graded" if graded else "silent",
            llm=llm,
            facts=facts,
            metrics=metrics,
            trials=trials,
            reason=reason,
            sequential=stopping_of(trials),
        )
        # `dataclasses.asdict` would copy every column of the trials value by value.
        fields = {name: getattr(score, name) for name in _FIELDS}
        if score.sequential is None:
            del fields["sequential"]
        return fields | {"trials": trial_records.record(trials)}

    return work, asked


def check_unchanged(key: str, explanation: Json, score: Json, journal: Journal) -> None:
    """Raises RecipeChanged where a score is of another text."""
    if score["explanation"] != digest(explanation["text"]):
        raise RecipeChanged(
            f"the explanation of {key} by '{explanation['explainer']}' changed since it was scored. Delete "
            f"{journal.folder} to score anew."
        )
