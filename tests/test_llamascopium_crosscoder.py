"""Llamascopium's crosscoders: codes as models/crosscoder.py computes them, written down again in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from dense_codes import Array, assert_parity, exact, inputs, save_json, save_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch
from test_kinds import density, states
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp import recipe as recipes
from autointerp.cli import app
from autointerp.dictionaries.calibrate import calibrated
from autointerp.dictionaries.conventions import alternatives
from autointerp.dictionaries.convert import convert
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.places import placed
from autointerp.report.dictionary import inspected
from autointerp.subject.architecture import Architecture
from autointerp.types import Site
from tiny import D_MODEL, Tiny

save_file = cast(Callable[[dict[str, Array], Path], None], cast(Any, safetensors_numpy).save_file)

H, D, F, K = 3, 4, 12, 2
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"]
NORMS = [4.0, 0.5, 9.0]
CONFIG: dict[str, Any] = {
    "sae_type": "crosscoder", "d_model": D, "expansion_factor": F / D, "hook_points": HOOKS, "act_fn": "jumprelu",
    "top_k": K, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
}  # fmt: skip


def stored(seed: int = 0, d: int = D, f: int = F, hooks: list[str] = HOOKS) -> dict[str, Array]:
    """Decoder rows of very different norms at the hook points, so that few features are selected by all."""
    rng = np.random.default_rng(seed)
    h = len(hooks)
    rows = rng.normal(size=(h, f, d)) * rng.choice([0.1, 1.0, 3.0], size=(h, f, 1))
    found = {
        "W_E": rng.normal(size=(h, d, f)), "b_E": rng.normal(size=(h, f)), "W_D": rows,
        "b_D": rng.normal(size=(h, d)),
        "activation_function.log_jumprelu_threshold": np.log(rng.uniform(0.5, 8, f)),
    }  # fmt: skip
    norms = {
        f"dataset_average_activation_norm.{hook}": np.array(n) for hook, n in zip(hooks, NORMS, strict=False)
    }
    return {name: value.astype(np.float32) for name, value in (found | norms).items()}


def crosscoder(folder: Path, change: dict[str, Any], t: dict[str, Array] | None = None) -> Path:
    save_json(folder / "config.json", CONFIG | change)
    save_file(t or stored(), folder / "sae_weights.safetensors")
    return folder


def top(score: Array, k: int) -> Array:
    """Of the last axis the k largest, zeros elsewhere."""
    kept = np.zeros_like(score)
    place = np.argsort(-score, axis=-1, kind="stable")[..., :k]
    np.put_along_axis(kept, place, np.take_along_axis(score, place, axis=-1), axis=-1)
    return kept


def reference(
    x: Array, change: dict[str, Any], t: dict[str, Array] | None = None
) -> tuple[Array, Array, Array]:
    """normalize_activations, encode, decode, denormalize_activations: activations [N, H, F] and their largest over
    the hook points [N, F], as feature_analyzer.py takes it; x_hat [N, H D]."""
    config, t = CONFIG | change, exact(t or stored())
    parts = x.astype(np.float64).reshape(len(x), len(t["W_E"]), -1)
    d = parts.shape[2]
    n: Any = 1.0
    if config["norm_activation"] == "token-wise":
        n = np.sqrt(d) / np.linalg.norm(parts, axis=2, keepdims=True)
    elif config["norm_activation"] == "dataset-wise":
        n = np.sqrt(d) / np.array(NORMS[: parts.shape[1]])[:, None]
    pre = (np.einsum("nhd,hdf->nhf", parts * n, t["W_E"]) + t["b_E"]).sum(axis=1)
    norm = np.linalg.norm(t["W_D"], axis=2)
    score = pre[:, None] * norm
    if config["act_fn"] == "jumprelu":
        kept = score * (score > np.exp(t["activation_function.log_jumprelu_threshold"]))
    elif config["act_fn"] == "topk":
        kept = top(np.maximum(score, 0), config["top_k"])
    else:
        kept = np.maximum(score, 0)
    acts = kept / norm
    x_hat = (np.einsum("nhf,hfd->nhd", acts, t["W_D"]) + t["b_D"]) / n
    return acts, acts.max(axis=1), x_hat.reshape(len(x), -1)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("normalisation", ["token-wise", "dataset-wise", "inference"])
def test_codes_and_reconstruction(tmp_path: Path, activation: str, normalisation: str) -> None:
    change = {"act_fn": activation, "norm_activation": normalisation}
    x = inputs(H * D)
    by_hook, acts, x_hat = reference(x, change)
    differs = ((by_hook > 0).any(axis=1) != (by_hook > 0).all(axis=1)).mean()
    assert (differs == 0) if activation == "relu" else (differs > 0.1)
    spec = assert_parity(crosscoder(tmp_path, change), x, acts, x_hat)
    assert (spec.format, spec.site) == ("llamascopium", Site("resid_post", 0))
    assert spec.further_sites == (Site("resid_post", 1), Site("mlp_out", 1))
    assert (spec.d_in, spec.n_inputs, spec.by_input) == (H * D, H, activation != "relu")


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 5), max_elements=st.sampled_from([12, 60, 2**22]))
def test_top_k_of_any_input_in_tiles(seed: int, k: int, max_elements: int) -> None:
    """However wide the tiles are; with a feature that writes nothing to some hook point, whose score there is 0."""
    t = stored(seed)
    t["W_D"][seed % H, seed % F] = 0
    change = {"act_fn": "topk", "top_k": k}
    x = inputs(H * D)
    with np.errstate(invalid="ignore"):
        by_hook, _, _ = reference(x, change, t)  # 0 / 0, which the source has there, is no activation
    by_hook = np.nan_to_num(by_hook)
    with tempfile.TemporaryDirectory() as folder:
        spec = find_dictionary(str(crosscoder(Path(folder), change, t)))
        encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"), max_elements=max_elements)
    codes = encoder.encode(torch.tensor(x))
    found = np.zeros((len(x), F))
    found[codes.token_M, codes.feature_M] = codes.value_M
    np.testing.assert_allclose(found, by_hook.max(axis=1), rtol=1e-4, atol=1e-4)
    rows, n = t["W_D"].astype(np.float64), np.sqrt(D) / np.array(NORMS)[:, None]
    x_hat = (np.einsum("nhf,hfd->nhd", by_hook, rows) + t["b_D"]) / n
    decoded = encoder.decode(codes, torch.tensor(x)).numpy()
    np.testing.assert_allclose(decoded, x_hat.reshape(len(x), -1), rtol=1e-4, atol=1e-3)


def test_one_hook_point_is_a_dictionary_of_one_input(tmp_path: Path) -> None:
    change, t = {"hook_points": HOOKS[:1]}, stored(hooks=HOOKS[:1])
    x = inputs(D)
    _, acts, x_hat = reference(x, change, t)
    spec = assert_parity(crosscoder(tmp_path, change, t), x, acts, x_hat)
    assert (spec.further_sites, spec.by_input, spec.n_inputs) == ((), False, 1)


def test_a_pt_file(tmp_path: Path) -> None:
    save_json(tmp_path / "config.json", CONFIG)
    save_torch(tmp_path / "sae_weights.pt", {f"sae.{name}": value for name, value in stored().items()})
    _, acts, x_hat = reference(inputs(H * D), {})
    assert_parity(tmp_path, inputs(H * D), acts, x_hat)


def test_batchtopk_is_calibrated_on_the_scores_of_all_hook_points(tmp_path: Path) -> None:
    """The threshold is the smallest of the top_k H B largest among B tokens, H hook points and F features."""
    spec = find_dictionary(str(crosscoder(tmp_path, {"act_fn": "batchtopk"})))
    assert spec.calibration == Calibration("batch_topk", K * H) and spec.expected.l0 is None
    x, t = inputs(H * D), exact(stored())
    n = np.sqrt(D) / np.array(NORMS)[:, None]
    parts = x.astype(np.float64).reshape(len(x), H, D) * n
    pre = (np.einsum("nhd,hdf->nhf", parts, t["W_E"]) + t["b_E"]).sum(axis=1)
    score = np.maximum(pre[:, None] * np.linalg.norm(t["W_D"], axis=2), 0)
    threshold = np.sort(score.ravel())[-K * H * len(x)]
    weights = reader_of(spec).load(spec, "cpu")
    found = calibrated(Encoder(spec, weights), lambda: iter([torch.tensor(x)]), len(x))
    assert found.threshold_F[0] == pytest.approx(threshold, rel=1e-5)
    # Its smallest score is not above itself.
    encoder = Encoder(spec, replace(weights, threshold_F=found.threshold_F * (1 - 1e-5)))
    codes = encoder.encode(torch.tensor(x))
    by_hook = pre[:, None] * (score >= threshold * (1 - 1e-6))
    dense = np.zeros((len(x), F))
    dense[codes.token_M, codes.feature_M] = codes.value_M
    np.testing.assert_allclose(dense, by_hook.max(axis=1).clip(0), rtol=1e-5, atol=1e-5)
    x_hat = (np.einsum("nhf,hfd->nhd", by_hook, t["W_D"]) + t["b_D"]) / n
    decoded = encoder.decode(codes, torch.tensor(x)).numpy()
    np.testing.assert_allclose(decoded, x_hat.reshape(len(x), -1), rtol=1e-4, atol=1e-3)


def test_snapshots_of_a_model_are_no_sites(tmp_path: Path) -> None:
    hooks = ["step0", "step512", "step143000"]
    folder = crosscoder(tmp_path, {"hook_points": hooks}, stored(hooks=hooks))
    spec = find_dictionary(str(folder))
    assert (spec.hook, spec.site, spec.further_sites, spec.n_inputs) == (None, None, (), H)
    said = "\n".join(" ".join(pair) for pair in inspected(str(folder)))
    assert "step0, step512, step143000" in said and "--hook layers.3+layers.5" in said
    assert "each of the 3 inputs by itself" in said


@pytest.mark.parametrize("activation", ["jumprelu", "topk", "batchtopk"])
@pytest.mark.parametrize("normalisation", ["token-wise", "dataset-wise"])
def test_inputs_that_select_apart_do_so_in_our_layout(
    tmp_path: Path, activation: str, normalisation: str
) -> None:
    """The same codes and reconstructions to the bit, and again when converted again."""
    change = {"act_fn": activation, "norm_activation": normalisation}
    spec = find_dictionary(str(crosscoder(tmp_path / "a", change)))
    written = [convert(str(tmp_path / "a"), tmp_path / "b").spec]
    written.append(convert(str(tmp_path / "b"), tmp_path / "c").spec)
    x = torch.tensor(inputs(H * D))
    threshold_F = torch.linspace(0.5, 3, F) if activation == "batchtopk" else None
    found: list[tuple[torch.Tensor, ...]] = []
    for one in (spec, *written):
        weights = reader_of(one).load(one, "cpu")
        encoder = Encoder(
            one, replace(weights, threshold_F=threshold_F) if threshold_F is not None else weights
        )
        codes = encoder.encode(x)
        found.append((codes.token_M, codes.feature_M, codes.value_M, encoder.decode(codes, x)))
    for again in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], again, strict=True))
    assert len(found[0][0]) > 50
    same = {"path": spec.path, "identity": spec.identity, "format": spec.format}
    assert [replace(one, **same) for one in written] == [spec, spec]
    assert written[0].identity == written[1].identity


def test_inputs_that_select_alike_do_so_in_our_layout(tmp_path: Path) -> None:
    change = {"act_fn": "relu", "norm_activation": "token-wise"}
    written = convert(str(crosscoder(tmp_path / "b", change)), tmp_path / "b-out").spec
    assert (written.format, written.n_inputs) == ("native", H)
    _, acts, x_hat = reference(inputs(H * D), change)
    assert_parity(tmp_path / "b-out", inputs(H * D), acts, x_hat)


def test_no_other_reading_takes_the_norms_away_that_tell_inputs_apart(tmp_path: Path) -> None:
    spec = find_dictionary(str(crosscoder(tmp_path, {})))
    x = torch.tensor(inputs(H * D))
    names = [one.name for one in alternatives(spec, reader_of(spec).load(spec, "cpu"), x)]
    assert names and not any("norms" in name for name in names)


def of_version(folder: Path, hooks: list[str], version: str, **change: Any) -> Path:
    save_json(
        folder / "config.json", CONFIG | {"hook_points": hooks, "norm_activation": "inference"} | change
    )
    t = {name: torch.tensor(value) for name, value in stored(hooks=hooks).items()}
    cast(Any, safetensors_torch).save_file(
        t, folder / "sae_weights.safetensors", metadata={"version": version}
    )
    return folder


@pytest.mark.parametrize(("version", "centred"), [("2.0.0b31", False), ("2.0.0b32", True)])
def test_places_of_a_model_are_of_the_model_that_the_version_loaded(
    tmp_path: Path, version: str, centred: bool
) -> None:
    spec = find_dictionary(str(of_version(tmp_path / "a", HOOKS, version)))
    assert (spec.model_was_centred, spec.without_value_bias) == (centred, False)
    z = ["blocks.0.hook_resid_post", "blocks.0.attn.hook_z", "blocks.1.ln2.hook_normalized"]
    spec = find_dictionary(str(of_version(tmp_path / "b", z, version)))
    assert (spec.without_value_bias, spec.normalized_behind_gain) == (centred, not centred)
    steps = find_dictionary(str(of_version(tmp_path / "c", ["step0", "step1", "step2"], version)))
    assert not steps.model_was_centred


def test_further_inputs_lie_behind_the_gain_too(tmp_path: Path) -> None:
    hooks = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(H)]
    spec = find_dictionary(str(of_version(tmp_path / "a", hooks, "2.0.0b31")))
    recipe = recipes.parse(
        recipes.over_default_plugins({"dictionaries": {"a": {"path": str(tmp_path / "a")}}})
    )
    for family, points in (("gpt2", "mlp_in"), ("llama", "mlp_in_normalized")):
        config: dict[str, Any] = {
            "model_type": family,
            "hidden_size": D,
            "num_hidden_layers": 5,
            "vocab_size": 9,
        }
        found = placed(recipe, {"a": spec}, architecture=Architecture.of(config, "config.json"))["a"]
        assert found.inputs == tuple(Site(cast(Any, points), layer) for layer in range(H))


@pytest.mark.parametrize(
    ("change", "weights", "point"),
    [
        ({"sparsity_include_decoder_norm": False}, {}, "sparsity_include_decoder_norm is false"),
        ({"use_decoder_bias": False}, {}, "use_decoder_bias is false"),
        ({"hook_points": []}, {}, "hook_points is .*expected a list"),
        ({"hook_points": [1, 2, 3]}, {}, "hook_points is 1: expected a text"),
        ({"hook_points": HOOKS[:2]}, {}, r"'b_E' has shape \[3, 12\], .*hook points 2"),
        ({"hook_points": [*HOOKS[:2], "blocks.3.hook_mlp_out"]}, {}, "no tensor 'dataset_average_activation_norm"),
        ({"expansion_factor": 2}, {}, "expansion_factor is 2: .* has 12 features"),
        ({"act_fn": "topk", "top_k": 13}, {}, "top_k is 13"),
        ({"act_fn": "layertopk"}, {}, "act_fn is layertopk: .*convert_topk_to_jumprelu"),
        ({"norm_activation": "batch-wise"}, {}, "norm_activation is batch-wise"),
        ({}, {"W_D": stored()["W_D"].swapaxes(1, 2).copy()}, r"'W_D' has shape \[3, 4, 12\]"),
        ({}, {"b_E": np.zeros((), np.float32)}, r"'b_E' has shape \[\]"),
        ({}, {"dataset_average_activation_norm." + HOOKS[1]: np.array(0, np.float32)}, "norm is 0.*after training"),
        ({}, {"b_D": np.full((H, D), np.nan, np.float32)}, "12 values of 12 that are NaN"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, change: dict[str, Any], weights: dict[str, Array], point: str) -> None:
    folder = crosscoder(tmp_path, change, stored() | weights)
    with pytest.raises(CheckpointError, match=point) as refused:
        spec = find_dictionary(str(folder))
        reader_of(spec).load(spec, "cpu")
    assert "\n" not in str(refused.value)


def of_two_layers() -> dict[str, Array]:
    """Both directions of the axes of a rotated basis, read at two layers; every other feature hardly writes to the
    second, so that it seldom selects there."""
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(D_MODEL, D_MODEL)))[0]
    rows = np.concatenate([axes, -axes])
    write = np.stack([rows, rows * np.where(np.arange(len(rows)) % 2, 1.0, 0.2)[:, None]])
    found = {
        "W_E": np.stack([rows.T / 2] * 2), "b_E": np.zeros((2, len(rows))), "W_D": write,
        "b_D": np.zeros((2, D_MODEL)),
        "activation_function.log_jumprelu_threshold": np.full(len(rows), np.log(4)),
    }  # fmt: skip
    return {name: np.ascontiguousarray(value.astype(np.float32)) for name, value in found.items()}


def test_explained_on_a_model(made: Tiny, tmp_path: Path) -> None:
    """From the checkpoint to scores; density and the share of variance that is left are those of the reference."""
    change = {
        "d_model": D_MODEL, "expansion_factor": 2, "hook_points": HOOKS[:2], "norm_activation": "inference"
    }  # fmt: skip
    folder = crosscoder(tmp_path / "ckpt", change, of_two_layers())
    recipe = made.recipe(dictionaries={"auto": {"path": str(folder)}}, features={"first": 12})
    run = pipeline.explain(recipe, out=tmp_path / "run")
    name = "layers.0-layers.1"
    assert run.identities.sites == {name: "layers.0+layers.1"}
    x_0, looked_at = states(made, run, "model.layers.0", "output")
    x_1, _ = states(made, run, "model.layers.1", "output")
    x = torch.cat([x_0, x_1], dim=1).numpy()[looked_at]
    by_hook, acts, x_hat = reference(x, change, of_two_layers())
    assert 0.1 < (by_hook[:, 1] > 0).sum() / (acts > 0).sum() < 0.9
    for feature, share in density(run).items():
        expected = (acts[:, int(feature.rpartition("/")[2])] > 0).mean()
        assert share == pytest.approx(expected, abs=2 / len(x)), feature
    (check,) = (record for record in run.cache(name).records() if record["key"] == "check")
    n = check["n_tokens"]
    left = ((x[:n] - x_hat[:n]) ** 2).sum() / ((x[:n] - x[:n].mean(axis=0)) ** 2).sum()
    assert check["fvu"] == pytest.approx(float(left), rel=1e-3)
    assert set(run.scores().to_pydict()["status"]) == {"ok"} and all(run.features().to_pydict()["promoted"])


def test_checked_on_the_command_line(made: Tiny, tmp_path: Path) -> None:
    change = {
        "d_model": D_MODEL,
        "expansion_factor": 2,
        "hook_points": HOOKS[:2],
        "norm_activation": "inference",
    }
    folder = crosscoder(tmp_path / "ckpt", change, of_two_layers())
    command = ["sae", "check", str(folder), "--model", str(made.model), "--corpus", str(made.corpus)]
    done = CliRunner().invoke(app, [*command, "--n-tokens", "500"])
    assert done.exit_code == 0 and "as read" in done.output, done.output
