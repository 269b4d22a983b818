"""The libraries themselves against the readers, on checkpoints that the libraries save.

    pip install 'autointerp-pipeline[parity]'   or any of the four libraries; what is absent is skipped
    pytest -m parity tests/test_parity.py

Where a library is wrong, its own code is not the reference: the test says why and derives it otherwise.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import test_temporal
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from autointerp.dictionaries import registry
from autointerp.dictionaries.convert import convert
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import HUB, find_dictionary, reader_of

pytestmark = pytest.mark.parity

Array = NDArray[Any]
D, F, OUT, K, N = 32, 96, 20, 7, 200


def library(name: str) -> Any:
    """The module; the test is skipped where it, or what it needs, is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} can't be imported: {error}")


def inputs() -> Tensor:
    return 0.5 + 2.0 * torch.randn(N, D, generator=torch.Generator().manual_seed(9))


def randomise(module: torch.nn.Module) -> None:
    """Every parameter from a seed; what a library initialises with zeros says nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)


def ours(path: Path) -> tuple[Tensor, Tensor]:
    """(activations [N, F], with their signs, and reconstruction [N, O]) of a checkpoint."""
    spec = find_dictionary(str(path))
    encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    codes = encoder.encode(inputs())
    acts = torch.zeros(N, spec.width)
    sign = 1.0 - 2.0 * (codes.feature_M % 2) if spec.signed else torch.tensor(1.0)
    acts[codes.token_M, codes.feature_M // spec.n_poles] = codes.value_M * sign
    return acts, encoder.decode(codes, inputs())


def assert_same(found: tuple[Tensor, Tensor], acts: Tensor, x_hat: Tensor | None) -> None:
    """To a relative error of 1e-5, of the largest value where cancellation leaves little."""
    assert (acts != 0).any() and (acts == 0).any(), "the comparison compares nothing"
    for one, expected in zip(found, (acts, x_hat), strict=True):
        if expected is not None:
            largest = float(expected.detach().abs().max())
            torch.testing.assert_close(one, expected.detach().float(), rtol=1e-5, atol=3e-6 * largest)


# --- sae-lens --------------------------------------------------------------------------------------------


def test_every_name_of_saelens_list_is_a_place_and_a_model_on_the_hub(tmp_path: Path) -> None:
    """Of each release the first name and all that override something: where it lies is a file or folder of a
    repository, the model has a hub id, and what is overridden is read."""
    path = Path(library("sae_lens").__file__).with_name(registry.LIST)
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    releases: dict[str, Any] = yaml.load(path.read_text(), Loader=loader)
    library("sae_lens").StandardSAE(
        library("sae_lens").StandardSAEConfig(d_in=D, d_sae=F, device="cpu")
    ).save_model(tmp_path)
    spec = find_dictionary(str(tmp_path))
    n_overridden = 0
    for release, content in releases.items():
        for number, one in enumerate(content["saes"]):
            if number and "config_overrides" not in one and isinstance(one["path"], str):
                continue
            name = f"{release}/{one['id']}"
            known = registry.registered(name)
            assert known is not None and HUB.fullmatch(known.place), name
            assert not known.place.rpartition(":")[2].isdigit(), name
            completed = known.completed(replace(spec, model=None))
            assert completed.model == "gpt2" or "/" in str(completed.model), name
            n_overridden += bool(known.overrides)
    assert len(releases) > 100 and n_overridden > 10


@pytest.mark.parametrize(
    "case", ["relu", "topk", "topk_gate", "abstopk", "jumprelu", "gated", "scaled", "transcoder"]
)
def test_saelens_reads_what_convert_writes(tmp_path: Path, case: str) -> None:
    """From our own layout, with a bias in front that is not the decoder's: the same codes and reconstructions."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {
        "encoder": normal(D, F), "decoder": normal(F, D), "encoder_bias": normal(F),
        "decoder_bias": normal(D), "pre_bias": normal(D),
    }  # fmt: skip
    gates = {"gate_bias": normal(F), "gate_scale": normal(F).exp(), "magnitude_bias": normal(F)}
    changes: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
        "relu": ({}, {}),
        "topk": ({"selector": "topk", "k": K}, {}),
        "topk_gate": ({"selector": "topk", "k": K, "decoder_norm_gate": True}, {}),
        "abstopk": ({"selector": "abstopk", "k": K}, {}),
        "jumprelu": (
            {"selector": "jumprelu", "decoder_norm_gate": True, "value_is_score": False},
            {"threshold": 20 * normal(F).abs()},
        ),
        "gated": ({"selector": "gated"}, gates),
        "scaled": ({"transform": ["constant_norm"]}, {}),
        "transcoder": (
            {"hook": "layers.1.mlp_in", "hook_out": "layers.1.mlp", "is_transcoder": True}, {"skip": normal(D, D)},
        ),
    }  # fmt: skip
    config, added = changes[case]
    source = tmp_path / "source"
    source.mkdir()
    save_file(tensors | added, source / "dictionary.safetensors")
    said = {"layout": 1, "selector": "relu", "hook": "layers.1", "model": "gpt2"} | config
    said |= {"expected": {"l0": 7.5, "fvu": 0.25}, "notes": ["mid-run: inputs divided by 2"]}
    (source / "dictionary.json").write_text(json.dumps(said))
    converted = convert(str(source), tmp_path / "out")
    assert converted.layout == "SAELens' layout"
    sae = library("sae_lens").SAE.load_from_disk(str(tmp_path / "out"), device="cpu")
    with torch.no_grad():
        acts = sae.encode(inputs())
        acts = acts.to_dense() if acts.is_sparse else acts
        x_hat = sae(inputs()) if case == "transcoder" else sae.decode(acts)
    assert_close(ours(source), acts, x_hat)
    kept = {"expected": {"l0": 7.5, "fvu": 0.25}, "notes": ["mid-run: inputs divided by 2"]}
    metadata = sae.cfg.metadata
    assert metadata.autointerp == kept
    assert (metadata.hook_name, metadata.model_name) == (converted.spec.hook, "gpt2")
    sae.save_model(str(tmp_path / "saved"))
    saved = find_dictionary(str(tmp_path / "saved"))
    assert (saved.expected, saved.notes) == (converted.spec.expected, converted.spec.notes)
    assert saved.expected.l0 == 7.5 and saved.notes == tuple(kept["notes"])


