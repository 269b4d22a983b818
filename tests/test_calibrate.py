"""Thresholds of dictionaries that chose among whole batches: against the definitions on every score at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_codes import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.dictionaries.calibrate import Calibrated, calibrated
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError, ModelError

D, F, N = 5, 70, 60


def made(calibration: Calibration, width: int = F, **fields: Any) -> tuple[DictionarySpec, Weights]:
    """Scores with gaps and ties: inputs and weights are small whole numbers over 4, so no product rounds."""
    rng = np.random.default_rng(0)
    spec = DictionarySpec(
        format="made up", path=Path("made/up"), identity="x", d_in=D, width=width, selector="jumprelu", k=None,
        hook=None, site=None, model=None, corpus=None, context_length=None, prepend_bos=True,
        calibration=calibration,
    )  # fmt: skip
    weights = Weights(
        torch.tensor(rng.integers(-8, 9, (D, width)) / 4, dtype=torch.float32),
        torch.tensor(rng.integers(-8, 3, width) / 4, dtype=torch.float32),
        torch.tensor([0.25, 0, 0, 0, -0.5]),
        torch.tensor(rng.integers(1, 5, (width, D)) / 4, dtype=torch.float32),
        torch.zeros(D),
    )
    return replace(spec, **fields), weights


def inputs(n: int = N) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(1).integers(-8, 9, (n, D)) / 4, dtype=torch.float32)


def scores(weights: Weights, x: torch.Tensor, *, by_norm: bool = False) -> Array:
    """[N, F] in float64."""
    pre = (x - weights.b_pre_D).double() @ weights.encoder.double() + weights.b_enc_F.double()
    return (pre * weights.decoder.double().norm(dim=1) if by_norm else pre).numpy()


def found(
    spec: DictionarySpec,
    weights: Weights,
    x: torch.Tensor,
    sizes: tuple[int, ...] = (7,),
    elements: int = 2**9,
) -> Calibrated:
    """With the input in pieces of these sizes, in turn, and tiles of so many elements."""

    def pieces() -> Iterator[torch.Tensor]:
        at = 0
        while at < len(x):
            for size in sizes:
                yield x[at : at + size]
                at += size

    return calibrated(Encoder(spec, weights, max_elements=elements), pieces, len(x) + 13)


@given(batch=st.integers(1, 80), k=st.sampled_from([0.5, 1.0, 3.0, 40.0]), size=st.integers(1, 70))
@settings(max_examples=40)
def test_batch_topk_is_the_mean_of_the_smallest_kept(batch: int, k: float, size: int) -> None:
    """Of each whole batch; the input's pieces and the tiles change nothing."""
    spec, weights = made(Calibration("batch_topk", k, batch))
    x = inputs()
    score = scores(weights, x)
    whole = [score[at : at + batch] for at in range(0, N - batch + 1, batch)] or [score]
    smallest: list[float] = []
    for of_batch in whole:
        kept = sorted(of_batch[of_batch > 0].tolist(), reverse=True)[: max(1, round(k * len(of_batch)))]
        smallest += kept[-1:]
    result = found(spec, weights, x, (size, 3))
    assert result.n_tokens == sum(map(len, whole))
    np.testing.assert_allclose(result.threshold_F.numpy(), np.full(F, np.mean(smallest)), rtol=1e-6)


def test_a_batch_by_hand() -> None:
    """Two tokens a batch, one code a token: of (3, 1 | 2, 0) 3 and 2 stay, of (1, 1 | 0, 5) 5 and 1."""
    spec, weights = made(Calibration("batch_topk", 1, 2), width=2, d_in=2)
    eye, none = torch.eye(2), torch.zeros(2)
    plain = replace(weights, w_enc_DF=eye, b_enc_F=none, b_pre_D=none, w_dec_FO=eye, b_dec_O=none)
    x = torch.tensor([[3.0, 1], [2, 0], [1, 1], [0, 5], [9, 9]])
    result = found(spec, plain, x)
    assert result.threshold_F.tolist() == [1.5, 1.5] and result.n_tokens == 4, "the last token fills no batch"


@given(k=st.sampled_from([0.3, 1.0, 2.5, 10.0]), size=st.integers(1, 70))
@settings(max_examples=20)
def test_mutual_choice_leaves_k_a_token(k: float, size: int) -> None:
    spec, weights = made(Calibration("mutual_choice", k))
    x = inputs()
    score = scores(weights, x)
    ranked = sorted(score[score > 0].tolist(), reverse=True)
    result = found(spec, weights, x, (size,))
    assert set(result.threshold_F.tolist()) == {ranked[int(k * N)]}
    n_codes = len(Encoder(spec, replace(weights, threshold_F=result.threshold_F)).encode(x))
    assert n_codes == int((score > ranked[int(k * N)]).sum()) <= k * N


