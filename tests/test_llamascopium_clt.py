"""A layer of Llamascopium's cross-layer transcoders: codes as models/clt.py's `encode` computes them, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from dense_codes import Array, exact, inputs, save_json, save_torch
from safetensors import numpy as safetensors_numpy
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.dictionaries import safetensors_files
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.hub_files import wanted_files
from autointerp.dictionaries.locate import find_dictionary, is_place, reader_of
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.report.dictionary import inspected
from autointerp.sources import local
from autointerp.types import Site
from tiny import D_MODEL, Tiny

save_file = cast(Callable[[dict[str, Array], Path], None], cast(Any, safetensors_numpy).save_file)

L, D, F, K = 3, 4, 12, 2
IN = [f"blocks.{layer}.mlp.hook_in" for layer in range(L)]
OUT = [f"blocks.{layer}.hook_mlp_out" for layer in range(L)]
NORMS = {name: 0.5 + 1.5 * place for place, name in enumerate([*IN, *OUT])}
CONFIG: dict[str, Any] = {
    "sae_type": "clt", "d_model": D, "expansion_factor": F / D, "hook_points_in": IN, "hook_points_out": OUT,
    "act_fn": "jumprelu", "top_k": K, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
}  # fmt: skip


def stored(d: int = D, f: int = F) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    found = {
        "W_E": rng.normal(size=(L, d, f)), "b_E": rng.normal(size=(L, f)),
        "activation_function.log_jumprelu_threshold": np.log(rng.uniform(0.1, 3, (L, f))),
    }  # fmt: skip
    found |= {f"W_D.{target}": rng.normal(size=(target + 1, f, d)) for target in range(L)}
    found |= {f"b_D.{target}": rng.normal(size=d) for target in range(L)}
    found |= {f"dataset_average_activation_norm.{hook}": np.array(norm) for hook, norm in NORMS.items()}
    return {name: value.astype(np.float32) for name, value in found.items()}


def clt(folder: Path, change: dict[str, Any], t: dict[str, Array] | None = None) -> Path:
    save_json(folder / "config.json", CONFIG | change)
    save_file(t or stored(), folder / "sae_weights.safetensors")
    return folder


def reference(x: Array, layer: int, change: dict[str, Any]) -> tuple[Array, Array]:
    """The activations [N, F] of a layer, as all layers' `encode` gives them, and the sum of its directions."""
    config, t, x = CONFIG | change, exact(stored()), x.astype(np.float64)
    n_in: Any = 1.0
    n_out: Any = dict.fromkeys(OUT, 1.0)
    if config["norm_activation"] == "token-wise":
        n_in = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    elif config["norm_activation"] == "dataset-wise":
        n_in, n_out = np.sqrt(D) / NORMS[IN[layer]], {hook: np.sqrt(D) / NORMS[hook] for hook in OUT}
    squared = np.zeros((L, F))
    for target in range(L):
        squared[: target + 1] += (t[f"W_D.{target}"] ** 2).sum(axis=2)
    norm = np.sqrt(squared)[layer] if config["sparsity_include_decoder_norm"] else 1.0
    score = ((x * n_in) @ t["W_E"][layer] + t["b_E"][layer]) * norm
    if config["act_fn"] == "jumprelu":
        kept = score * (score > np.exp(t["activation_function.log_jumprelu_threshold"][layer]))
    elif config["act_fn"] == "topk":
        kept = np.maximum(score, 0)
        kept = kept * (kept >= np.sort(kept, axis=1)[:, -K][:, None])
    else:
        kept = np.maximum(score, 0)
    return kept / norm, sum(t[f"W_D.{i}"][layer] / n_out[OUT[i]] for i in range(layer, L))


def run(path: Path, x: Array) -> tuple[Array, Array]:
    spec = find_dictionary(str(path))
    weights = reader_of(spec).load(spec, "cpu")
    codes = Encoder(spec, weights).encode(torch.tensor(x))
    acts = np.zeros((len(x), F))
    acts[codes.token_M.numpy(), codes.feature_M.numpy()] = codes.value_M.numpy()
    return acts, weights.decoder.numpy()


