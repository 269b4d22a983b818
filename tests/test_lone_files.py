"""Formats of one .pt file a dictionary: Qwen-Scope, OpenAI, Goodfire, qresearch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_codes import Array, D, F, assert_parity, exact, inputs, largest, save_torch, tensors

from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError
from autointerp.types import Site


def linear(t: dict[str, Array], *names: str) -> dict[str, Any]:
    """The four tensors as torch's linear layers have them, under names for W_enc, W_dec, b_enc, b_dec."""
    values = (t["W_enc"].T, t["W_dec"].T, t["b_enc"], t["b_dec"])
    return {name: np.ascontiguousarray(value) for name, value in zip(names, values, strict=True)}


# --- Qwen-Scope ----------------------------------------------------------------------------------------

QWEN = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3"
QWEN_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")


def test_qwen_scope(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    path = save_torch(tmp_path / QWEN / "layer12.sae.pt", linear(t, *QWEN_NAMES))
    t = exact(t)
    pre = x.astype(np.float64) @ t["W_enc"] + t["b_enc"]
    chosen = pre * largest(pre, 3)
    assert (chosen < 0).any(), "these are the ones left out"
    acts = np.maximum(chosen, 0)
    spec = assert_parity(path, x, acts, acts @ t["W_dec"] + t["b_dec"])
    assert (spec.format, spec.selector, spec.k, spec.d_in, spec.width) == ("qwen_scope", "topk", 3, D, F)
    assert (spec.site, spec.model) == (Site("resid_post", 12), "Qwen/Qwen3-1.7B-Base")
    assert spec.path == path
    assert spec.approximation is not None


def test_qwen_scope_of_a_folder_in_the_hubs_cache(tmp_path: Path) -> None:
    folder = tmp_path / f"models--Qwen--{QWEN}" / "snapshots" / "0123"
    path = save_torch(folder / "layer0.sae.pt", linear(tensors(), *QWEN_NAMES))
    assert find_dictionary(str(path)).k == 3


@pytest.mark.parametrize(
    ("folder", "change", "point"),
    [
        ("somewhere", {}, "doesn't say how many features fire.*SAE-Res"),
        (QWEN.replace("L0_3", "L0_11"), {}, "L0 11, but it has 10 features"),
        (QWEN, {"W_enc": tensors()["W_enc"]}, r"'W_enc' has shape \[6, 10\].*swapped"),
        (QWEN, {"W_dec": tensors()["W_dec"]}, r"'W_dec' has shape \[10, 6\].*swapped"),
        (QWEN, {"b_enc": None}, "no tensor 'b_enc'"),
        (QWEN, {"b_dec": np.full(D, np.inf, np.float32)}, "6 values of 6 that are NaN or infinite"),
    ],
)
def test_qwen_scope_refuses(tmp_path: Path, folder: str, change: dict[str, Any], point: str) -> None:
    t = {k: v for k, v in (linear(tensors(), *QWEN_NAMES) | change).items() if v is not None}
    path = save_torch(tmp_path / folder / "layer0.sae.pt", t)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(path))
        reader_of(spec).load(spec, "cpu")


# --- OpenAI --------------------------------------------------------------------------------------------

OPENAI_NAMES = ("encoder.weight", "decoder.weight", "latent_bias", "pre_bias")
V5 = "gpt2-small/resid_post_mlp_v5_32k/autoencoders"
TOPK: dict[str, Any] = {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}}


