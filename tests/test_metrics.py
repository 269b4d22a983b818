"""What `autointerp.metrics` promises: the right numbers, and intervals that cover.

The coverage test enumerates every outcome of n trials and weights it by its probability, so its figures are
exact, not simulated.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as untyped_stats  # pyright: ignore[reportMissingTypeStubs]  there are none
from sklearn import metrics as untyped_sklearn  # pyright: ignore[reportMissingTypeStubs]  there are none

from autointerp.metrics import MeanOver, mean_over_features, measure
from autointerp.metrics.ranking import auroc
from autointerp.results import Interval, Metrics
from autointerp.trials import Trials
from autointerp.types import Stratum

stats = cast(Any, untyped_stats)
sklearn = cast(Any, untyped_sklearn)

Floats = NDArray[np.float64]
quick = settings(max_examples=60, derandomize=True, database=None)
counts = st.integers(min_value=0, max_value=60)


def make_trials(
    *, tp: int = 0, fn: int = 0, tn: int = 0, fp: int = 0, lost_positives: int = 0, lost_negatives: int = 0
) -> Trials:
    """Trials with these outcomes; the lost ones are unreadable. Negatives are of stratum `random`."""
    cells: list[tuple[bool, bool | None, int]] = [
        (True, True, tp),
        (True, False, fn),
        (True, None, lost_positives),
        (False, False, tn),
        (False, True, fp),
        (False, None, lost_negatives),
    ]
    truth = [truth for truth, _, n in cells for _ in range(n)]
    return Trials(
        window=list(range(len(truth))),
        truth=truth,
        answer=[answer for _, answer, n in cells for _ in range(n)],
        probability=[None] * len(truth),
        band=[0 if positive else None for positive in truth],
        stratum=[None if positive else "random" for positive in truth],
        marks=[[] for _ in truth],
        offset=[12 if positive else None for positive in truth],
        document=[f"{n:08x}" for n in range(len(truth))],
        maximum=[1.0 if positive else 0.0 for positive in truth],
        length=[32] * len(truth),
    )


def of_rates(hits_positive: int, n_positive: int, hits_negative: int, n_negative: int) -> Metrics:
    """Metrics of so many right answers among so many positives and negatives."""
    return measure(
        make_trials(
            tp=hits_positive,
            fn=n_positive - hits_positive,
            tn=hits_negative,
            fp=n_negative - hits_negative,
        )
    )


def found(interval: Interval | None) -> Interval:
    """The interval, which the test knows to be there."""
    assert interval is not None
    return interval


def intervals_of(metrics: Metrics) -> list[Interval]:
    """Those that are not None."""
    return [interval for interval in metrics.values.values() if interval is not None]


def f1_at(tpr: float, tnr: float, n_positive: int, n_negative: int) -> float:
    """F1 of a judge with these rates on so many trials: 2 tpr n+ / (tpr n+ + fpr n- + n+)."""
    true_positives = tpr * n_positive
    return 2 * true_positives / (true_positives + (1 - tnr) * n_negative + n_positive)


def test_each_hard_stratum_has_its_own_rate() -> None:
    """1 of 4 readable same-token windows called active, one unreadable; the neighbour's cannot be read."""
    answers: list[bool | None] = [False, False, False, True, None, None]
    strata: list[Any] = ["same_token"] * 5 + ["neighbour"]
    trials = replace(make_trials(tn=3, fp=1, lost_negatives=2), answer=answers, stratum=strata)
    measured = measure(trials)
    assert measured.n_negative == 0 and measured.values["true_negative_rate"] is None
    same = measured.groups["stratum"]["same_token"]
    assert found(same.value).value == 0.25
    assert (same.n, same.n_unreadable) == (5, 1)
    assert measured.groups["stratum"]["neighbour"].value is None


# ------------------------------------------------------------------------------------------- the values


def test_values_are_those_worked_by_hand() -> None:
    """8 of 10 positives and 9 of 10 negatives right: 0.8, 0.9, their mean, and 16 / (16 + 1 + 2)."""
    metrics = measure(make_trials(tp=8, fn=2, tn=9, fp=1))
    assert found(metrics.values["true_positive_rate"]).value == 0.8
    assert found(metrics.values["true_negative_rate"]).value == 0.9
    assert found(metrics.values["balanced_accuracy"]).value == pytest.approx(0.85)
    assert found(metrics.values["f1"]).value == 16 / 19
    assert (metrics.n_positive, metrics.n_negative, metrics.n_unreadable) == (10, 10, 0)


