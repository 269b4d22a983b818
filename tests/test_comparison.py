"""Bridges and comparisons: the same features in pairs, others in groups of like density."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autointerp import explain
from autointerp.bridge import mapping_under
from autointerp.cli import app
from autointerp.comparison import compare, compare_explainers, matched_on_density
from autointerp.errors import RecipeError
from autointerp.metrics import HEADLINE_STRATA
from autointerp.report.summary import summarise
from autointerp.run import Run
from tiny import Tiny


@pytest.fixture(scope="module")
def run(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    recipe = made.recipe(
        features={"n": 8}, explainers={"plain": {"use": "plain"}, "words": {"use": "top_tokens"}}
    )
    yield explain(recipe, out=tmp_path_factory.mktemp("comparison") / "run")


def test_windows_that_one_alone_has_right_are_counted(run: Run) -> None:
    """Counted again from the table of trials; the same in the run's summary, and no less where a judge is set beside
    itself."""
    answers: dict[tuple[str, str], dict[tuple[str, int, bool], bool]] = {}
    for row in run.trials().to_pylist():
        if row["answer"] is not None and (row["truth"] or row["stratum"] in HEADLINE_STRATA):
            of = answers.setdefault((row["explainer"], row["scorer"]), {})
            of[row["feature"], row["window"], row["truth"]] = row["answer"] == row["truth"]
    pairs = {pair.scorer: pair for pair in summarise(run, "layers.1").pairs}
    for found in compare_explainers(run, "plain", "words"):
        scorer = found.first.scorer
        one, other = answers["plain", scorer], answers["words", scorer]
        alone = [(one[at], other[at]) for at in one.keys() & other.keys()]
        assert any(is_right != of_other for is_right, of_other in alone)
        by_hand = alone.count((True, False)), alone.count((False, True)), len(alone)
        assert (found.discordant.first, found.discordant.second, found.discordant.n) == by_hand
        assert pairs[scorer].discordant == found.discordant and found.discordant.p_value is not None
    for found in compare(run, run):
        if found.first.explainer == found.second.explainer:
            assert (found.discordant.first, found.discordant.second) == (0, 0) and found.discordant.n > 0
    shown = CliRunner().invoke(
        app, ["compare", str(run.path), "--explainers", "plain,words"], env={"COLUMNS": "240"}
    )
    assert "McNemar" in shown.output


def protocol(folder: Path, name: str, n_heldout: int) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"sampling: {{minimum: 20, minimum_full: 60, n_heldout: {n_heldout}}}\n")
    return path


def test_a_bridge_scores_the_same_features_on_the_same_cache(run: Run, tmp_path: Path) -> None:
    few = protocol(tmp_path, "few", 10)
    result = CliRunner().invoke(app, ["bridge", str(run.path), "--protocols", f"own,{few}"])
    assert result.exit_code == 0, result.output
    other = Run.open(run.path.with_name("run-bridge") / "few")
    assert other.recipe.sampling.n_heldout == 10
    assert other.recipe.sampling.n_shown == 40  # not given in the protocol: the default, whatever the run has
    assert other.asked("layers.1") == run.asked("layers.1")
    parts = list((run.path / "cache").rglob("*.jsonl"))
    assert parts
    for path in parts:  # the same bytes under a second name: nothing was cached anew
        assert (other.path / path.relative_to(run.path)).samefile(path)
    assert "paired" in result.output and "few" in result.output


def test_a_protocol_brings_its_windows_and_the_run_all_else(run: Run) -> None:
    mapping = mapping_under(run, "delphi")
    assert mapping["replica"] == "delphi" and mapping["sampling"]["pool"] == "shared"
    assert mapping["cache"]["n_tokens"] == 20_000  # not the 10 million of delphi.yaml
    assert mapping["explainers"] == {"plain": {"use": "plain", "threshold": 0.3, "max_tokens": 500}}


def test_explainers_of_one_run_are_paired_over_its_features(run: Run) -> None:
    """With the same interval as `status` has, over features and documents."""
    rows = run.scores().to_pylist()
    pairs = {pair.scorer: pair for pair in summarise(run, "layers.1").pairs}
    for found in compare_explainers(run, "plain", "words"):
        of_each = [
            {
                r["feature"]: r["value"]
                for r in rows
                if (r["explainer"], r["scorer"]) == (name, found.first.scorer)
            }
            for name in ("plain", "words")
        ]
        both = of_each[0].keys() & of_each[1].keys()
        assert found.difference is not None and found.how == "paired"
        by_hand = sum(of_each[0][key] - of_each[1][key] for key in both) / len(both)
        assert found.difference.value == pytest.approx(by_hand)
        said, own = pairs[found.first.scorer].difference, found.difference
        assert (own.value, own.low, own.high) == (said.value, said.low, said.high)
    with pytest.raises(RecipeError, match="has no explainer 'other'"):
        compare_explainers(run, "plain", "other")


def test_what_a_sequential_scorer_may_have_stopped_is_in_no_comparison(made: Tiny, tmp_path: Path) -> None:
    """McNemar's windows and the difference are those of the panel, as in `status`."""
    recipe = made.recipe(
        features={"n": 8},
        explainers={"plain": {"use": "plain"}, "words": {"use": "top_tokens"}},
        scorers={"detection": {"use": "detection", "sequential": {"panel": 0.5}}},
    )
    run = explain(recipe, out=tmp_path / "run")
    (found,) = compare_explainers(run, "plain", "words")
    (pair,) = summarise(run, "layers.1").pairs
    n_scored = sum(row["explainer"] == "plain" and row["status"] == "ok" for row in run.scores().to_pylist())
    assert found.difference is not None and 0 < found.difference.n[0] == pair.difference.n < n_scored
    assert found.discordant == pair.discordant and found.discordant.n > 0
    assert found.difference.low == pair.difference.low


def test_matching_keeps_as_many_of_each_in_every_half_decade() -> None:
    first = {f"a{n}": 0.02 for n in range(6)} | {f"r{n}": 0.0002 for n in range(3)} | {"silent": 0.0}
    second = {f"b{n}": 0.025 for n in range(2)} | {f"s{n}": 0.0001001 for n in range(9)} | {"dense": 0.5}
    kept = matched_on_density(first, second, 0)
    assert [sorted(key[0] for key in keys) for keys in kept] == [["a"] * 2 + ["r"] * 3, ["b"] * 2 + ["s"] * 3]
    assert matched_on_density(first, second, 0) == kept != matched_on_density(first, second, 1)
