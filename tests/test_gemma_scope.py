"""Gemma Scope 1 and 2: what names say, codes against the papers' formula, files gone wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from dense_codes import Array, F, assert_parity, exact, inputs, save_json, tensors
from safetensors import numpy as safetensors_numpy

from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError
from autointerp.types import Site

save_file = cast(Callable[[dict[str, Array], Path], None], cast(Any, safetensors_numpy).save_file)

LAYER = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


def scope_1(folder: Path, t: dict[str, Array] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **cast(Any, t or tensors()))
    return folder


def scope_2(folder: Path, t: dict[str, Array] | None = None, file: str = "params.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lower(t or tensors()), folder / file)
    return folder


def lower(t: dict[str, Array]) -> dict[str, Array]:
    return {name.lower(): value for name, value in t.items()}


def jumprelu(x: Array, t: dict[str, Array]) -> Array:
    """pre where it is above its threshold; the thresholds here are positive."""
    t = exact(t)
    pre = x.astype(np.float64) @ t["W_enc"] + t["b_enc"]
    return np.where(pre > t["threshold"], pre, 0.0)


def decoded(acts: Array, t: dict[str, Array]) -> Array:
    return acts @ exact(t)["W_dec"] + exact(t)["b_dec"]


# --- Gemma Scope 1 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rename", [dict, lower], ids=["W_enc", "w_enc"])
def test_codes_are_jumprelu_of_the_raw_input(tmp_path: Path, rename: Any) -> None:
    t, x = tensors(), inputs()
    acts = jumprelu(x, t)
    spec = assert_parity(scope_1(tmp_path / LAYER, rename(t)), x, acts, decoded(acts, t))
    assert (spec.format, spec.selector, spec.width) == ("gemma_scope", "jumprelu", F)
    assert (spec.site, spec.model) == (Site("resid_post", 20), "google/gemma-2-2b")
    assert spec.expected.l0 == 71


@pytest.mark.parametrize(
    ("folder", "hook", "site", "model"),
    [
        (
            "gemma-scope-9b-it-res/layer_9/width_16k",
            "blocks.9.hook_resid_post",
            Site("resid_post", 9),
            "9b-it",
        ),
        ("gemma-scope-2b-pt-mlp/layer_3/width_16k", "blocks.3.hook_mlp_out", Site("mlp_out", 3), "2b"),
        ("models--google--gemma-scope-2b-pt-att/snapshots/0/layer_3", "blocks.3.attn.hook_z", None, "2b"),
        ("gemma-scope-27b-pt-res/embedding/width_4k", "blocks.0.hook_resid_pre", Site("resid_pre", 0), "27b"),
        ("gemma-scope-2b-pt-res/renamed", None, None, "2b"),
        ("mine/layer_3", None, None, None),
    ],
)
def test_names_say_the_site(
    tmp_path: Path, folder: str, hook: str | None, site: Site | None, model: str | None
) -> None:
    spec = find_dictionary(str(scope_1(tmp_path / folder)))
    assert spec.hook == hook
    if hook != "blocks.3.attn.hook_z":  # whether z can be read is the sites' matter
        assert spec.site == site
    assert spec.model == (model and f"google/gemma-2-{model}")


def test_transcoders_read_one_place_and_write_to_another(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    acts = jumprelu(x, t)
    folder = scope_1(tmp_path / "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_8", t)
    spec = assert_parity(folder, x, acts, decoded(acts, t))
    assert (spec.is_transcoder, spec.hook) == (True, "blocks.5.ln2.hook_normalized")
    assert (spec.hook_out, spec.site_out) == ("blocks.5.hook_mlp_out", Site("mlp_out", 5))


def test_embedding_dictionaries_expect_embeddings_that_are_not_scaled(tmp_path: Path) -> None:
    """Trained on e; layer 0 receives e * sqrt(d_in)."""
    t, e = tensors(), inputs() / 2
    acts = jumprelu(e, t)
    folder = scope_1(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", t)
    root = 6**0.5
    assert_parity(folder, (e * root).astype(np.float32), acts, decoded(acts, t) * root)


@pytest.mark.parametrize(
    ("change", "point"),
    [
        ({"W_enc": tensors()["W_enc"].T}, r"'W_enc' has shape \[10, 6\].*swapped"),
        ({"W_dec": tensors()["W_dec"].T}, r"'W_dec' has shape \[6, 10\].*swapped"),
        ({"threshold": None}, "no tensor 'threshold'"),
        ({"b_dec": None}, "no tensor 'b_dec'"),
        ({"b_enc": np.zeros((2, 5), np.float32)}, r"'b_enc' has shape \[2, 5\], but a bias"),
        ({"b_enc": np.full(F, np.nan, np.float32)}, "10 values of 10 that are NaN"),
    ],
)
@pytest.mark.parametrize("scope", [scope_1, scope_2])
def test_weights_that_are_refused(
    tmp_path: Path, scope: Callable[..., Path], change: dict[str, Any], point: str
) -> None:
    t = {name: value for name, value in (tensors() | change).items() if value is not None}
    folder = scope(tmp_path / LAYER, {name: np.ascontiguousarray(value) for name, value in t.items()})
    with pytest.raises(CheckpointError, match="(?i)" + point):
        spec = find_dictionary(str(folder))
        reader_of(spec).load(spec, "cpu")


def test_rescaled_features_are_refused(tmp_path: Path) -> None:
    folder = scope_1(tmp_path / LAYER, tensors() | {"scaling_factor": np.ones(F, np.float32)})
    with pytest.raises(CheckpointError, match="scaling_factor"):
        find_dictionary(str(folder))


# --- Gemma Scope 2 -------------------------------------------------------------------------------------

ROOT_2 = "gemma-scope-2-1b-pt"


def test_codes_of_scope_2(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    acts = jumprelu(x, t)
    folder = scope_2(tmp_path / ROOT_2 / "resid_post/layer_13_width_16k_l0_medium", t)
    spec = assert_parity(folder, x, acts, decoded(acts, t))
    assert (spec.format, spec.site) == ("gemma_scope_2", Site("resid_post", 13))
    assert (spec.model, spec.is_transcoder) == ("google/gemma-3-1b-pt", False)


@pytest.mark.parametrize(
    ("place", "hook", "out"),
    [
        ("resid_post_all", "model.layers.3.output", None),
        ("attn_out", "model.layers.3.self_attn.o_proj.input", None),
        ("mlp_out_all", "model.layers.3.post_feedforward_layernorm.output", None),
        (
            "transcoder",
            "model.layers.3.pre_feedforward_layernorm.output",
            "model.layers.3.post_feedforward_layernorm.output",
        ),
    ],
)
def test_the_folder_names_the_place_where_there_is_no_configuration(
    tmp_path: Path, place: str, hook: str, out: str | None
) -> None:
    spec = find_dictionary(str(scope_2(tmp_path / ROOT_2 / place / "layer_3_width_16k_l0_big")))
    assert (spec.hook, spec.hook_out, spec.is_transcoder) == (hook, out, out is not None)


def test_the_configuration_wins_over_names(tmp_path: Path) -> None:
    folder = scope_2(tmp_path / "mine")
    config = {
        "architecture": "jump_relu",
        "hf_hook_point_in": "model.layers.7.output",
        "model_name": "gemma-v3-270m-pt",
        "l0": 20,
    }
    save_json(folder / "config.json", config)
    spec = find_dictionary(str(folder / "params.safetensors"))
    assert (spec.site, spec.model, spec.expected.l0) == (Site("resid_post", 7), "google/gemma-3-270m", 20)
    save_json(folder / "config.json", config | {"architecture": "topk"})
    with pytest.raises(CheckpointError, match="architecture is topk"):
        find_dictionary(str(folder))


def test_an_affine_transcoder_of_unequal_sizes(tmp_path: Path) -> None:
    t, x = tensors(d_out=4), inputs()
    skip = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    acts = jumprelu(x, t)
    folder = scope_2(
        tmp_path / ROOT_2 / "transcoder/layer_3_width_16k_l0_big_affine", t | {"affine_skip_connection": skip}
    )
    spec = assert_parity(folder, x, acts, decoded(acts, t) + x.astype(np.float64) @ skip)
    assert (spec.d_in, spec.d_out, spec.site_out) == (6, 4, Site("mlp_out", 3))
    plain = scope_2(tmp_path / ROOT_2 / "resid_post/layer_3", tensors() | {"affine_skip_connection": skip})
    with pytest.raises(CheckpointError, match="not named as one"):
        find_dictionary(str(plain))


def test_layers_of_a_cross_layer_transcoder_are_files(tmp_path: Path) -> None:
    """Each writes to the layers from its own on; a folder of them is a list."""
    t, x = tensors(), inputs()
    w_dec = np.random.default_rng(1).normal(size=(F, 3, 6)).astype(np.float32)
    acts = jumprelu(x, t)
    folder = tmp_path / ROOT_2 / "clt/width_262k_l0_big"
    for layer in range(2):
        scope_2(folder, t | {"W_dec": w_dec}, f"params_layer_{layer}.safetensors")
    summed = t | {"W_dec": w_dec.astype(np.float64).sum(1)}
    spec = assert_parity(folder / "params_layer_1.safetensors", x, acts, decoded(acts, summed))
    assert (spec.is_transcoder, spec.reconstructs) == (True, False)
    assert (spec.site, spec.site_out) == (Site("mlp_in", 1), Site("mlp_out", 1))
    assert spec.writes_to == "the MLP outputs of its own and later layers"
    with pytest.raises(CheckpointError, match=r"params_layer_0\.safetensors, params_layer_1\.safetensors"):
        find_dictionary(str(folder))
