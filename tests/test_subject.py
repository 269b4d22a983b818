"""The subject model: finding it, its shape, and that captured activations are those of the right places."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import autointerp.demo
from autointerp import identity
from autointerp.errors import InputError, ModelError, SiteError
from autointerp.identity import fingerprint
from autointerp.subject.architecture import Architecture
from autointerp.subject.families import FAMILIES
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Point, Site
from tiny_families import (
    CONFIGS,
    D_MLP,
    D_MODEL,
    EXPERTS,
    N_LAYERS,
    POSITIONS,
    POST_NORM,
    SANDWICH,
    VOCAB,
    layers_of,
    points_of,
    reference,
    tokens,
    write,
)

Build = Callable[[str], Path]
REAL = Path(__file__).parents[2] / "shared" / "real"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors are faster on one thread, and other work shares the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Writes a family's tiny model once and gives its folder."""
    built: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in built:
            built[name] = write(name, tmp_path_factory.mktemp(name))
        return built[name]

    return folder_of


def load(folder: Path) -> Subject:
    return Subject.load(find_model(str(folder)))


def sites_of(name: str) -> list[Site]:
    return [Site(point, layer) for layer in range(N_LAYERS) for point in points_of(name)]


# --- the right places -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_captured_residuals_are_the_models_own_hidden_states(build: Build, name: str) -> None:
    """What goes into layer n is transformers' hidden state n, and so is what left the layer before.

    The last hidden state is not compared: it lies behind the final norm.
    """
    folder, ids = build(name), tokens()
    hidden = reference(folder)(input_ids=ids, output_hidden_states=True).hidden_states
    captured = load(folder).capture(ids, sites_of(name))
    for layer in range(N_LAYERS):
        torch.testing.assert_close(captured[Site("resid_pre", layer)], hidden[layer], atol=2e-4, rtol=2e-4)
    for layer in range(N_LAYERS - 1):
        assert torch.equal(captured[Site("resid_post", layer)], captured[Site("resid_pre", layer + 1)])


@pytest.mark.parametrize("name", CONFIGS)
def test_what_attention_and_mlp_add_sums_to_the_next_residual(build: Build, name: str) -> None:
    """pre + attention = mid and mid + MLP = post, exactly as sites are defined, whatever the modules' names.

    Pythia's two add to the same stream, so there only the sum of all three holds.
    """
    captured = load(build(name)).capture(tokens(), sites_of(name))

    def at(point: Point, layer: int) -> Tensor:
        return captured[Site(point, layer)]

    for layer in range(N_LAYERS):
        added = at("resid_pre", layer) + at("attn_out", layer)
        if name != "pythia":
            torch.testing.assert_close(added, at("resid_mid", layer))
        torch.testing.assert_close(added + at("mlp_out", layer), at("resid_post", layer))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mlp_turns_its_input_into_its_neurons_and_its_output(build: Build, name: str) -> None:
    """Running the MLP by hand on what was captured in front of it gives what was captured behind it."""
    folder = build(name)
    captured = load(folder).capture(tokens(), sites_of(name))
    for layer in range(N_LAYERS):
        block = cast(Any, layers_of(reference(folder)))[layer]
        normed = name in (*SANDWICH, *POST_NORM)
        behind = block.post_feedforward_layernorm if normed else nn.Identity()
        output = captured[Site("mlp_out", layer)]
        by_hand = block.mlp(captured[Site("mlp_in", layer)])
        by_hand = by_hand[0] if isinstance(by_hand, tuple) else by_hand
        torch.testing.assert_close(behind(by_hand), output)
        if name not in EXPERTS:
            down = {"gpt2": "c_proj", "pythia": "dense_4h_to_h", "neox": "dense_4h_to_h"}
            neurons = captured[Site("neurons", layer)]
            assert neurons.shape == (2, 9, D_MLP)
            project = getattr(block.mlp, down.get(name, "down_proj"))
            torch.testing.assert_close(behind(project(neurons)), output)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "pythia"])
