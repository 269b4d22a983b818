"""Scores as rows of Neuronpedia's score table, which its import doesn't read yet: written beside the others.

`jsonDetails` of yes-or-no scorers is the list that its pages show: an object a window with text, distance (the
decile; -1 behind silent ones), ground_truth, prediction, highlighted, correct, probability, activations, str_tokens.
Of other scorers it is the trials as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from autointerp.neuronpedia.layout import SCORE_TYPES
from autointerp.neuronpedia.naming import Names
from autointerp.results import Metrics
from autointerp.run import Run
from autointerp.splits import Heldout
from autointerp.trials import InBlocks, Trials
from autointerp.types import Json


@dataclass(slots=True)
class Scores:
    """Of one explanation."""

    rows: list[Json] = field(default_factory=list[Json])
    n_without_value: int = 0


def scores_of(
    run: Run, names: Names, explanation: str, records: Mapping[str, Json], heldout: Heldout | None
) -> Scores:
    """`explanation`: its id. `records`: by scorer."""
    found = Scores()
    for scorer, record in records.items():
        metrics = Metrics.of(record["metrics"]) if record["metrics"] else None
        if metrics is None or metrics.value is None:
            found.n_without_value += 1
            continue
        use: str = run.recipe.scorers[scorer]["use"]
        found.rows.append(
            {
                "id": names.id("score", explanation, scorer),
                "value": metrics.value.value,
                "explanationId": explanation,
                "explanationScoreTypeName": SCORE_TYPES.get(use, use),
                "explanationScoreModelName": record["llm"].partition("@")[0].rpartition("/")[2].lower(),
                "jsonDetails": orjson.dumps(_details(record["trials"], heldout)).decode(),
                "initiatedByUserId": names.creator,
            }
        )
    return found


def _details(trials: Json, heldout: Heldout | None) -> Json | list[Json]:
    if trials["kind"] not in (Trials.kind, InBlocks.kind) or heldout is None:
        return trials
    windows = [*heldout.active, *heldout.silent]
    columns = [trials[name] for name in ("window", "truth", "answer", "probability", "band", "marks")]
    found: list[Json] = []
    for at, truth, answer, probability, band, marks in zip(*columns, strict=True):
        window = windows[at]
        found.append(
            {
                "text": window.text,
                "distance": -1 if band is None else band,
                "ground_truth": truth,
                "prediction": answer,
                "highlighted": bool(marks),
                "correct": None if answer is None else answer == truth,
                "probability": probability,
                "activations": window.activations,
                "str_tokens": window.texts,
            }
        )
    return found
