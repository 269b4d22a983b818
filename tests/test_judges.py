"""The table of judges: Platt's scaling of stored trials, by scorer and LLM."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from autointerp import judges as module
from autointerp.judges import judges
from autointerp.tables import Journals
from autointerp.trials import Trials
from autointerp.types import Json


def record(key: str, llm: str, slope: float) -> Json:
    """100 trials of a judge who says p where the truth is yes with slope * logit(p)."""
    rng = np.random.default_rng([int(key), len(llm)])
    p = 1 / (1 + np.exp(-rng.normal(0, 2, 100)))
    truth = rng.random(100) < 1 / (1 + (1 / p - 1) ** slope)
    trials: Json = dataclasses.asdict(Trials())  # the columns that don't matter here may be anything
    trials = {name: [None] * 100 for name in trials} | {
        "kind": Trials.kind,
        "truth": truth.tolist(),
        "answer": (p > 0.5).tolist(),
        "probability": p.tolist(),
        "stratum": [None if one else "random" for one in truth],
    }
    return {"key": key, "llm": llm, "trials": trials}


def run_of(records: dict[tuple[str, str], list[Json]]) -> Journals:
    def existing(_: str, dictionary: str, explainer: str, scorer: str) -> Any:
        assert dictionary == "d"
        return SimpleNamespace(records=lambda: iter(records[explainer, scorer]))

    scorers = dict.fromkeys(scorer for _, scorer in records)
    recipe = SimpleNamespace(scorers=scorers, dictionaries={"d": None}, seed=0)
    return cast(Journals, SimpleNamespace(recipe=recipe, scored=lambda: list(records), existing=existing))


def test_each_judge_has_its_own_scaling_over_all_explainers() -> None:
    """One overstates (slope 1/2), the other is right (slope 1): to three standard errors at 10,000 trials."""
    loud = [record(str(n), "loud@1", 0.5) for n in range(100)]
    true = [record(str(n), "true@1", 1.0) for n in range(100)]
    run = run_of({("a", "detection"): loud[:50], ("b", "detection"): loud[50:], ("a", "fuzzing"): true})
    first, second = judges(run).to_pylist()
    assert (first["scorer"], first["llm"], second["scorer"], second["llm"]) == (
        *("detection", "loud@1"),
        *("fuzzing", "true@1"),
    )
    assert (first["n_scores"], first["n_trials"]) == (100, 10_000)
    assert first["slope"] == pytest.approx(0.5, abs=0.05) and second["slope"] == pytest.approx(1, abs=0.08)
    assert first["ece"] > 0.1 > first["ece_calibrated"] and second["ece"] < 0.03


def test_of_many_scores_some_are_drawn_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", 10)
    records = [record(str(n), "loud@1", 0.5) for n in range(45)]
    (one,) = judges(run_of({("a", "detection"): records})).to_pylist()
    (other,) = judges(run_of({("a", "detection"): records[::-1]})).to_pylist()
    assert one == other and one["n_scores"] == 10


def test_without_probabilities_there_is_nothing_to_say() -> None:
    silent = record("1", "x@1", 1.0)
    silent["trials"]["probability"] = [None] * 100
    assert judges(run_of({("a", "detection"): [silent]})).num_rows == 0
