"""Selectors that look at a token's whole code: matching pursuit, non-negative least squares, norm matching.

The references go through one token at a time, in float64 numpy, as the papers write it down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_codes import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from autointerp.dictionaries import by_decoder
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.spec import DictionarySpec, Pursuit, Weights

SEEDS = st.integers(0, 2**32 - 1)


def spec_of(selector: Any, k: int | None, d_in: int, width: int, **more: Any) -> DictionarySpec:
    return DictionarySpec(
        format="made up", path=Path("made/up"), identity="x", d_in=d_in, width=width, selector=selector, k=k,
        hook=None, site=None, model=None, corpus=None, context_length=None, prepend_bos=True, **more,
    )  # fmt: skip


def of_decoder(rows: Array, b_pre: Array) -> Weights:
    b_D = torch.tensor(b_pre)
    return Weights(None, torch.zeros(len(rows)), b_D, torch.tensor(rows), b_D)


def made(seed: int, d_in: int, width: int, n: int, unit: bool = True) -> tuple[Array, Array, Array]:
    """(decoder rows, b_pre, inputs)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(width, d_in))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if unit else rows
    b_pre, x = rng.normal(size=d_in), rng.normal(0.3, 2.0, size=(n, d_in))
    return rows.astype(np.float32), b_pre.astype(np.float32), x.astype(np.float32)


