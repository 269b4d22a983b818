"""SAELens' `architecture: temporal`: cfg.json and sae_weights.safetensors, against the reference of
`test_temporal.py` (float64, token by token); `test_parity.py` compares with the library itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_temporal
import torch
from safetensors.torch import save_file
from test_temporal import HEADS, HERE, SCALE, Array, D, F, opened, reference, rows_of, through

from autointerp.dictionaries.locate import find_dictionary
from autointerp.errors import CheckpointError

METADATA = {"hook_name": "blocks.4.hook_resid_post", "model_name": "org/m", "context_size": 500}
NAMES = {"D": "W_dec", "E": "W_enc", "b": "b_dec"}


def checkpoint(folder: Path, t: dict[str, Array], **config: Any) -> Path:
    """`t`: as the original format names tensors; None in `config` is written as null."""
    width, d_in = t["D"].shape
    own: dict[str, Any] = {
        "architecture": "temporal", "d_in": d_in, "d_sae": width, "n_heads": HEADS, "dtype": "float32",
        "n_attn_layers": sum(name.endswith("k_ctx.weight") for name in t), "sae_diff_type": "topk", "kval_topk": 3,
        "bottleneck_factor": width // len(t["attn_layers.0.k_ctx.bias"]), "tied_weights": "E" not in t,
        "normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": SCALE,
        "apply_b_dec_to_input": True, "reshape_activations": "none", "metadata": METADATA,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(own | config))
    stored = {NAMES.get(name, name): torch.tensor(value) for name, value in t.items()}
    save_file(stored | {"b_dec": stored["b_dec"][0].clone()}, folder / "sae_weights.safetensors")
    return folder


def expected(t: dict[str, Array], x_BTD: Array, lengths: list[int], k: int | None) -> tuple[Array, Array]:
    """(codes [N, F], reconstruction [N, D])"""
    parts = [reference(t, x_BTD[row, :length], k) for row, length in enumerate(lengths)]
    return np.concatenate([z for z, _ in parts]), np.concatenate([y for _, y in parts])


def assert_close(found: tuple[Array, Array], wanted: tuple[Array, Array]) -> None:
    assert 0.05 < (wanted[0] > 0).mean() < 0.8, "a reference that hardly or always fires tests nothing"
    np.testing.assert_array_equal(found[0] > 0, wanted[0] > 0)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-6 * np.abs(other).max())


KINDS: dict[str, tuple[dict[str, Array], dict[str, Any], int | None]] = {
    "tied, top k": (test_temporal.tensors(), {}, 3),
    "an encoder of its own, two layers": (test_temporal.tensors(2, tied=False), {}, 3),
    "relu": (test_temporal.tensors(), {"sae_diff_type": "relu", "kval_topk": None}, None),
    "top k of null, which are all": (test_temporal.tensors(), {"kval_topk": None}, None),
}


@pytest.mark.parametrize("name", KINDS)
def test_codes_are_of_what_the_tokens_before_leave(tmp_path: Path, name: str) -> None:
    t, config, k = KINDS[name]
    encoder = opened(checkpoint(tmp_path / "a", t, **config))
    spec = encoder.spec
    assert (spec.format, spec.site, spec.model, spec.k) == ("saelens", HERE, "org/m", k)
    assert any("attention over the tokens before" in note for note in spec.notes)
    lengths = [9, 1, 4]
    x_BTD = rows_of(lengths)
    assert_close(through(encoder, x_BTD, lengths), expected(t, x_BTD, lengths, k))
    alone, _ = through(encoder, x_BTD[:1, 8:9], [1])
    in_its_row, _ = through(encoder, x_BTD[:1], [9])
    assert not np.allclose(alone[0], in_its_row[8], atol=1e-3), "the context matters"


def test_inputs_are_multiplied_only_where_it_says_so(tmp_path: Path) -> None:
    """With normalize_activations none the factor beside it is not used: the same as inputs and outputs divided by
    it where it is."""
    t, lengths = test_temporal.tensors(), [5, 7]
    encoder = opened(checkpoint(tmp_path / "a", t, normalize_activations="none"))
    x_BTD = rows_of(lengths)
    codes, x_hat = expected(t, x_BTD / SCALE, lengths, 3)
    assert_close(through(encoder, x_BTD, lengths), (codes, SCALE * x_hat))


@pytest.mark.parametrize("tied", [True, False])
def test_b_dec_that_is_not_subtracted(tmp_path: Path, tied: bool) -> None:
    """apply_b_dec_to_input false: codes of a dictionary without b; b / scale in the reconstruction only where the
    encoder is one of its own."""
    t, lengths = test_temporal.tensors(tied=tied), [5, 7]
    encoder = opened(checkpoint(tmp_path / "a", t, apply_b_dec_to_input=False))
    assert any("b is not subtracted" in note for note in encoder.spec.notes)
    x_BTD = rows_of(lengths)
    codes, x_hat = expected(t | {"b": np.zeros_like(t["b"])}, x_BTD, lengths, 3)
    assert_close(through(encoder, x_BTD, lengths), (codes, x_hat if tied else x_hat + t["b"] / SCALE))
    assert not np.allclose(codes, expected(t, x_BTD, lengths, 3)[0], atol=1e-3)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n_attn_layers": 2}, r"holds 1 layers of attention, but cfg.json says that n_attn_layers is 2"),
    ({"n_attn_layers": 2**40}, r"n_attn_layers is 1099511627776"),
    ({"sae_diff_type": "batchtopk"}, r"sae_diff_type is batchtopk: of temporal dictionaries topk and relu"),
    ({"kval_topk": 13}, r"kval_topk is 13: it has 12 features"),
    ({"n_heads": 5}, r"n_heads is 5: the 12 features can't be shared out"),
    ({"normalize_activations": "layer_norm"}, r"normalize_activations is layer_norm: of temporal"),
    (
        {"normalize_activations": "expected_average_only_in"},
        r"of temporal dictionaries none and constant_scalar",
    ),
    ({"activation_normalization_factor": -1}, r"multiplied by -1.0; a number above 0"),
    ({"tied_weights": False}, r"has no tensor 'W_enc'"),
    ({"bottleneck_factor": 3}, r"'attn_layers.0.k_ctx.weight' has shape \[6, 12\]"),
    (
        {"architecture": "standard"},
        r"normalize_activations is constant_scalar_rescale: this is read for temporal",
    ),
    (
        {"architecture": "standard", "normalize_activations": "none"},
        r"'attn_layers.0.k_ctx.weight', which only temporal dictionaries have",
    ),
    (
        {"metadata": METADATA | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
        "centring is not read",
    ),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_what_does_not_fit_together_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_dictionary(str(checkpoint(tmp_path / "a", test_temporal.tensors(), **config)))


def test_an_encoder_beside_a_tied_decoder_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", test_temporal.tensors(tied=False), tied_weights=True)
    with pytest.raises(CheckpointError, match="holds an encoder, W_enc"):
        find_dictionary(str(folder))


def test_it_has_as_many_features_as_it_says(tmp_path: Path) -> None:
    spec = find_dictionary(str(checkpoint(tmp_path / "a", test_temporal.tensors())))
    assert (spec.d_in, spec.width, spec.selector, spec.context_length) == (D, F, "topk", 500)
