"""Sequential scoring: what is asked and when it ends, and what its numbers are worth when it ended early.

pytest -s -n0 tests/test_sequential.py     prints trials, verdicts and coverage
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import orjson
import pytest
from asked import asking, heldout_of, views_in
from asked import judge as saying
from numpy.typing import NDArray
from scipy import stats

from autointerp import pipeline, rescore, trials
from autointerp.errors import RecipeError
from autointerp.llm.scripted import Answer
from autointerp.metrics import measure
from autointerp.metrics.rates import TAIL, Rate, balanced_accuracy
from autointerp.prompting import Prompt, View
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.scorers.detection import Detection
from autointerp.scorers.fuzzing import Fuzzing
from autointerp.sections import instance
from autointerp.sequential import Look, Sequential, stopping
from autointerp.splits import Heldout
from autointerp.stages.looks import by_look, shares_by_look
from autointerp.trials import InBlocks
from here import device_here
from tiny import Tiny

Floats = NDArray[np.float64]


# --- the test, exactly: of two rates the probability of every outcome ---------------------------------------


@cache
def ending(rule: Sequential) -> list[NDArray[np.bool_]]:
    """At each look whether the test ends, by right answers on active [K+] and on silent windows [K-]."""
    found: list[NDArray[np.bool_]] = []
    for block in rule.blocks:
        n = block // 2
        cells = [[rule.has_decided(Look(n, a, n, b)) for b in range(n + 1)] for a in range(n + 1)]
        found.append(np.array(cells) | (block == rule.blocks[-1]))
    return found


def ends(rule: Sequential, tpr: float, tnr: float) -> list[Floats]:
    """At each look the probability of ending there, by right answers [K+, K-]."""
    found: list[Floats] = []
    going, before = np.ones((1, 1)), 0
    for block, is_end in zip(rule.blocks, ending(rule), strict=True):
        n = block // 2
        more = [step(before, n, rate) for rate in (tpr, tnr)]
        going, before = more[0].T @ going @ more[1], n
        found.append(np.where(is_end, going, 0.0))
        going = np.where(is_end, 0.0, going)
    return found


def step(before: int, after: int, rate: float) -> Floats:
    """[before + 1, after + 1]: from so many right answers to so many."""
    rows = np.arange(before + 1)[:, None]
    return stats.binom.pmf(np.arange(after + 1)[None] - rows, after - before, rate)


def verdicts(rule: Sequential, accuracies: Floats) -> tuple[Floats, Floats]:
    """[A] each, of judges right so often on either kind: mean trials, and how often the verdict is `pass`. What
    decides is how many answers are right of both kinds together."""
    n_trials, passed = np.zeros_like(accuracies), np.zeros_like(accuracies)
    going, before = np.ones((len(accuracies), 1)), 0
    for block in rule.blocks:
        more = np.array([step(before, block, accuracy) for accuracy in accuracies.tolist()])
        going, before = np.einsum("ab,abc->ac", going, more), block
        looks = [Look(block // 2, n // 2, block // 2, n - n // 2) for n in range(block + 1)]
        is_end = np.array([rule.has_decided(look) or block == rule.blocks[-1] for look in looks])
        n_trials += block * going[:, is_end].sum(1)
        passed += going[:, is_end & np.array([rule.log_ratio(look) > 0 for look in looks])].sum(1)
        going = np.where(is_end, 0.0, going)
    return n_trials, passed


MIX = stats.norm(0.76, 0.14)
"""Accuracies of judges."""
THRESHOLD = 0.725
"""Half way between the two accuracies that are told apart."""


def over_the_mix(rule: Sequential) -> tuple[float, float]:
    """Mean trials, and the share of right verdicts."""
    edges = np.linspace(0, 1, 81)
    weights = np.diff(np.concatenate([[0.0], MIX.cdf(edges[1:-1]), [1.0]]))
    accuracies = (edges[1:] + edges[:-1]) / 2
    n_trials, passed = verdicts(rule, accuracies)
    return float(weights @ n_trials), float(weights @ np.where(accuracies > THRESHOLD, passed, 1 - passed))


def test_half_the_trials_give_as_many_right_verdicts_as_all_of_them() -> None:
    n_fixed, right_fixed = over_the_mix(Sequential(blocks=(100,)))
    n_trials, right = over_the_mix(Sequential())
    few, right_few = over_the_mix(Sequential(blocks=(20, 40, 70, 100), error=0.05))
    print(
        f"fixed {n_fixed:.1f} trials, {right_fixed:.2%} right; sequential {n_trials:.1f}, {right:.2%}; ",
        end="",
    )
    print(f"looks at 20, 40, 70, 100 and error .05: {few:.1f}, {right_few:.2%}")
    assert n_fixed == pytest.approx(100) and n_trials < 50
    assert right >= 0.9 and right_fixed - right < 0.01


def test_of_clear_cases_few_verdicts_are_wrong() -> None:
    """Wald: about `error` of them at the two accuracies, fewer beyond."""
    rule = Sequential()
    _, (awful, low, high, great) = verdicts(rule, np.array([0.5, rule.low, rule.high, 0.95]))
    assert 1 - high < 1.5 * rule.error and low < 1.5 * rule.error
    assert awful < 0.005 and great > 0.999


def test_the_plan_expects_as_many_trials() -> None:
    rule = Sequential(panel=0.1)
    n_trials = sum(n * share for n, share in zip(rule.blocks, shares_by_look(rule), strict=True))
    assert n_trials == pytest.approx(over_the_mix(rule)[0], rel=0.005)
    planned = by_look(rule)
    assert sum(share for _, share in planned) == pytest.approx(1) and planned[-1][1] == 0.1
    for ended, _ in planned[:-1]:  # whatever is answered
        n = ended.blocks[-1] // 2
        assert not ended.has_decided(Look(n, n, n, n)) and not ended.has_decided(Look(n, 0, n, 0))


RATES = (0.5, 0.65, 0.75, 0.85, 0.95, 0.99, 1.0)


def test_intervals_hold_whatever_ends_the_test() -> None:
    """The chance that the interval holds the truth at every look: at least 95% for any two rates, so also at the
    look that anybody stops at for any reason. Intervals for a fixed number hold it less often."""
    rule = Sequential(blocks=(20, 40, 70, 100))
    pairs = [(tpr, tnr) for tpr in RATES for tnr in RATES if tpr <= tnr]
    coverages = [always(rule, *pair, TAIL / 4) for pair in pairs]
    fixed = [always(rule, *pair, TAIL) for pair in pairs]
    print(
        f"coverage of all looks: {min(coverages):.4f} to {max(coverages):.4f}; for fixed n {min(fixed):.4f}"
    )
    assert min(coverages) >= 0.95 > min(fixed)


def test_intervals_hold_where_the_test_stops() -> None:
    rule = Sequential(blocks=(20, 40, 70, 100))
    found: list[float] = []
    for tpr, tnr in ((0.5, 0.5), (0.65, 0.65), (0.65, 0.85), (0.75, 0.75), (0.85, 0.85), (0.95, 0.95)):
        truth = (tpr + tnr) / 2
        found.append(
            sum(
                float(p[holds(block // 2, truth, TAIL / 4)].sum())
                for block, p in zip(rule.blocks, ends(rule, tpr, tnr), strict=True)
            )
        )
    print(f"coverage where it stopped: {min(found):.4f} to {max(found):.4f}")
    assert min(found) >= 0.95


def always(rule: Sequential, tpr: float, tnr: float, tail: float) -> float:
    """The probability that the intervals of all looks hold the truth."""
    going, before = np.ones((1, 1)), 0
    for block in rule.blocks:
        n = block // 2
        going = step(before, n, tpr).T @ going @ step(before, n, tnr)
        going, before = np.where(holds(n, (tpr + tnr) / 2, tail), going, 0.0), n
    return float(going.sum())


def holds(n: int, truth: float, tail: float) -> NDArray[np.bool_]:
    """[n + 1, n + 1], by right answers of either kind."""
    low, high = intervals(n, tail)
    return (low <= truth) & (truth <= high)


@cache
def intervals(n: int, tail: float) -> tuple[Floats, Floats]:
    """Ends of the interval [n + 1, n + 1], which is the same for either order."""
    low, high = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n + 1))
    for a in range(n + 1):
        for b in range(a + 1):
            one = balanced_accuracy(Rate(a, n), Rate(b, n), tail)
            low[a, b] = low[b, a] = one.low
            high[a, b] = high[b, a] = one.high
    return low, high


def test_the_ratio_by_hand() -> None:
    """16 of 20 right: 16 ln(.8 / .65) + 4 ln(.2 / .35) = 3.3222 - 2.2385."""
    rule = Sequential(error=0.05)
    assert rule.log_ratio(Look(10, 9, 10, 7)) == pytest.approx(1.0838, abs=1e-4)
    assert rule.threshold == pytest.approx(math.log(19))
    # 5 active and 20 silent windows are worth 4 / (1/5 + 1/20) = 16
    assert rule.log_ratio(Look(5, 4, 20, 16)) == pytest.approx(1.0838 * 16 / 20, abs=1e-4)
    assert rule.log_ratio(Look(10, 10, 0, 0)) == 0
    assert rule.has_decided(Look(10, 10, 10, 10)) and not rule.has_decided(Look(10, 9, 10, 9))


def test_the_verdict_is_that_of_the_first_look_that_decides() -> None:
    rule = Sequential(blocks=(20, 40, 60), error=0.05)
    good, unclear, bad = Look(10, 10, 10, 10), Look(10, 7, 10, 7), Look(20, 10, 20, 10)
    found = stopping(rule, [good, bad], in_panel=True)
    assert (found.decision, found.why, found.n_looks) == ("pass", "threshold", 1) and found.in_panel
    found = stopping(rule, [unclear, bad], in_panel=False)
    assert (found.decision, found.why, found.n_looks) == ("fail", "threshold", 2)
    above, below = Look(30, 22, 30, 22), Look(30, 21, 30, 22)
    assert stopping(rule, [unclear, unclear, above], in_panel=False).decision == "pass"
    found = stopping(rule, [unclear, unclear, below], in_panel=False)
    assert (found.decision, found.why) == ("fail", "last look")
    assert stopping(rule, [unclear, unclear], in_panel=False).why == "windows ran out"
    assert stopping(rule, [], in_panel=False).decision == "undecided"


# --- what is asked -------------------------------------------------------------------------------------------

RULE = Sequential(blocks=(20, 40, 70, 100), error=0.05, panel=0.0)
PANEL = dataclasses.replace(RULE, panel=1.0)


def is_active(view: View) -> bool:
    return view.window.band is not None


def windows(n_active: int = 50, n_silent: int = 50, n_hard: int = 0) -> Heldout:
    """Active ones in ten deciles."""
    made = heldout_of(n_active, n_silent + n_hard, random.Random(0))
    active = tuple(
        w._replace(band=n * 10 // n_active, document=f"{n:016x}") for n, w in enumerate(made.active)
    )
    silent = tuple(
        w._replace(document=f"{100 + n:016x}", stratum="random" if n < n_silent else "same_token")
        for n, w in enumerate(made.silent)
    )
    return Heldout(active, silent)


def judged(
    scorer: Detection | Fuzzing, heldout: Heldout, answer: Answer, feature: str = "layers.0/1"
) -> InBlocks:
    found = asyncio.run(scorer.judge("an explanation", heldout, asking(answer, feature)))
    assert isinstance(found, InBlocks)
    return found


def noted(answer: Callable[[Prompt, int], str], to: list[int]) -> Answer:
    """Notes how many windows each prompt holds."""

    def note(prompt: Prompt, index: int) -> str:
        to.append(len(views_in(prompt)))
        return answer(prompt, index)

    return note


def sometimes(accuracy: float) -> Callable[[View], bool]:
    """Right on that share of the windows of each kind, in no order."""

    def says(view: View) -> bool:
        number = int(view.window.document, 16) % 100
        return is_active(view) is ((number * 37) % 100 < 100 * accuracy)

    return says


def is_silent(view: View) -> bool:
    return not is_active(view)


@pytest.mark.parametrize(("says", "decision"), [(is_active, "pass"), (is_silent, "fail")])
def test_a_clear_case_ends_at_the_first_look(says: Callable[[View], bool], decision: str) -> None:
    sizes: list[int] = []
    found = judged(Detection(sequential=RULE), windows(n_hard=20), noted(saying(says), sizes))
    assert sizes == [20] and found.look == [0] * 20
    assert Counter(found.band) == Counter(dict.fromkeys(range(10), 1) | {None: 10})
    assert set(found.stratum) == {None, "random"}  # hard ones are for the panel
    assert stopping(RULE, found.looks(), in_panel=False).decision == decision


def test_fuzzing_asks_in_blocks_and_never_twice_of_a_window_in_a_prompt() -> None:
    def says(view: View) -> bool:
        return is_active(view) and all(view.window.activations[mark] > 0 for mark in view.marks)

    prompts: list[list[str]] = []

    def answer(prompt: Prompt, index: int) -> str:
        prompts.append([view.window.document for view in views_in(prompt)])
        return saying(says)(prompt, index)

    found = judged(Fuzzing(wrong="active", sequential=RULE), windows(), answer)
    assert sorted(Counter(found.truth).values()) == [10, 10]
    assert len(prompts) == 2 and all(len(set(one)) == len(one) for one in prompts)


def test_a_doubtful_case_is_asked_on_and_blocks_are_balanced() -> None:
    found = judged(Detection(sequential=RULE), windows(), saying(sometimes(0.73)))
    assert len(found) == 100
    for look, n in ((0, 10), (1, 20), (2, 35), (3, 50)):
        bands = Counter(
            b for b, at in zip(found.band, found.look, strict=True) if at is not None and at <= look
        )
        assert bands.pop(None) == n and max(bands.values()) - min(bands.values()) <= (n % 10 > 0)
    ended = stopping(RULE, found.looks(), in_panel=False)
    assert ended.why == "last look" and len(ended.looks) == 4
    assert [look.n_active for look in ended.looks] == [10, 20, 35, 50]


def test_a_larger_block_contains_the_smaller() -> None:
    answer = saying(sometimes(0.73))
    small = judged(Detection(sequential=RULE), windows(), answer)
    large = judged(Detection(sequential=dataclasses.replace(RULE, blocks=(40, 100))), windows(), answer)
    until = [{w for w, at in zip(one.window, one.look, strict=True) if at is not None and at <= last}
             for one, last in ((small, 1), (large, 0))]  # fmt: skip
    assert until[0] == until[1] and len(until[0]) == 40
    other = judged(Detection(sequential=RULE), windows(), answer, "layers.0/2")
    assert [w for w, at in zip(other.window, other.look, strict=True) if at == 0] != [
        w for w, at in zip(small.window, small.look, strict=True) if at == 0
    ]


def test_where_windows_run_out_nothing_is_decided() -> None:
    found = judged(Detection(sequential=RULE), windows(20, 20), saying(sometimes(0.73)))
    assert len(found) == 40
    ended = stopping(RULE, found.looks(), in_panel=False)
    assert (ended.decision, ended.why) == ("undecided", "windows ran out")


def test_the_panel_is_asked_about_all_windows_and_has_intervals_of_a_fixed_number() -> None:
    heldout = windows(60, 60, 20)
    found = judged(Detection(sequential=PANEL), heldout, saying(is_active))
    fixed = asyncio.run(Detection().judge("an explanation", heldout, asking(saying(is_active))))
    assert found.in_panel and sorted(found.window) == list(range(140))
    assert found.look.count(None) == 40  # beyond the last look, and hard
    numbers = measure(found)
    assert numbers == measure(fixed) and "sequential" not in numbers.flags
    ended = stopping(PANEL, found.looks(), in_panel=True)
    assert (ended.decision, ended.n_looks, len(ended.looks)) == ("pass", 1, 4)


def test_outside_the_panel_intervals_are_wider_and_the_score_says_so() -> None:
    found = judged(Detection(sequential=RULE), windows(), saying(is_active))
    numbers, value = measure(found), measure(found).value
    assert value == balanced_accuracy(Rate(10, 10), Rate(10, 10), TAIL / 4) and "sequential" in numbers.flags
    assert value is not None and value.low < balanced_accuracy(Rate(10, 10), Rate(10, 10)).low
    recall = numbers.values["true_positive_rate"]
    assert recall is not None and recall.low == pytest.approx(
        (TAIL / 4) ** (1 / 10)
    )  # Clopper-Pearson, 10 of 10
    fisher = 1 / math.comb(20, 10)
    assert numbers.p_value == pytest.approx(4 * fisher)


def test_unreadable_answers_decide_nothing_and_are_counted() -> None:
    found = judged(Detection(sequential=RULE), windows(), lambda prompt, index: "I can't say.")
    assert len(found) == 100 and measure(found).n_unreadable == 100
    assert stopping(RULE, found.looks(), in_panel=False).decision == "undecided"


def test_a_record_gives_the_trials_back() -> None:
    found = judged(Detection(sequential=RULE), windows(), saying(sometimes(0.73)))
    assert trials.of(orjson.loads(orjson.dumps(trials.record(found)))) == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"blocks": [20, 15]}, "even numbers of trials that grow"),
        ({"blocks": []}, "even numbers"),
        ({"low": 0.9}, "the low one first"),
        ({"error": 0.5}, "below 0.5"),
        ({"panel": 2}, "from 0 to 1"),
        ({"panle": 0.1}, "panle"),
    ],
)
def test_faults_of_the_option_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        instance("scorers", {"use": "detection", "sequential": options})


# --- a run ---------------------------------------------------------------------------------------------------

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
SCORERS = {name: {"use": name, "sequential": {"panel": 0.4}} for name in ("detection", "fuzzing")}


@pytest.fixture(scope="module")
def scored(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("sequential") / "run"
    llms = {"explainer": SCRIPTED, "judge": SCRIPTED}
    with device_here():
        pipeline.explain(made.recipe(llms=llms, features={"n": 16}, scorers=SCORERS), out=out)
    yield out


def test_means_are_over_the_panel(scored: Path) -> None:
    run = Run.open(scored)
    records = list(run.score("layers.1", "plain", "detection").records())
    panel = [one for one in records if one["sequential"]["in_panel"]]
    assert 0 < len(panel) < len(records)
    others = list(run.score("layers.1", "plain", "fuzzing").records())
    assert {one["key"] for one in others if one["sequential"]["in_panel"]} == {one["key"] for one in panel}
    (score,) = (one for one in summarise(run, "layers.1").scores if one.scorer == "detection")
    values = [one["metrics"]["values"]["balanced_accuracy"]["value"] for one in panel]
    assert score.n_scored == len(records) and score.value is not None and score.verdicts is not None
    assert score.value.n == len(panel) and score.value.value == pytest.approx(sum(values) / len(values))
    assert score.verdicts.n_panel == len(panel)
    assert sum(score.verdicts.n_by_decision.values()) == len(records)
    outside = [one["metrics"]["n"] for one in records if not one["sequential"]["in_panel"]]
    assert score.verdicts.mean_trials == pytest.approx(sum(outside) / len(outside))


def test_records_hold_the_verdict_and_tables_and_rescoring_read_it(scored: Path) -> None:
    run = Run.open(scored)
    for record in run.score("layers.1", "plain", "detection").records():
        found = trials.of(record["trials"])
        assert isinstance(found, InBlocks)
        ended = stopping(found.rule, found.looks(), in_panel=found.in_panel)
        assert orjson.loads(orjson.dumps(ended)) == record["sequential"]
    assert sum(len(one.changes) for one in rescore.rescore(run)) == 0
    rows = run.scores().to_pylist()
    assert {row["decision"] for row in rows} <= {"pass", "fail", "undecided"}
    assert sum(row["in_panel"] for row in rows) > 0
    assert max(row["look"] or 0 for row in run.trials().to_pylist()) > 0


def test_scores_made_without_the_option_stay_done(made: Tiny, tmp_path: Path) -> None:
    """It is digested where it is set, and only there."""
    options = {}
    for name, scorers in (("with", SCORERS), ("without", {"detection": {"use": "detection"}})):
        run = pipeline.prepare(made.recipe(scorers=scorers), tmp_path / name)[1]
        made_from = run.score("layers.1", "plain", "detection").made_from
        assert made_from is not None
        options[name] = made_from["scorers"]["detection"]["options"]
    assert options["without"] == {"packing": "auto", "prompt": "score/detection"}
    assert options["with"]["sequential"]["panel"] == 0.4