def assert_close(found: tuple[Tensor, Tensor], acts: Tensor, x_hat: Tensor) -> None:
    """As `assert_same`, but for what folding rounds."""
    for one, expected in zip(found, (acts, x_hat), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=3e-5 * float(expected.abs().max()))


def saelens_sae(architecture: str, **options: Any) -> Any:
    """An inference dictionary of random weights."""
    saes = library("sae_lens.registry")
    library("sae_lens")
    kind, configuration = saes.get_sae_class(architecture)
    metadata = library("sae_lens.saes.sae").SAEMetadata(
        hook_name="blocks.1.hook_resid_post", model_name="gpt2"
    )
    sae = kind(configuration(d_in=D, d_sae=F, metadata=metadata, **options))
    randomise(sae)
    return sae


SAELENS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    ("gated", {}),
    ("gated", {"normalize_activations": "layer_norm"}),
    ("topk", {"k": K}),
    ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("abstopk", {"k": K}),
    ("abstopk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("transcoder", {"apply_b_dec_to_input": False, "d_out": OUT}),
    ("skip_transcoder", {"apply_b_dec_to_input": False, "d_out": OUT}),
    ("jumprelu_transcoder", {"apply_b_dec_to_input": False, "d_out": OUT}),
    ("jumprelu_skip_transcoder", {"apply_b_dec_to_input": False, "d_out": OUT}),
]


