"""SAELens' other architectures: gated, signed, batch-top-k dumps, transcoders, factors and centred models.

The references are written from sae_lens/saes/*.py (6.54.12) in dense float64 numpy; `test_parity.py` compares
with the library itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy

from autointerp.centring import centred, centred_from_files
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import describe_place, find_dictionary, reader_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.errors import CheckpointError
from autointerp.sources import DictionaryFound
from autointerp.subject.architecture import Architecture
from autointerp.subject.tokenizer_files import find_tokenizer
from autointerp.types import Point, Site

save_file = cast(Callable[[dict[str, NDArray[Any]], Path], None], cast(Any, safetensors_numpy).save_file)

Array = NDArray[Any]
Config = dict[str, Any]
D, F, OUT, N = 6, 10, 4, 50


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def tensors(d_out: int = D) -> dict[str, Array]:
    return {
        "W_enc": normal(D, F),
        "b_enc": normal(F),
        "W_dec": normal(F, d_out, seed=1),
        "b_dec": normal(d_out, seed=2),
    }


def gated_tensors() -> dict[str, Array]:
    own = {"b_gate": normal(F, seed=3), "b_mag": normal(F, seed=4), "r_mag": normal(F, seed=5)}
    return {name: value for name, value in tensors().items() if name != "b_enc"} | own


V6: Config = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.9.1", "model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"},
}
TRANSCODER: Config = V6 | {
    "architecture": "transcoder",
    "apply_b_dec_to_input": False,
    "d_out": OUT,
    "metadata": V6["metadata"]
    | {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"},
}
BATCH: Config = V6 | {"architecture": "batchtopk", "k": 2.5}


def checkpoint(folder: Path, config: Config, weights: dict[str, Array], scale: float | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(weights, folder / "sae_weights.safetensors")
    if scale is not None:
        scaler = {"scaling_factor": scale, "has_whitening": False}
        (folder / "activation_scaler.json").write_text(json.dumps(scaler))
    return folder


def load(folder: Path) -> tuple[DictionarySpec, Weights]:
    spec = find_dictionary(str(folder))
    return spec, reader_of(spec).load(spec, "cpu")


def run(folder: Path, x: Array) -> tuple[Array, Array]:
    """(activations [N, F], with their signs, and reconstruction [N, O]) of the checkpoint in `folder`."""
    spec, weights = load(folder)
    encoder = Encoder(spec, weights)
    x_ND = torch.from_numpy(x)  # pyright: ignore[reportUnknownMemberType]
    codes = encoder.encode(x_ND)
    token, column, value = (c.numpy() for c in (codes.token_M, codes.feature_M, codes.value_M))
    acts = np.zeros((len(x), spec.width))
    np.add.at(acts, (token, column // spec.n_poles), value * (1 - 2 * (column % 2) * spec.signed))
    return acts, encoder.decode(codes, x_ND).numpy()


def inputs() -> Array:
    return (1.0 + 2.0 * normal(N, D, seed=9)).astype(np.float32)


def assert_equal(found: tuple[Array, Array], acts: Array, x_hat: Array) -> None:
    assert (acts != 0).any() and (acts == 0).any()
    for one, expected in zip(found, (acts, x_hat), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# --- architectures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("subtracts", [True, False])
def test_gated(tmp_path: Path, subtracts: bool) -> None:
    """Where x W + b_gate > 0: relu(x W exp(r_mag) + b_mag), which can be 0 there too."""
    t = gated_tensors()
    x = inputs()
    product = (x.astype(np.float64) - t["b_dec"] * subtracts) @ t["W_enc"]
    acts = np.maximum(product * np.exp(t["r_mag"].astype(np.float64)) + t["b_mag"], 0) * (
        product + t["b_gate"] > 0
    )
    folder = checkpoint(tmp_path, V6 | {"architecture": "gated", "apply_b_dec_to_input": subtracts}, t)
    assert describe_place(folder).notes == (f"b_dec is {'' if subtracts else 'not '}subtracted",)
    assert_equal(run(folder, x), acts, acts @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("by_norm", [True, False])
def test_abstopk(tmp_path: Path, by_norm: bool) -> None:
    t, x = tensors(), inputs()
    norms = np.linalg.norm(t["W_dec"].astype(np.float64), axis=1) if by_norm else np.ones(F)
    pre = ((x.astype(np.float64) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    acts = np.where(np.abs(pre) >= np.sort(np.abs(pre), axis=1)[:, -3, None], pre, 0)
    assert (acts < 0).any()
    config = V6 | {"architecture": "abstopk", "k": 3, "rescale_acts_by_decoder_norm": by_norm}
    folder = checkpoint(tmp_path, config, t)
    assert describe_place(folder).signed
    assert_equal(run(folder, x), acts, (acts / norms) @ t["W_dec"] + t["b_dec"])


def slow_matching_pursuit(x: Array, rows: Array, config: Config) -> Array:
    """matching_pursuit_sae.py, one token at a time."""
    codes = np.zeros((len(x), len(rows)))
    threshold = config.get("residual_threshold", 0.01)
    for code, left in zip(codes, x, strict=True):
        for _ in range(config.get("max_iterations") or D):
            best = int(np.argmax(np.maximum(rows @ left, 0)))
            value, had = max(float(rows[best] @ left), 0.0), code != 0
            code[best] += value
            left = left - value * rows[best]
            if config.get("stop_on_duplicate_support", True) and np.array_equal(code != 0, had):
                break
            if threshold > 0 and np.linalg.norm(left) < threshold:
                break
    return codes


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"max_iterations": 4, "stop_on_duplicate_support": False},
        {"residual_threshold": 2.0},
        {"residual_threshold": 0, "max_iterations": 12},
    ],
)
def test_matching_pursuit(tmp_path: Path, own: Config, subtracts: bool, scale: float | None) -> None:
    """b_dec is added only where it was subtracted. A training checkpoint's factor is folded as the library does,
    which leaves the rows alone: codes are those of training divided by it."""
    rows = normal(F, D, seed=1)
    t = {"W_dec": rows / np.linalg.norm(rows, axis=1, keepdims=True), "b_dec": normal(D, seed=2)}
    config = V6 | {"architecture": "matching_pursuit", "apply_b_dec_to_input": subtracts} | own
    if scale is not None:
        config |= {"normalize_activations": "expected_average_only_in"}
    x, factor, b_dec = inputs(), scale or 1.0, t["b_dec"].astype(np.float64) * subtracts
    wide = t["W_dec"].astype(np.float64)
    acts = slow_matching_pursuit(x.astype(np.float64) * factor - b_dec, wide, config)
    folder = checkpoint(tmp_path, config, t, scale)
    assert_close_codes(run(folder, x), acts / factor, (acts @ wide + b_dec) / factor)
    spec, weights = load(folder)
    assert (spec.selector, spec.signed, spec.feature_sliceable) == ("pursuit", False, False)
    assert any("matching pursuit: " in note for note in spec.notes)
    np.testing.assert_array_equal(weights.directions([2, 5]), t["W_dec"][[2, 5]])


def assert_close_codes(found: tuple[Array, Array], acts: Array, x_hat: Array) -> None:
    """The last steps of a pursuit are small beside what float32 has lost by then."""
    assert (acts != 0).any() and (acts == 0).any()
    for one, expected in zip(found, (acts, x_hat), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("own", "point"),
    [
        ({"max_iterations": 0}, "max_iterations is 0: expected a number of at least 1"),
        ({"residual_threshold": "low"}, "residual_threshold is low: expected a number"),
        ({"stop_on_duplicate_support": 1}, "stop_on_duplicate_support is 1: expected true or false"),
    ],
)
def test_a_pursuit_that_is_not_understood_is_refused(tmp_path: Path, own: Config, point: str) -> None:
    config = V6 | {"architecture": "matching_pursuit"} | own
    t = {"W_dec": normal(F, D, seed=1), "b_dec": normal(D, seed=2)}
    with pytest.raises(CheckpointError, match=point):
        describe_place(checkpoint(tmp_path, config, t))


def test_log_threshold_of_a_training_dump(tmp_path: Path) -> None:
    t, x = tensors() | {"log_threshold": np.log(np.linspace(0.1, 3.0, F)).astype(np.float32)}, inputs()
    pre = (x.astype(np.float64) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    acts = pre * (pre > np.linspace(0.1, 3.0, F))
    folder = checkpoint(tmp_path, V6 | {"architecture": "jumprelu"}, t)
    assert_equal(run(folder, x), acts, acts @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_batchtopk_training_dump(tmp_path: Path, by_norm: bool, scale: float | None) -> None:
    """A scalar threshold in float64. With a factor, what is folded must be what training saw: inputs times the
    factor, scores and threshold in the units of the decoder that is left."""
    t, x = tensors() | {"topk_threshold": np.array(1.5)}, inputs()
    norms = np.linalg.norm(t["W_dec"].astype(np.float64), axis=1) if by_norm else np.ones(F)
    factor = scale or 1.0
    pre = ((x.astype(np.float64) * factor - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    acts = pre * (pre > 1.5)
    x_hat = ((acts / norms) @ t["W_dec"] + t["b_dec"]) / factor
    config = BATCH | {"rescale_acts_by_decoder_norm": by_norm}
    if scale is not None:
        config |= {"normalize_activations": "expected_average_only_in"}
    folder = checkpoint(tmp_path, config, t, scale)
    assert describe_place(folder).expected.l0 == 2.5
    assert_equal(run(folder, x), acts / (factor if by_norm else 1.0), x_hat)


@pytest.mark.parametrize("widths", [[2, 5, F], [2, 5]])
def test_matryoshka_levels(tmp_path: Path, widths: list[int]) -> None:
    """Widths are sums; SAELens adds the last one where it is left out."""
    config = BATCH | {"architecture": "matryoshka_batchtopk", "matryoshka_widths": widths}
    spec = describe_place(checkpoint(tmp_path, config, tensors() | {"topk_threshold": np.array(1.5)}))
    assert (spec.selector, spec.group_sizes) == ("jumprelu", (2, 3, 5))


@pytest.mark.parametrize(
    "kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_transcoders(tmp_path: Path, kind: str) -> None:
    """b_dec is not subtracted; the skip connection takes the input as it came."""
    t, x = tensors(OUT), inputs()
    pre = x.astype(np.float64) @ t["W_enc"] + t["b_enc"]
    acts = np.maximum(pre, 0)
    if "jumprelu" in kind:
        t["threshold"] = np.linspace(-1, 3, F, dtype=np.float32)
        acts = acts * (pre > t["threshold"])
    x_hat = acts @ t["W_dec"] + t["b_dec"]
    if "skip" in kind:
        t["W_skip"] = normal(OUT, D, seed=7)
        x_hat = x_hat + x @ t["W_skip"].T
    folder = checkpoint(tmp_path, TRANSCODER | {"architecture": kind}, t)
    spec = describe_place(folder)
    assert (spec.is_transcoder, spec.d_out) == (True, OUT)
    assert (spec.site, spec.site_out) == (Site("mlp_in", 3), Site("mlp_out", 3))
    assert_equal(run(folder, x), acts, x_hat)


def test_the_factor_of_a_training_checkpoint(tmp_path: Path) -> None:
    """x * 0.25 goes in, what comes out is divided by it; early files call it `true`. It is part of the identity."""
    t, x = tensors(), inputs()
    acts = np.maximum((0.25 * x.astype(np.float64) - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    identities = set[str]()
    for name, value in (("a", "expected_average_only_in"), ("b", True)):
        folder = checkpoint(tmp_path / name, V6 | {"normalize_activations": value}, t, 0.25)
        assert_equal(run(folder, x), acts, (acts @ t["W_dec"] + t["b_dec"]) / 0.25)
        assert any("0.25" in note for note in describe_place(folder).notes)
        identities.add(describe_place(folder).identity)
        checkpoint(folder, V6 | {"normalize_activations": value}, t, 0.5)
        identities.add(describe_place(folder).identity)
    assert len(identities) == 4


@pytest.mark.parametrize("kind", ["standard", "gated"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_the_whitening_of_a_training_checkpoint(tmp_path: Path, kind: str, subtracts: bool) -> None:
    """z = (x - mean) M goes in, what comes out is mapped back. It is part of the identity."""
    t, x = gated_tensors() if kind == "gated" else tensors(), inputs()
    matrix = (np.eye(D) + 0.2 * normal(D, D, seed=11)).astype(np.float32)
    maps = {"mean": normal(D, seed=12), "matrix": matrix, "inverse_matrix": np.linalg.inv(matrix)}
    z = (x.astype(np.float64) - maps["mean"]) @ matrix - t["b_dec"] * subtracts
    if kind == "gated":
        magnitude = np.maximum(z @ t["W_enc"] * np.exp(t["r_mag"].astype(np.float64)) + t["b_mag"], 0)
        acts = magnitude * (z @ t["W_enc"] + t["b_gate"] > 0)
    else:
        acts = np.maximum(z @ t["W_enc"] + t["b_enc"], 0)
    config = V6 | {
        "normalize_activations": "covariance_whitening",
        "apply_b_dec_to_input": subtracts,
        "architecture": kind,
    }
    folder = checkpoint(tmp_path, config, t)
    save_file(maps, folder / "activation_whitening.safetensors")
    assert_equal(
        run(folder, x), acts, (acts @ t["W_dec"] + t["b_dec"]) @ maps["inverse_matrix"] + maps["mean"]
    )
    identity = describe_place(folder).identity
    save_file(maps | {"mean": normal(D, seed=13)}, folder / "activation_whitening.safetensors")
    assert describe_place(folder).identity != identity
    save_file(maps | {"matrix": matrix[:-1]}, folder / "activation_whitening.safetensors")
    with pytest.raises(CheckpointError, match="'matrix' has shape"):
        describe_place(folder)


def test_hook_z_is_read_at_the_heads_outputs(tmp_path: Path) -> None:
    metadata = V6["metadata"] | {"hook_name": "blocks.3.attn.hook_z"}
    config = V6 | {"reshape_activations": "hook_z", "metadata": metadata}
    assert describe_place(checkpoint(tmp_path, config, tensors())).hook == "blocks.3.attn.hook_z"


# --- centred models --------------------------------------------------------------------------------------

CENTRED: Config = V6 | {
    "metadata": V6["metadata"] | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
}


def architecture_of(model_type: str) -> Architecture:
    config = {"model_type": model_type, "hidden_size": D, "num_hidden_layers": 5, "vocab_size": 9}
    return Architecture.of({**config, "intermediate_size": D}, "config.json")


@pytest.mark.parametrize(
    ("model_type", "point", "steps"),
    [
        ("gpt2", "resid_post", ("centre",)),
        ("gpt2", "mlp_out", ("centre",)),
        ("gpt2", "mlp_in", ()),
        ("llama", "resid_post", ()),
    ],
)
def test_a_centred_model(tmp_path: Path, model_type: str, point: Point, steps: tuple[str, ...]) -> None:
    """Only what is written to the stream of a model with LayerNorm was centred."""
    spec = describe_place(checkpoint(tmp_path, CENTRED, tensors()))
    assert (spec.model_was_centred, spec.transform) == (True, ())
    found = centred(
        "a",
        DictionaryFound(dataclasses.replace(spec, hook=None), Site(point, 3)),
        architecture_of(model_type),
    )
    assert found.spec.transform == steps


@pytest.mark.parametrize(
    ("change", "out", "model_type", "is_centred"),
    [
        ({}, "mlp_out", "gpt2", True),
        ({}, "mlp_out", "llama", False),
        ({}, "mlp_out", "novel", False),
        ({}, "z", "gpt2", False),
        ({}, None, "gpt2", False),
        ({"model_was_centred": False}, "mlp_out", "gpt2", False),
        ({"is_transcoder": False}, "mlp_out", "gpt2", False),
    ],
)
def test_what_a_transcoder_predicts_was_centred_whatever_it_reads(
    tmp_path: Path, change: dict[str, bool], out: Point | None, model_type: str, is_centred: bool
) -> None:
    spec = describe_place(checkpoint(tmp_path, CENTRED, tensors()))
    spec = dataclasses.replace(spec, **({"is_transcoder": True} | change))
    found = DictionaryFound(spec, Site("mlp_in", 3), None if out is None else Site(out, 3))
    read = centred("a", found, architecture_of(model_type))
    assert (read.target_is_centred, read.spec) == (is_centred, spec)


def test_centring_in_a_model_of_unknown_norm_is_refused_where_the_files_say_it(tmp_path: Path) -> None:
    """Where only the library's default says it, it is read as it is, with a note."""
    spec = describe_place(checkpoint(tmp_path, CENTRED, tensors()))
    found = DictionaryFound(spec, Site("resid_post", 3))
    with pytest.raises(CheckpointError, match="'novel' model has LayerNorm is not known"):
        centred("a", found, architecture_of("novel"))
    by_default = dataclasses.replace(found, spec=dataclasses.replace(spec, centring_is_default=True))
    read = centred("a", by_default, architecture_of("novel")).spec
    assert read.transform == () and "'novel' model has LayerNorm is not known" in read.notes[-1]
    assert centred("a", by_default, architecture_of("gpt2")).spec.transform == ("centre",)