def test_every_known_module_path_holds_what_its_point_holds(build: Build, name: str) -> None:
    """All paths in a family's table, hooked by hand, show the tensors that capturing their point gives."""
    subject_folder, ids = build(name), tokens()
    model, seen = reference(subject_folder), dict[str, Tensor]()
    layer = layers_of(model)[1]
    emitted = FAMILIES[CONFIGS[name][0]].emitted
    every = [(point, path) for point, places in emitted.items() for path in places]
    modules = {module for module, _ in layer.named_modules()}
    paths = [(point, path) for point, path in every if path.rpartition(".")[0] in modules]
    absent = {path for _, path in every} - {path for _, path in paths}
    not_here = {
        "qwen3_moe": {"mlp.down_proj.input", "mlp.down_proj.output"},  # of dense layers
        "mixtral": {"block_sparse_moe.input", "block_sparse_moe.output"},  # until transformers 5
    }
    assert absent == not_here.get(CONFIGS[name][0], set())
    for _, path in paths:
        _record(layer, path, seen)
    model(input_ids=ids)
    points = {point for point, _ in paths}
    captured = load(subject_folder).capture(ids, [Site(point, 1) for point in points])
    for point, path in paths:
        torch.testing.assert_close(captured[Site(point, 1)], seen[path], atol=2e-4, rtol=2e-4)


def _record(layer: nn.Module, path: str, seen: dict[str, Tensor]) -> None:
    """Keeps what passes `path` (`mlp.input`, ...) of a layer, in a way of its own."""
    module = layer.get_submodule(path.rpartition(".")[0])
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        given = args[0] if args else kwargs["hidden_states"]
        returned = output[0] if type(output) is tuple else output
        seen.setdefault(path, (given if path.rpartition(".")[2] == "input" else returned).clone())
        return output

    module.forward = forward


def test_gemma_2_is_read_with_soft_capped_attention(build: Build) -> None:
    """A configuration with attn_logit_softcapping gets the one implementation that does it."""
    folder, ids = build("gemma2"), tokens()
    subject = load(folder)
    assert subject.architecture.attention == "eager"
    assert load(build("gemma3_text")).architecture.attention == "sdpa"
    config = json.loads((folder / "config.json").read_text())
    model = reference(folder)
    capped = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    free = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    captured = subject.capture(ids, [Site("resid_post", 1)])[Site("resid_post", 1)]
    assert config["attn_logit_softcapping"] == 2.0
    assert not torch.allclose(capped, free, atol=0.01), "the cap must matter for this test to mean anything"
    torch.testing.assert_close(captured, capped, atol=2e-4, rtol=2e-4)


# --- how it runs ------------------------------------------------------------------------------------------


