"""Published protocols as recipes: replicas with their faults, and corrected versions beside them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from able import EMBEDDED

from autointerp import explain
from autointerp.effects import Intervention
from autointerp.errors import LLMStopped, RecipeError
from autointerp.journal import unit_of_feature
from autointerp.llm import sentence_transformers
from autointerp.metrics import measure
from autointerp.metrics.plain_accuracy import by_plain_accuracy
from autointerp.recipe import merge, parse, read_file
from autointerp.run import Run
from autointerp.sampling import pools
from autointerp.sampling.settings import SamplingSettings
from autointerp.stages.sample import load_sample, load_vocabulary, unit_windows
from autointerp.trials import Trials
from autointerp.types import FeatureId, Sample, WindowRefs
from tiny import Tiny

REPLICAS = ("delphi", "paper", "saebench")
DEMO = {"dictionaries": {"auto": {"path": "demo"}}}


def one_feature(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n), np.zeros(n, np.int64)


# --- the rule ---------------------------------------------------------------------------------------------


def slow_shared(n: int, n_taken: int) -> set[int]:
    """One seeded stream over ten parts of equal size, as delphi's samplers draw."""
    generator, size = random.Random(22), n // 10
    return {
        part * size + at for part in range(10) for at in generator.sample(list(range(size)), n_taken // 10)
    }


@pytest.mark.parametrize(("n", "n_both"), [(200, 20), (500, 12), (5_000, 10), (50_000, 10)])
def test_of_fifty_tested_windows_as_many_were_shown_as_in_delphi(n: int, n_both: int) -> None:
    """The numbers of the reference (methods, section 0), which replayed delphi itself."""
    delphi = SamplingSettings(pool="shared", n_shown=40, n_heldout=50)
    shown, heldout = pools.shared(*one_feature(n), delphi, 1)
    assert (len(shown), len(heldout)) == (40, 50)
    assert len(np.intersect1d(shown, heldout)) == n_both
    assert (set(shown.tolist()), set(heldout.tolist())) == (slow_shared(n, 40), slow_shared(n, 50))


def test_apart_deals_the_strongest_and_the_drawn_out_and_takes_no_window_twice() -> None:
    settings = SamplingSettings(
        pool="apart", shown="importance", n_shown=15, n_shown_top=10,
        heldout="importance", n_heldout=4, n_heldout_top=2,
    )  # fmt: skip
    n = 300
    order, group = one_feature(n)
    weight = np.linspace(10, 0.1, n).astype(np.float32)  # window 0 is the strongest
    top_tested, means = [], []
    for seed in range(400):
        hashes = np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)
        shown, heldout = pools.apart(order, group, weight, hashes, settings)
        assert (len(shown), len(heldout)) == (15, 4)
        assert not np.intersect1d(shown, heldout).size
        assert sum(shown < 12) == 10 and sum(heldout < 12) == 2  # the twelve strongest, dealt out
        top_tested += heldout[heldout < 12].tolist()
        means.append([weight[part[part >= 12]].mean() for part in (shown, heldout)])
    counts = np.bincount(top_tested, minlength=12)
    assert counts.min() > 40 and counts.max() < 95  # each of the 12 is tested in 1/6 of 400 cases: 67
    # By importance: the expected weight is sum(w^2) / sum(w), 6.5 here, and the same in both parts.
    rest = weight[12:].astype(float)
    assert np.mean(means, axis=0) == pytest.approx((rest**2).sum() / rest.sum(), rel=0.05)


# --- who may do so ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "over",
    [{"sampling": {"pool": "shared", "n_select": 0, "n_same_token": 0, "n_neighbour": 0}},
     {"sampling": {"silence": "assumed"}}, {"headline": "accuracy"},
     {"scorers": {"fuzzing": {"use": "fuzzing", "marks": "delphi"}}}],
)  # fmt: skip
def test_only_a_replica_may_break_the_promises(over: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="only a recipe that says so may have it: replica: NAME"):
        parse(DEMO | over)
    assert parse(DEMO | over | {"replica": "delphi"}).replica == "delphi"


