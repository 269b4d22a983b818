"""What a run's summary says of its scores, counted again from the tables."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
from rich.console import Console

from autointerp import pipeline
from autointerp import trials as trial_records
from autointerp.metrics.claims import LEVEL
from autointerp.metrics.features import Population, bundled
from autointerp.metrics.influence import influences
from autointerp.metrics.records import ScoreRecord
from autointerp.report.summary import Summary, summarise
from autointerp.report.terminal import print_summary
from autointerp.results import Interval, Metrics
from autointerp.run import Run
from autointerp.sampling.store import Windows
from autointerp.stages.sample import load_vocabulary
from autointerp.stages.score import facts_of
from autointerp.trials import Trials
from autointerp.types import Json
from here import device_here
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
SILENT: Json = {"contrast": "silent", "minimum": 20, "width": 8, "context_before": 3, "overlap": 8}


@pytest.fixture(scope="module")
def scored(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two instances of an explainer; some features have too few windows."""
    explainers = {"plain": {"use": "plain"}, "terse": {"use": "plain", "max_tokens": 40}}
    recipe = made.recipe(
        sampling=SILENT,
        features={"n": 12},
        llms={"explainer": SCRIPTED, "judge": SCRIPTED},
        explainers=explainers,
    )
    with device_here():
        return pipeline.explain(recipe, out=tmp_path_factory.mktemp("scores") / "run")


@pytest.fixture(scope="module")
def summary(scored: Run) -> Summary:
    return summarise(scored, "layers.1")


def test_means_are_those_of_the_table(scored: Run, summary: Summary) -> None:
    rows = scored.scores().to_pylist()
    for score in summary.scores:
        mine = [r for r in rows if (r["explainer"], r["scorer"]) == (score.explainer, score.scorer)]
        ok = [row for row in mine if row["status"] == "ok"]
        assert score.n_scored == len(ok) >= 4 and score.headline == "balanced_accuracy"
        assert score.value is not None and score.bounds is not None
        assert score.value.value == pytest.approx(np.mean([row["value"] for row in ok]))
        assert score.bounds == pytest.approx([np.mean([row[end] for row in ok]) for end in ("worst", "best")])
        assert score.bounds[0] <= score.value.value <= score.bounds[1]
        assert score.n_tested == len(ok) and 0 <= score.n_claimed <= score.n_tested


def test_the_features_that_are_claimed_are_named_by_the_table(scored: Run, summary: Summary) -> None:
    """Benjamini and Hochberg's procedure step by step, at several levels: the k smallest, for the largest k whose
    p-value is at most k / n of the level."""
    rows = scored.scores().to_pylist()
    sizes: set[int] = set()
    for score in summary.scores:
        of_it = [row for row in rows if (row["explainer"], row["scorer"]) == (score.explainer, score.scorer)]
        own = [row for row in of_it if row["status"] == "ok"]
        assert all(row["p_adjusted"] is None for row in of_it if row["status"] != "ok")
        p_values = sorted(row["p_value"] for row in own)
        for level in (LEVEL, 0.4, 0.7, 0.95):
            claims = {row["feature"] for row in own if row["p_adjusted"] <= level}
            held = [at for at, p in enumerate(p_values, 1) if p <= level * at / len(own)]
            by_hand = {row["feature"] for row in own if held and row["p_value"] <= p_values[held[-1] - 1]}
            assert claims == by_hand
            sizes.add(len(claims))
            assert level != LEVEL or len(claims) == score.n_claimed
    assert len(sizes) > 2


def test_a_number_that_not_every_feature_has_says_how_many_do(summary: Summary) -> None:
    """A precision, where nothing was called active, is none."""
    score = summary.scores[0]
    assert score.value is not None and score.value.n > 2
    fewer = {name: dataclasses.replace(mean, n=2) for name, mean in score.values.items()}
    for values, is_said in ((score.values, False), (fewer, True)):
        console = Console(width=240, record=True, file=io.StringIO())
        one = dataclasses.replace(score, values=values, verdicts=None)
        print_summary(console, dataclasses.replace(summary, scores=[one], pairs=[], controls=[]), {})
        assert (f"{values['f1'].value:.2f} (2)" in console.export_text()) == is_said


