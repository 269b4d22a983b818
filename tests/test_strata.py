"""Strata from the recipe to the table of scores, on a tiny model."""

from __future__ import annotations

import pytest

from autointerp import pipeline
from autointerp.run import Run
from autointerp.types import Json
from here import device_here
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
HARD: Json = {"same_token": 5, "neighbour": 6, "same_document": 4, "density": 3}


@pytest.fixture(scope="module")
def scored(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every stratum is asked for; the tiny model's features fire too often to be set against silence unless
    told so."""
    wanted = {f"n_{name}": n for name, n in HARD.items()}
    sampling = {"contrast": "silent", "minimum": 20, "width": 8, "context_before": 3, "overlap": 8} | wanted
    recipe = made.recipe(
        sampling=sampling, features={"n": 8}, llms={"explainer": SCRIPTED, "judge": SCRIPTED}
    )
    with device_here():
        return pipeline.explain(recipe, out=tmp_path_factory.mktemp("strata") / "run")


def test_strata_stand_beside_the_headline(scored: Run) -> None:
    """Every rate counted again from the table of trials; fuzzing has the headline alone."""
    trials = scored.trials().to_pylist()
    scores = scored.scores().to_pylist()
    assert {row["scorer"] for row in scores} == {"detection", "fuzzing"} and len(scores) >= 10
    n_of = dict.fromkeys(HARD, 0)
    for row in scores:
        mine = [t for t in trials if (t["feature"], t["scorer"]) == (row["feature"], row["scorer"])]
        assert {t["stratum"] for t in mine} <= {None, "random", *HARD}
        assert all(not t["truth"] for t in mine if t["stratum"] is not None)
        for stratum in ("random", *HARD):
            answers = [t["answer"] for t in mine if t["stratum"] == stratum]
            n_readable = len(answers) - answers.count(None)
            rate = answers.count(True) / n_readable if n_readable else None
            if stratum == "random":
                assert (row["n_negative"], 1 - row["true_negative_rate"]) == (
                    len(answers),
                    pytest.approx(rate),
                )
                continue
            assert (row[f"{stratum}_n"] or 0) == len(answers)
            assert row[f"{stratum}_windows"] == rate
            assert len(answers) <= HARD[stratum]
            assert row["scorer"] == "detection" or not answers
            n_of[stratum] += len(answers)
    assert min(n_of.values()) >= 6, n_of
