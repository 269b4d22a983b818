"""Our own layout: every field and tensor read as it is written, variants with what they imply, meta-SAEs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_codes import Array, D, F, N, assert_parity, exact, inputs, largest, tensors
from safetensors.numpy import save_file
from test_kinds import states

from autointerp import pipeline
from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.report.dictionary import inspected
from autointerp.types import Json, Site
from here import device_here
from tiny import CONTEXT, D_MODEL, WIDTH, Tiny

T = tensors()
FILE = {"encoder": T["W_enc"], "encoder_bias": T["b_enc"], "decoder": T["W_dec"], "decoder_bias": T["b_dec"]}
DECODER: dict[str, Array | None] = {"encoder": None, "encoder_bias": None}
"""Without what finds no codes."""
APART: Json = {
    "selector": "topk", "k": 2, "n_inputs": 2, "by_input": True, "decoder_norm_gate": True, "value_is_score": False
}  # fmt: skip
"""A crosscoder of which each input selects by itself."""
SHARES: dict[str, Array | None] = {
    "input_share": np.stack([np.ones(F), np.linspace(0, 1, F)]).astype(np.float32)
}


def native(folder: Path, settings: Json, changed: dict[str, Array | None] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dictionary.json").write_text(json.dumps({"layout": 1, "hook": "layers.1"} | settings))
    kept = {name: t for name, t in (FILE | (changed or {})).items() if t is not None}
    save_file({name: np.array(t, order="C") for name, t in kept.items()}, folder / "dictionary.safetensors")
    return folder


def dense(x: Array, settings: Json, pre_bias: Array | float = 0.0) -> tuple[Array, Array]:
    """(activations, reconstruction) in float64."""
    t = exact(T)
    z = np.maximum((x - pre_bias) @ t["W_enc"] + t["b_enc"], 0)
    if settings["selector"] == "topk":
        z = z * largest(z, settings["k"])
    elif settings["selector"] == "jumprelu":
        z = z * (z > t["threshold"])
    return z, z @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize(
    "settings", [{"selector": "relu"}, {"selector": "topk", "k": 3}, {"selector": "jumprelu"}]
)
@pytest.mark.parametrize("has_pre_bias", [True, False])
def test_codes(tmp_path: Path, settings: Json, has_pre_bias: bool) -> None:
    pre_bias = np.arange(D, dtype=np.float32) / 4
    extra: dict[str, Array | None] = {"pre_bias": pre_bias} if has_pre_bias else {}
    extra |= {"threshold": T["threshold"]} if settings["selector"] == "jumprelu" else {}
    x = inputs()
    expected = dense(x.astype(np.float64), settings, pre_bias if has_pre_bias else 0.0)
    spec = assert_parity(native(tmp_path / "a", settings, extra), x, *expected)
    assert (spec.format, spec.site, spec.width, spec.d_in) == ("native", Site("resid_post", 1), F, D)
    assert find_dictionary(str(tmp_path / "a" / "dictionary.json")) == spec


def test_what_is_left_out_is_zero_and_one_threshold_serves_all(tmp_path: Path) -> None:
    few: dict[str, Array | None] = {"encoder_bias": None, "decoder_bias": None}
    spec = find_dictionary(
        str(native(tmp_path / "a", {"selector": "jumprelu"}, few | {"threshold": np.array(0.5, np.float32)}))
    )
    weights = reader_of(spec).load(spec, "cpu")
    assert weights.threshold_F is not None and weights.threshold_F.tolist() == [0.5] * F
    assert not (weights.b_enc_F.any() or weights.b_pre_D.any() or weights.b_dec_O.any())


@pytest.mark.parametrize(
    ("settings", "changed", "point"),
    [
        ({"selector": "topk", "k": 3, "decoder_norm_gat": True}, {}, "'decoder_norm_gat' .*'decoder_norm_gate'"),
        ({"selector": "relu", "expected": {"l1": 3}}, {}, "'expected.l1'"),
        ({"selector": "custom"}, {}, "selector is custom: these are known: relu"),
        ({}, {}, "selector is null"),
        ({"selector": "topk"}, {}, "no 'k'"),
        ({"selector": "topk", "k": 11}, {}, "k is 11"),
        ({"selector": "relu", "k": 2}, {}, "k is 2: the selector relu takes none"),
        ({"selector": "groupmax", "k": 3}, {}, "k is 3"),
        ({"selector": "top_afa", "k": 2}, {}, "k is 2: the selector top_afa takes none"),
        ({"selector": "nnls", "k": 2}, DECODER, "k is 2: the selector nnls takes none"),
        ({"selector": "pursuit"}, DECODER, "no 'k'"),
        ({"selector": "pursuit", "k": 11}, DECODER, "k is 11: of 10 features in 6 dimensions .* 10 steps"),
        ({"selector": "pursuit", "k": 2}, {}, "holds 'encoder', which a dictionary of selector pursuit"),
        ({"selector": "nnls"}, DECODER | {"encoder_bias": T["b_enc"]}, "holds 'encoder_bias', which"),
        ({"selector": "nnls"}, DECODER | {"decoder": T["W_dec"].T}, r"'decoder' has shape \[6, 10\]"),
        ({"selector": "nnls", "decoder_norm_gate": True}, DECODER, "found with the decoder alone"),
        ({"selector": "nnls", "is_transcoder": True}, DECODER, "found with the decoder alone"),
        ({"selector": "nnls", "pursuit": {"residual_below": 1}}, DECODER, "pursuit is .* the selector is nnls"),
        ({"selector": "pursuit", "k": 2, "pursuit": {"below": 1}}, DECODER, "'pursuit.below'"),
        ({"selector": "pursuit", "k": 2, "pursuit": {"residual_below": -1}}, DECODER, "residual_below is -1"),
        ({"selector": "topk", "k": 2, "has_signs": True}, {}, "Leave it out, or take abstopk"),
        (
            {"selector": "abstopk", "k": 2, "has_signs": True}, {},
            "has_signs is true: .* abstopk keeps signs without it. Leave it out",
        ),
        (
            {"selector": "relu", "hook_out": "layers.1.mlp"}, {},
            r"hook_out is layers\.1\.mlp: only a transcoder has one",
        ),
        (
            {"selector": "relu", "hook": "layers.1", "further_hooks": ["layers.1"]}, {},
            r'further_hooks is \["layers\.1"\]: each place is read once, and hook is layers\.1',
        ),
        (
            {"selector": "relu", "hook": "layers.1", "further_hooks": ["layers.2", "blocks.2.hook_resid_post"]}, {},
            "each place is read once",
        ),
        (APART | {"n_inputs": 1}, SHARES, "by_input is true: a crosscoder's inputs"),
        (APART | {"decoder_norm_gate": False}, SHARES, "by_input is true: a crosscoder's inputs"),
        (APART | {"selector": "groupmax"}, SHARES, "selectors relu, jumprelu, topk, and with no transcoder"),
        (APART | {"is_transcoder": True}, SHARES, "selectors relu, jumprelu, topk, and with no transcoder"),
        (APART, {}, "no tensor 'input_share'"),
        (APART, {"input_share": np.ones((3, F), np.float32)}, r"'input_share' has shape \[3, 10\].*inputs 2"),
        ({"selector": "relu"}, SHARES, "holds 'input_share', which"),
        ({"selector": "relu"}, {"score_norm": T["b_enc"]}, "holds 'score_norm', which"),
        ({"selector": "relu", "n_models": 4}, {}, "n_models is 4: the 6 numbers"),
        ({"selector": "nnls", "variant": "polysae"}, DECODER, "variant is polysae: selector nnls"),
        ({"selector": "relu", "layout": 2}, {}, "layout is 2"),
        ({"selector": "relu", "transform": ["log"]}, {}, "transform is .*centre"),
        ({"selector": "relu", "transform": 3}, {}, "transform is 3: expected a list"),
        ({"selector": "relu", "group_sizes": [3, 3]}, {}, "make 10 together"),
        ({"selector": "jumprelu"}, {}, "no tensor 'threshold'"),
        ({"selector": "relu"}, {"threshold": T["threshold"]}, "holds 'threshold', which"),
        ({"selector": "relu"}, {"decoder": T["W_dec"].T}, r"'decoder' has shape \[6, 10\].*swapped"),
        ({"selector": "relu"}, {"encoder": T["W_enc"].T}, r"'encoder' has shape \[10, 6\].*swapped"),
        ({"selector": "relu"}, {"encoder": None}, "no tensor 'encoder'"),
        ({"selector": "relu", "calibration": {"rule": "mutual_choice", "k": 2}}, {}, "it is jumprelu"),
        ({"selector": "jumprelu", "calibration": {"rule": "best", "k": 2}}, {}, "rule is best"),
        ({"selector": "jumprelu", "calibration": {"rule": "mutual_choice"}}, {}, "k is null"),
        ({"selector": "jumprelu", "calibration": {"rule": "sampled", "k": 2}}, {}, "no 'pool'"),
        ({"selector": "jumprelu", "calibration": {"rule": "sampled", "k": 2, "l": 4}}, {}, "'calibration.l'"),
        ({"selector": "relu", "variant": "vae"}, {}, "variant is vae: these are known: vsae"),
        ({"selector": "relu", "variant": "gradient"}, {}, "selector is relu: of variant gradient it is topk"),
        ({"selector": "jumprelu", "variant": "sampled"}, {}, "of variant sampled it has the rule sampled"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, settings: Json, changed: dict[str, Array | None], point: str
) -> None:
    with pytest.raises(CheckpointError, match=point):
        find_dictionary(str(native(tmp_path / "a", settings, changed)))


def test_each_input_selects_by_scores_of_its_own(tmp_path: Path) -> None:
    """Scores are pre-activations times the norm and the input's share, written out in float64; a feature is active
    where any input has it among its two largest."""
    norms = np.linspace(0.5, 4, F).astype(np.float32)
    x, t = inputs(), exact(T)
    pre = np.maximum(x.astype(np.float64) @ t["W_enc"] + t["b_enc"], 0)
    of_input = [pre * norms * share for share in np.asarray(SHARES["input_share"], np.float64)]
    chosen = [(largest(score, 2) > 0) & (score > 0) for score in of_input]
    half = np.repeat([[1.0, 0.0], [0.0, 1.0]], D // 2, axis=1)
    x_hat = (
        sum((pre * kept) @ (t["W_dec"] * part) for kept, part in zip(chosen, half, strict=True)) + t["b_dec"]
    )
    assert (chosen[0] != chosen[1]).any(axis=1).mean() > 0.3
    folder = native(tmp_path, APART, SHARES | {"score_norm": norms})
    assert_parity(folder, x, pre * (chosen[0] | chosen[1]), x_hat)


@pytest.mark.parametrize(
    ("changed", "point"),
    [
        ({"input_share": np.full((2, F), 0.5, np.float32)}, "'input_share' must be shares of the largest"),
        ({"input_share": np.full((2, F), 2, np.float32)}, "'input_share' must be shares of the largest"),
        ({"input_share": np.stack([np.ones(F), -np.ones(F)]).astype(np.float32)}, "shares of the largest"),
        ({"input_share": np.zeros((2, F), np.float32)}, "shares of the largest"),
        (
            SHARES | {"score_norm": np.linspace(-1, 1, F).astype(np.float32)},
            "'score_norm' holds numbers below 0",
        ),
    ],
)
def test_norms_and_shares_that_are_none(tmp_path: Path, changed: dict[str, Array | None], point: str) -> None:
    spec = find_dictionary(str(native(tmp_path, APART, changed)))
    with pytest.raises(CheckpointError, match=point):
        reader_of(spec).load(spec, "cpu")


# --- variants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "paper"),
    [
        ("vsae", {"selector": "topk", "k": 3}, "2509.22994"),
        ("gradient", {"selector": "topk", "k": 3}, "2411.10397"),
        ("mfr", {"selector": "relu"}, "2411.01220"),
        ("fast", {"selector": "relu"}, "2506.07691"),
        ("gba", {"selector": "relu"}, "2506.14002"),
    ],
)
def test_a_variant_is_its_base_selector_and_says_its_paper(
    tmp_path: Path, name: str, settings: Json, paper: str
) -> None:
    x = inputs()
    folder = native(tmp_path / "a", settings | {"variant": name})
    spec = assert_parity(folder, x, *dense(x.astype(np.float64), settings))
    assert paper in spec.notes[0]
    assert (spec.approximation is not None) == (name == "gradient")
    assert ("chat template" in spec.notes[0]) == (name == "fast")


def test_a_polynomial_decoder_gives_the_directions_of_its_linear_term(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    u1, c1 = rng.normal(size=(F, 3)).astype(np.float32), rng.normal(size=(D, 3)).astype(np.float32)
    changed: dict[str, Array | None] = {"decoder": None, "decoder_u1": u1, "decoder_c1": c1}
    folder = native(tmp_path / "a", {"selector": "topk", "k": 3, "variant": "polysae"}, changed)
    spec = find_dictionary(str(folder))
    assert not spec.reconstructs and "not linear" in spec.notes[0] and "2602.01322" in spec.notes[0]
    directions = reader_of(spec).load(spec, "cpu").directions([7, 2])
    np.testing.assert_allclose(directions.numpy(), (u1.astype(np.float64) @ c1.T)[[7, 2]], rtol=1e-5)


@pytest.mark.parametrize("rule", ["mutual_choice", "feature_choice", "sampled"])
def test_choices_among_a_batch_are_to_be_calibrated(tmp_path: Path, rule: Any) -> None:
    calibration = {"rule": rule, "k": 2.5} | (
        {"pool": 6, "column_score": "entropy"} if rule == "sampled" else {}
    )
    settings = {"selector": "jumprelu", "calibration": calibration, "variant": rule}
    spec = find_dictionary(str(native(tmp_path / "a", settings)))
    pool: Json = {"pool": 6, "column_score": "entropy"} if rule == "sampled" else {}
    assert spec.calibration == Calibration(rule, 2.5, **pool)
    assert reader_of(spec).load(spec, "cpu").threshold_F is None


# --- meta-SAEs -----------------------------------------------------------------------------------------

N_META = 12


def meta(folder: Path, parent: str, seed: int = 4, d: int = D_MODEL, **settings: Any) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {
        "encoder": rng.normal(size=(d, N_META)).astype(np.float32),
        "decoder": rng.normal(size=(N_META, d)).astype(np.float32),
    }
    none = {"encoder_bias": None, "decoder_bias": None}
    given: Json = {"selector": "topk", "k": 2, "parent": parent} | settings
    native(folder, given, found | none)
    config = json.loads((folder / "dictionary.json").read_text())
    if "hook" not in settings:
        del config["hook"]
    (folder / "dictionary.json").write_text(json.dumps(config))
    return found


@pytest.mark.parametrize("rows", ["unit", "stored"])
def test_a_meta_feature_sums_its_parents_activations_times_their_codes(tmp_path: Path, rows: str) -> None:
    """Dense, in float64; the parent lies beside."""
    native(tmp_path / "parent", {"selector": "topk", "k": 3, "model": "org/m", "context_length": 33})
    own = meta(tmp_path / "meta", "../parent", d=D, parent_rows=rows)
    x = inputs()
    z, _ = dense(x.astype(np.float64), {"selector": "topk", "k": 3})
    w_dec = T["W_dec"].astype(np.float64)
    if rows == "unit":
        w_dec = w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True)
    metacode = np.maximum(w_dec @ own["encoder"], 0)
    metacode *= largest(metacode, 2)
    spec = find_dictionary(str(tmp_path / "meta"))
    assert (spec.site, spec.model, spec.context_length) == (Site("resid_post", 1), "org/m", 33)
    assert (spec.width, spec.selector, spec.reconstructs) == (N_META, "custom", False)
    weights = reader_of(spec).load(spec, "cpu")
    codes = Encoder(spec, weights, max_elements=100).encode(torch.tensor(x))
    found = np.zeros((N, N_META))
    found[codes.token_M, codes.feature_M] = codes.value_M
    np.testing.assert_allclose(found, z @ metacode, rtol=1e-5, atol=1e-5)
    assert 0.1 < (found > 0).mean() < 0.9
    assert torch.equal(weights.directions([3]), torch.tensor(own["decoder"][[3]]))


def test_a_meta_sae_that_chose_among_a_batch_is_calibrated_on_all_rows(tmp_path: Path) -> None:
    native(tmp_path / "parent", {"selector": "topk", "k": 3})
    calibration = {"rule": "batch_topk", "k": 2, "batch_tokens": 3}
    own = meta(
        tmp_path / "meta",
        "../parent",
        d=D,
        selector="jumprelu",
        k=None,
        calibration=calibration,
        parent_rows="stored",
    )
    score = np.maximum(T["W_dec"].astype(np.float64) @ own["encoder"], 0)
    metacode = score * (score > np.sort(score.ravel())[-2 * F])
    assert (metacode > 0).sum() == 2 * F - 1, "all that is strictly above the smallest kept"
    spec = find_dictionary(str(tmp_path / "meta"))
    assert spec.calibration is None
    codes = Encoder(spec, reader_of(spec).load(spec, "cpu")).encode(torch.tensor(inputs()))
    z, _ = dense(inputs().astype(np.float64), {"selector": "topk", "k": 3})
    found = np.zeros((N, N_META))
    found[codes.token_M, codes.feature_M] = codes.value_M
    np.testing.assert_allclose(found, z @ metacode, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "point"),
    [
        ({"hook": "layers.2"}, "hook is layers.2: a meta-SAE has it of its parent"),
        ({"parent": "neurons"}, "parent is neurons: it must have decoder rows"),
        ({"parent": "../meta"}, "parent is ../meta: a parent may not have one itself"),
        ({"parent": "os:getcwd"}, "parent is os:getcwd: a checkpoint may not name code"),
        ({"parent": "p" * 5000}, "no file or folder is called"),
        ({"parent": "~nobody-of-that-name/x"}, "no file or folder is called"),
        ({"parent": "../wide"}, "decoder rows have 7 numbers, but the encoder here reads 6"),
        ({"parent": "../uncalibrated"}, "it stores no threshold"),
        ({"parent": "../nowhere"}, "nowhere"),
        ({"parent_rows": "big"}, "parent_rows is big"),
        ({"selector": "abstopk"}, "selector is abstopk"),
    ],
)
def test_parents_that_do_not_fit(tmp_path: Path, settings: Json, point: str) -> None:
    native(tmp_path / "parent", {"selector": "topk", "k": 3})
    wide = tensors(d_in=7)
    other: dict[str, Array | None] = {
        "encoder": wide["W_enc"],
        "decoder": wide["W_dec"],
        "decoder_bias": None,
    }
    native(tmp_path / "wide", {"selector": "topk", "k": 3}, other)
    calibration = {"rule": "mutual_choice", "k": 2}
    native(tmp_path / "uncalibrated", {"selector": "jumprelu", "calibration": calibration})
    meta(tmp_path / "meta", **({"parent": "../parent", "d": D} | settings))
    with pytest.raises(CheckpointError, match=point):
        find_dictionary(str(tmp_path / "meta"))


def test_inspect_shows_its_own_selector_and_its_parents(tmp_path: Path) -> None:
    native(tmp_path / "parent", {"selector": "topk", "k": 3})
    meta(tmp_path / "meta", "../parent", d=D, k=2)
    said = list(inspected(str(tmp_path / "meta")))
    assert "its own topk, k = 2;" in dict(said)["selector"]
    assert "(native: topk, k = 3, 10 features)" in dict(said)["selector"]
    assert any(what == "note" and "meta-SAE of" in value and "parent" in value for what, value in said)
    calibration = {"rule": "batch_topk", "k": 2.5}
    meta(tmp_path / "batch", "../parent", d=D, selector="jumprelu", k=None, calibration=calibration)
    own = dict(inspected(str(tmp_path / "batch")))["selector"]
    assert "its own jumprelu, its threshold found on all of them (batch_topk, 2.5 a row);" in own


def test_the_identity_follows_the_parent(tmp_path: Path) -> None:
    native(tmp_path / "parent", {"selector": "topk", "k": 3})
    meta(tmp_path / "meta", "../parent", d=D)
    before: DictionarySpec = find_dictionary(str(tmp_path / "meta"))
    native(tmp_path / "parent", {"selector": "topk", "k": 4})
    assert find_dictionary(str(tmp_path / "meta")).identity != before.identity


def test_a_meta_sae_through_the_line(made: Tiny, tmp_path: Path) -> None:
    """Its firings are where its parents' are, on the model's own vectors; none is reconstructed."""
    own = meta(tmp_path / "meta", str(made.sae), k=1)
    given = made.recipe(dictionaries={"auto": {"path": str(tmp_path / "meta")}}, features={"first": N_META})
    with device_here():
        run = pipeline.explain(given, out=tmp_path / "run")
    (check,) = (record for record in run.cache("layers.1").records() if record["key"] == "check")
    assert check["fvu"] is None
    x, looked_at = states(made, run, "model.layers.1", "output")
    basis, _ = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))
    rows = torch.cat([basis, -basis])
    pre = x @ rows.T
    z = torch.zeros_like(pre).scatter(1, *reversed(pre.topk(24, dim=1))).clamp_min(0)
    meta_pre = rows @ torch.tensor(own["encoder"])
    metacode = torch.zeros(WIDTH, N_META).scatter(1, *reversed(meta_pre.topk(1, dim=1))).clamp_min(0)
    fires = ((z @ metacode) > 0) & torch.from_numpy(looked_at)[:, None]
    counts = FiringStore(list(firing_shards(run.cache("layers.1"))), CONTEXT).counts(N_META)
    assert np.abs(counts - fires.sum(0).numpy()).max() <= 2 and counts.all()
    assert set(run.scores().to_pydict()["status"]) <= {"ok", "untestable"}