def test_balanced_accuracy_ignores_how_many_of_each_truth_there_are() -> None:
    """1 of 2 and 30 of 40 right: (0.5 + 0.75) / 2, whereas plain accuracy would be 31 / 42."""
    assert found(of_rates(1, 2, 30, 40).values["balanced_accuracy"]).value == 0.625


def test_a_judge_that_says_yes_to_everything_has_balanced_accuracy_one_half() -> None:
    """tpr 1 and tnr 0."""
    assert found(of_rates(10, 10, 0, 10).values["balanced_accuracy"]).value == 0.5


def test_unreadable_trials_are_counted_and_enter_no_rate() -> None:
    """The same answers with 3 + 4 unreadable ones give the same intervals and larger counts."""
    clean = measure(make_trials(tp=8, fn=2, tn=9, fp=1))
    lossy = measure(make_trials(tp=8, fn=2, tn=9, fp=1, lost_positives=3, lost_negatives=4))
    assert lossy.values == clean.values
    assert (lossy.n, lossy.n_positive, lossy.n_negative, lossy.n_unreadable) == (27, 13, 14, 7)


def test_no_trials_give_no_rate() -> None:
    """Everything is None, and the counts are 0."""
    metrics = measure(Trials())
    assert metrics.value is None and set(metrics.values.values()) == {None}
    assert (metrics.n, metrics.n_positive, metrics.n_negative, metrics.n_unreadable) == (0, 0, 0, 0)
    assert metrics.bounds is None and metrics.p_value is None and metrics.flags == []


def test_only_unreadable_trials_give_no_rate() -> None:
    """A judge that was never understood has no accuracy, not one of zero."""
    metrics = measure(make_trials(lost_positives=2, lost_negatives=3))
    assert metrics.value is None and set(metrics.values.values()) == {None}
    assert (metrics.n, metrics.n_positive, metrics.n_negative, metrics.n_unreadable) == (5, 2, 3, 5)
    assert metrics.bounds == (0.0, 1.0) and metrics.flags == ["unreliable"]


def test_without_readable_positives_only_the_true_negative_rate_is_known() -> None:
    """tpr, balanced accuracy and F1 are None."""
    metrics = measure(make_trials(tn=3, fp=1, lost_positives=5))
    assert (
        metrics.values["true_positive_rate"]
        is metrics.values["balanced_accuracy"]
        is metrics.values["f1"]
        is None
    )
    assert found(metrics.values["true_negative_rate"]).value == 0.75


def test_without_readable_negatives_f1_is_a_function_of_the_true_positive_rate() -> None:
    """2 tpr / (tpr + 1), ends included; balanced accuracy and tnr are None."""
    metrics = measure(make_trials(tp=3, fn=1, lost_negatives=2))
    assert metrics.values["true_negative_rate"] is metrics.values["balanced_accuracy"] is None
    rate = found(metrics.values["true_positive_rate"])
    f1 = found(metrics.values["f1"])
    expected = [2 * tpr / (tpr + 1) for tpr in (rate.value, rate.low, rate.high)]
    assert [f1.value, f1.low, f1.high] == pytest.approx(expected)


def test_f1_is_zero_where_no_positive_is_found() -> None:
    """Also where nothing is called positive, unlike precision, which would be undefined."""
    assert found(of_rates(0, 5, 5, 5).values["f1"]).value == 0.0


def test_negatives_of_other_strata_are_left_out() -> None:
    """Random and unnamed strata count; negatives chosen to be hard do not, nor do their counts."""
    easy = measure(make_trials(tp=4, tn=6))
    hard: Stratum = "neighbour"
    trials = make_trials(tp=4, tn=6, fp=5, lost_negatives=2)
    mixed = replace(trials, stratum=[None] * 4 + ["random"] * 3 + [None] * 3 + [hard] * 7)
    measured = measure(mixed)
    assert replace(measured, groups={}) == replace(easy, groups={})
    assert measured.groups["stratum"].keys() == {"random", "neighbour"}
    assert measured.groups["stratum"]["neighbour"].n == 7


