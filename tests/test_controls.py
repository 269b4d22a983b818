"""Controls: a dictionary and a model of random numbers, run as everything else is."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from typer.testing import CliRunner

from autointerp import explain
from autointerp.cli import app
from autointerp.controls import controls_of
from autointerp.dictionaries import random_topk
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError, RecipeError
from autointerp.floors import CONTROLS
from autointerp.metrics.differences import paired, unpaired
from autointerp.metrics.features import Population
from autointerp.metrics.records import Against, ScoreRecord
from autointerp.recipe import parse, to_mapping
from autointerp.results import Interval
from autointerp.run import Run
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.trials import Trials
from tiny import Tiny


def test_random_directions_are_unit_rows_keyed_by_seed_and_feature() -> None:
    rows = random_topk.unit_rows(500, 40, 3)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.array_equal(random_topk.unit_rows(20, 40, 3), rows[:20])  # whatever else is made
    assert not np.allclose(random_topk.unit_rows(20, 40, 4), rows[:20])
    # Cosines of random directions in 40 dimensions: mean 0, variance 1/40, here over 124,750 pairs.
    cosines = (rows @ rows.T)[np.triu_indices(500, 1)]
    assert abs(cosines.mean()) < 0.005
    assert abs(cosines.var() - 1 / 40) < 0.001


def test_of_each_token_the_k_largest_products_with_the_rows_fire() -> None:
    spec = find_dictionary("random-topk:30:4:1").sized(8)
    weights = reader_of(spec).load(spec, "cpu")
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    codes = Encoder(spec, weights).encode(x)
    products = x.numpy() @ random_topk.unit_rows(30, 8, 1).T
    expected = {(n, f) for n in range(5) for f in np.argsort(-products[n])[:4].tolist() if products[n, f] > 0}
    assert set(zip(codes.token_M.tolist(), codes.feature_M.tolist(), strict=True)) == expected


@pytest.mark.parametrize("name", ["random-topk:8:9", "random-topk:8:0"])
def test_more_features_a_token_than_there_are_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="write from 1 to 8"):
        find_dictionary(name)


def test_random_weights_keep_each_tensors_mean_and_spread_and_nothing_else(made: Tiny) -> None:
    files = find_model(str(made.model))
    real = dict(Subject.load(files)._model.named_parameters())
    random = dict(Subject.load(files.randomised(1))._model.named_parameters())
    assert real.keys() == random.keys()
    for name, before in real.items():
        after = random[name]
        n, spread = before.numel(), float(before.std(correction=0))
        assert float(after.mean() - before.mean()) == pytest.approx(0, abs=5 * spread / math.sqrt(n) + 1e-7)
        if spread and n > 1000:
            assert float(after.std()) == pytest.approx(spread, rel=0.1)
            assert abs(float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1])) < 0.1
    again = dict(Subject.load(files.randomised(1), n_layers=1)._model.named_parameters())
    assert all(torch.equal(value, random[name]) for name, value in again.items())  # a part is a part of it
    assert len({files.identity, files.randomised(1).identity, files.randomised(2).identity}) == 3


@pytest.fixture(scope="module")
def run(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return explain(made.recipe(features={"n": 12}), out=tmp_path_factory.mktemp("controls") / "run")


def test_both_controls_have_the_runs_recipe_and_differ_where_they_must(run: Run, tmp_path: Path) -> None:
    dictionary, model = controls_of(run, tmp_path)
    # The tiny dictionary keeps 24 a token, half of them negative directions: all 24 are positive.
    assert dictionary.mapping["dictionaries"]["layers.1"] == {
        "path": "random-topk:208:24:0",
        "hook": "layers.1",
    }
    assert model.mapping["model"]["weights"] == "random"
    kept = to_mapping(run.recipe)
    for section in ("sampling", "features", "explainers", "scorers", "cache", "corpus", "llms", "seed"):
        assert dictionary.mapping[section] == model.mapping[section] == kept[section]
    narrow, _ = controls_of(run, tmp_path, width=30)
    assert narrow.mapping["features"] == {"n": 12, "first": None, "ids": None}


def test_the_verb_runs_both_prints_the_floors_and_goes_on_where_it_was(run: Run) -> None:
    first = CliRunner().invoke(app, ["controls", str(run.path)])
    assert first.exit_code == 0, first.output
    assert "random dictionary" in first.output
    assert "random model" in first.output
    rows = orjson.loads((run.path / CONTROLS).read_bytes())
    assert {row["instance"]["scorer"] for row in rows} == {"detection", "fuzzing"}
    for row in rows:
        assert [floor["n_asked"] for floor in row["floors"]] == [12, 12]
        real, floor = row["real"]["value"], row["floors"][0]
        assert floor["above"]["value"] == pytest.approx(real - floor["mean"]["value"])
        assert floor["above"]["low"] <= floor["above"]["value"] <= floor["above"]["high"]
    folder = run.path.with_name("run-controls")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")}
    assert CliRunner().invoke(app, ["controls", str(run.path)]).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")} == before


def test_the_status_shows_the_floors_beside_the_scores(run: Run, tmp_path: Path) -> None:
    """What `controls` found when it was run last; it says so where the run has grown since."""
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    if not (folder / CONTROLS).is_file():
        CliRunner().invoke(app, ["controls", str(folder)])
    rows = orjson.loads((folder / CONTROLS).read_bytes())
    shown = status_of(folder)
    for row in rows:
        for floor in row["floors"]:
            (line,) = [
                line for line in shown if floor["control"] in line and row["instance"]["scorer"] in line
            ]
            assert all(f"{x:.3f}" in line for x in (floor["mean"]["value"], row["real"]["value"]))
            assert f"{floor['above']['value']:.3f}" in line
    assert not any("has grown since" in line for line in shown)
    rows[0]["real"]["n"] -= 3
    (folder / CONTROLS).write_bytes(orjson.dumps(rows))
    assert f"has grown since: autointerp controls {folder}" in " ".join(" ".join(status_of(folder)).split())
    (folder / CONTROLS).write_bytes(orjson.dumps([{"instance": 3}]))
    spoiled = CliRunner().invoke(app, ["status", str(folder)])
    assert spoiled.exit_code == 2 and "controls.json can't be read" in spoiled.output, spoiled.output


def status_of(folder: Path) -> list[str]:
    done = CliRunner().invoke(app, ["status", str(folder)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_random_weights_cannot_make_activations_that_lie_in_files() -> None:
    with pytest.raises(RecipeError, match="random weights make other activations"):
        parse({"activations": {"path": "x", "format": "delphi"}, "model": {"weights": "random"}})


# --- differences ----------------------------------------------------------------------------------------


def score(value: float) -> ScoreRecord:
    """Of a feature whose windows nobody looks at."""
    return ScoreRecord({}, None, Interval(value, value, value), Trials(), [])


def set_against(first: Sequence[float], second: Sequence[float]) -> Against:
    found = Against()
    for one, other in zip(first, second, strict=True):
        assert found.add(score(one), score(other))
    return found


def population(values: Sequence[float]) -> Population:
    found = Population()
    for value in values:
        score(value).add_to(found)
    return found


def test_a_paired_difference_by_hand() -> None:
    found = paired(set_against([0.9, 0.7], [0.8, 0.4]), seed=0, purpose="x")
    assert found is not None
    assert found.n == (2, 2)
    assert found.value == pytest.approx((0.1 + 0.3) / 2)
    assert (found.first, found.second) == pytest.approx((0.8, 0.6))
    assert paired(Against(), seed=0, purpose="x") is None
    early = Against()  # a record that may have stopped early has no trials to go by
    assert not early.add(score(0.9), ScoreRecord({}, None, Interval(0.8, 0.8, 0.8), None, []))
    assert paired(early, seed=0, purpose="x") is None


def test_pairing_takes_out_what_makes_features_hard() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.4, 0.9, 200)
    first, second = (hard + 0.03 + rng.normal(0, 0.02, 200)).tolist(), hard.tolist()
    with_pairs = paired(set_against(first, second), seed=0, purpose="x")
    without = unpaired(population(first), population(second), seed=0, purpose="x")
    assert with_pairs is not None and without is not None
    assert with_pairs.low is not None and with_pairs.high is not None
    assert with_pairs.low < 0.03 < with_pairs.high
    assert with_pairs.low > 0.02
    assert without.low is not None and without.low < 0  # the same means, and nothing shown
    assert without.value == pytest.approx(with_pairs.value)


def test_intervals_of_both_kinds_hold_the_truth_nineteen_times_in_twenty() -> None:
    """Over features alone; documents that matter are in test_planted_truth.py."""
    rng = np.random.default_rng(1)
    held = {"paired": 0, "unpaired": 0}
    for seed in range(300):
        first, second = rng.normal(0.7, 0.1, 60).tolist(), rng.normal(0.6, 0.15, 60).tolist()
        for name, found in (
            ("paired", paired(set_against(first, second), seed=seed, purpose="x")),
            ("unpaired", unpaired(population(first), population(second), seed=seed, purpose="x")),
        ):
            assert found is not None and found.low is not None and found.high is not None
            held[name] += found.low <= 0.1 <= found.high
    assert min(held.values()) >= 0.92 * 300