@pytest.mark.parametrize(("architecture", "options"), SAELENS)
def test_saelens(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    sae = saelens_sae(architecture, **options)
    sae.save_model(tmp_path)
    x = inputs()
    acts = sae.encode(x).to_dense()
    assert_same(ours(tmp_path), acts, sae(x))


PURSUITS: list[dict[str, Any]] = [
    {},
    {"max_iterations": K},
    {"residual_threshold": 4.0},
    {"max_iterations": K, "stop_on_duplicate_support": False, "residual_threshold": 0.0},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm", "residual_threshold": 2.0},
]


@pytest.mark.parametrize("options", PURSUITS)
def test_saelens_matching_pursuit(tmp_path: Path, options: dict[str, Any]) -> None:
    """To 1e-4 of the largest: a pursuit's last steps are small beside what float32 has lost by then."""
    sae = saelens_sae("matching_pursuit", **options)
    sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.save_model(tmp_path)
    acts, x_hat = sae.encode(inputs()).detach(), sae(inputs()).detach()
    assert (acts != 0).any() and (acts == 0).any(), "the comparison compares nothing"
    for one, expected in zip(ours(tmp_path), (acts, x_hat), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("factor", [None, 0.3])
@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_saelens_training_dump(
    tmp_path: Path, architecture: str, by_norm: bool, factor: float | None
) -> None:
    """The dump is read as what the library makes of it in the end: factor folded, saved for inference, loaded."""
    library("sae_lens")
    kind, configuration = library("sae_lens.registry").get_sae_training_class(architecture)
    own = {"matryoshka_widths": [10, 40, F]} if architecture.startswith("matryoshka") else {}
    average = {} if factor is None else {"normalize_activations": "expected_average_only_in"}
    trained = kind(
        configuration(d_in=D, d_sae=F, k=2.5, rescale_acts_by_decoder_norm=by_norm, **own, **average)
    )
    randomise(trained)
    trained.topk_threshold = torch.tensor(1.2, dtype=torch.float64)
    dump, exported = tmp_path / "dump", tmp_path / "exported"
    trained.save_model(dump)
    if factor is not None:
        library("sae_lens.training.activation_scaler").ActivationScaler(factor).save(
            str(dump / "activation_scaler.json")
        )
        trained.fold_activation_norm_scaling_factor(factor)
    trained.save_inference_model(exported)
    finished = library("sae_lens").SAE.load_from_disk(exported)
    acts = finished.encode(inputs())
    assert_same(ours(dump), acts, finished.decode(acts))
    assert_same(ours(exported), acts, finished.decode(acts))


def test_saelens_leaves_a_training_checkpoints_factor_out(tmp_path: Path) -> None:
    """load_from_disk reads no activation_scaler.json, though the weights were trained on inputs times the factor.
    What they mean is what training computed: the dictionary on scaled inputs, its output scaled back."""
    sae = saelens_sae("standard", normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path)
    scaler = library("sae_lens.training.activation_scaler").ActivationScaler(0.3)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    acts = torch.relu((inputs() * 0.3 - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert_same(ours(tmp_path), acts, (acts @ sae.W_dec + sae.b_dec) / 0.3)
    theirs = library("sae_lens").SAE.load_from_disk(tmp_path).encode(inputs())
    assert not torch.allclose(theirs, acts, rtol=1e-2), "the library has learned it"


@pytest.mark.parametrize("tied", [True, False])
def test_saelens_temporal(tmp_path: Path, tied: bool) -> None:
    """Of the layout that SAELens converts from; three rows of different lengths, each as the library has it alone."""
    t = test_temporal.tensors(2, tied=tied)
    place = test_temporal.checkpoint(tmp_path / "layer_4" / "temporal", t)
    encoder, lengths = test_temporal.opened(place), [11, 4, 7]
    sae = saelens_temporal(t)
    x_BTD = test_temporal.rows_of(lengths)
    codes, x_hat = test_temporal.through(encoder, x_BTD, lengths)
    rows = [torch.tensor(x_BTD[row : row + 1, :length]) for row, length in enumerate(lengths)]
    with torch.no_grad():
        acts = torch.cat([sae.encode(x_1TD)[0] for x_1TD in rows])
        theirs = torch.cat([sae(x_1TD)[0] for x_1TD in rows])
    assert_same((torch.tensor(codes).float(), torch.tensor(x_hat)), acts, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False, "sae_diff_type": "relu", "kval_topk": None},
        {"kval_topk": None, "apply_b_dec_to_input": False},
        {"tied": False, "apply_b_dec_to_input": False},
        {"normalize_activations": "none"},
    ],
)
def test_saelens_temporal_saved_by_itself(tmp_path: Path, options: dict[str, Any]) -> None:
    """What save_model writes of one, and load_from_disk makes of that; rows as above."""
    tied = options.pop("tied", True)
    saelens_temporal(test_temporal.tensors(2, tied=tied), **options).save_model(tmp_path)
    sae, lengths = library("sae_lens").SAE.load_from_disk(tmp_path), [11, 4, 7]
    x_BTD = test_temporal.rows_of(lengths)
    codes, x_hat = test_temporal.through(test_temporal.opened(tmp_path), x_BTD, lengths)
    rows = [torch.tensor(x_BTD[row : row + 1, :length]) for row, length in enumerate(lengths)]
    with torch.no_grad():
        acts = torch.cat([sae.encode(x_1TD)[0] for x_1TD in rows])
        theirs = torch.cat([sae(x_1TD)[0] for x_1TD in rows])
    assert_same((torch.tensor(codes).float(), torch.tensor(x_hat)), acts, theirs)


def saelens_temporal(t: dict[str, Any], **options: Any) -> Any:
    library("sae_lens")
    kind, configuration = library("sae_lens.registry").get_sae_class("temporal")
    tied = "E" not in t
    own = {
        "d_in": test_temporal.D, "d_sae": test_temporal.F, "n_heads": test_temporal.HEADS, "n_attn_layers": 2,
        "bottleneck_factor": 2, "sae_diff_type": "topk", "kval_topk": 3, "tied_weights": tied,
        "normalize_activations": "constant_scalar_rescale", "apply_b_dec_to_input": True,
        "activation_normalization_factor": test_temporal.SCALE,
    }  # fmt: skip
    sae = kind(configuration(**own | options))
    state = {"W_dec": t["D"], "b_dec": t["b"][0]} | {
        k: v for k, v in t.items() if k.startswith("attn_layers")
    }
    state |= {} if tied else {"W_enc": t["E"]}
    sae.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return sae


# --- sparsify --------------------------------------------------------------------------------------------

SPARSIFY: list[dict[str, Any]] = [
    {},
    {"activation": "groupmax", "k": 8},
    {"transcode": True},
    {"transcode": True, "skip_connection": True},
    {"skip_connection": True},  # before February 2025: b_dec is subtracted
]


def change_settings(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON object; None takes one out."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("options", SPARSIFY)
def test_sparsify(tmp_path: Path, options: dict[str, Any]) -> None:
    sparsify = library("sparsify")
    configuration = sparsify.SparseCoderConfig(**{"num_latents": F, "k": K} | options)
    coder = sparsify.SparseCoder(D, configuration)
    randomise(coder)
    coder.save_to_disk(tmp_path / "layers.1.mlp")
    if "transcode" not in options:
        change_settings(tmp_path / "layers.1.mlp" / "cfg.json", transcode=None)
    top = coder.encode(inputs())
    acts = torch.zeros(N, F).scatter_(1, top.top_indices, top.top_acts.detach())
    assert_same(ours(tmp_path / "layers.1.mlp"), acts, coder(inputs(), inputs()).sae_out)


def test_sparsify_forgot_signed_dictionaries(tmp_path: Path) -> None:
    """Those of June to August 2024 took the k largest by magnitude, without relu (a48257e:sae/sae.py). The library
    of today drops the setting and applies relu."""
    sparsify = library("sparsify")
    coder = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=F, k=K))
    randomise(coder)
    folder = tmp_path / "layers.1"
    coder.save_to_disk(folder)
    change_settings(folder / "cfg.json", signed=True, transcode=None)
    pre = (inputs() - coder.b_dec) @ coder.encoder.weight.T + coder.encoder.bias
    largest = pre.abs().topk(K).indices
    acts = torch.zeros(N, F).scatter_(1, largest, pre.gather(1, largest).detach())
    assert (acts < 0).any()
    assert_same(ours(folder), acts, acts @ coder.W_dec + coder.b_dec)
    theirs = sparsify.SparseCoder.load_from_disk(folder).encode(inputs())
    assert (theirs.top_acts >= 0).all(), "the library has learned it"


# --- dictionary_learning ---------------------------------------------------------------------------------

LEARNED: list[tuple[str, str, dict[str, Any]]] = [
    ("AutoEncoder", "dictionary_learning.dictionary", {}),
    ("AutoEncoderNew", "dictionary_learning.dictionary", {}),
    ("GatedAutoEncoder", "dictionary_learning.dictionary", {}),
    ("JumpReluAutoEncoder", "dictionary_learning.dictionary", {}),
    ("AutoEncoderTopK", "dictionary_learning.trainers.top_k", {"k": K}),
    ("BatchTopKSAE", "dictionary_learning.trainers.batch_top_k", {"k": K}),
    (
        "MatryoshkaBatchTopKSAE",
        "dictionary_learning.trainers.matryoshka_batch_top_k",
        {"k": K, "group_sizes": [16, 80]},
    ),
]


def save_learned(folder: Path, name: str, options: dict[str, Any], saved: Any) -> Path:
    folder.mkdir(parents=True)
    trainer = {
        "dict_class": name,
        "activation_dim": D,
        "dict_size": F,
        "layer": 1,
        "lm_name": "gpt2",
        **options,
    }
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    cast(Any, torch).save(saved, folder / "ae.pt")
    return folder


def learned(name: str, module: str, options: dict[str, Any]) -> Any:
    library("dictionary_learning")
    kind = getattr(library(module), name)
    dictionary = kind(D, F, **options)
    randomise(dictionary)
    if "k" in options:
        dictionary.threshold.fill_(1.2)
    return dictionary


@pytest.mark.parametrize(("name", "module", "options"), LEARNED)
def test_dictionary_learning(tmp_path: Path, name: str, module: str, options: dict[str, Any]) -> None:
    """As its own loader loads it: AutoEncoder with decoder directions of length 1."""
    dictionary = learned(name, module, options)
    folder = save_learned(tmp_path / "a", name, options, dictionary.state_dict())
    loaded = type(dictionary).from_pretrained(str(folder / "ae.pt"))
    acts = loaded.encode(inputs())
    x_hat = loaded.decode(acts)
    assert_same(ours(folder), acts, x_hat)


@pytest.mark.parametrize(("name", "module", "options"), LEARNED)
def test_dictionary_learning_in_mid_run(
    tmp_path: Path, name: str, module: str, options: dict[str, Any]
) -> None:
    """What trainSAE writes every backup_steps, against what it writes at the end of the same weights: biases
    scaled by the library's scale_biases. AutoEncoderNew has none, so its run can't be normalised: factor 1."""
    dictionary = learned(name, module, options)
    factor = 1.0 if name == "AutoEncoderNew" else 5.5
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=1e-3)
    dictionary(inputs()).square().sum().backward()
    state = {key: value.clone() for key, value in dictionary.state_dict().items()}
    optimizer.step()  # so that the optimizer has a state
    dictionary.load_state_dict(state)
    saved = {
        "step": 7,
        "ae": state,
        "optimizer": optimizer.state_dict(),
        "config": options,
        "norm_factor": factor,
    }
    folder = save_learned(tmp_path / "a", name, options, saved)
    if factor != 1.0:
        with torch.no_grad():
            dictionary.scale_biases(factor)
    if name == "AutoEncoder":
        dictionary.normalize_decoder()
    acts = dictionary.encode(inputs())
    assert_same(ours(folder), acts, dictionary.decode(acts))