@quick
@given(data=st.lists(st.tuples(st.booleans(), st.sampled_from([True, False, None])), max_size=80))
def test_values_equal_scikit_learn_on_the_readable_trials(data: list[tuple[bool, bool | None]]) -> None:
    """balanced_accuracy_score, f1_score and recall_score (of either class), whatever the answers."""
    trials = make_trials(
        tp=data.count((True, True)),
        fn=data.count((True, False)),
        tn=data.count((False, False)),
        fp=data.count((False, True)),
        lost_positives=data.count((True, None)),
        lost_negatives=data.count((False, None)),
    )
    metrics = measure(trials)
    truth = [truth for truth, answer in data if answer is not None]
    answer = [answer for _, answer in data if answer is not None]
    assert metrics.n_unreadable == len(data) - len(truth)
    assert (
        (metrics.values["true_positive_rate"] is None)
        == (metrics.values["f1"] is None)
        == (True not in truth)
    )
    assert (metrics.values["true_negative_rate"] is None) == (False not in truth)
    assert (metrics.values["balanced_accuracy"] is None) == (len(set(truth)) < 2)
    if metrics.values["true_positive_rate"] is not None:
        assert metrics.values["true_positive_rate"].value == sklearn.recall_score(truth, answer)
        assert found(metrics.values["f1"]).value == pytest.approx(sklearn.f1_score(truth, answer))
    if metrics.values["true_negative_rate"] is not None:
        assert metrics.values["true_negative_rate"].value == sklearn.recall_score(
            truth, answer, pos_label=False
        )
    if metrics.values["balanced_accuracy"] is not None:
        expected = sklearn.balanced_accuracy_score(truth, answer)
        assert metrics.values["balanced_accuracy"].value == pytest.approx(expected)


# ---------------------------------------------------------------------------------------- the intervals


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 10), (49, 50), (50, 50), (900, 1000)]
)
def test_interval_of_a_rate_is_clopper_pearson(hits: int, n: int) -> None:
    """As scipy's exact binomial test has it, for either rate."""
    expected = stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="exact")
    for rate in (
        of_rates(hits, n, 0, 0).values["true_positive_rate"],
        of_rates(0, 0, hits, n).values["true_negative_rate"],
    ):
        assert (found(rate).low, found(rate).high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("hits_positive", "n_positive", "hits_negative", "n_negative"),
    [
        (40, 50, 45, 50),
        (1, 5, 4, 5),
        (3, 10, 99, 100),
        (450, 500, 2, 4),
        (50, 50, 49, 50),
        (0, 3, 2, 3),
        (0, 1, 1, 1),
    ],
)
def test_melded_interval_equals_a_simulation_of_the_same_betas(
    hits_positive: int, n_positive: int, hits_negative: int, n_negative: int
) -> None:
    """Balanced accuracy and F1, against the quantiles of 200,000 draws."""
    rng = np.random.default_rng(20410)
    pair = ((hits_positive, n_positive), (hits_negative, n_negative))
    pessimistic = [rng.beta(k, n - k + 1, 200_000) if k else np.zeros(200_000) for k, n in pair]
    optimistic = [rng.beta(k + 1, n - k, 200_000) if k < n else np.ones(200_000) for k, n in pair]
    metrics = of_rates(hits_positive, n_positive, hits_negative, n_negative)

    def f1(tpr: Floats, tnr: Floats) -> Floats:
        return 2 * tpr * n_positive / (tpr * n_positive + (1 - tnr) * n_negative + n_positive)

    low_high = np.quantile(sum(pessimistic) / 2, 0.025), np.quantile(sum(optimistic) / 2, 0.975)
    accuracy = found(metrics.values["balanced_accuracy"])
    assert (accuracy.low, accuracy.high) == pytest.approx(low_high, abs=0.003)
    low_high = np.quantile(f1(*pessimistic), 0.025), np.quantile(f1(*optimistic), 0.975)
    assert (found(metrics.values["f1"]).low, found(metrics.values["f1"]).high) == pytest.approx(
        low_high, abs=0.003
    )


def test_melded_ends_are_exact_where_they_can_be_worked_by_hand() -> None:
    """1 of 1 and 1 of 1: the mean of two uniform variables is below x with probability 2 x^2."""
    interval = found(of_rates(1, 1, 1, 1).values["balanced_accuracy"])
    assert (interval.low, interval.high) == pytest.approx(((0.025 / 2) ** 0.5, 1.0), abs=1e-4)


def test_perfect_answers_reach_one_and_leave_doubt_below() -> None:
    """50 of 50 and 50 of 50: the value and the high end are 1, the low end is below."""
    for interval in intervals_of(of_rates(50, 50, 50, 50)):
        assert interval.value == interval.high == 1.0
        assert 0.9 < interval.low < 0.99


def test_all_answers_wrong_reach_zero_and_leave_doubt_above() -> None:
    """0 of 50 and 0 of 50: the value and the low end are 0, the high end is above."""
    for interval in intervals_of(of_rates(0, 50, 0, 50)):
        assert interval.value == interval.low == 0.0
        assert 0.01 < interval.high < 0.1


