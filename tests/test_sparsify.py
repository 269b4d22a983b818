"""sparsify's transcoders, groupmax and signed dictionaries, against its maths in dense float64 numpy
(sparsify/sparse_coder.py, fused_encoder.py; a48257e:sae/sae.py for `signed`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy

from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import describe_place, reader_of
from autointerp.errors import CheckpointError
from autointerp.types import Site

save_file = cast(Callable[[dict[str, NDArray[Any]], Path], None], cast(Any, safetensors_numpy).save_file)

Array = NDArray[Any]
Config = dict[str, Any]
D, F, K, N = 6, 12, 3, 60
CONFIG: Config = {"activation": "topk", "num_latents": F, "k": K, "d_in": D}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def tensors() -> dict[str, Array]:
    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(names.items())}


def checkpoint(
    folder: Path, config: Config, weights: dict[str, Array] | None = None, run: Config | None = None
) -> Path:
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(weights or tensors(), folder / "sae.safetensors")
    if run is not None:
        (folder.parent / "config.json").write_text(json.dumps(run))
    return folder


def run(folder: Path, x: Array) -> tuple[Array, Array]:
    """(activations [N, F], with their signs, and reconstruction [N, D]) of the checkpoint in `folder`."""
    spec = describe_place(folder)
    encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    x_ND = torch.from_numpy(x)  # pyright: ignore[reportUnknownMemberType]
    codes = encoder.encode(x_ND)
    token, column, value = (c.numpy() for c in (codes.token_M, codes.feature_M, codes.value_M))
    acts = np.zeros((len(x), F))
    np.add.at(acts, (token, column // spec.n_poles), value * (1 - 2 * (column % 2) * spec.signed))
    return acts, encoder.decode(codes, x_ND).numpy()


def inputs() -> Array:
    return (1.0 + 2.0 * normal(N, D, seed=9)).astype(np.float32)


def pre_activations(x: Array, t: dict[str, Array], *, subtracts: bool) -> Array:
    return (x.astype(np.float64) - t["b_dec"] * subtracts) @ t["encoder.weight"].T + t["encoder.bias"]


def top(pre: Array, rank: Array) -> Array:
    return np.where(rank >= np.sort(rank, axis=1)[:, -K, None], pre, 0)


def assert_equal(found: tuple[Array, Array], acts: Array, x_hat: Array) -> None:
    assert (acts != 0).any() and (acts == 0).any()
    for one, expected in zip(found, (acts, x_hat), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_groupmax(tmp_path: Path) -> None:
    """Groups of neighbours: features 0 to 3, 4 to 7, 8 to 11; of each the largest, if it is positive."""
    t, x = tensors(), inputs()
    pre = pre_activations(x, t, subtracts=True)
    acts = np.zeros_like(pre)
    for token in range(N):
        for first in (0, 4, 8):
            winner = first + int(np.argmax(pre[token, first : first + 4]))
            acts[token, winner] = max(pre[token, winner], 0)
    folder = checkpoint(tmp_path / "layers.1", CONFIG | {"activation": "groupmax"})
    assert_equal(run(folder, x), acts, acts @ t["W_dec"] + t["b_dec"])


def test_signed(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    pre = pre_activations(x, t, subtracts=True)
    acts = top(pre, np.abs(pre))
    assert (acts < 0).any()
    folder = checkpoint(tmp_path / "layers.1", CONFIG | {"signed": True})
    assert_equal(run(folder, x), acts, acts @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("era", ["says so", "run says so", "run's sae says so"])
def test_transcoders(tmp_path: Path, era: str, skip: bool) -> None:
    """Those that don't say it themselves are from before February 2025, and subtract b_dec. The skip connection
    takes the input as it came."""
    own = {"transcode": True} if era == "says so" else {}
    above = {"run says so": {"transcode": True}, "run's sae says so": {"sae": {"transcode": True}}}.get(
        era, {}
    )
    t, x = tensors(), inputs()
    pre = pre_activations(x, t, subtracts=era != "says so")
    acts = np.maximum(top(pre, pre), 0)
    x_hat = acts @ t["W_dec"] + t["b_dec"]
    if skip:
        t["W_skip"] = normal(D, D, seed=7)
        x_hat = x_hat + x @ t["W_skip"].T
    folder = checkpoint(tmp_path / "layers.3.mlp", CONFIG | own | {"skip_connection": skip}, t, above)
    spec = describe_place(folder)
    assert (spec.is_transcoder, spec.d_out) == (True, D)
    assert (spec.hook, spec.site) == ("layers.3.mlp.input", Site("mlp_in", 3))
    assert (spec.hook_out, spec.site_out) == ("layers.3.mlp.output", Site("mlp_out", 3))
    assert spec.notes == ("b_dec is not subtracted" if era == "says so" else "b_dec is subtracted",)
    assert_equal(run(folder, x), acts, x_hat)


def test_a_skip_connection_alone_says_transcoder(tmp_path: Path) -> None:
    weights = tensors() | {"W_skip": normal(D, D)}
    spec = describe_place(checkpoint(tmp_path / "layers.3.mlp" / "seed2", CONFIG, weights))
    assert (spec.is_transcoder, spec.site) == (True, Site("mlp_in", 3))


@pytest.mark.parametrize(
    ("config", "weights", "point"),
    [
        ({"activation": "softmax"}, {}, "activation is softmax.*topk, groupmax"),
        ({"activation": "groupmax", "k": 5}, {}, "k is 5: 12 features don't make"),
        ({"activation": "groupmax", "signed": True}, {}, "signed is true"),
        ({"transcode": False}, {"W_skip": normal(D, D)}, "transcode is false: but it has a skip"),
        ({"transcode": True, "skip_connection": True}, {}, "no tensor 'W_skip'"),
        ({"transcode": True}, {"W_skip": normal(D, D - 1)}, r"'W_skip' has shape \[6, 5\]"),
        ({}, {"W_decs.0": normal(F, D)}, "W_decs.0.*cross-layer"),
        ({"transcode": "yes"}, {}, "transcode is yes: expected true or false"),
        ({"transcode": True}, {"b_dec": np.full(D, np.nan, np.float32)}, "NaN"),
    ],
)
def test_refusals(tmp_path: Path, config: Config, weights: dict[str, Array], point: str) -> None:
    folder = checkpoint(tmp_path / "layers.1", CONFIG | config, tensors() | weights)
    with pytest.raises(CheckpointError, match=point):
        spec = describe_place(folder)
        reader_of(spec).load(spec, "cpu")
