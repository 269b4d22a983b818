"""PolySAE's files, as its own copy of SAELens saves them, against the polynomial in float64 numpy.

Source of the layout: pakoromilas/PolySAE at 7cf6ead: sae_lens/saes/polysae.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_codes import Array, D, F, N, exact, inputs, largest
from safetensors.torch import save_file

from autointerp.dictionaries.convert import convert
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import CheckpointError

K, RANKS = 3, (5, 4, 2)
OF_TRAINING = {"decoder_init_norm": 0.1, "aux_loss_coefficient": 1.0}


def tensors(*, shared: bool, order: int = 3, seed: int = 0) -> dict[str, Array]:
    """All that is stored: of a shared U zeros for the three, of a lower order zeros for what it leaves out."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    for term, rank in enumerate(RANKS, 1):
        shapes |= {f"U{term}": (F, rank), f"C{term}": (D, rank)}
    shapes |= {"lambda2": (), "lambda3": ()} | ({"U_shared": (F, RANKS[0])} if shared else {})
    found = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
    zeros = {"U1", "U2", "U3"} if shared else set[str]()
    for term in range(order + 1, 4):
        zeros |= {f"U{term}", f"C{term}", f"lambda{term}"}
    return {name: np.zeros_like(value) if name in zeros else value for name, value in found.items()}


def checkpoint(
    folder: Path,
    t: dict[str, Array],
    architecture: str = "poly_topk",
    *,
    scale: float | None = None,
    **config: Any,
) -> Path:
    own: dict[str, Any] = {
        "architecture": architecture, "d_in": D, "d_sae": F, "k": K, "dtype": "float32", "poly_rank": None,
        "poly_ranks": list(RANKS), "poly_order": 3, "shared_u": "U_shared" in t, "lambda2_init": -0.5,
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2", "sae_lens_version": "6.22.3"},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(own | config))
    save_file({name: torch.tensor(value) for name, value in t.items()}, folder / "sae_weights.safetensors")
    if scale is not None:
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    return folder


def decoded(t: dict[str, Array], z_NF: Array) -> Array:
    """Without b_dec; element by element of the rank."""
    t = exact(t)
    u = [t.get("U_shared", t[f"U{term}"])[:, :rank] for term, rank in enumerate(RANKS, 1)]
    x_ND = z_NF @ u[0] @ t["C1"].T
    for term in (2, 3):
        product = np.ones((len(z_NF), RANKS[term - 1]))
        for r in range(RANKS[term - 1]):
            for one in u[:term]:
                product[:, r] *= z_NF @ one[:, r]
        x_ND = x_ND + t[f"lambda{term}"] * product @ t[f"C{term}"].T
    return x_ND


def scores(t: dict[str, Array], x: Array, norm_F: Array | float) -> Array:
    t = exact(t)
    return ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norm_F


def linear(t: dict[str, Array]) -> Array:
    t = exact(t)
    return t["U_shared" if "U_shared" in t else "U1"] @ t["C1"].T


def loaded(folder: Path) -> tuple[DictionarySpec, Weights, Array]:
    """And the codes [N, F] of `inputs`."""
    spec = find_dictionary(str(folder))
    weights = reader_of(spec).load(spec, "cpu")
    codes, acts = Encoder(spec, weights).encode(torch.tensor(inputs())), np.zeros((N, F))
    acts[codes.token_M, codes.feature_M] = codes.value_M
    return spec, weights, acts


def assert_codes(found: Array, expected: Array) -> None:
    assert 0.05 < (expected > 0).mean() < 0.8, "a reference that hardly or always fires tests nothing"
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * expected.max())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("norms", ["none", "of training", "saved for inference"])
def test_topk(tmp_path: Path, shared: bool, order: int, norms: str) -> None:
    """In training scores have the norms of what the decoder makes of each feature alone; saved for inference, those
    that W_dec has there. A direction times an activation is what the linear term gives for the code."""
    t = tensors(shared=shared, order=order)
    config = {"rescale_acts_by_decoder_norm": norms != "none", "poly_order": order}
    config |= OF_TRAINING if norms == "of training" else {}
    spec, weights, acts = loaded(checkpoint(tmp_path / "a", t, **config))
    alone, stored = np.linalg.norm(decoded(t, np.eye(F)), axis=1), np.linalg.norm(t["W_dec"], axis=1)
    norm_F = {"none": np.ones(F), "of training": alone, "saved for inference": stored}[norms]
    score = scores(t, inputs(), norm_F)
    assert_codes(acts, np.maximum(score * largest(score, K), 0))
    np.testing.assert_allclose(weights.decoder, linear(t) / norm_F[:, None], rtol=1e-4, atol=1e-5)
    assert not spec.reconstructs and "not linear" in spec.notes[0] and "2602.01322" in spec.notes[0]
    assert (spec.approximation is not None) == (norms == "saved for inference")
    assert (spec.selector, spec.k, str(spec.site)) == ("topk", K, "layers.3")