@pytest.mark.parametrize(("n_pos", "n_neg"), [(3, 20), (20, 3), (50, 50)])
def test_an_area_of_zero_has_the_mirrored_interval_of_an_area_of_one(n_pos: int, n_neg: int) -> None:
    """Clopper and Pearson's for no hit in n, the smaller count: up to 1 - 0.025 ** (1 / n)."""
    below, above = np.arange(n_pos, dtype=np.float64), np.arange(n_neg) + 1000.0
    none, every = auroc(below, above), auroc(-below, -above)
    high = 1 - 0.025 ** (1 / min(n_pos, n_neg))
    assert (none.value, none.low, every.value, every.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(high) and none.high == pytest.approx(1 - every.low)


@quick
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=1, max_size=6),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=1, max_size=6),
)
def test_any_two_lists_of_numbers_have_an_area_within_its_interval(
    positives: list[float], negatives: list[float]
) -> None:
    found = auroc(np.array(positives), np.array(negatives))
    pairs = [(a > b) + (a == b) / 2 for a in positives for b in negatives]
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= found.low <= found.value <= found.high <= 1
    mirrored = auroc(np.array(negatives), np.array(positives))
    ends = [1 - mirrored.value, 1 - mirrored.high, 1 - mirrored.low]
    assert [found.value, found.low, found.high] == pytest.approx(ends)


@quick
@given(tp=counts, fn=counts, tn=counts, fp=counts)
def test_intervals_lie_within_zero_and_one_and_hold_their_value(tp: int, fn: int, tn: int, fp: int) -> None:
    """For any counts."""
    for interval in intervals_of(measure(make_trials(tp=tp, fn=fn, tn=tn, fp=fp))):
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


@quick
@given(tp=counts, fn=counts, tn=counts, fp=counts)
def test_ten_times_the_trials_give_the_same_values_and_narrower_intervals(
    tp: int, fn: int, tn: int, fp: int
) -> None:
    """For any counts; where only one truth is there, for the rates that are known."""
    few = intervals_of(measure(make_trials(tp=tp, fn=fn, tn=tn, fp=fp)))
    many = intervals_of(measure(make_trials(tp=10 * tp, fn=10 * fn, tn=10 * tn, fp=10 * fp)))
    for wide, narrow in zip(few, many, strict=True):
        assert narrow.value == pytest.approx(wide.value)
        assert narrow.high - narrow.low < wide.high - wide.low


@quick
@given(tp=counts, fn=counts, tn=counts, fp=counts)
def test_a_judge_who_swaps_yes_and_no_has_the_mirrored_interval(tp: int, fn: int, tn: int, fp: int) -> None:
    """Balanced accuracy and the rates turn into 1 minus what they were."""
    straight = measure(make_trials(tp=tp, fn=fn, tn=tn, fp=fp))
    swapped = measure(make_trials(tp=fn, fn=tp, tn=fp, fp=tn))
    for name in ("balanced_accuracy", "true_positive_rate", "true_negative_rate"):
        one: Interval | None = straight.values[name]
        other: Interval | None = swapped.values[name]
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            mirrored = (1 - other.value, 1 - other.high, 1 - other.low)
            assert (one.value, one.low, one.high) == pytest.approx(mirrored, abs=1e-4)


# ------------------------------------------------------------------------------------------ the coverage


RATES = (1.0, 0.99, 0.95, 0.9, 0.75, 0.5)


def likely_hits(n: int) -> list[int]:
    """Hits that have a probability of 1e-6 or more at one of the rates. Others count as not covered."""
    return [k for k in range(n + 1) if max(stats.binom.pmf(k, n, RATES)) >= 1e-6]


@cache
def outcomes(n_positive: int, n_negative: int) -> list[tuple[int, int, Metrics]]:
    """Hits among positives, hits among negatives, and what is measured then."""
    pairs = product(likely_hits(n_positive), likely_hits(n_negative))
    return [(k, j, of_rates(k, n_positive, j, n_negative)) for k, j in pairs]