def test_fewer_activations_than_asked_for_all_stay() -> None:
    spec, weights = made(Calibration("mutual_choice", 69.5))
    x = inputs()
    score = scores(weights, x)
    result = found(spec, weights, x)
    assert not result.threshold_F.any()
    n_codes = len(Encoder(spec, replace(weights, threshold_F=result.threshold_F)).encode(x))
    assert n_codes == int((score > 0).sum())


@given(n_kept=st.integers(1, 30), size=st.integers(1, 70))
@settings(max_examples=20)
def test_feature_choice_gives_each_feature_its_largest(n_kept: int, size: int) -> None:
    spec, weights = made(Calibration("feature_choice", k=(n_kept + 0.5) * F / N))
    x = inputs()
    score = np.maximum(scores(weights, x), 0)
    result = found(spec, weights, x, (size,))
    np.testing.assert_array_equal(result.threshold_F.numpy(), -np.sort(-score, axis=0)[n_kept])


@pytest.mark.parametrize("how", ["l2", "entropy"])
def test_sampled_keeps_a_pool_and_chooses_within(how: Any) -> None:
    spec, weights = made(Calibration("sampled", 2.0, pool=9, column_score=how))
    x = inputs()
    z = np.maximum(scores(weights, x), 0)
    if how == "l2":
        column = (z**2).sum(0)
    else:
        p = z / np.maximum(z.sum(0), 1e-300)
        column = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(0)
    pool = np.argsort(-column.round(9), kind="stable")[:9]
    ranked = sorted(z[:, pool][z[:, pool] > 0].tolist(), reverse=True)
    threshold = found(spec, weights, x).threshold_F.numpy()
    assert set(np.flatnonzero(np.isfinite(threshold))) == set(pool)
    assert set(threshold[pool].tolist()) == {ranked[2 * N]}


def test_the_two_column_scores_differ() -> None:
    x, pools = inputs(), []
    for how in ("l2", "entropy"):
        spec, weights = made(Calibration("sampled", 2.0, pool=9, column_score=how))
        pools.append(torch.isfinite(found(spec, weights, x).threshold_F))
    assert not torch.equal(*pools)


def test_scores_count_decoder_norms_where_the_selector_sees_them() -> None:
    """And the codes are those above the threshold, whose values are pre-activations again; also of a slice."""
    spec, weights = made(Calibration("mutual_choice", 2.0), decoder_norm_gate=True, value_is_score=False)
    x = inputs()
    score = scores(weights, x, by_norm=True)
    ranked = sorted(score[score > 0].tolist(), reverse=True)
    threshold = found(spec, weights, x).threshold_F
    np.testing.assert_allclose(threshold.numpy(), ranked[2 * N], rtol=1e-6)
    encoder = Encoder(spec, replace(weights, threshold_F=threshold + 1e-4))
    dense = np.where(score > ranked[2 * N] + 1e-4, scores(weights, x), 0)
    for features in (list(range(F)), [3, 17, 64, 66]):
        codes = encoder.sliced(features).encode(x)
        given_codes = np.zeros((N, F))
        given_codes[codes.token_M, codes.feature_M] = codes.value_M
        expected = np.zeros((N, F))
        expected[:, features] = dense[:, features]
        np.testing.assert_allclose(given_codes, expected, rtol=1e-6)
        assert expected.any()


@given(seed=st.integers(0, 100), at=st.integers(0, N - 1))
@settings(max_examples=20)
def test_a_code_is_the_same_whatever_batch_it_is_in(seed: int, at: int) -> None:
    spec, weights = made(Calibration("batch_topk", 3.0, 10))
    x = inputs()
    encoder = Encoder(spec, replace(weights, threshold_F=found(spec, weights, x).threshold_F))
    others = torch.tensor(np.random.default_rng(seed).normal(0, 50, (seed, D)), dtype=torch.float32)
    alone, among = encoder.encode(x[at : at + 1]), encoder.encode(torch.cat([others, x[at : at + 1]]))
    here = among.token_M == seed
    assert among.feature_M[here].tolist() == alone.feature_M.tolist()
    assert among.value_M[here].tolist() == alone.value_M.tolist()


@pytest.mark.parametrize("rule", ["batch_topk", "mutual_choice", "feature_choice", "sampled"])
def test_what_can_not_be_calibrated_says_why(rule: Any) -> None:
    spec, weights = made(Calibration(rule, 35.0, 10, pool=5))
    silent = replace(weights, b_enc_F=torch.full((F,), -1e4))
    with pytest.raises(CheckpointError, match="on 60 tokens no activation is above 0"):
        found(spec, silent, inputs())
    with pytest.raises(CheckpointError, match="no token to calibrate it on"):
        found(spec, weights, inputs(0))
    with pytest.raises(ModelError, match="NaN or infinite on 1 of"):
        found(spec, weights, torch.cat([torch.full((1, D), torch.nan), inputs()]))


def test_a_share_of_less_than_a_token_is_refused() -> None:
    spec, weights = made(Calibration("feature_choice", 1.0))
    with pytest.raises(CheckpointError, match=r"not even one.*more than 70:.*cache\.calibration_tokens"):
        found(spec, weights, inputs())
