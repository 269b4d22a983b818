"""circuit-tracer's transcoders, a layer each, against its maths in dense float64 numpy (0.5.0:
single_layer_transcoder.py, cross_layer_transcoder.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy

from autointerp.dictionaries.convert import convert
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.hub_files import wanted_files
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError
from autointerp.report.dictionary import inspected
from autointerp.types import Site

save_file = cast(Callable[[dict[str, NDArray[Any]], Path], None], cast(Any, safetensors_numpy).save_file)

Array = NDArray[Any]
D, F, N, TARGETS = 6, 12, 60, 3
CONFIG: dict[str, Any] = {
    "model_kind": "transcoder_set",
    "model_name": "org/model",
    "feature_input_hook": "hook_resid_mid",
    "feature_output_hook": "hook_mlp_out",
}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def own() -> dict[str, Array]:
    return {"W_enc": normal(F, D), "W_dec": normal(F, D, seed=1), "b_enc": normal(F), "b_dec": normal(D)}


THRESHOLD = np.linspace(0.1, 3, F, dtype=np.float32)


def single(folder: Path, arrays: dict[str, Array], config: dict[str, Any] | None = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_file(arrays, folder / "layer_5.safetensors")
    return folder / "layer_5.safetensors"


def cross(folder: Path, encoder: dict[str, Array], w_dec: Array) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"model_kind": "cross_layer_transcoder"}))
    save_file({f"{name}_2": value for name, value in encoder.items()}, folder / "W_enc_2.safetensors")
    save_file({"W_dec_2": w_dec}, folder / "W_dec_2.safetensors")
    return folder / "W_enc_2.safetensors"


def run(path: Path, x: Array) -> tuple[Array, Array]:
    spec = find_dictionary(str(path))
    encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    codes = encoder.encode(torch.tensor(x))
    acts = np.zeros((len(x), F))
    acts[codes.token_M.numpy(), codes.feature_M.numpy()] = codes.value_M.numpy()
    return acts, encoder.decode(codes, torch.tensor(x)).numpy()


def inputs() -> Array:
    return (1.0 + 2.0 * normal(N, D, seed=9)).astype(np.float32)


def activations(arrays: dict[str, Array], *, thresholds: bool) -> Array:
    pre = inputs().astype(np.float64) @ arrays["W_enc"].T + arrays["b_enc"]
    acts = pre * (pre > THRESHOLD) if thresholds else np.maximum(pre, 0)
    assert (acts != 0).any() and (acts == 0).any()
    return acts


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("thresholds", [True, False])
def test_a_layer_of_its_own(tmp_path: Path, thresholds: bool, skip: bool) -> None:
    """b_dec, of the size of the input, is not subtracted from it."""
    arrays = own()
    acts = activations(arrays, thresholds=thresholds)
    x_hat = acts @ arrays["W_dec"] + arrays["b_dec"]
    if thresholds:
        arrays["activation_function.threshold"] = THRESHOLD
    if skip:
        arrays["W_skip"] = normal(D, D, seed=4)
        x_hat = x_hat + inputs() @ arrays["W_skip"].T
    path = single(tmp_path, arrays)
    found = run(path, inputs())
    np.testing.assert_allclose(found[0], acts, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], x_hat, rtol=1e-5, atol=1e-4)
    spec = find_dictionary(str(path))
    assert (spec.is_transcoder, spec.reconstructs, spec.d_out, spec.model) == (True, True, D, "org/model")
    assert (spec.site, spec.site_out) == (Site("resid_mid", 5), Site("mlp_out", 5))


@pytest.mark.parametrize("thresholds", [True, False])
def test_a_layer_of_a_cross_layer_transcoder(tmp_path: Path, thresholds: bool) -> None:
    """Directions are summed over the layers written to; nothing says what one layer reconstructs."""
    arrays, w_dec = own(), normal(F, TARGETS, D)
    del arrays["W_dec"]
    path = cross(tmp_path, arrays | ({"threshold": THRESHOLD} if thresholds else {}), w_dec)
    np.testing.assert_allclose(
        run(path, inputs())[0], activations(arrays, thresholds=thresholds), rtol=1e-5, atol=1e-5
    )
    spec = find_dictionary(str(path))
    assert (spec.is_transcoder, spec.reconstructs, spec.site_out) == (True, False, None)
    assert (spec.format, spec.site) == ("circuit_tracer", Site("resid_mid", 2))
    assert spec.writes_to == "the MLP outputs of layers 2 to 4 (hook_mlp_out)"
    assert dict(inspected(str(path)))["predicts"] == f"a part of {spec.writes_to}"
    written = convert(str(path), tmp_path / "out").spec
    assert (written.format, written.writes_to) == ("native", spec.writes_to)
    directions = reader_of(spec).load(spec, "cpu").w_dec_FO
    np.testing.assert_allclose(directions, w_dec.astype(np.float64).sum(axis=1), rtol=1e-5, atol=1e-5)


def test_a_folder_of_layers_is_listed(tmp_path: Path) -> None:
    single(tmp_path, own()).rename(tmp_path / "layer_3.safetensors")
    single(tmp_path, own())
    with pytest.raises(CheckpointError, match=r"layer_3\.safetensors, layer_5\.safetensors"):
        find_dictionary(str(tmp_path))


def test_config_is_one_folder_up_or_missing(tmp_path: Path) -> None:
    """Without it nobody knows where the transcoder reads."""
    path = single(tmp_path / "transcoders", own(), None)
    assert (find_dictionary(str(path)).site, find_dictionary(str(path)).model) == (None, None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"feature_input_hook": "mlp.hook_in"}))
    assert find_dictionary(str(path)).site == Site("mlp_in", 5)


def test_identity_covers_the_decoder(tmp_path: Path) -> None:
    arrays = own()
    del arrays["W_dec"]
    one = find_dictionary(str(cross(tmp_path / "a", arrays, normal(F, TARGETS, D))))
    other = find_dictionary(str(cross(tmp_path / "b", arrays, normal(F, TARGETS, D, seed=1))))
    assert one.identity != other.identity


def test_the_decoder_comes_from_the_hub_with_the_encoder() -> None:
    files = ["a/config.yaml", "a/W_enc_1.safetensors", "a/W_dec_1.safetensors", "a/W_enc_2.safetensors"]
    assert wanted_files(files, "a/W_enc_1.safetensors") == files[:3]


@pytest.mark.parametrize(
    ("arrays", "point"),
    [
        ({"W_enc": normal(D, F)}, "'W_enc' has shape.*swapped"),
        ({"W_dec": normal(F, D + 1)}, r"'W_dec' has shape \[12, 7\]"),
        ({"W_skip": normal(D, F)}, "'W_skip' has shape"),
        ({"b_enc": normal(F, 1)}, "'b_enc' has shape.*no bias has"),
        ({"b_dec": np.full(D, np.nan, np.float32)}, "NaN"),
        ({"activation_function.threshold": normal(F - 1)}, "threshold' has shape"),
        ({"log_thresholds": normal(F)}, "'log_thresholds'"),
    ],
)
def test_refusals(tmp_path: Path, arrays: dict[str, Array], point: str) -> None:
    path = single(tmp_path, own() | arrays)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(path))
        reader_of(spec).load(spec, "cpu")


@pytest.mark.parametrize(
    ("w_dec", "point"),
    [
        (normal(F, D), r"'W_dec_2' has shape \[12, 6\]"),
        (normal(TARGETS, F, D), r"'W_dec_2' has shape \[3, 12, 6\]"),
        (normal(F, TARGETS, D) * np.float32(np.nan), "NaN"),
    ],
)
def test_decoders_that_are_refused(tmp_path: Path, w_dec: Array, point: str) -> None:
    arrays = own()
    del arrays["W_dec"]
    path = cross(tmp_path, arrays, w_dec)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(path))
        reader_of(spec).load(spec, "cpu")


def test_a_missing_decoder(tmp_path: Path) -> None:
    arrays = own()
    del arrays["W_dec"]
    path = cross(tmp_path, arrays, normal(F, TARGETS, D))
    (tmp_path / "W_dec_2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"W_dec_2\.safetensors is missing"):
        find_dictionary(str(path))