@pytest.mark.parametrize(("n_positive", "n_negative"), [(10, 10), (50, 50), (20, 50)])
@pytest.mark.parametrize("statistic", ["balanced_accuracy", "f1"])
def test_intervals_cover_the_truth_at_least_95_percent_of_the_time(
    statistic: str, n_positive: int, n_negative: int
) -> None:
    """Exactly: the probability of all outcomes whose interval holds the true value, at each pair of rates."""
    hits_positive, hits_negative, metrics = zip(*outcomes(n_positive, n_negative), strict=True)
    intervals: list[Interval] = [found(metric.values[statistic]) for metric in metrics]
    low = np.array([interval.low for interval in intervals])
    high = np.array([interval.high for interval in intervals])
    coverage: dict[tuple[float, float], float] = {}
    for tpr, tnr in product(RATES, RATES):
        truth = f1_at(tpr, tnr, n_positive, n_negative) if statistic == "f1" else (tpr + tnr) / 2
        of_positives = stats.binom.pmf(hits_positive, n_positive, tpr)
        of_negatives = stats.binom.pmf(hits_negative, n_negative, tnr)
        holds = (low <= truth + 1e-12) & (truth - 1e-12 <= high)
        coverage[tpr, tnr] = float((of_positives * of_negatives)[holds].sum())
    print(f"\n{statistic}, {n_positive} positives, {n_negative} negatives; a row a tpr, a column a tnr")
    for tpr in RATES:
        print(f"  {tpr:<5}", *(f"{coverage[tpr, tnr]:.4f}" for tnr in RATES))
    assert min(coverage.values()) >= 0.95


# -------------------------------------------------------------------------------------- over features


def naive_bootstrap(values: list[float], n_resamples: int) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of means of resamples, with no numpy in the resampling."""
    rng = random.Random(4711)
    means = [sum(rng.choices(values, k=len(values))) / len(values) for _ in range(n_resamples)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def over(values: list[float], *, seed: int = 0, purpose: str = "test") -> MeanOver:
    """The mean over features, which the test knows to be there."""
    mean = mean_over_features(values, seed=seed, purpose=purpose)
    assert mean is not None
    return mean


@pytest.mark.parametrize("n", [2, 5, 40, 400])
def test_bootstrap_interval_equals_a_naive_loop(n: int) -> None:
    """Within the noise of 2,000 resamples; values with ties, as accuracies have them."""
    rng = random.Random(n)
    values = [round(rng.betavariate(5, 2), 2) for _ in range(n)]
    mean = over(values)
    assert mean.value == pytest.approx(sum(values) / n)
    assert mean.n == n
    # one sd of an end is 1/65 of the width for each side; more where few distinct means exist
    low, high = naive_bootstrap(values, n_resamples=4000)
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=0.07 * (high - low))


def test_no_values_have_no_mean() -> None:
    """None, which a report shows as such."""
    assert mean_over_features([], seed=0, purpose="test") is None


def test_one_feature_has_a_mean_and_no_interval() -> None:
    """Nothing is known about how features differ."""
    assert over([0.7]) == MeanOver(0.7, None, None, 1)


def test_features_that_agree_have_an_interval_of_no_width() -> None:
    """Two or more equal values."""
    mean = over([0.7] * 9)
    assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx((0.7, 0.7, 0.7, 9))


@quick
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=50), shuffle=st.randoms(use_true_random=False))
def test_mean_depends_on_the_values_alone_and_lies_in_its_interval(
    values: list[float], shuffle: random.Random
) -> None:
    """The same again, and in any order of the features; ends between the smallest and largest value."""
    mean = over(values)
    shuffled = list(values)
    shuffle.shuffle(shuffled)
    assert over(values) == over(shuffled) == mean
    assert mean.low is not None
    assert mean.high is not None
    assert min(values) - 1e-12 <= mean.low <= mean.value <= mean.high <= max(values) + 1e-12


def test_resamples_are_keyed_by_seed_and_purpose_and_leave_global_state_alone() -> None:
    """Another key draws other resamples; numpy's global generator is neither read nor moved."""
    values = [i / 97 for i in range(97)]
    state = repr(np.random.get_state())
    assert over(values, seed=1).low != over(values, seed=2).low
    assert over(values, purpose="a").low != over(values, purpose="b").low
    assert repr(np.random.get_state()) == state


@pytest.mark.parametrize("distinct", [True, False])
def test_interval_over_many_features_is_that_of_the_normal_law(distinct: bool) -> None:
    """100,000 features, drawn in several chunks: mean +- 1.96 sd / sqrt(n); also where no two are equal."""
    rng = np.random.default_rng(5)
    numbers = rng.random(100_000) ** 3 if distinct else rng.integers(0, 1001, 100_000) / 1000
    values = numbers.tolist()
    mean = over(values)
    half = 1.96 * float(np.std(values)) / 100_000**0.5
    assert mean.value == pytest.approx(float(np.mean(values)))
    assert (mean.low, mean.high) == pytest.approx((mean.value - half, mean.value + half), abs=0.1 * half)