@pytest.mark.parametrize("layer", range(L))
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("normalisation", ["token-wise", "dataset-wise", "inference"])
def test_a_layers_codes_and_directions(
    tmp_path: Path, layer: int, activation: str, gate: bool, normalisation: str
) -> None:
    change = {
        "act_fn": activation, "sparsity_include_decoder_norm": gate, "norm_activation": normalisation
    }  # fmt: skip
    acts, directions = reference(inputs(D), layer, change)
    assert 0.05 < (acts > 0).mean() < 0.9
    place = clt(tmp_path, change) / f"layer_{layer}"
    found = run(place, inputs(D))
    np.testing.assert_array_equal(found[0] > 0, acts > 0)
    np.testing.assert_allclose(found[0], acts, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], directions, rtol=1e-5, atol=1e-5)
    spec = find_dictionary(str(place))
    assert (spec.format, spec.site, spec.d_in, spec.d_out) == ("llamascopium", Site("mlp_in", layer), D, D)
    assert (spec.is_transcoder, spec.reconstructs, spec.site_out, spec.path) == (True, False, None, place)


def test_what_it_writes_to_is_told(tmp_path: Path) -> None:
    folder = clt(tmp_path, {})
    first, last = (dict(inspected(str(folder / f"layer_{layer}"))) for layer in (0, L - 1))
    assert first["path"] == str(folder / "layer_0") and first["reads"].startswith("layers.0.mlp_in")
    assert first["predicts"] == "a part of blocks.0.hook_mlp_out ... blocks.2.hook_mlp_out"
    assert last["predicts"] == "a part of blocks.2.hook_mlp_out"
    assert first["identity"] != last["identity"] and len(first["identity"]) == 32


def test_a_pt_file(tmp_path: Path) -> None:
    """Biases and norms are read with all tensors' names below `sae.`."""
    save_json(tmp_path / "config.json", CONFIG)
    save_torch(tmp_path / "sae_weights.pt", {f"sae.{name}": value for name, value in stored().items()})
    acts, directions = reference(inputs(D), 1, {})
    found = run(tmp_path / "layer_1", inputs(D))
    np.testing.assert_allclose(found[0], acts, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], directions, rtol=1e-5, atol=1e-5)