@pytest.mark.parametrize(
    ("families", "steps"),
    [
        ("smollm3 glm4 granite qwen2_moe", ()),
        ("cohere stablelm falcon mpt gpt_bigcode bloom opt gptj gpt_neo starcoder2", ("centre",)),
    ],
)
def test_the_norm_of_families_that_transformers_knows(
    tmp_path: Path, families: str, steps: tuple[str, ...]
) -> None:
    found = DictionaryFound(describe_place(checkpoint(tmp_path, CENTRED, tensors())), Site("resid_post", 3))
    for family in families.split():
        assert centred("a", found, architecture_of(family)).spec.transform == steps


@pytest.mark.parametrize(
    ("points", "steps"),
    [
        (("mlp_in", "z"), ()),
        (("resid_pre", "mlp_out"), ("centre",)),
        (("resid_pre", "mlp_in"), None),
        (("mlp_in", "resid_pre"), None),
    ],
)
def test_all_of_a_crosscoders_inputs_are_centred_or_none(
    tmp_path: Path, points: tuple[Point, Point], steps: tuple[str, ...] | None
) -> None:
    first, second = (Site(point, 3) for point in points)
    spec = describe_place(checkpoint(tmp_path, CENTRED, tensors()))
    found = DictionaryFound(spec, first, further_sites=(second,))
    assert centred("a", found, architecture_of("llama")) == found
    if steps is not None:
        read = centred("a", found, architecture_of("gpt2")).spec
        # Each loses its own mean, not that of both.
        assert (read.transform, read.n_inputs) == (steps, 2 if steps else 1)
        return
    message = r"where layers\.3\.in had been centred .* and layers\.3\.mlp_in had not"
    with pytest.raises(CheckpointError, match=message):
        centred("a", found, architecture_of("gpt2"))