def test_a_feature_without_a_score_is_worth_chance(scored: Run, summary: Summary) -> None:
    """Over all features: the sum of the scores, and 0.5 for each of the others."""
    for score in summary.scores:
        assert score.value is not None and score.chance == 0.5
        counts = {"eligible": summary.n_explainable, "alive": summary.n_alive, "all": summary.n_sampled}
        for name, n in counts.items():
            total = score.value.value * score.n_scored + 0.5 * (n - score.n_scored)
            assert score.over[name].n == n
            assert score.over[name].value == pytest.approx(total / n)


def test_two_explainers_are_compared_on_the_same_features(scored: Run, summary: Summary) -> None:
    rows = scored.scores().to_pylist()
    assert [(pair.first, pair.second, pair.scorer) for pair in summary.pairs] == [
        ("plain", "terse", "detection"),
        ("plain", "terse", "fuzzing"),
    ]
    for pair in summary.pairs:
        values = {
            (row["explainer"], row["feature"]): row["value"]
            for row in rows
            if row["scorer"] == pair.scorer and row["status"] == "ok"
        }
        both = {f for e, f in values if e == "plain"} & {f for e, f in values if e == "terse"}
        differences = [values["plain", f] - values["terse", f] for f in both]
        assert pair.difference.n == len(both) >= 4
        assert pair.difference.value == pytest.approx(np.mean(differences))


def test_bounds_are_shown_where_something_is_unreadable(summary: Summary) -> None:
    def shown(of: Summary) -> str:
        console = Console(width=200, record=True, file=io.StringIO())
        print_summary(console, of, {})
        return console.export_text()

    one = summary.scores[0]
    lossy = dataclasses.replace(one, n_unreadable=7, n_unreliable=2, bounds=(0.25, 0.875))
    text = shown(dataclasses.replace(summary, scores=[lossy]))
    assert "0.250 to 0.875" in text and "7 (2 features unreliable)" in text
    clean = shown(dataclasses.replace(summary, scores=[dataclasses.replace(lossy, n_unreadable=0)]))
    assert "0.250" not in clean
    assert "eligible" in clean and "by decile" in clean and "above chance" in clean


def test_prevalence_and_mass_are_those_of_the_windows(scored: Run) -> None:
    """Counted again, slowly: windows a token, and summed activations of the windows of each band."""
    journal = scored.existing("sample", "layers.1")
    vocabulary, n_checked = load_vocabulary(scored), 0
    for unit in journal.units():
        for key, (sample, part) in journal.located(unit).items():
            if sample["status"] not in ("full", "small"):
                continue
            windows = Windows(part.with_suffix(".parquet"), vocabulary)
            facts = facts_of(sample, windows, width=8, n_bands=10)
            assert facts.prevalence == pytest.approx(
                min(1, sample["n_windows"] * 8 / sample["n_tokens"]), rel=1e-3
            )
            assert facts.density == pytest.approx(sample["n_fired"] / sample["n_tokens"], rel=1e-3)
            active = windows.select(key).active + windows.heldout(key).active
            means = [
                np.mean([sum(w.activations) for w in active if w.band == band] or [0.0]) for band in range(10)
            ]
            assert facts.mass == pytest.approx([mean / sum(means) for mean in means], rel=1e-3)
            graded = facts_of(sample | {"contrast": "graded"}, windows, width=8, n_bands=10)
            assert graded.prevalence is None
            n_checked += 1
    assert n_checked >= 4


def test_a_document_that_moves_every_feature_widens_the_interval() -> None:
    """Ten features of equal value: features alone leave no doubt. One document that takes 0.1 from each of
    them and gives it elsewhere does."""
    plain, shared = Population(), Population()
    for _ in range(10):
        plain.add(0.7)
        shared.add(0.7, [("00100000", 0.1), ("00200000", -0.1)])
    narrow, wide = plain.mean(seed=0, purpose="x"), shared.mean(seed=0, purpose="x")
    assert narrow is not None and wide is not None
    assert narrow.low == narrow.high == pytest.approx(0.7)
    assert wide.low is not None and wide.high is not None
    assert wide.value == pytest.approx(0.7) and wide.low < 0.6 and wide.high > 0.8


