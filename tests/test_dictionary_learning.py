"""dictionary_learning's classes against their maths in dense float64 numpy (dictionary.py, trainers/*.py at
60ec6bf); `test_parity.py` compares with the library itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import describe_place, reader_of
from autointerp.errors import CheckpointError
from autointerp.types import Site

Array = NDArray[Any]
Config = dict[str, Any]
D, F, K, N = 6, 12, 3, 60
TRAINER: Config = {
    "activation_dim": D,
    "dict_size": F,
    "layer": 8,
    "lm_name": "EleutherAI/pythia-70m",
    "submodule_name": "resid_post_layer_8",
}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


W_ENC, W_DEC = normal(D, F), normal(F, D, seed=1)
B_ENC, B_DEC, B_MAG, R_MAG = normal(F), normal(D), normal(F, seed=2), normal(F, seed=3)
LINEAR = {"encoder.weight": W_ENC.T, "decoder.weight": W_DEC.T}
CLASSES: dict[str, dict[str, Array]] = {
    "AutoEncoder": LINEAR | {"encoder.bias": B_ENC, "bias": B_DEC},
    "AutoEncoderNew": LINEAR | {"encoder.bias": B_ENC, "decoder.bias": B_DEC},
    "GatedAutoEncoder": LINEAR
    | {"gate_bias": B_ENC, "mag_bias": B_MAG, "r_mag": R_MAG, "decoder_bias": B_DEC},
    "AutoEncoderTopK": LINEAR
    | {"encoder.bias": B_ENC, "b_dec": B_DEC, "k": np.array(K, np.int32), "threshold": np.float32(5.0)},
    "BatchTopKSAE": LINEAR
    | {"encoder.bias": B_ENC, "b_dec": B_DEC, "k": np.array(K, np.int32), "threshold": np.float32(1.5)},
    "MatryoshkaBatchTopKSAE": {
        "W_enc": W_ENC,
        "W_dec": W_DEC,
        "b_enc": B_ENC,
        "b_dec": B_DEC,
        "k": np.array(K, np.int32),
        "threshold": np.float32(1.5),
        "group_sizes": np.array([2, 10]),
    },
    "JumpReluAutoEncoder": {
        "W_enc": W_ENC,
        "W_dec": W_DEC,
        "b_enc": B_ENC,
        "b_dec": B_DEC,
        "threshold": np.linspace(-1, 3, F, dtype=np.float32),
    },
}


def tensors(arrays: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.array(value)) for name, value in arrays.items()}


def config_of(name: str, **more: Any) -> Config:
    own = {"k": K} if "TopK" in name else {}
    own |= {"group_sizes": [2, 10]} if name.startswith("Matryoshka") else {}
    return {"trainer": TRAINER | own | {"dict_class": name} | more, "buffer": {"io": "out", "ctx_len": 128}}


def checkpoint(folder: Path, config: Config, saved: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    cast(Any, torch).save(saved, folder / "ae.pt")
    return folder


def mid_run(arrays: dict[str, Array], norm_factor: float) -> Config:
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
    }
    return {
        "step": 3,
        "ae": tensors(arrays),
        "optimizer": optimizer,
        "config": {"k": K, "lr": 0.1, "submodule_name": None},
        "norm_factor": norm_factor,
    }


def reference(name: str, x: Array, t: dict[str, Array]) -> tuple[Array, Array]:
    """(activations [N, F], reconstruction [N, D]) as the class computes them; AutoEncoder rescaled."""
    linear = "encoder.weight" in t
    w_enc = (t["encoder.weight"].T if linear else t["W_enc"]).astype(np.float64)
    w_dec = (t["decoder.weight"].T if linear else t["W_dec"]).astype(np.float64)
    b_dec = next(t[key] for key in ("bias", "decoder.bias", "decoder_bias", "b_dec") if key in t)
    subtracts = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    product = (x.astype(np.float64) - b_dec * subtracts) @ w_enc
    if name == "GatedAutoEncoder":
        magnitude = np.maximum(product * np.exp(t["r_mag"].astype(np.float64)) + t["mag_bias"], 0)
        acts = magnitude * (product + t["gate_bias"] > 0)
    else:
        acts = np.maximum(product + t["encoder.bias" if linear else "b_enc"], 0)
    if name == "AutoEncoderTopK":
        acts = np.where(acts >= np.sort(acts, axis=1)[:, -K, None], acts, 0)
    elif "threshold" in t:
        acts = acts * (acts > t["threshold"])
    x_hat = acts @ w_dec + b_dec
    return (acts * np.linalg.norm(w_dec, axis=1) if name == "AutoEncoder" else acts), x_hat


def run(folder: Path, x: Array) -> tuple[Array, Array]:
    spec = describe_place(folder)
    encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    x_ND = torch.tensor(x)
    codes = encoder.encode(x_ND)
    acts = np.zeros((len(x), F))
    acts[codes.token_M.numpy(), codes.feature_M.numpy()] = codes.value_M.numpy()
    return acts, encoder.decode(codes, x_ND).numpy()


def inputs() -> Array:
    return (1.0 + 2.0 * normal(N, D, seed=9)).astype(np.float32)


def assert_equal(found: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    assert (expected[0] != 0).any() and (expected[0] == 0).any()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("name", CLASSES)
def test_every_class(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path / "trainer_0", config_of(name), tensors(CLASSES[name]))
    assert_equal(run(folder, inputs()), reference(name, inputs(), CLASSES[name]))


@pytest.mark.parametrize("name", CLASSES)
def test_mid_run(tmp_path: Path, name: str) -> None:
    """Trained on x / 4: its activations of x are 4 times those of x / 4, as they are when the run ends and its
    biases are scaled."""
    folder = checkpoint(tmp_path / "trainer_0", config_of(name), mid_run(CLASSES[name], 4.0))
    acts, x_hat = reference(name, inputs() / 4, CLASSES[name])
    assert_equal(run(folder, inputs()), (4 * acts, 4 * x_hat))
    assert any("divided by 4" in note for note in describe_place(folder).notes)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
@pytest.mark.parametrize("in_mid_run", [True, False])
def test_a_threshold_that_was_never_set_leaves_relu(tmp_path: Path, name: str, in_mid_run: bool) -> None:
    arrays = CLASSES[name] | {"threshold": np.float32(-1.0)}
    saved = mid_run(arrays, 1.0) if in_mid_run else tensors(arrays)
    found = run(checkpoint(tmp_path / "a", config_of(name), saved), inputs())
    assert_equal(found, reference(name, inputs(), arrays))


def test_a_feature_without_a_direction_keeps_its_activation(tmp_path: Path) -> None:
    arrays = CLASSES["AutoEncoder"] | {"decoder.weight": (W_DEC * (np.arange(F) > 0)[:, None]).T}
    acts, _ = run(checkpoint(tmp_path / "a", config_of("AutoEncoder"), tensors(arrays)), inputs())
    expected = np.maximum((inputs() - B_DEC) @ W_ENC[:, 0] + B_ENC[0], 0)
    np.testing.assert_allclose(acts[:, 0], expected, rtol=1e-5, atol=1e-5)


# --- what describe says ----------------------------------------------------------------------------------


def test_describe(tmp_path: Path) -> None:
    name = "MatryoshkaBatchTopKSAE"
    spec = describe_place(checkpoint(tmp_path / "trainer_0", config_of(name), tensors(CLASSES[name])))
    assert (spec.format, spec.d_in, spec.width, spec.selector) == ("dictionary_learning", D, F, "jumprelu")
    assert (spec.hook, spec.site) == ("blocks.8.hook_resid_post", Site("resid_post", 8))
    assert (spec.model, spec.context_length) == ("EleutherAI/pythia-70m", 128)
    assert (spec.group_sizes, spec.expected.l0) == ((2, 10), K)


@pytest.mark.parametrize(
    ("name", "io", "site"),
    [
        ("resid_post_layer_3", "out", Site("resid_post", 3)),
        ("mlp_out_layer_3", "out", Site("mlp_out", 3)),
        ("resid_post_layer_3", "in", None),
        ("model.layers.3.mlp", "in", Site("mlp_in", 3)),
        ("gpt_neox.layers.3", "out", Site("resid_post", 3)),
        ("something", "out", None),
        (None, "out", None),
    ],
)
def test_site(tmp_path: Path, name: str | None, io: str, site: Site | None) -> None:
    """`layer` alone names no place: the library's own example trains on the MLP of that layer."""
    config = config_of("AutoEncoderNew", submodule_name=name) | {"buffer": {"io": io}}
    assert describe_place(checkpoint(tmp_path / "a", config, tensors(CLASSES["AutoEncoderNew"]))).site == site


