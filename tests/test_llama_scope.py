"""Llama Scope and Llamascopium: codes as OpenMOSS' own sae.py computes them, written down again in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from dense_codes import Array, D, F, assert_parity, exact, inputs, largest, save_json, tensors
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.types import Site

save_file = cast(Callable[[dict[str, Array], Path], None], cast(Any, safetensors_numpy).save_file)

IN, OUT = "blocks.15.hook_resid_post", "blocks.15.hook_mlp_out"
ROOT = D**0.5


def linear(t: dict[str, Array]) -> dict[str, Array]:
    return {
        "encoder.weight": np.ascontiguousarray(t["W_enc"].T),
        "decoder.weight": np.ascontiguousarray(t["W_dec"].T),
        "encoder.bias": t["b_enc"],
        "decoder.bias": t["b_dec"],
    }


# --- Llama Scope ---------------------------------------------------------------------------------------

NAME = "Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x"
HYPER: dict[str, Any] = {
    "act_fn": "jumprelu",
    "d_model": D,
    "d_sae": F,
    "hook_point_in": IN,
    "hook_point_out": IN,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
    "jump_relu_threshold": 0.9,
    "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True,
    "top_k": 3,
}


def scope(folder: Path, change: dict[str, Any], weights: dict[str, Array] | None = None) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    save_json(folder / "hyperparams.json", HYPER | change)
    save_file(weights or linear(tensors()), folder / "checkpoints" / "final.safetensors")
    return folder


def scope_reference(x: Array, change: dict[str, Any]) -> tuple[Array, Array]:
    """As the release runs (from_config, encode, decode), but for the factor |decoder row|, which it leaves on
    a feature's activation and takes out of its decoder row."""
    config, t, x = HYPER | change, exact(tensors()), x.astype(np.float64)
    norms, back = config["dataset_average_activation_norm"], 1.0
    n_in, n_out = ROOT / norms["in"], ROOT / norms["out"]
    if config["norm_activation"] == "token-wise":
        n_in = n_out = 1.0
        back = np.linalg.norm(x, axis=1, keepdims=True) / ROOT
    # standardize_parameters_of_dataset_activation_scaling
    b_enc, b_dec, w_dec = t["b_enc"] / n_in, t["b_dec"] / n_out, t["W_dec"] * n_in / n_out
    x = x / back - b_dec * config["apply_decoder_bias_to_pre_encoder"]
    pre = x @ t["W_enc"] + b_enc
    # transform_to_unit_decoder_norm
    score = pre * np.linalg.norm(w_dec, axis=1) if config["sparsity_include_decoder_norm"] else pre
    if config["act_fn"] == "relu":
        acts = np.maximum(pre, 0)
    elif config["act_fn"] == "topk" and not config["jump_relu_threshold"]:
        acts = np.maximum(pre, 0) * largest(np.maximum(score, 0), 3)
    else:
        acts = pre * (score > config["jump_relu_threshold"])
    return acts, (acts @ w_dec + b_dec) * back


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sparsity_include_decoder_norm": False},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"act_fn": "topk"},
        {"act_fn": "topk", "jump_relu_threshold": 0.0},
        {"act_fn": "relu"},
        {"norm_activation": "token-wise"},
        {"hook_point_out": OUT, "dataset_average_activation_norm": {"in": 4.0, "out": 0.5}},
    ],
    ids=str,
)
def test_llama_scope_codes(tmp_path: Path, change: dict[str, Any]) -> None:
    x = inputs()
    spec = assert_parity(scope(tmp_path / NAME, change), x, *scope_reference(x, change))
    assert (spec.format, spec.site, spec.model) == (
        "llama_scope",
        Site("resid_post", 15),
        "meta-llama/Llama-3.1-8B",
    )
    assert spec.is_transcoder == ("hook_point_out" in change)


def test_the_decoders_norms_decide_what_fires(tmp_path: Path) -> None:
    """One feature, decoder row of norm 2, threshold 1: fires above 0.5, and is what it is there."""
    t = {
        "W_enc": np.ones((1, 1), np.float32),
        "b_enc": np.zeros(1, np.float32),
        "W_dec": np.full((1, 1), 2, np.float32),
        "b_dec": np.zeros(1, np.float32),
    }
    change = {"d_model": 1, "d_sae": 1, "jump_relu_threshold": 1.0, "norm_activation": "none"}
    spec = find_dictionary(str(scope(tmp_path / "a", change, linear(t))))
    codes = Encoder(spec, reader_of(spec).load(spec, "cpu")).encode(torch.tensor([[0.49], [0.51], [3.0]]))
    assert (codes.token_M.tolist(), codes.value_M.tolist()) == ([1, 2], pytest.approx([0.51, 3.0]))


