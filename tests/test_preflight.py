"""What a run will take, told before it starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from autointerp import pipeline
from autointerp.stages.expected import expected
from autointerp.types import Json
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
DETECTION: Json = {"use": "detection"}
FUZZING: Json = {"use": "fuzzing"}


@pytest.mark.parametrize(
    ("sampling", "scorers", "a_feature"),
    [
        # 1 to explain; of 100 windows of the headline 10 a prompt; 40 hard ones in prompts of their own.
        ({}, [DETECTION], 1 + 10 + 4),
        ({}, [FUZZING], 1 + 10),
        ({}, [DETECTION, FUZZING], 1 + 14 + 10),
        ({"n_same_token": 0, "n_neighbour": 0}, [DETECTION], 1 + 10),
        ({"n_same_document": 3, "n_density": 8}, [DETECTION], 1 + 10 + 6),
        ({"n_heldout": 7, "n_heldout_silent": 6}, [DETECTION | {"packing": 6}], 1 + 3 + 7),
    ],
)
def test_requests_are_counted_with_those_about_hard_windows(
    made: Tiny, tmp_path: Path, sampling: Json, scorers: list[Json], a_feature: int
) -> None:
    recipe = made.recipe(
        llms={"explainer": SCRIPTED, "judge": SCRIPTED},
        features={"n": 3},
        scorers={str(n): section for n, section in enumerate(scorers)},
        sampling=sampling,
    )
    _, run = pipeline.prepare(recipe, tmp_path / "run")
    assert sum(one.n_requests for one in asyncio.run(expected(run))) == 3 * a_feature
    free = recipe | {"llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}}}
    _, run = pipeline.prepare(free, tmp_path / "free")
    assert asyncio.run(expected(run)) == []