def test_a_checkpoint_of_the_run(tmp_path: Path) -> None:
    """checkpoints/ae_100.pt is named by its file; config.json lies above."""
    folder = checkpoint(
        tmp_path / "trainer_0", config_of("AutoEncoderNew"), tensors(CLASSES["AutoEncoderNew"])
    )
    (folder / "checkpoints").mkdir()
    file = (folder / "ae.pt").rename(folder / "checkpoints" / "ae_100.pt")
    assert describe_place(file).width == F


def test_describe_imports_no_torch(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", config_of("AutoEncoder"), mid_run(CLASSES["AutoEncoder"], 2.0))
    program = (
        "import sys; from autointerp.dictionaries.locate import find_dictionary\n"
        f"print(find_dictionary({str(folder)!r}).width, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{F} False\n"


# --- refusals --------------------------------------------------------------------------------------------

NEW, TOPK = CLASSES["AutoEncoderNew"], CLASSES["AutoEncoderTopK"]


@pytest.mark.parametrize(
    ("config", "saved", "point"),
    [
        (config_of("IdentityDict"), tensors(NEW), "dict_class is IdentityDict.*AutoEncoder, "),
        (config_of("AutoEncoder"), tensors(NEW), "no tensor 'bias'"),
        (config_of("AutoEncoderNew") | {"buffer": {"io": "in_and_out"}}, tensors(NEW), "io is in_and_out"),
        (config_of("AutoEncoderNew", dict_size=F + 1), tensors(NEW), r"'encoder.bias' has shape \[12\]"),
        (config_of("AutoEncoderNew", activation_dim=None), tensors(NEW), "no 'activation_dim'"),
        (config_of("AutoEncoderNew"), tensors(NEW | {"encoder.weight": W_ENC}), "swapped"),
        (config_of("AutoEncoderNew"), tensors(NEW | {"encoder.bias": B_ENC * np.nan}), "NaN"),
        (config_of("AutoEncoderNew"), mid_run(NEW, 0.0), "norm_factor is 0.0"),
        (config_of("AutoEncoderNew"), mid_run(NEW, float("nan")), "norm_factor is NaN"),
        (config_of("AutoEncoderTopK", k=F + 1), tensors(TOPK), "k is 13"),
        (config_of("AutoEncoderTopK", k=K + 1), tensors(TOPK), "'k' is 3, but config.json says that k is 4"),
        (config_of("MatryoshkaBatchTopKSAE", group_sizes=[2, 3]), tensors(NEW), "sum to the 12"),
    ],
)
def test_refusals(tmp_path: Path, config: Config, saved: Any, point: str) -> None:
    folder = checkpoint(tmp_path / "a", config, saved)
    with pytest.raises(CheckpointError, match=point):
        spec = describe_place(folder)
        reader_of(spec).load(spec, "cpu")