def test_a_feature_without_a_decoder_never_fires(tmp_path: Path) -> None:
    t = tensors()
    t["W_dec"][3] = 0
    spec = find_dictionary(str(scope(tmp_path / "a", {"jump_relu_threshold": 0.0}, linear(t))))
    codes = Encoder(spec, reader_of(spec).load(spec, "cpu")).encode(torch.from_numpy(inputs()).float())
    assert set(codes.feature_M.tolist()) == set(range(F)) - {3}


def test_any_of_its_files_names_it(tmp_path: Path) -> None:
    folder = scope(tmp_path / NAME, {})
    for file in ("hyperparams.json", "checkpoints/final.safetensors"):
        assert find_dictionary(str(folder / file)) == find_dictionary(str(folder))


@pytest.mark.parametrize(
    ("change", "weights", "point"),
    [
        ({"act_fn": "tanh"}, {}, "act_fn is tanh"),
        ({"use_glu_encoder": True}, {}, "use_glu_encoder"),
        ({"use_decoder_bias": False}, {}, "use_decoder_bias"),
        ({"norm_activation": "batch-wise"}, {}, "norm_activation is batch-wise"),
        ({"dataset_average_activation_norm": {"in": 4.0}}, {}, "out is null: expected a number"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, {}, "in is 0"),
        ({"jump_relu_threshold": -1}, {}, "jump_relu_threshold is -1"),
        ({"act_fn": "topk", "jump_relu_threshold": 0, "top_k": 11}, {}, "top_k is 11"),
        ({"d_sae": 11}, {}, r"'encoder\.bias' has shape \[10\]"),
        ({}, {"encoder.weight": tensors()["W_enc"]}, r"'encoder\.weight' has shape \[6, 10\].*swapped"),
        ({}, {"encoder.bias": np.full(F, np.nan, np.float32)}, "10 values of 10 that are NaN"),
    ],
)
def test_llama_scope_refuses(
    tmp_path: Path, change: dict[str, Any], weights: dict[str, Array], point: str
) -> None:
    folder = scope(tmp_path / NAME, change, linear(tensors()) | weights)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(folder))
        reader_of(spec).load(spec, "cpu")


# --- Llamascopium --------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "sae_type": "sae",
    "d_model": D,
    "expansion_factor": F / D,
    "hook_point_in": IN,
    "hook_point_out": IN,
    "act_fn": "topk",
    "top_k": 3,
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
}
NORMS = {IN: 4.0, OUT: 0.5}


def stored(t: dict[str, Array] | None = None) -> dict[str, Array]:
    t = t or tensors()
    found = {"W_E": t["W_enc"], "W_D": t["W_dec"], "b_E": t["b_enc"], "b_D": t["b_dec"]}
    norms = {f"dataset_average_activation_norm.{hook}": np.array(n, np.float32) for hook, n in NORMS.items()}
    return found | norms | {"activation_function.log_jumprelu_threshold": np.log(t["threshold"])}


def llamascopium(folder: Path, change: dict[str, Any], weights: dict[str, Array] | None = None) -> Path:
    save_json(folder / "config.json", CONFIG | change)
    save_file(weights or stored(), folder / "sae_weights.safetensors")
    return folder


def versioned(folder: Path, change: dict[str, Any], version: str | None, suffix: str) -> Path:
    """As saved by that version of its package, whose name is beside the tensors."""
    save_json(folder / "config.json", CONFIG | change)
    tensors = {name: torch.tensor(value) for name, value in stored().items()}
    said = {} if version is None else {"version": version}
    if suffix == "pt":
        torch.save({"sae": tensors} | said, folder / "sae_weights.pt")
    else:
        cast(Any, safetensors_torch).save_file(
            tensors, folder / "sae_weights.safetensors", metadata=said or None
        )
    return folder