# --- circuit-tracer --------------------------------------------------------------------------------------


def config_yaml(folder: Path) -> None:
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_name": "org/model", **hooks}))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("thresholds", [True, False])
def test_circuit_tracer(tmp_path: Path, thresholds: bool, skip: bool) -> None:
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.relu
    if thresholds:
        functions = library("circuit_tracer.transcoder.activation_functions")
        activation = functions.JumpReLU(torch.linspace(0.1, 3, F), 0.1)
    single = library("circuit_tracer.transcoder.single_layer_transcoder")
    transcoder = single.SingleLayerTranscoder(D, F, activation, 4, skip_connection=skip, dtype=torch.float32)
    randomise(transcoder)
    if thresholds:
        transcoder.activation_function.threshold.data = torch.linspace(0.1, 3, F)
    transcoder.to_safetensors(str(tmp_path / "layer_4.safetensors"))
    config_yaml(tmp_path)
    acts = transcoder.encode(inputs())
    assert_same(ours(tmp_path / "layer_4.safetensors"), acts, transcoder.decode(acts, inputs()))


def test_circuit_tracer_cross_layer(tmp_path: Path) -> None:
    """Each layer's codes; a direction is the sum of the decoder vectors that the library gives a feature."""
    module = library("circuit_tracer.transcoder.cross_layer_transcoder")
    n_layers = 3
    clt = module.CrossLayerTranscoder(
        n_layers, F, D, activation_function="jump_relu", lazy_decoder=False, dtype=torch.float32
    )
    randomise(clt)
    clt.activation_function.threshold.data = torch.rand(n_layers, 1, F)
    clt.to_safetensors(str(tmp_path))
    config_yaml(tmp_path)
    for layer in range(n_layers):
        path = tmp_path / f"W_enc_{layer}.safetensors"
        assert_same((ours(path)[0], torch.zeros(0)), clt.encode_layer(inputs(), layer), None)
        spec = find_dictionary(str(path))
        directions = reader_of(spec).load(spec, "cpu").w_dec_FO
        torch.testing.assert_close(directions, clt._get_decoder_vectors(layer).detach().sum(dim=1))