def test_openai_topk_takes_layer_normed_inputs(tmp_path: Path) -> None:
    """As Autoencoder.forward: LN with the unbiased deviation + 1e-5, undone behind the decoder."""
    t, x = tensors(), inputs()
    path = save_torch(tmp_path / V5 / "7.pt", linear(t, *OPENAI_NAMES) | TOPK)
    t, x64 = exact(t), x.astype(np.float64)
    mean, std = x64.mean(1, keepdims=True), x64.std(1, ddof=1, keepdims=True)
    pre = ((x64 - mean) / (std + 1e-5) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    acts = np.maximum(pre * largest(pre, 3), 0)
    spec = assert_parity(path, x, acts, (acts @ t["W_dec"] + t["b_dec"]) * std + mean)
    assert (spec.format, spec.k, spec.transform) == ("openai", 3, ("layer_norm",))
    assert (spec.site, spec.model) == (Site("resid_post", 7), "gpt2")


def test_openai_relu_takes_raw_inputs(tmp_path: Path) -> None:
    """Versions 1 and 4 name no activation."""
    t, x = tensors(), inputs()
    folder = tmp_path / "gpt2-small/mlp_post_act/autoencoders"
    path = save_torch(folder / "0.pt", linear(t, *OPENAI_NAMES))
    t = exact(t)
    acts = np.maximum((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    spec = assert_parity(path, x, acts, acts @ t["W_dec"] + t["b_dec"])
    assert (spec.transform, spec.site) == ((), Site("neurons", 0))


@pytest.mark.parametrize(
    ("place", "site"),
    [
        ("resid_delta_attn_v5_128k", Site("attn_out", 2)),
        ("resid_post_attn_v5_32k", Site("resid_mid", 2)),
        ("resid_delta_mlp_v4", Site("mlp_out", 2)),
        ("resid_post_mlp", Site("resid_post", 2)),
        ("elsewhere", None),
    ],
)
def test_openai_place_is_in_the_path(tmp_path: Path, place: str, site: Site | None) -> None:
    path = save_torch(tmp_path / place / "autoencoders/2.pt", linear(tensors(), *OPENAI_NAMES) | TOPK)
    spec = find_dictionary(str(path))
    assert (spec.site, spec.model) == (site, None)


def test_openai_counters_of_training_are_no_matter(tmp_path: Path) -> None:
    buffers = {"stats_last_nonzero": np.zeros(F, np.int64), "latents_mean_square": np.zeros(F, np.float32)}
    path = save_torch(tmp_path / V5 / "7.pt", linear(tensors(), *OPENAI_NAMES) | TOPK | buffers)
    assert find_dictionary(str(path)).width == F


@pytest.mark.parametrize(
    ("change", "point"),
    [
        ({"activation": "Identity"}, "activation is Identity. TopK and ReLU"),
        ({"activation_state_dict": {}}, r"\.k is null"),
        ({"activation_state_dict": {"k": 11}}, r"\.k is 11, but the TopK of 10"),
        ({"activation_state_dict": {"k": True}}, r"\.k is true"),
        ({"activation_state_dict": {"k": 3, "postact_fn": "Identity"}}, "comes Identity"),
        ({"encoder.weight": tensors()["W_enc"]}, r"'encoder\.weight' has shape \[6, 10\].*swapped"),
        ({"decoder.weight": None}, r"no tensor 'decoder\.weight'"),
        ({"latent_bias": np.full(F, np.nan, np.float32)}, "10 values of 10 that are NaN"),
    ],
)
def test_openai_refuses(tmp_path: Path, change: dict[str, Any], point: str) -> None:
    t = {k: v for k, v in (linear(tensors(), *OPENAI_NAMES) | TOPK | change).items() if v is not None}
    path = save_torch(tmp_path / V5 / "7.pt", t)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(path))
        reader_of(spec).load(spec, "cpu")


# --- Goodfire, qresearch -------------------------------------------------------------------------------

GOODFIRE_NAMES = (
    "encoder_linear.weight",
    "decoder_linear.weight",
    "encoder_linear.bias",
    "decoder_linear.bias",
)
R1_NAMES = ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias")


@pytest.mark.parametrize(
    ("file", "names", "site", "model"),
    [
        (
            "Llama-3.3-70B-Instruct-SAE-l50.pt",
            GOODFIRE_NAMES,
            Site("resid_post", 50),
            "meta-llama/Llama-3.3-70B-Instruct",
        ),
        (
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pth",
            R1_NAMES,
            Site("resid_post", 19),
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        ),
        ("renamed.pt", GOODFIRE_NAMES, None, None),
    ],
)
def test_goodfire(
    tmp_path: Path, file: str, names: tuple[str, ...], site: Site | None, model: str | None
) -> None:
    t, x = tensors(), inputs()
    path = save_torch(tmp_path / file, linear(t, *names))
    t = exact(t)
    acts = np.maximum(x.astype(np.float64) @ t["W_enc"] + t["b_enc"], 0)
    spec = assert_parity(path, x, acts, acts @ t["W_dec"] + t["b_dec"])
    assert (spec.format, spec.site, spec.model) == ("goodfire", site, model)


@pytest.mark.parametrize(
    ("change", "point"),
    [
        (
            {"encoder_linear.weight": tensors()["W_enc"]},
            r"'encoder_linear\.weight' has shape \[6, 10\].*swapped",
        ),
        ({"decoder_linear.bias": None}, r"but no decoder_linear\.bias: without that it is no dictionary"),
        ({"extra": np.zeros(2, np.float32)}, r"hold nothing else\. It also holds extra"),
        ({"encoder_linear.bias": np.full(F, np.nan, np.float32)}, "10 values of 10 that are NaN"),
    ],
)
def test_goodfire_refuses(tmp_path: Path, change: dict[str, Any], point: str) -> None:
    t = {k: v for k, v in (linear(tensors(), *GOODFIRE_NAMES) | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(save_torch(tmp_path / "x.pt", t)))
        reader_of(spec).load(spec, "cpu")


def test_the_same_names_in_ae_pt_are_dictionary_learnings(tmp_path: Path) -> None:
    save_torch(tmp_path / "ae.pt", linear(tensors(), *R1_NAMES))
    with pytest.raises(CheckpointError, match=r"dictionary_learning's have a config\.json with trainer"):
        find_dictionary(str(tmp_path / "ae.pt"))


# --- where they lie ------------------------------------------------------------------------------------


def test_a_folder_of_many_lists_files_and_one_of_one_is_it(tmp_path: Path) -> None:
    for layer in range(2):
        path = save_torch(tmp_path / V5 / f"{layer}.pt", linear(tensors(), *OPENAI_NAMES) | TOPK)
        if layer == 0:
            assert find_dictionary(str(path.parent)) == find_dictionary(str(path))
    with pytest.raises(CheckpointError, match=re.escape("0.pt, 1.pt.")):
        find_dictionary(str(tmp_path / V5))
    with pytest.raises(CheckpointError, match=re.escape(f"{V5}/0.pt, {V5}/1.pt.")):
        find_dictionary(str(tmp_path))


def test_another_file_beside_a_dictionary_is_not_it(tmp_path: Path) -> None:
    """`7.pt` was named, so `7.pt` it is, whatever folder format lies around it."""
    (tmp_path / "cfg.json").write_text('{"d_in": 6, "d_sae": 10}')
    (tmp_path / "sae_weights.safetensors").write_bytes(b"x")
    path = save_torch(tmp_path / "7.pt", linear(tensors(), *OPENAI_NAMES) | TOPK)
    assert find_dictionary(str(path)).format == "openai"
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"notes\.txt is no file of tensors"):
        find_dictionary(str(tmp_path / "notes.txt"))


def test_a_pickle_of_objects_says_the_way_out(tmp_path: Path) -> None:
    torch.save({"cfg": torch.nn.Linear(2, 2), "state_dict": {}}, tmp_path / "layer0.sae.pt")
    with pytest.raises(CheckpointError, match=r"class 'torch\.nn\.modules\.linear\.Linear'.*safetensors"):
        find_dictionary(str(tmp_path / "layer0.sae.pt"))


def test_describe_imports_no_torch(tmp_path: Path) -> None:
    path = save_torch(tmp_path / V5 / "7.pt", linear(tensors(), *OPENAI_NAMES) | TOPK)
    program = (
        "import sys; from autointerp.dictionaries.locate import find_dictionary\n"
        f"print(find_dictionary({str(path)!r}).width, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"{F} False"
