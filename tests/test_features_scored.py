"""Scorers that need no explanation, in a run: once a feature, whoever explains it."""

from __future__ import annotations

from pathlib import Path

import yaml
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.run import NO_EXPLAINER, Run
from tiny import Tiny


def test_a_feature_is_scored_once_whoever_explains_it(made: Tiny, tmp_path: Path) -> None:
    """Two explainers, so detection scores twice as much; a run that goes on asks nothing, and the next scorer
    extends it; tables and reports show both kinds."""
    mapping = made.recipe(
        explainers={"one": {"use": "lexical"}, "two": {"use": "lexical"}},
        scorers={"detection": {"use": "detection"}, "intruder": {"use": "intruder"}},
        features={"first": 12},
    )
    run = pipeline.explain(mapping, out=tmp_path / "run")
    explained = {record["key"] for record in run.existing("explain", "layers.1", "one").records()}
    odd = list(run.existing("score", "layers.1", NO_EXPLAINER, "intruder").records())
    assert {record["key"] for record in odd} == explained and len(odd) == len(explained) > 3
    assert {record["explainer"] for record in odd} == {NO_EXPLAINER}
    assert not (run.path / "score/layers.1/one/intruder").exists()
    assert (run.path / "score/layers.1/one/detection").is_dir()
    assert run.scored() == [("one", "detection"), ("two", "detection"), (NO_EXPLAINER, "intruder")]
    before = {path: path.read_bytes() for path in run.path.joinpath("score").rglob("*.jsonl")}
    again = pipeline.explain(mapping, out=tmp_path / "run")
    assert before == {path: path.read_bytes() for path in again.path.joinpath("score").rglob("*.jsonl")}
    scorers = [row["scorer"] for row in Run.open(run.path).scores().to_pylist()]
    assert scorers.count("intruder") == len(odd) and scorers.count("detection") == 2 * len(odd)
    told = CliRunner().invoke(app, ["status", str(run.path)])
    assert told.exit_code == 0 and "intruder" in told.output, told.output


def test_a_recipe_without_an_embedder_says_who_could_be_one(made: Tiny, tmp_path: Path) -> None:
    """The judge is asked where no embedder is named, and the lexical one can't."""
    file = tmp_path / "recipe.yaml"
    mapping = made.recipe(scorers={"near": {"use": "embedding"}}, features={"first": 2})
    file.write_text(yaml.safe_dump(mapping))
    done = CliRunner().invoke(app, ["explain", "--recipe", str(file), "--out", str(tmp_path / "run")])
    assert done.exit_code != 0
    assert "scorers.near: it needs embeddings" in done.output and "sentence_transformers" in done.output
