"""More of dictionary_learning's fork by jkminder: decoupled crosscoders, one scale for all inputs, BatchTopKSAE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dense_codes import Array, D, F, N, assert_parity, exact, inputs, save_json, save_torch, tensors
from safetensors.torch import save_file
from test_lone_files import linear
from test_research_readers import L, forks, joined_inputs, normaliser, save_fork, slow_crosscoder

from autointerp.dictionaries.convert import convert
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError
from autointerp.report.dictionary import inspected


def decoupled(thresholds: list[float], *, normalises: bool) -> dict[str, Array]:
    t = forks() | (normaliser() if normalises else {})
    t["decoder.weight"][0, ::2] *= 0.2  # norms that differ between inputs
    return t | {"threshold": np.array(thresholds, np.float32), "code_normalization_id": np.array(5)}


def slow_decoupled(x: Array, t: dict[str, Array]) -> tuple[Array, Array]:
    """BatchTopKCrossCoder.encode, which normalises, then encode_decoupled, whose CrossCoder.encode normalises again:
    activations [N, L, F] and x_hat [N, L D]."""
    wide = exact(t)
    parts, mean, scale = x.reshape(N, L, D).astype(np.float64), np.zeros((L, D)), np.ones((L, 1))
    if "activation_mean" in wide:
        mean, scale = wide["activation_mean"], wide["activation_global_scale"][:, None]
    for _ in range(2):
        parts = (parts - mean) * scale
    f = np.maximum(np.einsum("nld,ldf->nf", parts, wide["encoder.weight"]) + wide["encoder.bias"], 0)
    norm_lf = np.linalg.norm(wide["decoder.weight"], axis=2)
    acts = f[:, None] * (f[:, None] * norm_lf > wide["threshold"][:, None])
    x_hat = np.einsum("nlf,lfd->nld", acts, wide["decoder.weight"]) + wide["decoder.bias"]
    if "activation_mean" in wide:
        x_hat = x_hat / (scale + 1e-8) + mean
    return acts, x_hat.reshape(N, L * D)


@pytest.mark.parametrize("normalises", [True, False])
@pytest.mark.parametrize("thresholds", [[8.0, 5.0], [0.0, 7.0], [-1.0, 7.0], [-1.0, -1.0]])
def test_decoupled_crosscoders(tmp_path: Path, thresholds: list[float], normalises: bool) -> None:
    t = decoupled(thresholds, normalises=normalises)
    acts, x_hat = slow_decoupled(joined_inputs(), t)
    apart = ((acts > 0).any(axis=1) != (acts > 0).all(axis=1)).mean()
    assert (apart > 0.05) == (thresholds[1] > 0)
    spec = assert_parity(save_fork(tmp_path, t, k=4), joined_inputs(), acts.max(axis=1), x_hat)
    assert (spec.format, spec.by_input, spec.n_inputs, spec.expected.l0) == ("crosscoder", True, L, None)
    written = convert(str(tmp_path), tmp_path / "out").spec
    assert (written.format, written.by_input, written.notes) == ("native", True, spec.notes)
    assert_parity(tmp_path / "out", joined_inputs(), acts.max(axis=1), x_hat)
    said = dict(inspected(str(tmp_path)))
    assert said["selects"] == "each of the 2 inputs by itself; active where any does"


def test_before_july_2025_one_scale_was_stored_for_all_inputs(tmp_path: Path) -> None:
    t = forks() | normaliser() | {"threshold": np.array(4.0, np.float32)}
    both = t | {"activation_global_scale": np.full(L, 0.4, np.float32)}
    one = t | {"activation_global_scale": np.array(0.4, np.float32)}
    assert_parity(save_fork(tmp_path, one), joined_inputs(), *slow_crosscoder(joined_inputs(), both, {}))


def test_what_a_training_saves(tmp_path: Path) -> None:
    """model_final.pt and the trainer's settings, among them the weights of mixed norms."""
    t = forks() | {"threshold": np.array(6.0, np.float32), "code_normalization_id": np.array(3)}
    trainer = {"dict_class": "BatchTopKCrossCoder", "k": 4, "code_normalization_alpha_cc": 0.5}
    save_json(tmp_path / "config.json", {"trainer": trainer, "buffer": {}})
    save_torch(tmp_path / "model_final.pt", t)
    expected = slow_crosscoder(joined_inputs(), t, trainer)
    spec = assert_parity(tmp_path, joined_inputs(), *expected)
    assert (spec.format, spec.expected.l0) == ("crosscoder", 4)


@pytest.mark.parametrize(
    ("change", "point"),
    [
        ({"threshold": np.array(1.0, np.float32)}, "5 .DECOUPLED., of which each input has a threshold"),
        ({"code_normalization_id": np.array(2)}, "holds 2 thresholds, one an input, but .* says SAE"),
        ({"threshold": np.ones(L + 1, np.float32)}, r"'threshold' has shape \[3\].*inputs 2"),
    ],
)
def test_thresholds_that_do_not_go_with_the_norm(
    tmp_path: Path, change: dict[str, Array], point: str
) -> None:
    folder = save_fork(tmp_path, decoupled([1.0, 1.0], normalises=False) | change)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(folder))
        reader_of(spec).load(spec, "cpu")


