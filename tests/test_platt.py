"""Platt's scaling: recovers a judge's known distortion, and says what it was worth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from autointerp.metrics.calibration import Platt, calibrate, fit, reliability
from autointerp.trials import Trials
from autointerp.types import Stratum


def overconfident(seed: int, n: int = 100) -> Trials:
    """A judge who says p where the truth is yes with logit(p) / 3 + 0.5."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(0, 3, n)))
    true = 1 / (1 + np.exp(-(np.log(p / (1 - p)) / 3 + 0.5)))
    truth = (rng.random(n) < true).tolist()
    stratum: list[Stratum | None] = [None if one else "random" for one in truth]
    return Trials(truth=truth, probability=p.tolist(), answer=(p > 0.5).tolist(), stratum=stratum)


def test_a_known_distortion_is_found_and_mended() -> None:
    """Slope 1/3 and intercept 1/2, to three standard errors at 10,000 trials; what is left of the error is small."""
    found = calibrate([overconfident(seed) for seed in range(100)])
    assert found is not None and found.after is not None
    assert (found.n, found.n_features) == (10_000, 100)
    assert found.platt.slope == pytest.approx(1 / 3, abs=0.03)
    assert found.platt.intercept == pytest.approx(0.5, abs=0.07)
    assert found.before.ece > 0.15 and found.after.ece < 0.03
    assert found.after.brier < found.before.brier - 0.02


def test_windows_chosen_to_be_hard_are_no_part_of_it() -> None:
    """40 windows that share the active ones' token, called active by mistake, beside each feature's 100."""
    plain = [overconfident(seed) for seed in range(10)]
    hard = [
        Trials(
            truth=[*trials.truth, *[False] * 40],
            probability=[*trials.probability, *[0.99] * 40],
            answer=[*trials.answer, *[True] * 40],
            stratum=[*trials.stratum, *["same_token"] * 40],
        )
        for trials in plain
    ]
    assert calibrate(hard) == calibrate(plain)


def test_the_fit_is_the_one_of_scikit_learn() -> None:
    """Without a penalty, but for Platt's smoothing, which at 2,000 trials moves little."""
    trials = overconfident(1, 2_000)
    p, y = np.array(trials.probability, float), np.array(trials.truth, float)
    theirs = LogisticRegression(C=1e9, tol=1e-8).fit(np.log(p / (1 - p))[:, None], y)
    ours = fit(p, y)
    assert ours.slope == pytest.approx(theirs.coef_[0, 0], abs=0.01)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], abs=0.01)


def test_reliability_by_hand() -> None:
    """Bins 0.2 and 0.9: (|0.2 - 0| + |0.2 - 1| as one bin: |0.4 - 1|) and |1.8 - 2|, over four trials."""
    found = reliability(np.array([0.2, 0.2, 0.9, 0.9]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert found.ece == pytest.approx((0.6 + 0.2) / 4)
    assert found.brier == pytest.approx((0.04 + 0.64 + 0.01 + 0.01) / 4)


def test_trials_that_a_threshold_parts_have_a_finite_fit() -> None:
    platt = fit(np.array([0.0, 0.1, 0.9, 1.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert 0 < platt.slope < 10
    assert platt(np.array([0.0, 1.0])) == pytest.approx([0.25, 0.75], abs=0.15)


def test_where_nothing_can_be_fitted() -> None:
    """No trials, no probabilities, or one truth alone; too few features for held-out figures."""
    assert calibrate([]) is None
    assert (
        calibrate(
            [
                Trials(
                    truth=[True, False],
                    probability=[None, None],
                    answer=[True, None],
                    stratum=[None, "random"],
                )
            ]
        )
        is None
    )
    assert (
        calibrate(
            [Trials(truth=[True, True], probability=[0.2, 0.7], answer=[False, True], stratum=[None, None])]
        )
        is None
    )
    few = calibrate([overconfident(0)])
    assert few is not None and few.after is None and isinstance(few.platt, Platt)