def test_an_interval_ends_where_the_score_can() -> None:
    """Five features, of whose 20 + 20 windows one document's two are told wrongly: 0.95 each. Drawn without that
    document and with others often, the sum of influences passes 1; no balanced accuracy does. Of a gain nothing is
    known, so its interval stays what the resamples say."""
    windows = [(at < 20, f"{at % 10:03x}00000") for at in range(40)]
    trials = Trials(
        truth=[is_active for is_active, _ in windows],
        answer=[is_active != (at in (0, 20)) for at, (is_active, _) in enumerate(windows)],
        stratum=[None if is_active else "random" for is_active, _ in windows],
        document=[document for _, document in windows],
    )
    value, parts = Interval(0.95, 0.9, 1.0), bundled(influences(trials))
    score, gain = Population(), Population()
    for population, headline in ((score, "balanced_accuracy"), (gain, "gain")):
        metrics = Metrics(headline, {headline: value})
        for _ in range(5):
            assert ScoreRecord({}, metrics, value, trials, parts).add_to(population)
    limited, free = score.mean(seed=0, purpose="x"), gain.mean(seed=0, purpose="x")
    assert limited is not None and free is not None and free.high is not None
    assert limited.value == free.value == pytest.approx(0.95)
    assert (limited.low, limited.high) == (free.low, 1.0) and free.high > 1.01
    pieces = Population()
    pieces.extend(score)
    pieces.extend(Population())
    assert pieces.mean(seed=0, purpose="x") == limited


def test_what_rounding_leaves_of_equal_scores_is_no_document() -> None:
    """0.1 + 0.2 - 0.3 is not 0: one document with a trace of nothing leaves the interval as it is."""
    pooled = Population()
    for _ in range(5):
        pooled.add(0.0, [("00100000", 0.1), ("00100000", 0.2), ("00100000", -0.3)])
    mean = pooled.mean(seed=0, purpose="x")
    assert mean is not None and mean.low == mean.high == 0.0


def test_a_population_in_pieces_is_the_same_to_the_last_bit() -> None:
    """Sums of floating-point numbers depend on their order: that of the features stays."""
    rng = np.random.default_rng(0)
    features = [
        (rng.random(), [(f"{n:03x}00000", rng.normal() / 7) for n in rng.integers(0, 40, 30)])
        for _ in range(50)
    ]
    whole, pieces = Population(), Population()
    for feature in features:
        whole.add(*feature)
    for first in range(0, 50, 7):
        piece = Population()
        for feature in features[first : first + 7]:
            piece.add(*feature)
        pieces.extend(piece)
    assert pieces.mean(seed=0, purpose="x") == whole.mean(seed=0, purpose="x")
    assert pieces.values == whole.values == [value for value, _ in features]


def test_documents_add_to_the_number_that_is_the_headline() -> None:
    """One active and two silent windows, two answers right: plain accuracy 2/3, balanced accuracy 3/4."""
    trials = Trials(
        truth=[True, False, False],
        answer=[True, False, True],
        stratum=[None, "random", "random"],
        document=["a", "b", "c"],
    )
    plain = dict(influences(trials, "accuracy"))
    assert plain == {"a": pytest.approx(1 / 9), "b": pytest.approx(1 / 9), "c": pytest.approx(-2 / 9)}
    balanced = dict(influences(trials, "balanced_accuracy"))
    assert balanced == {"a": 0.0, "b": pytest.approx(1 / 8), "c": pytest.approx(-1 / 8)}


def test_summing_up_as_stored_gives_what_objects_of_each_score_give(scored: Run, summary: Summary) -> None:
    """The numbers of a run's summary against a loop over its records, each read in full."""
    run = scored
    assert summary.scores
    for score in summary.scores:
        records = list(run.existing("score", "layers.1", score.explainer, score.scorer).records())
        metrics = [Metrics.of(record["metrics"]) for record in records if record["status"] == "ok"]
        assert score.n_scored == len(metrics) > 4
        pooled = Population()
        for record, one in zip(records, metrics, strict=True):
            assert one.value is not None
            pooled.add(one.value.value, influences(trial_records.of(record["trials"]), one.headline))
        mean = pooled.mean(seed=run.recipe.seed, purpose="headline")
        assert mean is not None and score.value is not None
        assert dataclasses.astuple(score.value) == pytest.approx(dataclasses.astuple(mean), abs=1e-12)
        assert score.n_trials == sum(one.n for one in metrics)
        for of, numbers in (("values", score.values), ("bands", score.bands)):
            for name, number in numbers.items():
                by_hand = [
                    interval.value
                    for one in metrics
                    if (interval := one.values[name] if of == "values" else one.groups["band"][name].value)
                ]
                assert (number.n, number.value) == (
                    len(by_hand),
                    pytest.approx(math.fsum(by_hand) / number.n),
                )