# --- BatchTopKSAE ----------------------------------------------------------------------------------------

ONE: dict[str, Array] = {
    "activation_mean": np.linspace(-1, 2, D).astype(np.float32),
    "activation_std": np.ones(D, np.float32),
    "activation_global_scale": np.array(0.4, np.float32),
    "target_rms": np.array(1.0, np.float32),
}
UNNORMALISED = ONE | {
    "activation_mean": np.full(D, np.nan, np.float32),
    "activation_std": np.full(D, np.nan, np.float32),
}


def sae(threshold: float, extra: dict[str, Array]) -> dict[str, Array]:
    t = linear(tensors(), "encoder.weight", "decoder.weight", "encoder.bias", "b_dec")
    return t | extra | {"threshold": np.array(threshold, np.float32), "k": np.array(3, np.int32)}


def one_input(folder: Path, extra: dict[str, Array], threshold: float = 1.5) -> Path:
    save_json(folder / "config.json", {"activation_dim": D, "dict_size": F, "k": 3})
    state = {key: torch.tensor(value) for key, value in sae(threshold, extra).items()}
    save_file(state, folder / "model.safetensors")
    return folder


def slow_sae(x: Array, t: dict[str, Array]) -> tuple[Array, Array]:
    """BatchTopKSAE's encode and decode."""
    wide, mean, scale = exact(t), np.zeros(D), 1.0
    if not np.isnan(wide.get("activation_mean", np.array(np.nan))).any():
        mean, scale = wide["activation_mean"], float(wide["activation_global_scale"])
    f = (x.astype(np.float64) - mean) * scale - wide["b_dec"]
    f = np.maximum(f @ wide["encoder.weight"].T + wide["encoder.bias"], 0)
    acts = f * (f > wide["threshold"])
    return acts, (acts @ wide["decoder.weight"].T + wide["b_dec"]) / (scale + 1e-8 * (scale != 1)) + mean


@pytest.mark.parametrize("threshold", [-1.0, 1.5])
@pytest.mark.parametrize("extra", [{}, UNNORMALISED, ONE], ids=["old", "nan", "normalised"])
@pytest.mark.parametrize("name", ["model.safetensors", "model_final.pt", "checkpoint_5.pt"])
def test_batch_topk_saes(tmp_path: Path, threshold: float, extra: dict[str, Array], name: str) -> None:
    t = sae(threshold, extra)
    if name.endswith(".pt"):
        trainer = {
            "dict_class": "BatchTopKSAE",
            "k": 3,
            "lm_name": "org/model",
            "layer": 7,
            "activation_dim": D,
        }
        save_json(tmp_path / "config.json", {"trainer": trainer | {"dict_size": F}})
        save_torch(tmp_path / name, t)
    else:
        one_input(tmp_path, extra, threshold)
    place = tmp_path / name if name.startswith("checkpoint") else tmp_path
    spec = assert_parity(place, inputs(), *slow_sae(inputs(), t))
    assert (spec.format, spec.selector, spec.expected.l0, spec.site) == (
        "batch_topk_sae",
        "jumprelu",
        3,
        None,
    )
    assert spec.model == ("org/model" if name.endswith(".pt") else None)
    assert any("layer 7" in note for note in spec.notes) == name.endswith(".pt")


def test_the_original_librarys_files_stay_its_own(tmp_path: Path) -> None:
    """ae.pt with its config.json, unless a normaliser is among the tensors, which that library has not."""
    trainer = {
        "dict_class": "BatchTopKSAE", "k": 3, "lm_name": "m", "layer": 7, "activation_dim": D, "dict_size": F
    }  # fmt: skip
    for extra, reader in (({}, "dictionary_learning"), (ONE, "batch_topk_sae")):
        folder = tmp_path / reader
        save_json(folder / "config.json", {"trainer": trainer})
        t = sae(1.5, extra)
        save_torch(folder / "ae.pt", t)
        for place in (folder, folder / "ae.pt"):
            assert assert_parity(place, inputs(), *slow_sae(inputs(), t)).format == reader


def test_saes_that_are_not_read(tmp_path: Path) -> None:
    for change, point in (
        ({"threshold": np.ones(F, np.float32)}, "'threshold' has shape"),
        ({"encoder.weight": np.ones((D, F), np.float32)}, "'encoder.weight' has shape .*swapped"),
        ({"activation_mean": np.ones(D + 1, np.float32)}, r"activation_mean has shape \[7\]"),
        ({"activation_global_scale": np.array(0, np.float32)}, "a factor above 0"),
        ({"activation_global_scale": np.array(np.inf, np.float32)}, "must be finite numbers"),
        ({"activation_mean": np.full(D, -np.inf, np.float32)}, "must be finite numbers"),
        ({"activation_std": np.full(D, np.inf, np.float32)}, "must be finite numbers"),
        (
            {"activation_std": np.ones(3, np.float32)},
            r"activation_std has shape \[3\], but activation_mean has \[6\]",
        ),
    ):
        path = save_torch(tmp_path / "model.pt", sae(1.0, ONE) | change)
        with pytest.raises(CheckpointError, match=point) as refused:
            spec = find_dictionary(str(path))
            reader_of(spec).load(spec, "cpu")
        assert "\n" not in str(refused.value)
