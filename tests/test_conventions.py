"""What `sae check` tries of dictionaries whose scores have decoder norms: the reading without, whatever the format
makes of thresholds (Llamascopium issue 128: an L0 of 1089 instead of 29)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from autointerp.dictionaries.conventions import alternatives
from autointerp.dictionaries.convert import convert
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of

D, F, N, L = 4, 12, 60, 2
THRESHOLD, NORM_IN = 0.7, 3.0
ROOT = D**0.5
Array = NDArray[np.float32]


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


W_ENC, B_ENC, W_DEC = normal(D, F, seed=1), normal(F, seed=2), 2 * normal(F, D, seed=3)
B_DEC = np.zeros(D, np.float32)


def llama_scope(folder: Path) -> tuple[Array, float]:
    """Pre-activations of a model's vector, and the norms' scale in scores: the decoder as stored."""
    (folder / "checkpoints").mkdir(parents=True)
    save_file(
        {
            "encoder.weight": np.ascontiguousarray(W_ENC.T), "encoder.bias": B_ENC,
            "decoder.weight": np.ascontiguousarray(W_DEC.T), "decoder.bias": B_DEC,
        },
        folder / "checkpoints" / "final.safetensors",
    )  # fmt: skip
    config = {
        "d_model": D, "d_sae": F, "hook_point_in": "blocks.1.hook_resid_post",
        "hook_point_out": "blocks.1.hook_resid_post", "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": NORM_IN, "out": NORM_IN}, "act_fn": "jumprelu",
        "jump_relu_threshold": THRESHOLD, "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(
        json.dumps(config | {"apply_decoder_bias_to_pre_encoder": False})
    )
    return vectors() @ W_ENC + B_ENC * NORM_IN / ROOT, 1.0


def llamascopium(folder: Path) -> tuple[Array, float]:
    folder.mkdir()
    hook = "blocks.1.hook_resid_post"
    save_file(
        {
            "W_E": W_ENC, "b_E": B_ENC, "W_D": W_DEC, "b_D": B_DEC,
            "activation_function.log_jumprelu_threshold": np.full(F, np.log(THRESHOLD), np.float32),
            f"dataset_average_activation_norm.{hook}": np.array(NORM_IN, np.float32),
        },
        folder / "sae_weights.safetensors",
    )  # fmt: skip
    config = {
        "sae_type": "sae", "d_model": D, "expansion_factor": F / D, "act_fn": "jumprelu", "hook_point_in": hook,
        "hook_point_out": hook, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return vectors() * ROOT / NORM_IN @ W_ENC + B_ENC, 1.0


def crosscoder(folder: Path) -> tuple[Array, float]:
    """Of two inputs of two numbers; a feature's norm is the sum of both its rows'."""
    folder.mkdir()
    rows = W_DEC.reshape(F, L, D // L)
    save_file(
        {
            "encoder.weight": np.ascontiguousarray(W_ENC.reshape(L, D // L, F)), "encoder.bias": B_ENC,
            "decoder.weight": np.ascontiguousarray(rows.swapaxes(0, 1)), "decoder.bias": B_DEC.reshape(L, D // L),
            "threshold": np.array(THRESHOLD, np.float32), "code_normalization_id": np.array(1),
        },
        folder / "model.safetensors",
    )  # fmt: skip
    summed, whole = np.linalg.norm(rows, axis=2).sum(1), np.linalg.norm(W_DEC, axis=1)
    return vectors() @ W_ENC + B_ENC, summed / whole


def vectors() -> Array:
    return normal(N, D, seed=4)


def dense(encoder: Encoder) -> Array:
    codes = encoder.encode(torch.from_numpy(vectors()))
    out = torch.zeros(N, F)
    out[codes.token_M, codes.feature_M] = codes.value_M
    return out.numpy()


@pytest.mark.parametrize("write", [llama_scope, llamascopium, crosscoder])
def test_the_reading_without_decoder_norms_is_tried(
    write: Callable[[Path], tuple[Array, Array | float]], tmp_path: Path
) -> None:
    """As read, what is above the threshold times the norm; tried, what is above it alone. Both keep the
    pre-activation as their value, and written as files the dictionary has the same codes."""
    pre, scale = write(tmp_path / "a")
    norm = np.linalg.norm(W_DEC, axis=1) * scale
    spec = find_dictionary(str(tmp_path / "a"))
    weights = reader_of(spec).load(spec, "cpu")
    gated, plain = (np.where((s > THRESHOLD) & (pre > 0), pre, 0) for s in (pre * norm, pre))
    assert ((gated > 0) != (plain > 0)).mean() > 0.05
    np.testing.assert_allclose(dense(Encoder(spec, weights)), gated, rtol=1e-5, atol=1e-6)
    tried = {one.name: one for one in alternatives(spec, weights, torch.from_numpy(vectors()))}
    other = tried["without the decoder's norms in the scores"]
    np.testing.assert_allclose(dense(Encoder(other.spec, other.weights)), plain, rtol=1e-5, atol=1e-6)
    written = convert(str(tmp_path / "a"), tmp_path / "b").spec
    again = dense(Encoder(written, reader_of(written).load(written, "cpu")))
    np.testing.assert_allclose(again, gated, rtol=1e-5, atol=1e-6)