def reference(x: Array, change: dict[str, Any]) -> tuple[Array, Array]:
    """normalize_activations, encode, decode, denormalize_activations."""
    config, t, x = CONFIG | change, exact(tensors()), x.astype(np.float64)
    n_in: Any = 1.0
    n_out: Any = 1.0
    if config["norm_activation"] == "token-wise":
        n_in = n_out = ROOT / np.linalg.norm(x, axis=1, keepdims=True)
    elif config["norm_activation"] == "dataset-wise":
        n_in, n_out = ROOT / NORMS[config["hook_point_in"]], ROOT / NORMS[config["hook_point_out"]]
    norm = np.linalg.norm(t["W_dec"], axis=1) if config["sparsity_include_decoder_norm"] else 1.0
    score = ((x * n_in) @ t["W_enc"] + t["b_enc"]) * norm
    if config["act_fn"] == "topk":
        score = np.maximum(score, 0) * largest(np.maximum(score, 0), 3)
    elif config["act_fn"] == "jumprelu":
        score = score * (score > t["threshold"])
    else:
        score = np.maximum(score, 0)
    acts = score / norm
    return acts, (acts @ t["W_dec"] + t["b_dec"]) / n_out


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("normalisation", ["token-wise", "dataset-wise", "inference"])
def test_llamascopium_codes(tmp_path: Path, activation: str, gate: bool, normalisation: str) -> None:
    change = {
        "act_fn": activation,
        "sparsity_include_decoder_norm": gate,
        "norm_activation": normalisation,
    }
    x = inputs()
    spec = assert_parity(llamascopium(tmp_path / "a", change), x, *reference(x, change))
    assert (spec.format, spec.site, spec.model) == ("llamascopium", Site("resid_post", 15), None)
    assert (spec.decoder_norm_gate, spec.value_is_score) == (
        (True, False) if gate and activation != "relu" else (False, True)
    )


Z = {"hook_point_in": "blocks.1.attn.hook_z", "hook_point_out": "blocks.1.attn.hook_z"}
NORMALIZED = {"hook_point_in": "blocks.1.ln2.hook_normalized", "hook_point_out": "blocks.1.hook_mlp_out"}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    ("version", "processed"),
    [
        (None, None),
        ("0.1.0", None),
        ("soon", None),
        ("1.0.0", False),
        ("1.5.0", False),
        ("2.0.0b4", False),
        ("2.0.0b31", False),
        ("2.0.0b32", True),
        ("2.0.0b100", True),
        ("2.0.0rc1", True),
        ("2.0.0", True),
        ("2.1.3", True),
    ],
)
def test_llamascopium_had_models_as_its_version_loaded_them(
    tmp_path: Path, version: str | None, processed: bool | None, suffix: str
) -> None:
    """None: it came both ways, which a note says. Without processing hook_normalized was behind the gain."""

    def read(name: str, change: dict[str, Any]) -> DictionarySpec:
        return find_dictionary(
            str(versioned(tmp_path / name, {"norm_activation": "inference"} | change, version, suffix))
        )

    stream, z, normalized = read("a", {}), read("b", Z), read("c", NORMALIZED)
    is_so = bool(processed)
    assert (stream.model_was_centred, stream.centring_is_default) == (is_so, is_so)
    assert (stream.without_value_bias, z.without_value_bias) == (False, is_so)
    assert (stream.normalized_behind_gain, normalized.normalized_behind_gain) == (False, not is_so)
    assert any("stream may have been centred" in note for note in stream.notes) == (processed is None)
    assert any("fold_value_biases" in note for note in z.notes) == (processed is None)


@pytest.mark.parametrize("version", [None, "1.5.0", "2.0.0b32"])
@pytest.mark.parametrize("said", [True, False])
def test_what_a_configuration_says_of_the_model_counts(
    tmp_path: Path, version: str | None, said: bool
) -> None:
    keys = {"center_writing_weights": said, "fold_value_biases": said, "norm_activation": "inference"}
    spec = find_dictionary(str(versioned(tmp_path, Z | keys, version, "safetensors")))
    assert (spec.model_was_centred, spec.without_value_bias) == (said, said)
    assert not spec.centring_is_default and len(spec.notes) == 1