@pytest.mark.parametrize("name", REPLICAS)
def test_corrected_recipes_differ_from_their_replicas_in_the_faults_alone(name: str) -> None:
    replica, corrected = (parse(merge(DEMO, read_file(f))) for f in (name, f"{name}-corrected"))
    assert (replica.replica, corrected.replica) == (name, None)
    kept = ("cache", "explainers")
    assert all(getattr(replica, section) == getattr(corrected, section) for section in kept)
    marked = {
        key: section | {"marks": name} for key, section in corrected.scorers.items() if key == "fuzzing"
    }
    assert replica.scorers == corrected.scorers | marked
    faults = {"pool", "silence", "minimum_documents"}
    if name == "saebench":  # its windows, centred, tell where to look, and its draw is of its own
        faults |= {"window", "context_before", "importance_power"}
    fields = SamplingSettings.__dataclass_fields__.keys() - faults
    assert all(getattr(replica.sampling, f) == getattr(corrected.sampling, f) for f in fields)


# --- runs -------------------------------------------------------------------------------------------------


SMALL = {"cache": {"n_tokens": 20_000, "shard_tokens": 4096, "context_length": 64}, "features": {"n": 8}}


def run_of(made: Tiny, name: str, out: Path) -> Run:
    """The shipped recipe on the tiny model, whose features have fewer windows than theirs."""
    base = {key: section for key, section in made.recipe().items() if key not in ("sampling", "cache")}
    few = {"sampling": {"minimum": 60, "minimum_full": 60}}
    return explain(merge(merge(merge(base, read_file(name)), SMALL), few), out=out)


def samples(run: Run) -> list[Sample]:
    records = run.existing("sample", "layers.1").records()
    return [sample for record in records if (sample := load_sample(record)).status in ("full", "small")]


def active(refs: WindowRefs) -> set[tuple[int, int]]:
    n = refs.n_active
    return set(zip(refs.rows[:n], refs.starts[:n], strict=True))


def fired_in_windows(run: Run, found: list[Sample]) -> Iterator[tuple[float, ...]]:
    """Activations of each active window that is tested."""
    vocabulary = load_vocabulary(run)
    for sample in found:
        feature = FeatureId.parse(sample.feature)
        unit = unit_of_feature(feature.index)
        store = unit_windows(run, feature.dictionary, unit, [sample.feature], vocabulary)[sample.feature]
        yield from (window.activations for window in store.heldout(sample.feature).active)


@pytest.mark.parametrize("name", REPLICAS)
def test_each_replica_runs_and_every_score_says_what_it_is(made: Tiny, tmp_path: Path, name: str) -> None:
    run = run_of(made, name, tmp_path)
    scores = run.scores().to_pylist()
    assert scores and all(score["status"] == "ok" for score in scores)
    assert all(score["protocol"].startswith(f"replica of {name} (") for score in scores)
    found = samples(run)
    both = [len(active(sample.shown) & active(sample.heldout)) for sample in found]
    if name == "saebench":
        assert set(both) == {0}
        assert {sample.heldout.n_active for sample in found} == {4}
        assert all(len(values) == 21 and values[10] > 0 for values in fired_in_windows(run, found))
        assert {score["headline"] for score in scores} == {"accuracy"}
        assert {round(score["chance"], 3) for score in scores} == {0.714}
    else:
        assert min(both) > 0
    corrected = run_of(made, f"{name}-corrected", tmp_path / "corrected")
    assert not any("replica" in score["protocol"] for score in corrected.scores().to_pylist())
    assert not any(active(s.shown) & active(s.heldout) for s in samples(corrected))
    assert samples(corrected)


# --- what else the paper measures -------------------------------------------------------------------------

ABLE = {"use": "able:Able", "function": "judge:answer"}


def recipe_of(made: Tiny, name: str, **over: Any) -> dict[str, Any]:
    """A shipped recipe on the tiny model, with LLMs that can all it asks for."""
    sections = {key: section for key, section in made.recipe().items() if key not in ("sampling", "cache")}
    able = {"llms": dict.fromkeys(("explainer", "judge", "embedder"), ABLE)}
    few = {"sampling": {"minimum": 60, "minimum_full": 60}}
    recipe = merge(merge(sections, able), read_file(name))
    recipe["llms"] = able["llms"]
    return merge(merge(merge(recipe, SMALL), few), over)