def codes_of(encoder: Encoder, x: Array) -> Array:
    """[n, F], with signs."""
    codes, spec = encoder.encode(torch.tensor(x)), encoder.spec
    found = np.zeros((len(x), spec.width))
    token, column, value = (one.numpy() for one in (codes.token_M, codes.feature_M, codes.value_M))
    sign = np.where(column % 2 == 1, -1, 1) if spec.signed else 1
    np.add.at(found, (token, column // spec.n_poles), value * sign)
    return found


# --- matching pursuit ------------------------------------------------------------------------------------


def slow_pursuit(x: Array, rows: Array, k: int, signed: bool, ends: Pursuit) -> Array:
    """Codes [F] of one token, b_pre subtracted."""
    left, code = x.astype(np.float64), np.zeros(len(rows))
    rows = rows.astype(np.float64)
    for _ in range(k):
        products = rows @ left
        best = int(np.argmax(np.abs(products) if signed else products))
        value = products[best] if signed else max(products[best], 0.0)
        before = code != 0
        code[best] += value
        left = left - value * rows[best]
        if ends.ends_on_repeat and np.array_equal(code != 0, before):
            break
        if ends.residual_below and np.linalg.norm(left) < ends.residual_below:
            break
    return code


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "ends", [Pursuit(), Pursuit(ends_on_repeat=True), Pursuit(2.5), Pursuit(1.0, ends_on_repeat=True)]
)
@settings(max_examples=20)
@given(seed=SEEDS, width=st.integers(1, 30), k=st.one_of(st.none(), st.integers(1, 12)))
def test_pursuit_is_the_slow_one(ends: Pursuit, signed: bool, seed: int, width: int, k: int | None) -> None:
    d_in = 6
    rows, b_pre, x = made(seed, d_in, width, n=12)
    spec = spec_of("pursuit", k, d_in, width, has_signs=signed, pursuit=ends)
    encoder = Encoder(spec, of_decoder(rows, b_pre), max_elements=5 * max(width, d_in))
    expected = np.array([slow_pursuit(one, rows, k or d_in, signed, ends) for one in x - b_pre])
    found = codes_of(encoder, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    codes = encoder.encode(torch.tensor(x))
    pairs = list(zip(codes.token_M.tolist(), codes.feature_M.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "a feature that is taken again is still one code"
    decoded = encoder.decode(codes, torch.tensor(x)).numpy()
    np.testing.assert_allclose(decoded, expected @ rows + b_pre, rtol=1e-4, atol=1e-4)


def test_pursuit_by_hand() -> None:
    """The products of (2, 1.1) with (1, 0) and (0.6, 0.8) are 2 and 2.08. The second row is taken, 2.08; left is
    (0.752, -0.564), whose products are 0.752 and 0."""
    rows = np.array([[1, 0], [0.6, 0.8]], np.float32)
    x, zero = np.array([[2, 1.1]], np.float32), np.zeros(2, np.float32)
    one = Encoder(spec_of("pursuit", 1, 2, 2), of_decoder(rows, zero))
    np.testing.assert_allclose(codes_of(one, x), [[0, 2.08]], rtol=1e-6)
    two = Encoder(spec_of("pursuit", 2, 2, 2), of_decoder(rows, zero))
    np.testing.assert_allclose(codes_of(two, x), [[0.752, 2.08]], rtol=1e-6)


def test_an_input_that_no_feature_points_to_has_no_code() -> None:
    rows = np.eye(2, dtype=np.float32)
    x = np.array([[-1, -2], [3, -1]], np.float32)
    spec = spec_of("pursuit", 5, 2, 2, pursuit=Pursuit(0.01, ends_on_repeat=True))
    np.testing.assert_array_equal(
        codes_of(Encoder(spec, of_decoder(rows, np.zeros(2, np.float32))), x), [[0, 0], [3, 0]]
    )


@pytest.mark.parametrize("width", [128, 130])
@pytest.mark.parametrize("ends", [Pursuit(), Pursuit(1.0)])
def test_products_of_rows_give_the_codes_that_multiplying_anew_does(
    width: int, ends: Pursuit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many steps, so that they are renewed on the way, and of tokens that end apart."""
    rows, b_pre, x = made(5, 90, width, n=40)
    spec, given = spec_of("pursuit", 150, 90, width, pursuit=ends), torch.tensor(x)
    monkeypatch.setattr(by_decoder, "CACHED", 7 * width)
    found = Encoder(spec, of_decoder(rows, b_pre)).encode(given)
    monkeypatch.setattr(by_decoder, "MAX_GRAM", width**2 - 1)
    anew = Encoder(spec, of_decoder(rows, b_pre)).encode(given)
    for name in ("token_M", "feature_M", "value_M"):
        assert torch.equal(getattr(found, name), getattr(anew, name)), name
    expected = np.array([slow_pursuit(one, rows, 150, False, ends) for one in x - b_pre])
    codes = np.zeros((40, width))
    codes[found.token_M, found.feature_M] = found.value_M
    np.testing.assert_allclose(codes, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("selector", ["pursuit", "nnls"])
def test_a_tokens_code_does_not_depend_on_the_tokens_beside_it(selector: Any) -> None:
    rows, b_pre, x = made(3, 8, 30, n=60)
    spec = spec_of(
        selector, 6 if selector == "pursuit" else None, 8, 30, pursuit=Pursuit(0.5, ends_on_repeat=True)
    )
    encoder = Encoder(spec, of_decoder(rows, b_pre))
    together = codes_of(encoder, x)
    alone = np.concatenate([codes_of(encoder, x[at : at + 1]) for at in range(len(x))])
    backwards = codes_of(encoder, x[::-1].copy())[::-1]
    few_at_a_time = codes_of(Encoder(spec, of_decoder(rows, b_pre), max_elements=70), x)
    for other in (alone, backwards, few_at_a_time):
        if selector == "pursuit":
            np.testing.assert_allclose(other, together, rtol=1e-5, atol=1e-5)
        else:  # several codes may be as good
            np.testing.assert_allclose(other @ rows, together @ rows, rtol=1e-4, atol=1e-4)


# --- non-negative least squares --------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=SEEDS, width=st.integers(1, 20), n=st.integers(1, 9), small=st.booleans())
def test_nnls_is_scipys(seed: int, width: int, n: int, small: bool) -> None:
    """Independent rows, whose lengths differ by a factor of a thousand: one best code."""
    d_in = 24
    rows, b_pre, x = made(seed, d_in, width, n, unit=False)
    rows *= np.random.default_rng(seed).choice([0.03, 1, 30], size=(width, 1)).astype(np.float32)
    encoder = Encoder(
        spec_of("nnls", None, d_in, width),
        of_decoder(rows, b_pre),
        max_elements=2 * width**2 if small else None,
    )
    wide = rows.astype(np.float64)
    expected = np.array([nnls(wide.T, one)[0] for one in (x - b_pre).astype(np.float64)])
    found = codes_of(encoder, x)
    length_F = np.linalg.norm(wide, axis=1)
    np.testing.assert_allclose(found * length_F, expected * length_F, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[expected * length_F > 1e-3] > 0, True)


@settings(max_examples=30)
@given(seed=SEEDS, width=st.integers(7, 25))
def test_nnls_of_more_features_than_dimensions_reconstructs_as_well(seed: int, width: int) -> None:
    """Also where a row is there twice, so that there is no one best code."""
    rows, b_pre, x = made(seed, 6, width, n=8)
    rows[-1] = rows[0]
    encoder = Encoder(spec_of("nnls", None, 6, width), of_decoder(rows, b_pre))
    found = codes_of(encoder, x)
    for one, code in zip((x - b_pre).astype(np.float64), found, strict=True):
        _, best = nnls(rows.astype(np.float64).T, one)
        assert np.linalg.norm(one - code @ rows) <= best + 1e-4 * np.linalg.norm(one)


def test_nnls_by_hand() -> None:
    """Onto (1, 0) and (1, 1): (2, 1) = 1 (1, 0) + 1 (1, 1); (1, 3) is nearest to 2 (1, 1); (-1, -1) to nothing."""
    rows = np.array([[1, 0], [1, 1]], np.float32)
    x = np.array([[2, 1], [1, 3], [-1, -1], [0, 0]], np.float32)
    encoder = Encoder(spec_of("nnls", None, 2, 2), of_decoder(rows, np.zeros(2, np.float32)))
    np.testing.assert_allclose(codes_of(encoder, x), [[1, 1], [0, 2], [0, 0], [0, 0]], atol=1e-6)


# --- top-AFA ---------------------------------------------------------------------------------------------


def slow_top_afa(pre: Array, lengths: Array, norm: float) -> Array:
    """Codes [F] of one token."""
    acts = np.maximum(pre, 0)
    order = np.argsort(-(acts * lengths), kind="stable")
    sums = [np.sqrt(sum((acts[j] * lengths[j]) ** 2 for j in order[: k + 1])) for k in range(len(order))]
    k = int(np.argmin(np.abs(np.array(sums) - norm))) + 1
    code = np.zeros_like(acts)
    code[order[:k]] = acts[order[:k]]
    return code


@settings(max_examples=40)
@given(seed=SEEDS, width=st.integers(1, 40), scale=st.sampled_from([0.05, 0.5, 3.0]))
def test_top_afa_is_the_slow_one(seed: int, width: int, scale: float) -> None:
    d_in = 6
    rows, b_pre, x = made(seed, d_in, width, n=12, unit=False)
    w_enc = (np.random.default_rng((seed, 1)).normal(size=(d_in, width)) * scale).astype(np.float32)
    b_D = torch.tensor(b_pre)
    weights = Weights(torch.tensor(w_enc), torch.zeros(width), b_D, torch.tensor(rows), b_D)
    spec = spec_of("top_afa", None, d_in, width, decoder_norm_gate=True, value_is_score=False)
    lengths, centred = np.linalg.norm(rows.astype(np.float64), axis=1), (x - b_pre).astype(np.float64)
    expected = np.array(
        [slow_top_afa(one @ w_enc.astype(np.float64), lengths, float(np.linalg.norm(one))) for one in centred]
    )
    found = codes_of(Encoder(spec, weights, max_elements=4 * max(width, d_in)), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_top_afa_by_hand() -> None:
    """Scores 3, 4, 1 by rows of length 1, b_pre 0: sums sqrt(16), sqrt(25), sqrt(26). Of norm 4.4: one feature;
    of 4.6: two; of 9: all three. At least one, however short the input."""
    for norm, n_kept in ((4.4, 1), (4.6, 2), (9.0, 3), (0.1, 1)):
        x = np.array([[norm, 0, 0]], np.float32)
        w_enc = np.array([[3, 4, 1], [0, 0, 0], [0, 0, 0]], np.float32) / norm
        weights = Weights(torch.tensor(w_enc), torch.zeros(3), torch.zeros(3), torch.eye(3), torch.zeros(3))
        spec = spec_of("top_afa", None, 3, 3, decoder_norm_gate=True, value_is_score=False)
        kept = [[3, 0, 0], [0, 4, 0], [0, 0, 1]]
        expected = sum(np.array(kept)[[1, 0, 2][:n_kept]])
        np.testing.assert_allclose(codes_of(Encoder(spec, weights), x), [expected], rtol=1e-6)