@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("architecture", ["poly_batchtopk", "poly_matryoshka"])
def test_batch_topk_of_training(tmp_path: Path, architecture: str, rescales: bool) -> None:
    t = tensors(shared=True)
    norm_F = np.linalg.norm(decoded(t, np.eye(F)), axis=1) if rescales else np.ones(F)
    score = scores(t, inputs(), norm_F)
    threshold = float(np.quantile(score, 0.7))
    config = OF_TRAINING | {"k": 2.5, "rescale_acts_by_decoder_norm": rescales}
    config |= {"matryoshka_widths": [4, F]} if architecture == "poly_matryoshka" else {}
    stored = t | {"topk_threshold": np.array(threshold, np.float64)}
    spec, _, acts = loaded(checkpoint(tmp_path / "a", stored, architecture, **config))
    assert_codes(acts, score * (score > threshold))
    assert spec.expected.l0 == 2.5
    assert spec.group_sizes == ((4, F - 4) if architecture == "poly_matryoshka" else ())


def test_jumprelu(tmp_path: Path) -> None:
    """As batch-top-k is saved for inference, too."""
    t = tensors(shared=True) | {"threshold": np.linspace(0.2, 4, F, dtype=np.float32)}
    score = scores(t, inputs(), 1.0)
    spec, weights, acts = loaded(checkpoint(tmp_path / "a", t, "poly_jumprelu"))
    assert_codes(acts, score * (score > exact(t)["threshold"]))
    np.testing.assert_allclose(weights.decoder, linear(t), rtol=1e-4, atol=1e-5)
    assert spec.selector == "jumprelu" and not spec.reconstructs


@pytest.mark.parametrize("shared", [True, False])
def test_of_order_1_it_reconstructs(tmp_path: Path, shared: bool) -> None:
    """The linear term is all there is; W_dec, which is stored beside it, is no part of it."""
    t = tensors(shared=shared, order=1)
    spec, weights, acts = loaded(checkpoint(tmp_path / "a", t, poly_order=1))
    assert spec.reconstructs and "U1 C1^T" in spec.notes[0]
    encoder, x = Encoder(spec, weights), torch.tensor(inputs())
    x_hat = encoder.decode(encoder.encode(x), x)
    expected = decoded(t, acts) + t["b_dec"]
    np.testing.assert_allclose(x_hat, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("rescales", [True, False])
def test_the_factor_of_a_training_checkpoint_is_folded_in(tmp_path: Path, rescales: bool) -> None:
    """Codes of inputs times the factor; directions are divided by it. With norms in them, scores are those of the
    directions as they are then."""
    t, factor = tensors(shared=False), 0.25
    config = OF_TRAINING | {"rescale_acts_by_decoder_norm": rescales, "poly_ranks": list(RANKS)}
    config["normalize_activations"] = "expected_average_only_in"
    _, weights, acts = loaded(checkpoint(tmp_path / "a", t, scale=factor, **config))
    norm_F = np.linalg.norm(decoded(t, np.eye(F)), axis=1) / factor if rescales else np.ones(F)
    score = scores(t, inputs() * factor, norm_F)
    assert_codes(acts, np.maximum(score * largest(score, K), 0))
    np.testing.assert_allclose(weights.decoder, linear(t) / factor / norm_F[:, None], rtol=1e-4, atol=1e-5)


def test_one_rank_for_all_terms_or_as_many_as_numbers_of_a_vector(tmp_path: Path) -> None:
    t = tensors(shared=True)
    assert find_dictionary(str(checkpoint(tmp_path / "a", t, poly_ranks=None, poly_rank=RANKS[0]))).width == F
    with pytest.raises(CheckpointError, match=r"'U_shared' has shape \[10, 5\].*rank 6"):
        find_dictionary(str(checkpoint(tmp_path / "b", t, poly_ranks=None)))


def test_it_is_converted_to_the_same_codes_and_directions(tmp_path: Path) -> None:
    t = tensors(shared=True)
    config = OF_TRAINING | {"rescale_acts_by_decoder_norm": True}
    folder = checkpoint(tmp_path / "a", t, **config)
    _, weights, acts = loaded(folder)
    assert "own layout" in convert(str(folder), tmp_path / "out").layout
    spec, again, found = loaded(tmp_path / "out")
    assert_codes(found, acts)
    assert torch.equal(again.decoder, weights.decoder) and not spec.reconstructs


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"poly_ranks": [4, 5, 2]}, r"poly_ranks is .4, 5, 2.: expected three numbers"),
    ({"poly_ranks": [5, 4]}, "expected three numbers"),
    ({"poly_ranks": "5"}, "expected three numbers"),
    ({"poly_ranks": [6, 4, 2]}, r"'U_shared' has shape \[10, 5\]"),
    ({"poly_order": 4}, "poly_order is 4: of PolySAE it is 1, 2 or 3"),
    ({"normalize_activations": "covariance_whitening"}, "for a transcoder or a PolySAE this is not read"),
    ({"architecture": "poly_batchtopk"}, "no tensor 'topk_threshold'"),
    ({"architecture": "poly_gated"}, "architecture is poly_gated: this is not read.*poly_topk"),
    ({"architecture": "topk"}, "'C1', which only PolySAE's dictionaries have.*architecture is topk"),
    (
        {"architecture": "poly_jumprelu", "rescale_acts_by_decoder_norm": True},
        "rescale_acts_by_decoder_norm is true: this is read for topk",
    ),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_what_does_not_fit_together_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_dictionary(str(checkpoint(tmp_path / "a", tensors(shared=True), **config)))


def test_a_shared_u_that_is_missing_is_named(tmp_path: Path) -> None:
    """Its U1 would be all zeros."""
    with pytest.raises(CheckpointError, match="no tensor 'U_shared'"):
        find_dictionary(str(checkpoint(tmp_path / "a", tensors(shared=False), shared_u=True)))
