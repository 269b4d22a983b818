"""Checkpoints in every documented layout, codes against slow dense references, and files gone wrong.

The references below are written from SAELens' and sparsify's own code, in dense float64 numpy, and share
nothing with `autointerp.dictionaries`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

from autointerp import plugins
from autointerp.dictionaries.checkpoint import shortened
from autointerp.dictionaries.encode import Codes, Encoder
from autointerp.dictionaries.hub_files import wanted_files
from autointerp.dictionaries.locate import describe_place, find_dictionary, reader_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import CheckpointError, ModelError
from autointerp.types import Site

save_file = cast(Callable[[dict[str, NDArray[Any]], Path], None], cast(Any, safetensors_numpy).save_file)
load_file = cast(Callable[[Path], dict[str, NDArray[Any]]], cast(Any, safetensors_numpy).load_file)
save_torch = cast(Callable[[dict[str, torch.Tensor], Path], None], cast(Any, safetensors_torch).save_file)
tensor = cast(Callable[[NDArray[Any]], torch.Tensor], cast(Any, torch).from_numpy)

Array = NDArray[Any]
Config = dict[str, Any]

REAL = Path(__file__).parents[2] / "shared" / "real"
D, F = 6, 10


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]  # used by pytest
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- checkpoints ---------------------------------------------------------------------------------------


def tensors(seed: int = 0, d_in: int = D, width: int = F) -> dict[str, Array]:
    """SAELens' tensors, random; decoder rows have norms far from one."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "W_enc": normal(d_in, width),
        "b_enc": normal(width),
        "W_dec": normal(width, d_in),
        "b_dec": normal(d_in),
    }


V6: Config = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.9.1",
        "model_name": "EleutherAI/pythia-70m",
        "hook_name": "blocks.3.hook_resid_post",
        "context_size": 128,
        "prepend_bos": True,
        "dataset_path": "org/pile",
    },
}
FLAT: Config = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.8.hook_resid_pre",
    "hook_point_layer": 8,
    "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext",
    "context_size": 128,
    "d_in": D,
    "d_sae": F,
    "dtype": "torch.float32",
}
SPARSIFY: Config = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": F,
    "k": 3,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}
RUN: Config = {"sae": {"k": 3}, "model": "org/model", "dataset": "org/data", "ctx_len": 2048}


