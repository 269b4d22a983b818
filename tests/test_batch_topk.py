"""Bart Bussmann's dictionaries: codes as sae.py of BatchTopK and matryoshka_sae computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_codes import Array, D, F, assert_parity, exact, inputs, largest, save_json, save_torch, tensors

from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import Expected
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.types import Site

CONFIG: dict[str, Any] = {
    "act_size": D,
    "dict_size": F,
    "sae_type": "topk",
    "top_k": 3,
    "input_unit_norm": True,
    "hook_point": "blocks.8.hook_resid_pre",
    "model_name": "gpt2-small",
    "dataset_path": "Skylion007/openwebtext",
    "seq_len": 128,
    "dtype": "torch.float32",
}
FOUR = {name: value for name, value in tensors().items() if name != "threshold"}
THRESHOLD = {"threshold": np.array(0.8, np.float32)}
LOG = {"jumprelu.log_threshold": np.log(tensors()["threshold"])}


def checkpoint(folder: Path, config: dict[str, Any], extra: dict[str, Any] | None = None) -> Path:
    save_json(folder / "config.json", CONFIG | config)
    t = FOUR | (extra or {})
    save_torch(folder / "sae.pt", {name: value for name, value in t.items() if value is not None})
    return folder


def reference(x: Array, config: dict[str, Any]) -> tuple[Array, Array]:
    """(activations, reconstruction), in float64."""
    config, t, x = CONFIG | config, exact(tensors()), x.astype(np.float64)
    mean, std = 0.0, 1.0
    if config["input_unit_norm"]:
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        x = (x - mean) / (std + 1e-5)
    kind = config["sae_type"]
    centred = x if kind == "jumprelu" else x - t["b_dec"]
    acts = np.maximum(centred @ t["W_enc"] + t["b_enc"] * (kind in ("vanilla", "jumprelu")), 0)
    if kind == "topk":
        acts = acts * largest(acts, config["top_k"])
    elif kind == "jumprelu":
        acts = acts * (acts > np.exp(LOG["jumprelu.log_threshold"].astype(np.float64)))
    elif kind != "vanilla":
        acts = acts * (acts > 0.8)
    return acts, (acts @ t["W_dec"] + t["b_dec"]) * std + mean


@pytest.mark.parametrize(
    ("kind", "extra", "selector"),
    [
        ("vanilla", {}, "relu"),
        ("topk", {}, "topk"),
        ("batchtopk", THRESHOLD, "jumprelu"),
        ("batch-topk", THRESHOLD, "jumprelu"),
        ("global-matryoshka-topk", THRESHOLD, "jumprelu"),
        ("jumprelu", LOG, "jumprelu"),
    ],
)
@pytest.mark.parametrize("unit_norm", [True, False])
def test_codes(tmp_path: Path, kind: str, extra: dict[str, Array], selector: str, unit_norm: bool) -> None:
    config = {"sae_type": kind, "input_unit_norm": unit_norm}
    x = inputs()
    spec = assert_parity(checkpoint(tmp_path / "a", config, extra), x, *reference(x, config))
    assert (spec.format, spec.selector) == ("batch_topk", selector)
    assert spec.transform == (("layer_norm",) if unit_norm else ())
    assert spec.expected == Expected(l0=3 if extra is THRESHOLD else None)


def test_the_configuration_says_the_rest(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", {})
    spec = find_dictionary(str(folder))
    assert (spec.site, spec.model, spec.corpus) == (Site("resid_pre", 8), "gpt2", "Skylion007/openwebtext")
    assert (spec.context_length, spec.k) == (128, 3)
    assert find_dictionary(str(folder / "sae.pt")) == spec


@pytest.mark.parametrize("sizes", ["[2, 3, 5]", [2, 3, 5]])
def test_levels_of_a_matryoshka_dictionary(tmp_path: Path, sizes: object) -> None:
    """logs.py writes lists as text."""
    config = {"sae_type": "global-matryoshka-topk", "group_sizes": sizes}
    assert find_dictionary(str(checkpoint(tmp_path / "a", config, THRESHOLD))).group_sizes == (2, 3, 5)


@pytest.mark.parametrize("kind", ["batchtopk", "batch-topk", "global-matryoshka-topk"])
def test_without_a_threshold_it_is_to_be_calibrated(tmp_path: Path, kind: str) -> None:
    """On batches of the size of training; until then codes are those of no threshold but 0."""
    folder = checkpoint(tmp_path / "a", {"sae_type": kind, "batch_size": 512})
    spec = find_dictionary(str(folder))
    assert (spec.selector, spec.k, spec.feature_sliceable) == ("jumprelu", None, True)
    assert spec.calibration == Calibration("batch_topk", 3, 512) and spec.expected.l0 == 3
    weights = reader_of(spec).load(spec, "cpu")
    assert weights.threshold_F is None and torch.equal(weights.b_pre_D, weights.b_dec_O)
    said = find_dictionary(str(checkpoint(tmp_path / "b", {"sae_type": kind})))
    assert said.calibration == Calibration("batch_topk", 3, 4096)


@pytest.mark.parametrize(
    ("config", "extra", "point"),
    [
        ({"sae_type": "batchtopk", "top_k": None}, {}, "no 'top_k'|top_k"),
        ({"sae_type": "batchtopk", "top_k": 11}, {}, "top_k is 11: more than the 10"),
        ({"sae_type": "batchtopk", "batch_size": 0}, {}, "batch_size is 0"),
        (
            {"sae_type": "batchtopk"},
            {"threshold": np.array(0, np.float32)},
            "threshold is 0.*never set.*Take 'threshold' out.*calibrates",
        ),
        ({"sae_type": "jumprelu"}, THRESHOLD, "stores no threshold"),
        ({"sae_type": "gated"}, {}, "sae_type is gated.*vanilla, topk"),
        ({"sae_type": None}, {}, "sae_type"),
        ({"top_k": 11}, {}, "top_k is 11"),
        ({"top_k": 0}, {}, "top_k is 0"),
        ({"dict_size": 11}, {}, r"'b_enc' has shape \[10\].*\[features 11\]"),
        ({}, {"W_enc": FOUR["W_enc"].T.copy()}, r"'W_enc' has shape \[10, 6\].*swapped"),
        ({}, {"b_dec": None}, "no tensor 'b_dec'"),
        ({}, {"W_dec": np.full((F, D), np.nan, np.float32)}, "60 values of 60 that are NaN"),
        ({"sae_type": "global-matryoshka-topk", "group_sizes": "[2, 3]"}, THRESHOLD, "make 10 together"),
        ({"sae_type": "global-matryoshka-topk", "group_sizes": "x"}, THRESHOLD, "group_sizes is x"),
    ],
)
def test_what_is_refused(tmp_path: Path, config: dict[str, Any], extra: dict[str, Any], point: str) -> None:
    folder = checkpoint(tmp_path / "a", config, extra)
    with pytest.raises(CheckpointError, match=point):
        spec = find_dictionary(str(folder))
        reader_of(spec).load(spec, "cpu")