@pytest.mark.parametrize("gate", [True, False])
def test_batchtopk_is_to_be_calibrated_on_scores(tmp_path: Path, gate: bool) -> None:
    """With a threshold put in, codes are those of jumprelu with that threshold on scores."""
    change = {"act_fn": "batchtopk", "sparsity_include_decoder_norm": gate}
    spec = find_dictionary(str(llamascopium(tmp_path / "a", change)))
    assert (spec.selector, spec.k, spec.decoder_norm_gate) == ("jumprelu", None, gate)
    assert (
        spec.calibration == Calibration("batch_topk", CONFIG["top_k"]) and spec.expected.l0 == CONFIG["top_k"]
    )
    weights = reader_of(spec).load(spec, "cpu")
    assert weights.threshold_F is None
    # Decoder rows come in the model's scale, and with them scores that contain their norms.
    scale = NORMS[IN] / ROOT if gate else 1.0
    encoder = Encoder(spec, replace(weights, threshold_F=torch.full((F,), 0.7 * scale)))
    log = {"activation_function.log_jumprelu_threshold": np.log(np.full(F, 0.7, np.float32))}
    like = llamascopium(tmp_path / "b", change | {"act_fn": "jumprelu"}, stored() | log)
    same = find_dictionary(str(like))
    expected = Encoder(same, reader_of(same).load(same, "cpu")).encode(torch.tensor(inputs()))
    codes = encoder.encode(torch.tensor(inputs()))
    assert torch.equal(codes.feature_M, expected.feature_M) and len(codes) > 20
    torch.testing.assert_close(codes.value_M, expected.value_M)


def test_a_transcoder_scales_its_output_as_that_was_scaled(tmp_path: Path) -> None:
    change, x = {"hook_point_out": OUT}, inputs()
    spec = assert_parity(llamascopium(tmp_path / "a", change), x, *reference(x, change))
    assert (spec.is_transcoder, spec.site_out, spec.d_out) == (True, Site("mlp_out", 15), D)


def test_older_names_and_pt_files(tmp_path: Path) -> None:
    """R1-Distill has linear layers; a .pt holds {"sae": ..., "version": ...}."""
    x, change = inputs(), {"act_fn": "jumprelu"}
    now = stored()
    norms = {name: value for name, value in now.items() if "norm." in name}
    old = linear(tensors()) | norms | {"log_jumprelu_threshold": np.log(tensors()["threshold"])}
    assert_parity(llamascopium(tmp_path / "old", change, old), x, *reference(x, change))
    save_json(tmp_path / "pt" / "config.json", CONFIG | change)
    state = {name: torch.tensor(value) for name, value in now.items()}
    torch.save({"sae": state, "version": "2.0"}, tmp_path / "pt" / "sae_weights.pt")
    assert_parity(tmp_path / "pt", x, *reference(x, change))


@pytest.mark.parametrize(
    ("change", "weights", "point"),
    [
        ({"sae_type": "lorsa"}, {}, "sae_type is lorsa: .* sae, crosscoder, clt"),
        ({"sae_type": "molt", "act_fn": "x"}, {}, "sae_type is molt"),
        ({"act_fn": "batchtopk", "top_k": 11}, {}, "top_k is 11"),
        ({"act_fn": "batchtopk", "top_k": None}, {}, "top_k"),
        ({"act_fn": "tanh"}, {}, "act_fn is tanh"),
        ({"norm_activation": "batch-wise"}, {}, "norm_activation is batch-wise"),
        ({"use_decoder_bias": False}, {}, "use_decoder_bias"),
        ({"top_k": 11}, {}, "top_k is 11"),
        ({"expansion_factor": 3}, {}, "expansion_factor is 3: sae_weights.safetensors has 10"),
        ({"expansion_factor": "x"}, {}, "expansion_factor is x"),
        ({"hook_point_in": None}, {}, "no 'hook_point_in'"),
        (
            {"hook_point_in": "blocks.0.hook_mlp_out"},
            {},
            "no tensor 'dataset_average_activation_norm.blocks.0",
        ),
        ({}, {"W_E_glu": np.zeros((D, F), np.float32)}, "GLU"),
        ({}, {"W_E": tensors()["W_enc"].T.copy()}, r"'W_E' has shape \[10, 6\].*swapped"),
        (
            {},
            {f"dataset_average_activation_norm.{IN}": np.array(0, np.float32)},
            "norm is 0.*after training",
        ),
        ({}, {"b_E": np.full(F, np.inf, np.float32)}, "10 values of 10 that are NaN or infinite"),
    ],
)
def test_llamascopium_refuses(
    tmp_path: Path, change: dict[str, Any], weights: dict[str, Array], point: str
) -> None:
    folder = llamascopium(tmp_path / "a", change, stored() | weights)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(folder))
        reader_of(spec).load(spec, "cpu")


def test_distributed_checkpoints_say_the_way_out(tmp_path: Path) -> None:
    save_json(tmp_path / "config.json", CONFIG)
    (tmp_path / "sae_weights.dcp").mkdir()
    with pytest.raises(CheckpointError, match=r"sae_weights\.dcp.*save_pretrained"):
        find_dictionary(str(tmp_path))