def test_of_other_layers_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of the encoder and, of the decoders, its part of those behind: all can be hundreds of gigabytes."""
    seen: list[tuple[str, Any]] = []
    load_slice = safetensors_files.load_slice

    def slices(path: Path, name: str, index: Any, device: str) -> Any:
        seen.append((name, index))
        return load_slice(path, name, index, device)

    monkeypatch.setattr(safetensors_files, "load_slice", slices)
    spec = find_dictionary(str(clt(tmp_path, {}) / "layer_1"))
    assert reader_of(spec).load(spec, "cpu").encoder.shape == (D, F)
    log = "activation_function.log_jumprelu_threshold"
    assert sorted(seen) == [("W_D.1", 1), ("W_D.2", 1), ("W_E", 1), (log, 1), ("b_E", 1)]


def test_batchtopk_is_calibrated_on_the_layers_own_scores(tmp_path: Path) -> None:
    spec = find_dictionary(str(clt(tmp_path, {"act_fn": "batchtopk"}) / "layer_1"))
    assert (spec.selector, spec.calibration, spec.expected.l0) == (
        "jumprelu",
        Calibration("batch_topk", K),
        K,
    )
    assert reader_of(spec).load(spec, "cpu").threshold_F is None


def test_how_a_layer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clt(tmp_path / "ckpt", {})
    with pytest.raises(CheckpointError, match=r"one layer: name .*ckpt/layer_0, or another up to layer_2\."):
        find_dictionary(str(folder))
    for name in ("layer_3", "layer_9999"):
        message = rf"ckpt is a cross-layer transcoder of 3 layers, and has no {name}: .* up to layer_2\."
        with pytest.raises(CheckpointError, match=message):
            find_dictionary(str(folder / name))
    for name in ("layer_x", "layer_00001"):
        assert not is_place(folder / name)
        with pytest.raises(CheckpointError, match="no file or folder is called"):
            find_dictionary(str(folder / name))
    save_json(tmp_path / "other" / "config.json", {"sae_type": "sae", "d_model": 3, "hook_points_in": IN})
    assert not is_place(tmp_path / "other" / "layer_1")
    monkeypatch.chdir(tmp_path)
    assert local("ckpt/layer_1") == str(folder / "layer_1")
    with pytest.raises(CheckpointError, match=r"ckpt is a .* of 3 layers, and has no layer_7"):
        find_dictionary("ckpt/layer_7")  # a name that a repository could have
    (folder / "layer_1").mkdir()
    assert not is_place(folder / "layer_1" / "layer_1")
    with pytest.raises(CheckpointError, match="layer_1 holds no file of tensors"):
        find_dictionary(str(folder / "layer_1"))


def test_from_the_hub_comes_the_folder_that_holds_all_layers() -> None:
    files = ["a/clt/config.json", "a/clt/sae_weights.safetensors", "a/sae/layer_1/config.json", "README.md"]
    assert wanted_files(files, "a/clt/layer_1") == files[:2] and wanted_files(files[:2], "a/clt") == files[:2]
    assert wanted_files(files, "a/sae/layer_1") == [files[2]]


@pytest.mark.parametrize(
    ("change", "weights", "point"),
    [
        ({"act_fn": "layertopk"}, {}, "act_fn is layertopk: it chooses among the features of all layers"),
        ({"act_fn": "batchlayertopk"}, {}, "act_fn is batchlayertopk.*convert_topk_to_jumprelu"),
        ({"hook_points_out": OUT[:2]}, {}, "hook_points_out is .*as many as there are hook_points_in, 3"),
        ({"hook_points_in": "x"}, {}, "hook_points_in is x: expected a list"),
        ({"hook_points_in": []}, {}, "hook_points_in is .*: expected a list"),
        ({"hook_points_in": [1, 2, 3]}, {}, "hook_points_in is 1: expected a text"),
        ({"hook_points_out": None}, {}, "hook_points_out is null: expected a list"),
        ({"hook_points_in": IN * 2, "hook_points_out": OUT * 2}, {}, r"'b_E' has shape \[3, 12\].*layers 6"),
        ({"expansion_factor": 2}, {}, "expansion_factor is 2: .* has 12 features"),
        ({"act_fn": "topk", "top_k": 13}, {}, "top_k is 13"),
        ({}, {"W_D.2": stored()["W_D.2"][:2].copy()}, r"'W_D\.2' has shape \[2, 12, 4\].*layers 3"),
        ({}, {"W_D.1": stored()["W_D.1"].astype(np.int32)}, r"'W_D\.1' is of dtype I32"),
        ({}, {"W_E": np.full((L, D, F), np.inf, np.float32)}, "'W_E' holds 48 values of 48 that are NaN"),
        ({}, {f"dataset_average_activation_norm.{OUT[2]}": np.array(0, np.float32)}, "norm is 0"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, change: dict[str, Any], weights: dict[str, Array], point: str) -> None:
    place = clt(tmp_path, change, stored() | weights) / "layer_1"
    with pytest.raises(CheckpointError, match=point) as refused:
        spec = find_dictionary(str(place))
        reader_of(spec).load(spec, "cpu")
    assert "\n" not in str(refused.value)


def test_checked_and_explained_on_a_model(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a relative name, and gone on with from another folder."""
    width = 2 * D_MODEL
    t = stored(D_MODEL, width)
    t["activation_function.log_jumprelu_threshold"][:] = 6.0
    clt(tmp_path / "ckpt", {"d_model": D_MODEL, "expansion_factor": 2, "norm_activation": "inference"}, t)
    monkeypatch.chdir(tmp_path)
    command = ["sae", "check", "ckpt/layer_1", "--model", str(made.model), "--corpus", str(made.corpus)]
    done = CliRunner().invoke(app, [*command, "--n-tokens", "500"])
    assert done.exit_code == 0 and "as read" in done.output, done.output
    sections = pipeline.sae_sections(["ckpt/layer_1"])
    run = pipeline.explain(made.recipe(dictionaries=sections, features={"first": 8}), out=tmp_path / "run")
    assert run.identities.sites == {"layers.1.mlp_in": "layers.1.mlp_in"}
    assert len(run.scores()) > 0
    monkeypatch.chdir("/")
    more = made.recipe(dictionaries=sections, features={"first": 10})
    assert (len(run.features()), len(pipeline.explain(more, out=tmp_path / "run").features())) == (8, 10)