def saelens(folder: Path, config: Config, weights: dict[str, Array] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(weights or tensors(), folder / "sae_weights.safetensors")
    return folder


def sparsify(folder: Path, config: Config = SPARSIFY, weights: dict[str, Array] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(weights or sparsify_tensors(), folder / "sae.safetensors")
    return folder


def sparsify_tensors() -> dict[str, Array]:
    t = tensors()
    return {
        "encoder.weight": np.ascontiguousarray(t["W_enc"].T),
        "encoder.bias": t["b_enc"],
        "W_dec": t["W_dec"],
        "b_dec": t["b_dec"],
    }


def without(config: Config, *keys: str) -> Config:
    return {key: value for key, value in config.items() if key not in keys}


def load(folder: Path) -> tuple[DictionarySpec, Weights]:
    spec = find_dictionary(str(folder))
    return spec, reader_of(spec).load(spec, "cpu")


# --- dense references ----------------------------------------------------------------------------------


def reference(x: Array, t: dict[str, Array], config: Config) -> tuple[Array, Array, Array]:
    """(activations [N, F], how far each is from being decided otherwise [N, F], reconstruction [N, D]).

    In float64, as sae_lens/saes/{sae,standard_sae,jumprelu_sae,topk_sae}.py compute them.
    """
    x = x.astype(np.float64)
    w_enc, b_enc = t["W_enc"].astype(np.float64), t["b_enc"].astype(np.float64)
    w_dec, b_dec = t["W_dec"].astype(np.float64), t["b_dec"].astype(np.float64)
    mean, scale = np.zeros((len(x), 1)), np.ones((len(x), 1))
    normalise = config.get("normalize_activations", "none")
    if normalise == "layer_norm":
        mean = x.mean(1, keepdims=True)
        scale = x.std(1, ddof=1, keepdims=True)
        x = (x - mean) / (scale + 1e-5)
    elif normalise == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
        x = x / scale
    pre = (x - b_dec * config.get("apply_b_dec_to_input", True)) @ w_enc + b_enc
    gated = config.get("rescale_acts_by_decoder_norm")
    norms = np.linalg.norm(w_dec, axis=1) if gated else np.ones(len(w_dec))
    pre = pre * norms
    acts, margin = np.maximum(pre, 0.0), np.abs(pre)
    if config["architecture"] == "jumprelu":
        acts = acts * (pre > t["threshold"])
        margin = np.minimum(margin, np.abs(pre - t["threshold"]))
    if config["architecture"] == "topk":
        descending = -np.sort(-pre, axis=1)
        acts = acts * (pre >= descending[:, config["k"] - 1, None])
        # Distance to the other side of the gap between the k-th and the next.
        gap = descending[:, config["k"] - 1 : config["k"] + 1]
        margin = np.minimum(margin, np.abs(pre[:, :, None] - gap[:, None, :]).max(axis=2))
    return acts, margin, ((acts / norms) @ w_dec + b_dec) * scale + mean


def dense(codes: Codes, n_tokens: int, width: int) -> Array:
    """[N, F], after a check that the codes are what `Codes` promises."""
    token, feature, value = (c.numpy() for c in (codes.token_M, codes.feature_M, codes.value_M))
    assert (token.dtype, feature.dtype, value.dtype) == (np.int64, np.int64, np.float32)
    assert (value > 0).all()
    places = token * width + feature
    assert (np.diff(places) > 0).all(), "sorted by token, then feature, each once"
    out = np.zeros(n_tokens * width, np.float32)
    out[places] = value
    return out.reshape(n_tokens, width)


def assert_codes(found: Array, expected: Array, scale: float) -> None:
    """Equal to a relative error of 1e-5, of the largest one where cancellation leaves little."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * max(scale, 1.0))


# --- what describe says --------------------------------------------------------------------------------


def test_saelens_6(tmp_path: Path) -> None:
    spec = find_dictionary(str(saelens(tmp_path / "a", V6)))
    assert spec.format == "saelens"
    assert (spec.d_in, spec.width, spec.selector, spec.k) == (D, F, "relu", None)
    assert (spec.hook, spec.site) == ("blocks.3.hook_resid_post", Site("resid_post", 3))
    assert (spec.model, spec.corpus) == ("EleutherAI/pythia-70m", "org/pile")
    assert (spec.context_length, spec.prepend_bos) == (128, True)
    assert (spec.transform, spec.decoder_norm_gate) == ((), False)


def test_saelens_before_6(tmp_path: Path) -> None:
    """Flat, with `hook_point`; what is absent has SAELens' defaults; the model's name becomes a hub id."""
    spec = find_dictionary(str(saelens(tmp_path / "a", FLAT)))
    assert (spec.hook, spec.site) == ("blocks.8.hook_resid_pre", Site("resid_pre", 8))
    assert (spec.model, spec.corpus, spec.prepend_bos) == ("gpt2", "Skylion007/openwebtext", True)


def test_saelens_before_6_hides_topk(tmp_path: Path) -> None:
    config = FLAT | {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "hook_name": "blocks.2.hook_mlp_out",
    }
    spec = describe_place(saelens(tmp_path / "a", without(config, "hook_point")))
    assert (spec.selector, spec.k, spec.site) == ("topk", 4, Site("mlp_out", 2))


def test_saelens_template_hook(tmp_path: Path) -> None:
    config = FLAT | {"hook_point": "blocks.{layer}.hook_resid_pre"}
    assert describe_place(saelens(tmp_path / "a", config)).site == Site("resid_pre", 8)


def test_saelens_hook_unknown_or_absent_leaves_the_site_open(tmp_path: Path) -> None:
    """The recipe's `hook` can name the site; what the checkpoint says is kept for the message."""
    odd = describe_place(saelens(tmp_path / "a", FLAT | {"hook_point": "blocks.2.hook_mlp_in"}))
    assert (odd.hook, odd.site) == ("blocks.2.hook_mlp_in", None)
    none = describe_place(saelens(tmp_path / "b", without(FLAT, "hook_point")))
    assert (none.hook, none.site) == (None, None)


def test_sparsify(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RUN))
    spec = find_dictionary(str(sparsify(tmp_path / "layers.7")))
    assert spec.format == "sparsify"
    assert (spec.d_in, spec.width, spec.selector, spec.k) == (D, F, "topk", 3)
    assert (spec.hook, spec.site) == ("layers.7.output", Site("resid_post", 7))
    assert (spec.model, spec.corpus, spec.context_length) == ("org/model", "org/data", 2048)
    assert spec.prepend_bos is False


@pytest.mark.parametrize(
    ("folder", "site"),
    [
        ("h.7.mlp", Site("mlp_out", 7)),
        ("layers.3.mlp", Site("mlp_out", 3)),
        ("layers.3/seed1", Site("resid_post", 3)),
        ("layer_5", Site("resid_pre", 5)),
        ("my_dictionary", None),
    ],
)
def test_sparsify_site_is_the_folder(tmp_path: Path, folder: str, site: Site | None) -> None:
    """A seed's folder is not the hook point; `layer_5` of early versions is the input of layer 5."""
    (tmp_path / "config.json").write_text(json.dumps(RUN))
    spec = describe_place(sparsify(tmp_path / folder))
    assert spec.site == site
    assert spec.model == "org/model"


def test_sparsify_width_from_expansion_factor(tmp_path: Path) -> None:
    config = without(SPARSIFY, "num_latents", "activation") | {"expansion_factor": 2}
    t = tensors(width=2 * D)
    weights = {
        "encoder.weight": np.ascontiguousarray(t["W_enc"].T),
        "encoder.bias": t["b_enc"],
        "W_dec": t["W_dec"],
        "b_dec": t["b_dec"],
    }
    assert describe_place(sparsify(tmp_path / "layers.0", config, weights)).width == 2 * D


def test_the_weights_file_names_its_folder(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "a", V6)
    assert find_dictionary(str(folder / "sae_weights.safetensors")) == find_dictionary(str(folder))


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    one, same = saelens(tmp_path / "a", V6), saelens(tmp_path / "b", V6)
    other = saelens(tmp_path / "c", V6, tensors(seed=1))
    third = saelens(tmp_path / "d", V6 | {"apply_b_dec_to_input": False})
    identities = [describe_place(folder).identity for folder in (one, same, other, third)]
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_demo() -> None:
    from autointerp import demo

    if not (Path(demo.DICTIONARY) / "cfg.json").is_file():
        pytest.skip("the demo dictionary is not built yet")
    assert find_dictionary("demo").format == "saelens"


def test_formats_are_listed_without_importing_them() -> None:
    readers = set(plugins.names("dictionaries"))
    assert {
        "circuit_tracer",
        "dictionary_learning",
        "saelens",
        "sparsify",
        "gemma_scope",
        "gemma_scope_2",
        "openai",
        "qwen_scope",
    } <= readers
    # Their neighbours in the folder hold classes too.
    assert not readers & {"spec", "headers", "tensors", "layouts", "pickled", "torch_files", "encode"}


@pytest.mark.parametrize("layout", ["saelens", "sparsify"])
def test_describe_imports_no_torch(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "layers.1"
    folder = saelens(folder, V6) if layout == "saelens" else sparsify(folder)
    program = (
        "import sys; from autointerp.dictionaries.locate import find_dictionary\n"
        f"print(find_dictionary({str(folder)!r}).width)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == [str(F), "[]"]


# --- codes ---------------------------------------------------------------------------------------------

THRESHOLD = np.linspace(-0.5, 2.0, F, dtype=np.float32)
VARIANTS: dict[str, Config] = {
    "relu": V6,
    "no pre-bias": V6 | {"apply_b_dec_to_input": False},
    "jumprelu": V6 | {"architecture": "jumprelu"},
    "topk": V6 | {"architecture": "topk", "k": 3},
    "topk by decoder norm": V6 | {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True},
    "layer norm": V6 | {"normalize_activations": "layer_norm"},
    "constant norm": V6 | {"architecture": "topk", "k": 3, "normalize_activations": "constant_norm_rescale"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_saelens_codes_are_saelens_own(tmp_path: Path, name: str) -> None:
    config, weights = VARIANTS[name], tensors()
    if config["architecture"] == "jumprelu":
        weights["threshold"] = THRESHOLD
    x = np.random.default_rng(5).normal(1.0, 2.0, size=(50, D)).astype(np.float32)
    acts, _, x_hat = reference(x, weights, config)
    encoder = Encoder(*load(saelens(tmp_path / "a", config, weights)), max_elements=7 * F)
    codes = encoder.encode(tensor(x))
    assert_codes(dense(codes, 50, F), acts, np.abs(acts).max())
    np.testing.assert_allclose(encoder.decode(codes, tensor(x)), x_hat, rtol=1e-4, atol=1e-4)


def test_sparsify_codes_are_sparsify_own(tmp_path: Path) -> None:
    """ReLU first, then top-k, and b_dec is always subtracted (fused_encoder.py)."""
    weights = sparsify_tensors()
    x = np.random.default_rng(5).normal(1.0, 2.0, size=(50, D)).astype(np.float32)
    pre = np.maximum((x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"], 0)
    acts = np.where(pre >= np.sort(pre, axis=1)[:, -3][:, None], pre, 0)
    encoder = Encoder(*load(sparsify(tmp_path / "layers.1")))
    codes = encoder.encode(tensor(x))
    assert_codes(dense(codes, 50, F), acts, np.abs(acts).max())
    x_hat = acts @ weights["W_dec"] + weights["b_dec"]
    np.testing.assert_allclose(encoder.decode(codes, tensor(x)), x_hat, rtol=1e-4, atol=1e-4)


def spec_of(selector: Any, k: int | None, d_in: int, width: int, **more: Any) -> DictionarySpec:
    return DictionarySpec(
        "saelens", Path(), "", d_in, width, selector, k, None, None, None, None, None, False, **more
    )


def weights_of(t: dict[str, Array]) -> Weights:
    one = {name: tensor(value) for name, value in t.items()}
    return Weights(one["W_enc"], one["b_enc"], one["b_dec"], one["W_dec"], one["b_dec"], one.get("threshold"))


@settings(max_examples=150)
@given(data=st.data())
def test_codes_equal_the_dense_reference(data: st.DataObject) -> None:
    """Any shape, selector, k, threshold, transform, chunk and input scale."""
    width = data.draw(st.integers(1, 40))
    n_tokens, seed = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    config: Config = {
        "architecture": data.draw(st.sampled_from(["standard", "jumprelu", "topk"])),
        "normalize_activations": data.draw(st.sampled_from(["none", "layer_norm", "constant_norm_rescale"])),
    }
    # Layer norm of few dimensions divides by what cancellation left: a matter of the input, not of codes.
    d_in = data.draw(st.integers(8 if config["normalize_activations"] == "layer_norm" else 2, 12))
    t = tensors(seed, d_in, width)
    transforms = {"none": (), "layer_norm": ("layer_norm",), "constant_norm_rescale": ("constant_norm",)}
    k = data.draw(st.integers(1, width)) if config["architecture"] == "topk" else None
    gate = k is not None and data.draw(st.booleans())
    config |= {"k": k, "rescale_acts_by_decoder_norm": gate}
    if config["architecture"] == "jumprelu":
        t["threshold"] = rng.normal(0.5, 1.0, width).astype(np.float32)
    normalise = config["normalize_activations"]
    spec = spec_of(
        {"standard": "relu"}.get(config["architecture"], config["architecture"]),
        k,
        d_in,
        width,
        transform=transforms[normalise],
        decoder_norm_gate=gate,
    )
    scale = data.draw(st.sampled_from([0.1, 1.0, 30.0]))
    x = rng.normal(0.0, scale, size=(n_tokens, d_in)).astype(np.float32)
    encoder = Encoder(spec, weights_of(t), max_elements=data.draw(st.integers(1, 500)))
    codes = encoder.encode(tensor(x))
    found, (expected, margin, x_hat) = dense(codes, n_tokens, width), reference(x, t, config)
    largest = float(np.abs(expected).max(initial=1.0))
    decided_otherwise = (found > 0) != (expected > 0)
    if decided_otherwise.any():  # float32 against float64: only where the two sides are as good as equal
        assert margin[decided_otherwise].max() < 1e-5 * largest
        return
    assert_codes(found, expected, largest)
    rebuilt = encoder.decode(codes, tensor(x)).numpy()
    np.testing.assert_allclose(rebuilt, x_hat, rtol=1e-4, atol=1e-5 * float(np.abs(x_hat).max(initial=1.0)))


def exact(
    pre: list[list[float]], selector: str, k: int | None = None, threshold: list[float] | None = None
) -> Array:
    """Codes of just these pre-activations: the encoder is the identity."""
    x = np.array(pre, np.float32)
    width = x.shape[1]
    eye, zero = np.eye(width, dtype=np.float32), np.zeros(width, np.float32)
    t = {"W_enc": eye, "b_enc": zero, "W_dec": eye, "b_dec": zero}
    if threshold is not None:
        t["threshold"] = np.array(threshold, np.float32)
    encoder = Encoder(spec_of(selector, k, width, width), weights_of(t))
    return dense(encoder.encode(tensor(x)), len(x), width)


def test_jumprelu_is_strict_and_positive() -> None:
    """At the threshold: silent. Above a negative threshold but not positive: silent."""
    found = exact([[1.0, 1.5, -0.5, 0.0]], "jumprelu", threshold=[1.0, 1.0, -1.0, -1.0])
    assert found.tolist() == [[0.0, 1.5, 0.0, 0.0]]


def test_relu_zero_is_silent() -> None:
    assert exact([[0.0, -1.0, 2.0]], "relu").tolist() == [[0.0, 0.0, 2.0]]


def test_topk_keeps_only_positive_ones() -> None:
    assert exact([[-1.0, 3.0, -2.0], [-1.0, -3.0, -2.0]], "topk", k=2).tolist() == [[0, 3, 0], [0, 0, 0]]


def test_topk_ties_keep_k() -> None:
    found = exact([[2.0, 1.0, 1.0, 1.0]], "topk", k=2)
    assert (found > 0).sum() == 2
    assert found[0, 0] == 2.0


def test_no_tokens() -> None:
    encoder = Encoder(spec_of("relu", None, D, F), weights_of(tensors()))
    codes = encoder.encode(torch.zeros(0, D))
    assert len(codes) == 0
    assert encoder.decode(codes, torch.zeros(0, D)).shape == (0, D)


def test_half_precision_activations_are_encoded_in_float32() -> None:
    encoder = Encoder(spec_of("relu", None, D, F), weights_of(tensors()))
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    half, full = encoder.encode(x), encoder.encode(x.float())
    assert torch.equal(half.value_M, full.value_M)


def test_activations_that_are_not_finite_are_an_error() -> None:
    encoder = Encoder(spec_of("relu", None, D, F), weights_of(tensors()))
    x = torch.zeros(4, D)
    x[2, 1] = torch.inf
    with pytest.raises(ModelError, match="1 of 4 tokens"):
        encoder.encode(x)


def test_a_large_pre_bias_is_folded_exactly() -> None:
    """b_pre = 1e4 in every dimension: the fold is summed in float64, and x near it gives small numbers."""
    t = tensors(d_in=64, width=32)
    t["b_dec"] = np.full(64, 1e4, np.float32)
    expected = t["b_enc"] - t["b_dec"].astype(np.float64) @ t["W_enc"].astype(np.float64)
    encoder = Encoder(spec_of("relu", None, 64, 32), weights_of(t), max_elements=100)
    codes = encoder.encode(torch.zeros(1, 64))
    np.testing.assert_allclose(dense(codes, 1, 32)[0], np.maximum(expected, 0), rtol=1e-7)


# --- dtypes and old files ------------------------------------------------------------------------------


def test_bfloat16_and_float64_weights(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        folder = saelens(tmp_path / str(dtype), V6)
        t = {name: tensor(value).to(dtype) for name, value in tensors().items()}
        save_torch(t, folder / "sae_weights.safetensors")
        _, weights = load(folder)
        assert weights.w_enc_DF.dtype == torch.float32
        assert torch.equal(weights.w_enc_DF, t["W_enc"].float())


def test_scaling_factor_of_ones_is_ignored(tmp_path: Path) -> None:
    """Most files of versions 1 and 2 carry one (read_sae_components_from_disk)."""
    ones = tensors() | {"scaling_factor": np.ones(F, np.float32)}
    load(saelens(tmp_path / "a", FLAT, ones))
    other = tensors() | {"scaling_factor": np.full(F, 1.2, np.float32)}
    folder = saelens(tmp_path / "b", FLAT, other)
    with pytest.raises(CheckpointError, match=r"scaling_factor.*fine-tuned"):
        load(folder)


def test_b_dec_is_subtracted_unless_the_file_says_no(tmp_path: Path) -> None:
    _, absent = load(saelens(tmp_path / "a", FLAT))
    assert torch.equal(absent.b_pre_D, absent.b_dec_O)
    _, without_it = load(saelens(tmp_path / "b", FLAT | {"apply_b_dec_to_input": False}))
    assert not without_it.b_pre_D.any()


def test_early_bool_normalisation(tmp_path: Path) -> None:
    assert describe_place(saelens(tmp_path / "a", FLAT | {"normalize_activations": False})).transform == ()


# --- files gone wrong ----------------------------------------------------------------------------------

META = V6["metadata"]
REFUSED: list[tuple[str, Config, str]] = [
    ("activation", FLAT | {"activation_fn_str": "tanh-relu"}, "activation_fn_str is tanh-relu.*relu"),
    ("average", V6 | {"normalize_activations": "expected_average_only_in"}, "fold_activation_norm"),
    ("average, early", FLAT | {"normalize_activations": True}, "fold_activation_norm"),
    (
        "whitening",
        V6 | {"normalize_activations": "covariance_whitening"},
        "whitened inputs.*fold_activation_whitening",
    ),
    ("a head", FLAT | {"hook_point_head_index": 3}, "head_index is 3"),
    ("out", V6 | {"metadata": META | {"hook_name_out": "blocks.3.hook_mlp_out"}}, "transcoder"),
    (
        "gate",
        V6 | {"rescale_acts_by_decoder_norm": True},
        "topk, abstopk, batchtopk, matryoshka_batchtopk only",
    ),
    ("no k", V6 | {"architecture": "topk"}, "no 'k'"),
    ("k 0", V6 | {"architecture": "topk", "k": 0}, "k is 0"),
    ("k bool", V6 | {"architecture": "topk", "k": True}, "k is true: expected a whole number"),
    ("k large", V6 | {"architecture": "topk", "k": F + 1}, "k is 11, more than the 10"),
    ("no d_in", without(V6, "d_in"), "no 'd_in'"),
    ("d_in text", V6 | {"d_in": "six"}, "d_in is six: expected a whole number"),
    ("d_in huge", V6 | {"d_in": 10**30}, "d_in is 10{30}: expected a whole number"),
    ("d_sae wrong", V6 | {"d_sae": F + 1}, r"'b_enc' has shape \[10\].*\[d_sae 11\]"),
    ("swapped", V6 | {"d_in": F, "d_sae": D}, r"'b_dec' has shape \[6\]"),
    ("no threshold", V6 | {"architecture": "jumprelu"}, "no tensor 'threshold'. It has: W_dec"),
    ("metadata", V6 | {"metadata": 3}, "metadata is 3: expected an object"),
]


@pytest.mark.parametrize(("config", "point"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_saelens_configuration_is_refused(tmp_path: Path, config: Config, point: str) -> None:
    if "hook_point_head_index" in config:
        config = {("hook_head_index" if k == "hook_point_head_index" else k): v for k, v in config.items()}
    folder = saelens(tmp_path / "a", config)
    with pytest.raises(CheckpointError, match=point):
        load(folder)


def transposed(name: str) -> dict[str, Array]:
    t = tensors()
    return t | {name: np.ascontiguousarray(t[name].T)}


BAD_WEIGHTS: list[tuple[str, dict[str, Array], str]] = [
    ("swapped axes", transposed("W_enc"), r"'W_enc' has shape \[10, 6\].*\[d_in 6, d_sae 10\].*swapped"),
    ("swapped decoder", transposed("W_dec"), r"'W_dec' has shape \[6, 10\].*swapped"),
    ("integers", tensors() | {"b_enc": np.zeros(F, np.int32)}, "'b_enc' is of dtype I32"),
    (
        "nan",
        tensors() | {"b_enc": np.full(F, np.nan, np.float32)},
        "'b_enc' holds 10 values of 10 that are NaN",
    ),
    ("overflow", tensors() | {"b_enc": np.full(F, 1e300)}, "infinite in float32"),
    ("log_threshold", tensors() | {"log_threshold": np.zeros(F, np.float32)}, "training dump"),
    ("gated", tensors() | {"b_gate": np.zeros(F, np.float32)}, "gated"),
    ("no bias", {k: v for k, v in tensors().items() if k != "b_enc"}, "no tensor 'b_enc'"),
]


@pytest.mark.parametrize(("weights", "point"), [b[1:] for b in BAD_WEIGHTS], ids=[b[0] for b in BAD_WEIGHTS])
def test_saelens_weights_are_refused(tmp_path: Path, weights: dict[str, Array], point: str) -> None:
    folder = saelens(tmp_path / "a", V6, weights)
    with pytest.raises(CheckpointError, match=point):
        load(folder)


@pytest.mark.parametrize(
    ("config", "run", "point"),
    [
        (SPARSIFY | {"n_targets": 4}, RUN, "clt-training"),
        (SPARSIFY | {"k": F + 1}, RUN, "k is 11"),
        (SPARSIFY | {"num_latents": F + 1}, RUN, r"'encoder.bias' has shape \[10\]"),
        (without(SPARSIFY, "num_latents"), RUN, r"num_latents 192\]"),
        (SPARSIFY | {"num_latents": -4}, RUN, "-4 features"),
    ],
)
def test_sparsify_configuration_is_refused(tmp_path: Path, config: Config, run: Config, point: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(run))
    folder = sparsify(tmp_path / "layers.1", config)
    with pytest.raises(CheckpointError, match=point):
        load(folder)


def test_a_header_of_more_tensors_than_any_dictionary_has_is_not_parsed(tmp_path: Path) -> None:
    """Nine megabytes of an object that would be hundreds; a header that long is refused before it is JSON."""
    folder = saelens(tmp_path / "a", V6)
    header = b'{"x":[' + b"[]," * 3_000_000 + b"[]]}"
    (folder / "sae_weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        CheckpointError, match=r"header has 9,000,010 bytes, and none of more than 8,388,608 is read"
    ):
        describe_place(folder)


def test_a_value_nested_too_deep_for_json_is_named_in_a_message() -> None:
    """json.dumps gives up a few levels before json.loads does, so that such a value can come from a file."""
    value: list[object] = []
    for _ in range(sys.getrecursionlimit()):
        value = [value]
    assert shortened(value) == "a list, nested too deep to show"


def test_missing_empty_and_truncated_files(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "a", V6)
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for content, point in [
        (b"", "is empty"),
        (b"\x01\x02", "2 bytes"),
        (b"\xff" * 8 + whole[8:], "header"),
        (whole[:-4], "cut short"),
        (whole[:40], "not a whole safetensors file"),
        (whole[:8] + b"x" + whole[9:], "not JSON"),
    ]:
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match=point):
            describe_place(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has no sae_weights\.safetensors\. It holds: cfg\.json"):
        describe_place(folder)
    weights.write_bytes(whole)
    for content, point in [
        ("", "is empty"),
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ("[" * 10**5, "not JSON"),
    ]:
        (folder / "cfg.json").write_text(content)
        with pytest.raises(CheckpointError, match=point):
            describe_place(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no cfg\.json"):
        describe_place(folder)


def test_files_changed_after_describe(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "a", V6)
    spec = describe_place(folder)
    save_file(tensors(width=F + 1), folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="'b_enc' has shape"):
        reader_of(spec).load(spec, "cpu")


def test_a_folder_of_many_lists_a_dozen(tmp_path: Path) -> None:
    for layer in range(15):
        sparsify(tmp_path / f"layers.{layer}")
    for place in (
        lambda: describe_place(tmp_path),
        lambda: plugins.find("dictionaries", "sparsify")().describe(tmp_path),
    ):
        with pytest.raises(
            CheckpointError, match=r"layers\.0, layers\.1, layers\.10,.* and 1 more"
        ) as caught:
            place()
        assert str(caught.value).count("layers.") == 12


def test_nothing_known_says_what_is_there(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "ae.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"It holds: ae\.safetensors\. Its tensors: x\. Known formats:(?s:.*)\n  SAELens.*\n  sparsify",
    ):
        find_dictionary(str(tmp_path))
    with pytest.raises(CheckpointError, match="no file or folder is called 'no such thing'"):
        find_dictionary("no such thing")


# --- names on the hub ----------------------------------------------------------------------------------


def fake_hub(monkeypatch: pytest.MonkeyPatch, root: Path, files: list[str]) -> list[Config]:
    """A hub with one repository whose snapshot lies in `root`; returns the download calls as they come."""
    import huggingface_hub

    calls: list[Config] = []

    class FakeApi:
        def model_info(self, repo: str, revision: str | None) -> Any:
            siblings = [type("Entry", (), {"rfilename": file})() for file in files]
            return type("Info", (), {"siblings": siblings, "sha": f"sha-of-{revision}"})()

    def download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        return str(root)

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_hub_fetches_one_folder_at_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparsify(tmp_path / "layers.1")
    (tmp_path / "config.json").write_text(json.dumps(RUN))
    files = [
        "config.json",
        "layers.1/cfg.json",
        "layers.1/sae.safetensors",
        "layers.2/sae.safetensors",
        "x.pt",
    ]
    calls = fake_hub(monkeypatch, tmp_path, files)
    spec = find_dictionary("org/repo:layers.1@v1")
    assert (spec.site, spec.model) == (Site("resid_post", 1), "org/model")
    assert calls == [{"repo": "org/repo", "revision": "v1", "allow_patterns": files[:3]}]


def test_hub_repository_of_many_is_listed_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["config.json", *(f"layers.{i}/sae.safetensors" for i in range(3))]
    calls = fake_hub(monkeypatch, tmp_path, files)
    with pytest.raises(CheckpointError, match=r"org/repo:layers\.0, org/repo:layers\.1, org/repo:layers\.2"):
        find_dictionary("org/repo")
    assert calls == []


def test_hub_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    class NoNetwork:
        def model_info(self, repo: str, revision: str | None) -> Any:
            raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "HfApi", NoNetwork)
    with pytest.raises(CheckpointError, match=r"org/no-such-repo.*can't be fetched.*offline"):
        find_dictionary("org/no-such-repo")


def test_wanted_files() -> None:
    files = ["a/b/cfg.json", "a/b/w.safetensors", "a/b/ae.pt", "a/config.json", "a/c/cfg.json", "README.md"]
    assert wanted_files(files, "a/b") == ["a/b/cfg.json", "a/b/w.safetensors", "a/config.json"]
    assert wanted_files(["cfg.json", "sub/cfg.json"], "") == ["cfg.json"]


# --- a real one ----------------------------------------------------------------------------------------


def test_real_dictionary_reconstructs_as_its_source_says() -> None:
    """toy-routing: FVU 0.0007 and mean L0 52 of 64 behind layer 1 (SOURCE.md), over all 16,384 prompts."""
    folder = REAL / "saes" / "toy-routing" / "saelens"
    model_folder = REAL / "models" / "toy-routing-gpt2"
    if not folder.is_dir() or not model_folder.is_dir():
        pytest.skip(f"no real checkpoint in {REAL}")
    from transformers import AutoModelForCausalLM

    spec, weights = load(folder)
    assert (spec.site, spec.context_length) == (Site("resid_post", 1), 5)
    model = cast(Any, AutoModelForCausalLM).from_pretrained(model_folder, dtype=torch.float32).eval()
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append(output if isinstance(output, torch.Tensor) else output[0])

    model.transformer.h[1].register_forward_hook(keep)
    prompts = torch.tensor([(*f, s) for f in itertools.product(range(8), repeat=4) for s in range(8, 12)])
    with torch.no_grad():
        model(prompts)
    x_ND = kept[0].reshape(-1, spec.d_in)
    encoder = Encoder(spec, weights)
    codes = encoder.encode(x_ND)
    error = (encoder.decode(codes, x_ND) - x_ND).square().sum()
    fvu = float(error / (x_ND - x_ND.mean(0)).square().sum())
    assert 0.0006 <= fvu <= 0.0017
    assert 50 <= len(codes) / len(x_ND) <= 53