def test_the_whole_table_is_the_papers_replica_with_two_scorers_more() -> None:
    paper, whole = (parse(merge(DEMO, read_file(f))) for f in ("paper", "paper-all"))
    scorers = {name: section for name, section in whole.scorers.items() if name in paper.scorers}
    more = {"embedding", "simulation"}
    assert scorers == paper.scorers and whole.scorers.keys() - paper.scorers.keys() == more
    assert whole.llms.embedder == {"use": "sentence_transformers"}
    assert dataclasses.replace(whole, scorers=paper.scorers, llms=paper.llms) == paper


def test_the_papers_replica_is_extended_by_its_whole_table(made: Tiny, tmp_path: Path) -> None:
    explain(recipe_of(made, "paper"), out=tmp_path)
    parts = {path: path.read_bytes() for path in (tmp_path / "score").rglob("*.jsonl")}
    EMBEDDED.clear()
    run = explain(recipe_of(made, "paper-all"), out=tmp_path)
    assert parts and all(path.read_bytes() == content for path, content in parts.items())
    scores = run.scores().to_pylist()
    assert {score["scorer"] for score in scores} == {"detection", "fuzzing", "embedding", "simulation"}
    new = [score for score in scores if score["scorer"] in ("embedding", "simulation")]
    assert new and all(score["protocol"].startswith("replica of paper (") for score in new)
    assert {score["headline"] for score in new} == {"auroc", "correlation"}
    n_windows = {
        name: {score["feature"]: score["n"] for score in scores if score["scorer"] == name}
        for name in ("detection", "embedding")
    }
    assert n_windows["embedding"] == n_windows["detection"]  # the same windows, all of them
    query = "Instruct: Retrieve sentences that could be related to the explanation.\nQuery: "
    n_explained = len({score["feature"] for score in new})
    assert sum(text.startswith(query) for text in EMBEDDED) == n_explained > 4


def test_without_the_extra_it_says_what_to_do_before_anything_costs(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentence_transformers, "is_installed", lambda: False)
    recipe = recipe_of(made, "paper-all")
    recipe["llms"] = recipe["llms"] | read_file("paper-all")["llms"]
    with pytest.raises(LLMStopped, match=r"pip install '\.\[embed\]'"):
        explain(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run" / "cache").exists()


def test_the_papers_intervention_runs_with_its_targets_and_prompts(made: Tiny, tmp_path: Path) -> None:
    over = {"features": {"n": 4}, "sampling": {"width": 40, "context_before": 30}}
    recipe = recipe_of(made, "paper-intervention", **over)
    whole = parse(merge(DEMO, read_file("paper-intervention")))
    assert whole.intervention == Intervention() and whole.replica is None
    run = explain(recipe, out=tmp_path)
    rows = run.trials().to_pylist()
    assert {row["target_kl"] for row in rows} == {0.1, 0.33, 1.0, 3.0}
    assert {row["arm"] for row in rows} == {"feature", "random", "other"}
    of_one = [row for row in rows if row["feature"] == rows[0]["feature"]]
    assert len(of_one) == 3 * 4 * (max(row["prompt"] for row in of_one) + 1)
    (explainer,) = {score["explainer"] for score in run.scores().to_pylist()}
    assert explainer == "effect"


def test_plain_accuracy_is_the_share_of_right_answers_and_its_chance_the_larger_class() -> None:
    """SAEBench's own example: 4 of 14 active, and a judge that says no to all."""
    trials = Trials(
        window=list(range(14)), truth=[True] * 4 + [False] * 10, answer=[False] * 14,
        probability=[None] * 14, band=[0] * 4 + [None] * 10, stratum=[None] * 4 + ["random"] * 10,
        marks=[[] for _ in range(14)], offset=[0] * 4 + [None] * 10, document=["x"] * 14,
        maximum=[1.0] * 4 + [0.0] * 10, length=[21] * 14,
    )  # fmt: skip
    metrics = by_plain_accuracy(measure(trials), trials)
    assert metrics.value is not None
    assert metrics.value.value == metrics.chance == pytest.approx(10 / 14)
    assert metrics.values["balanced_accuracy"].value == 0.5  # type: ignore[union-attr]  # readable, so it is there