def _counting(folder: Path) -> tuple[Subject, dict[str, int]]:
    """A subject whose modules count their calls, by path."""
    model, calls = reference(folder), dict[str, int]()
    for name, module in model.named_modules():

        def count(_module: nn.Module, _args: object, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        module.register_forward_pre_hook(count)
    return Subject(model, find_model(str(folder)), torch.device("cpu"), torch.float32), calls


@pytest.mark.parametrize(
    ("site", "last", "not_called"),
    [
        (Site("resid_post", 1), "model.layers.1.mlp.down_proj", "model.layers.2"),
        (Site("attn_out", 1), "model.layers.1.self_attn.o_proj", "model.layers.1.mlp"),
        (Site("neurons", 0), "model.layers.0.mlp.up_proj", "model.layers.1"),
        (Site("resid_post", 2), "model.layers.2.mlp.down_proj", "model.norm"),
    ],
)
def test_nothing_runs_behind_the_last_site(build: Build, site: Site, last: str, not_called: str) -> None:
    """Modules up to the site run once; later layers, the final norm and the unembedding never do."""
    subject, calls = _counting(build("llama"))
    subject.capture(tokens(), [Site("resid_pre", 0), site])
    assert calls[last] == 1
    assert not_called not in calls
    assert "lm_head" not in calls


def test_capturing_leaves_the_model_as_it_was(build: Build) -> None:
    """Hooks are gone after a capture, after one that failed too, and a full forward still works."""
    subject, calls = _counting(build("llama"))
    subject.capture(tokens(), [Site("resid_post", 0)])
    with pytest.raises(SiteError, match="3 layers"):
        subject.capture(tokens(), [Site("resid_post", 0), Site("resid_post", 9)])
    calls.clear()
    full = subject.capture(tokens(), [Site("resid_post", N_LAYERS - 1)])
    again = subject.capture(tokens(), [Site("resid_post", N_LAYERS - 1), Site("resid_post", 0)])
    assert torch.equal(full[Site("resid_post", 2)], again[Site("resid_post", 2)])
    assert calls["model.layers.2"] == 2


def test_captures_come_in_the_order_asked_for_and_without_gradients(build: Build) -> None:
    """Order and duplicates of the request, not of the forward, decide; nothing asked for is no work."""
    subject, calls = _counting(build("llama"))
    assert subject.capture(tokens(), []) == {}
    assert not calls
    late, early = Site("resid_post", 1), Site("resid_pre", 0)
    captured = subject.capture(tokens(), [late, early, late])
    assert list(captured) == [late, early]
    assert not any(value.requires_grad for value in captured.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_the_right_changes_nothing_before_it(build: Build, name: str) -> None:
    """A short row in a padded batch has the activations it has alone, whatever it is padded with."""
    subject, long = load(build(name)), tokens(n_rows=1, length=12)
    short = long[:, :5] + 1
    sites = [Site("resid_post", N_LAYERS - 1), Site("experts" if name in EXPERTS else "neurons", 1)]
    alone = subject.capture(short, sites)
    for filler in (0, 3):
        padded = torch.nn.functional.pad(short, (0, 7), value=filler)
        batch = subject.capture(torch.cat([padded, long]), sites)
        for site in sites:
            torch.testing.assert_close(batch[site][:1, :5], alone[site], atol=1e-4, rtol=1e-4)


def test_dtype_and_tokenizer(build: Build) -> None:
    """float32 on a CPU unless another is asked for; the tokenizer is loaded when looked at."""
    subject = load(build("llama"))
    assert subject.dtype == torch.float32
    assert subject.device == torch.device("cpu")
    assert subject.tokenizer("w7 w9").input_ids == [7, 9]
    assert Vocabulary.of(subject.tokenizer).pieces([7, 9]) == (" w7", " w9")
    small = Subject.load(find_model(str(build("llama"))), dtype="bfloat16")
    site = Site("resid_post", 0)
    assert small.capture(tokens(), [site])[site].dtype == torch.bfloat16


def test_a_real_model_predicts_real_text() -> None:
    """Read through our sites, a pretrained model's last residual still predicts what it should."""
    folder = REAL / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("shared/real/models is absent")
    subject = load(folder)
    ids = torch.tensor([subject.tokenizer("Once upon a time, there was a little girl named").input_ids])
    site = Site("resid_post", subject.architecture.n_layers - 1)
    model = reference(folder)
    logits = model.lm_head(model.model.norm(subject.capture(ids, [site])[site]))
    assert subject.tokenizer.decode(logits[0, -1].argmax()).strip() == "Lily"
    torch.testing.assert_close(logits, model(input_ids=ids).logits, atol=1e-3, rtol=1e-3)


# --- models that can't be loaded --------------------------------------------------------------------------


def copy_of(folder: Path, to: Path, **changes: object) -> Path:
    """A model's folder with another config.json."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_incomplete_weights_are_refused(build: Build, tmp_path: Path) -> None:
    """transformers would fill a missing layer with random numbers and only warn."""
    deeper = copy_of(build("llama"), tmp_path / "deeper", num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"lacks 9 of the weights.*'model.layers.3"):
        load(deeper)


def test_weights_of_other_shapes_and_unknown_families_are_refused(build: Build, tmp_path: Path) -> None:
    """Whatever transformers can't load is a ModelError that names the folder."""
    with pytest.raises(ModelError, match=r"can't load .*wider"):
        load(copy_of(build("llama"), tmp_path / "wider", intermediate_size=32))
    with pytest.raises(ModelError, match=r"can't load .*strange"):
        load(copy_of(build("llama"), tmp_path / "strange", model_type="strange"))


def test_a_model_without_tokenizer_is_an_error_only_when_it_is_needed(build: Build, tmp_path: Path) -> None:
    """Activations need no tokenizer; asking for one names what is missing."""
    folder = copy_of(build("llama"), tmp_path / "silent")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    subject = load(folder)
    with pytest.raises(ModelError, match="no tokenizer"):
        _ = subject.tokenizer


# --- finding a model --------------------------------------------------------------------------------------


def test_a_local_folders_identity_is_its_content(build: Build, tmp_path: Path) -> None:
    """A copy elsewhere is the same model; another weight or another setting is another one."""
    folder = build("llama")
    found = find_model(str(folder))
    assert found.folder == folder
    assert found.commit is None
    assert found.with_weights() == found.with_tokenizer() == folder
    copied = copy_of(folder, tmp_path / "copied")
    (copied / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert find_model(str(copied)).identity == found.identity
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert find_model(str(copied)).identity != found.identity
    other = copy_of(folder, tmp_path / "other", rms_norm_eps=1e-3)
    assert find_model(str(other)).identity != found.identity


def test_the_demo_is_a_folder_of_the_package(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo` names the model that comes along, wherever it was installed."""
    monkeypatch.setattr(autointerp.demo, "MODEL", build("gpt2"), raising=False)
    assert find_model("demo").folder == build("gpt2")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere/x", "a/b/c"])
def test_a_path_that_leads_nowhere_never_asks_the_hub(name: str) -> None:
    """The error says where it looked and what a model may be."""
    with pytest.raises(ModelError, match=r"no folder .*config.json.*hub.*'demo'"):
        find_model(name)


def test_folders_that_are_no_usable_model(build: Build, tmp_path: Path) -> None:
    """Each fault has its own message, with the way out."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"no config.json"):
        find_model(str(empty))
    bare = copy_of(build("llama"), tmp_path / "bare")
    with pytest.raises(ModelError, match="no revision 'v2'"):
        find_model(str(bare), "v2")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model.safetensors"):
        find_model(str(bare))
    (bare / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"pickle only \(pytorch_model.bin\).*save_pretrained"):
        find_model(str(bare))
    index = bare / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    (bare / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"lacks model-2.safetensors, which"):
        find_model(str(bare))
    index.write_text('{"weight_map": {"a": "../../elsewhere.safetensors"}}')
    with pytest.raises(ModelError, match=r"only \*.safetensors beside it"):
        find_model(str(bare))
    index.write_text("[]")
    with pytest.raises(ModelError, match="not an index"):
        find_model(str(bare))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "no JSON object"),
        ("{}", "'model_type'"),
        ('{"model_type": "llama", "hidden_size": "16"}', "'hidden_size'"),
        ('{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": true}', "'num_hidden_layers'"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, text: str, reason: str) -> None:
    """What config.json lacks is named."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=reason):
        find_model(str(tmp_path))


def test_hub_errors_say_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure of the hub is told apart, and none asks the network in this test."""
    import huggingface_hub
    from huggingface_hub import errors

    def message_for(error: Exception, name: str = "some/model", revision: str | None = None) -> str:
        def fail(*_args: object, **_kwargs: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        with pytest.raises(ModelError) as caught:
            find_model(name, revision)
        assert caught.value.__cause__ is error
        return str(caught.value)

    def refused(kind: type[Any]) -> Exception:
        return cast(Exception, kind.__new__(kind, "401"))  # their constructors want a response

    assert "HF_HOME" in message_for(errors.LocalEntryNotFoundError("can't connect\nmore"))
    assert "can't connect" in message_for(errors.LocalEntryNotFoundError("can't connect\nmore"))
    assert "HF_HOME" in message_for(errors.OfflineModeIsEnabled("offline"))
    assert "no such folder here" in message_for(refused(errors.RepositoryNotFoundError))
    assert "no such folder here" in message_for(errors.HFValidationError("bad"), "bad name")
    assert "hf auth login" in message_for(refused(errors.GatedRepoError))
    assert "no revision 'v9'" in message_for(refused(errors.RevisionNotFoundError), revision="v9")
    assert "lacks a file" in message_for(refused(errors.RemoteEntryNotFoundError))


def test_a_hub_model_is_its_commit_and_weights_come_late(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.json alone is fetched to find a model; weights by the index, safetensors only, at the commit."""
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "snapshots").mkdir()
    snapshot = copy_of(build("llama"), tmp_path / "snapshots" / commit)
    asked: list[Any] = []

    def download(repo: str, filename: str, *, revision: str | None) -> str:
        asked.append((repo, filename, revision))
        return str(snapshot / filename)

    def whole(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", whole)
    found = find_model("some/model", "main")
    assert (found.identity, found.commit, found.architecture.d_model) == (commit, commit, D_MODEL)
    assert asked == [("some/model", "config.json", "main")]
    found.with_tokenizer()
    assert not [pattern for pattern in asked[-1][2] if "safetensors" in pattern]
    found.with_weights()
    assert asked[-1] == ("some/model", commit, ["model.safetensors"])
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    found.with_weights()
    assert asked[-1] == ("some/model", commit, ["model-1.safetensors"])


# --- shapes from config.json ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_read_from_every_familys_config(build: Build, name: str) -> None:
    """GPT-2's own names, and the text part of a multimodal model, give the same numbers."""
    found = find_model(str(build(name))).architecture
    assert (found.d_model, found.n_layers, found.d_mlp) == (D_MODEL, N_LAYERS, D_MLP)
    assert (found.vocab_size, found.max_positions) == (VOCAB, POSITIONS)
    assert found.model_type == {"gemma3": "gemma3_text"}.get(name, CONFIGS[name][0])
    assert found.parallel_residual == (name == "pythia")


def test_gpt2_has_four_neurons_a_dimension_unless_told() -> None:
    """`n_inner: null`, as all published GPT-2 models have it."""
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "vocab_size": 5, "n_inner": None}
    assert Architecture.of(config, "gpt2").d_mlp == 32


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_left_out_fields_have_transformers_defaults(model_type: str) -> None:
    """Published Gemma configurations leave fields out; transformers' classes are the reference."""
    from transformers import AutoConfig

    reference_config = cast(Any, AutoConfig).for_model(model_type)
    text = {"model_type": model_type, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 8}
    if model_type == "gemma2":
        text |= {"vocab_size": 256_000, "max_position_embeddings": 8192}
    found = Architecture.of({"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}, "x")
    assert found.vocab_size == reference_config.vocab_size
    assert found.max_positions == reference_config.max_position_embeddings
    assert (found.attention == "eager") == (reference_config.attn_logit_softcapping is not None)
    heads = reference_config.num_attention_heads * reference_config.head_dim
    assert found.d_heads == (None if model_type == "gemma2" else heads)  # its files always say how many
    assert (found.bos_token_id, found.eos_token_id) == (None, 1)


# --- fingerprints -----------------------------------------------------------------------------------------


def test_fingerprints_of_long_files_read_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long file head, end and samples between count, its size and name too; the order does not."""
    monkeypatch.setattr(identity, "WHOLE_UP_TO", 1000)
    monkeypatch.setattr(identity, "HEAD", 10)
    monkeypatch.setattr(identity, "SAMPLE", 10)
    one, two = tmp_path / "one", tmp_path / "two"
    two.write_bytes(b"short")

    def of(content: bytes) -> str:
        one.write_bytes(content)
        assert fingerprint([one, two]) == fingerprint([two, one])
        return fingerprint([one, two])

    zeros = bytes(3000)
    changed = [b"x" + zeros[1:], zeros[:-1] + b"x", zeros + b"\0", zeros[:1000]]
    in_a_sample, between_two = zeros[:599] + b"x" + zeros[600:], zeros[:500] + b"x" + zeros[501:]
    assert len({of(content) for content in [zeros, *changed, in_a_sample]}) == 6
    assert of(between_two) == of(zeros)
    one.rename(tmp_path / "three")
    assert fingerprint([tmp_path / "three"]) != fingerprint([two])
    with pytest.raises(InputError, match=r"one can't be read: No such file"):
        fingerprint([one])