@pytest.mark.parametrize(("model_type", "steps"), [("gpt2", ("centre",)), ("llama", ())])
def test_of_activations_from_files_the_config_beside_the_tokenizer_tells_the_norm(
    tmp_path: Path, model_type: str, steps: tuple[str, ...]
) -> None:
    spec = describe_place(checkpoint(tmp_path / "sae", CENTRED, tensors()))
    found = {"a": DictionaryFound(spec, Site("resid_post", 3))}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"config\.json beside the tokenizer .*set center_writing_weights"
    ):
        centred_from_files(found, find_tokenizer(str(folder)))
    by_default = {
        "a": dataclasses.replace(found["a"], spec=dataclasses.replace(spec, centring_is_default=True))
    }
    read = centred_from_files(by_default, find_tokenizer(str(folder)))["a"].spec
    assert read.transform == () and "don't say their model's norm" in read.notes[-1]
    config = {"model_type": model_type, "hidden_size": D, "num_hidden_layers": 5, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": D}))
    assert centred_from_files(found, find_tokenizer(str(folder)))["a"].spec.transform == steps
    of_others = {
        "a": dataclasses.replace(found["a"], spec=dataclasses.replace(spec, model_was_centred=False))
    }
    (folder / "config.json").unlink()
    assert centred_from_files(of_others, find_tokenizer(str(folder))) == of_others


# --- refusals --------------------------------------------------------------------------------------------

AVERAGE: Config = {"normalize_activations": "expected_average_only_in"}


@pytest.mark.parametrize(
    ("config", "weights", "point"),
    [
        (V6 | {"architecture": "novel"}, tensors(), "architecture is novel.*standard, gated"),
        (V6, gated_tensors(), "'b_gate', which only gated.*architecture is standard"),
        (V6 | {"architecture": "gated"}, tensors(), "no tensor 'b_gate'"),
        (BATCH, tensors(), "no tensor 'topk_threshold'"),
        (BATCH, tensors() | {"topk_threshold": np.ones(F)}, r"'topk_threshold' has shape \[10\]"),
        (BATCH, tensors() | {"topk_threshold": np.array(np.nan)}, "NaN"),
        (
            BATCH | {"matryoshka_widths": [4, 4]},
            tensors(),
            "matryoshka_widths is .4, 4.: expected numbers that rise",
        ),
        (BATCH | {"matryoshka_widths": "4"}, tensors(), "expected a list"),
        (BATCH | {"k": "many"}, tensors(), "k is many: expected a number"),
        (TRANSCODER, tensors(), r"'b_dec' has shape \[6\].*\[d_out 4\]"),
        (TRANSCODER | {"d_out": None}, tensors(OUT), "no 'd_out'"),
        (TRANSCODER | {"apply_b_dec_to_input": True}, tensors(OUT), "b_dec belongs to its output"),
        (TRANSCODER | AVERAGE, tensors(OUT), "for a transcoder this is not read"),
        (TRANSCODER | {"architecture": "skip_transcoder"}, tensors(OUT), "no tensor 'W_skip'"),
        (TRANSCODER, tensors(OUT) | {"W_skip": normal(OUT, D)}, "'W_skip', which only"),
        (
            V6 | {"reshape_activations": "hook_z"},
            tensors(),
            "not read at the hook point 'blocks.3.hook_resid_post'",
        ),
        (V6 | AVERAGE, tensors(), "activation_scaler.json"),
    ],
)
def test_refusals(tmp_path: Path, config: Config, weights: dict[str, Array], point: str) -> None:
    folder = checkpoint(tmp_path, config, weights)
    with pytest.raises(CheckpointError, match=point):
        load(folder)


@pytest.mark.parametrize(
    ("scale", "point"), [(-1, "above 0"), (0, "above 0"), ("x", "expected a number"), (None, "not in")]
)
def test_a_factor_that_is_none(tmp_path: Path, scale: Any, point: str) -> None:
    folder = checkpoint(tmp_path, V6 | AVERAGE, tensors())
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    with pytest.raises(CheckpointError, match=point):
        load(folder)
