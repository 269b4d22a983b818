"""Promoted and suppressed tokens: against the model itself, family by family, and against slow arithmetic."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from autointerp.errors import ModelError
from autointerp.subject.families import FAMILIES
from autointerp.subject.model_files import find_model
from autointerp.subject.stream import FINAL_NORMS
from autointerp.subject.unembedding import NoUnembedding, Unembedding, read_unembedding
from autointerp.types import Point, Site, TokenEffects

N_LAYERS, D, D_MLP, VOCAB, N_TOKENS = 2, 16, 24, 60, 55
N = 7
Array = NDArray[np.float64]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]  # used by pytest
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- tiny models of every family -------------------------------------------------------------------------

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": D, "intermediate_size": D_MLP, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2, "max_position_embeddings": 32,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 1, "head_dim": 8}
_MIXED = {**_GROUPED, "num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1}
_GPT = {
    "vocab_size": VOCAB,
    "n_embd": D,
    "n_layer": N_LAYERS,
    "n_head": 2,
    "n_inner": D_MLP,
    "n_positions": 32,
}
_VISION = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": N_LAYERS, "num_attention_heads": 1,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT),
    "gpt2_untied": ("gpt2", {**_GPT, "tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", _COMMON),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "phi": ("phi", _COMMON),
    "starcoder2": ("starcoder2", {**_COMMON, "num_key_value_heads": 1}),
    "llama": ("llama", _GROUPED),
    "llama_tied": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("mistral", _GROUPED),
    "mixtral": ("mixtral", _MIXED),
    "qwen2": ("qwen2", {**_COMMON, "num_key_value_heads": 1}),
    "qwen2_moe": ("qwen2_moe", _MIXED),
    "qwen3": ("qwen3", _GROUPED),
    "qwen3_moe": ("qwen3_moe", _MIXED),
    "phi3": ("phi3", {**_COMMON, "pad_token_id": 0}),
    "olmo": ("olmo", _COMMON),
    "olmo2": ("olmo2", _COMMON),
    "olmo3": ("olmo3", _COMMON),
    "gpt_oss": ("gpt_oss", _MIXED),
    "smollm3": ("smollm3", {**_COMMON, "num_key_value_heads": 1, "pad_token_id": 0}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "final_logit_softcapping": None}),
    "gemma3_text": ("gemma3_text", _GROUPED),
    "gemma3": ("gemma3", {"text_config": _GROUPED, "vision_config": _VISION, "mm_tokens_per_image": 4}),
}  # fmt: skip

Build = Callable[[str], Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Writes a family's tiny model once and gives its folder. All weights are random, norms' gains and all
    biases too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    built: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in built:
            model_type, config = CONFIGS[name]
            model = cast(Any, AutoModelForCausalLM).from_config(
                cast(Any, AutoConfig).for_model(model_type, **config)
            )
            generator = torch.Generator().manual_seed(7)
            for parameter in model.parameters():
                parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
            built[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(built[name])
        return built[name]

    return folder_of


def loaded(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import AutoModelForCausalLM

    model = cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def final_norm(model: Any) -> Any:
    """By name, in the module tree of transformers: not how the code under test finds it."""
    names = ("transformer.ln_f", "gpt_neox.final_layer_norm", "model.final_layernorm", "model.norm",
             "model.language_model.norm")  # fmt: skip
    modules = dict(model.named_modules())
    return next(modules[name] for name in names if name in modules)


def read(folder: Path, site: Site | None = None, n_tokens: int = N_TOKENS) -> Unembedding:
    found = read_unembedding(find_model(str(folder)), site or Site("resid_post", 1), n_tokens, "cpu")
    assert isinstance(found, Unembedding), found
    return found


def directions(n: int, width: int = D, seed: int = 3) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def assert_effects(found: tuple[TokenEffects, TokenEffects], effects: Array, n: int = N) -> None:
    """`effects` [V]: of every token, the mean subtracted."""
    promoted, suppressed = found
    down = np.argsort(effects, kind="stable")
    up = np.argsort(-effects, kind="stable")
    assert list(promoted.ids) == up[:n].tolist()
    assert list(suppressed.ids) == down[:n].tolist()
    scale = np.abs(effects).max()
    np.testing.assert_allclose(promoted.effects, effects[up[:n]], rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(suppressed.effects, effects[down[:n]], rtol=1e-5, atol=1e-5 * scale)


# --- against the model -----------------------------------------------------------------------------------


def test_every_family_that_is_known_is_tested() -> None:
    assert {model_type for model_type, _ in CONFIGS.values()} == set(FINAL_NORMS)


@pytest.mark.parametrize("name", CONFIGS)
def test_effects_are_how_the_models_logits_move(build: Build, name: str) -> None:
    """A direction is added to the stream behind the last layer, the final norm's scale held: the logits
    move along the effects, the mean over the tokens aside. (Held, all is linear: no need for a small step,
    of which float32 inside the models' norms would leave little.)"""
    folder = build(name)
    model = loaded(folder, torch.float32)  # mixtures of experts take no float64
    norm = final_norm(model)
    ids = torch.tensor([[5, 9, 3, 8]])
    bias = getattr(norm, "bias", None)
    centred = type(norm).__name__ in ("LayerNorm", "OlmoLayerNorm")

    def logits(added_D: Tensor) -> tuple[Tensor, float]:
        """(of the last token [V], the norm's scale there before anything is added)"""
        scales: list[Tensor] = []

        def before(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            for x in (args[0], args[0] + added_D):
                y = x - x.mean(-1, keepdim=True) if centred else x
                eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-5))  # OLMo's: in its forward
                scales.append((y.square().mean(-1, keepdim=True) + eps).sqrt())
            return (args[0] + added_D,)

        def after(_: Any, __: Any, out: Tensor) -> Tensor:
            shift = 0.0 if bias is None else bias
            return (out - shift) * (scales[1] / scales[0]) + shift

        hooks = (norm.register_forward_pre_hook(before), norm.register_forward_hook(after))
        with torch.no_grad():
            out = model(input_ids=ids).logits[0, -1]
        for hook in hooks:
            hook.remove()
        return out, float(scales[0][0, -1])

    known = read(folder).effects(directions(4), N)
    still, scale = logits(torch.zeros(D))
    for direction_D, found in zip(directions(4), known, strict=True):
        moved, _ = logits(10 * direction_D)
        effects = ((moved - still) * scale / 10).double().numpy()[:N_TOKENS]
        assert_effects(found, effects - effects.mean())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2", "qwen2"])
def test_effects_are_the_sums_one_would_write_down(build: Build, name: str) -> None:
    """sum over i of W_U[v, i] * gain[i] * (direction[i] - mean), in plain loops."""
    folder = build(name)
    model = loaded(folder)
    rows = model.get_output_embeddings().weight.numpy()
    gain = final_norm(model).weight.numpy() + (1 if name == "gemma2" else 0)
    for direction, found in zip(directions(5).tolist(), read(folder).effects(directions(5), N), strict=True):
        mean = sum(direction) / D if name in ("gpt2", "gpt_neox") else 0.0
        effects = [
            sum(rows[v, i] * gain[i] * (direction[i] - mean) for i in range(D)) for v in range(N_TOKENS)
        ]
        average = sum(effects) / N_TOKENS
        assert_effects(found, np.array([effect - average for effect in effects]))


THROUGH: dict[Point, tuple[str, ...]] = {
    "neurons": ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h"),
    "z": ("self_attn.o_proj", "attn.c_proj", "attention.dense"),
}
BEHIND: dict[Point, str] = {
    **dict.fromkeys(("neurons", "mlp_raw"), "post_feedforward_layernorm"),
    **dict.fromkeys(("z", "attn_raw"), "post_attention_layernorm"),
}
GAIN_OFFSET = {"gemma2": 1, "gemma3": 1, "olmo2": 0, "olmo3": 0}
"""Of families that have a norm behind MLP and attention: what is added to its weight."""


@pytest.mark.parametrize("point", ["neurons", "z"])
@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_neox", "llama", "qwen2", "gemma", "gemma2", "gemma3", "olmo", "olmo2", "olmo3"]
)
def test_neurons_and_heads_write_through_the_projection_behind_them(
    build: Build, name: str, point: Point
) -> None:
    """Changing them changes what MLP or attention adds; in some families behind a norm, its scale held."""
    folder = build(name)
    model = loaded(folder)
    modules = {
        re.sub(r".*\.(layers|h)\.1\.", "", path): module
        for path, module in model.named_modules()
        if re.search(r"\.(layers|h)\.1\.", path) and "vision" not in path
    }
    out = next(modules[one] for one in THROUGH[point] if one in modules)
    width = read(folder, Site(point, 1)).d_in
    asked = directions(3, width)
    at_stream = out(asked.double()) - out(torch.zeros(width, dtype=torch.float64))
    if name in GAIN_OFFSET:
        at_stream = at_stream * (GAIN_OFFSET[name] + modules[BEHIND[point]].weight)
    known = read(folder, Site(point, 1)).effects(asked, N)
    for found, expected in zip(known, read(folder).effects(at_stream, N), strict=True):
        assert (found[0].ids, found[1].ids) == (expected[0].ids, expected[1].ids)
        np.testing.assert_allclose(found[0].effects, expected[0].effects, rtol=1e-5)
        np.testing.assert_allclose(found[1].effects, expected[1].effects, rtol=1e-5)


@pytest.mark.parametrize("point", ["mlp_raw", "attn_raw"])
@pytest.mark.parametrize("name", GAIN_OFFSET)
def test_what_a_norm_follows_writes_through_its_gain(build: Build, name: str, point: Point) -> None:
    """As what is added to the stream does, times the gain, coordinate by coordinate."""
    layer = [
        module for path, module in loaded(build(name)).named_modules() if path.endswith(f"1.{BEHIND[point]}")
    ]
    asked = directions(3)
    known = read(build(name), Site(point, 1)).effects(asked, N)
    for found, expected in zip(
        known, read(build(name)).effects(asked * (GAIN_OFFSET[name] + layer[0].weight), N), strict=True
    ):
        assert (found[0].ids, found[1].ids) == (expected[0].ids, expected[1].ids)
        np.testing.assert_allclose(found[0].effects, expected[0].effects, rtol=1e-5)


def test_a_soft_cap_on_logits_changes_no_order(build: Build, tmp_path: Path) -> None:
    """It is left out: effects are the same with and without it."""
    folder = build("gemma2")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
    assert read(tmp_path).effects(directions(3), N) == read(folder).effects(directions(3), N)


def test_padding_behind_the_tokenizers_last_token_counts_nowhere(build: Build) -> None:
    """Neither as a promoted token nor in the mean."""
    few, all_ = (read(build("llama"), n_tokens=n).effects(directions(6), VOCAB) for n in (20, 10_000))
    assert {len(promoted.ids) for promoted, _ in few} == {20}
    assert {max(promoted.ids) for promoted, _ in few} == {19}
    assert {len(promoted.ids) for promoted, _ in all_} == {VOCAB}
    for promoted, suppressed in (*few, *all_):
        assert promoted.ids == suppressed.ids[::-1]
        assert abs(sum(promoted.effects)) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision(build: Build, tmp_path: Path, dtype: torch.dtype) -> None:
    """Read as they are stored; everything is computed in float64 all the same."""
    loaded(build("llama")).to(dtype).save_pretrained(tmp_path)
    model = loaded(tmp_path)
    rows, gain = model.get_output_embeddings().weight.numpy(), final_norm(model).weight.numpy()
    for direction, found in zip(
        directions(3).double(), read(tmp_path).effects(directions(3), N), strict=True
    ):
        effects = rows[:N_TOKENS] @ (gain * direction.numpy())
        assert_effects(found, effects - effects.mean())


def test_a_model_in_several_files(build: Build, tmp_path: Path) -> None:
    loaded(build("qwen2")).float().save_pretrained(tmp_path, max_shard_size="3kB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert read(tmp_path).effects(directions(3), N) == read(build("qwen2")).effects(directions(3), N)


# --- where there are none --------------------------------------------------------------------------------


def reason(folder: Path, point: Point = "resid_post") -> str:
    found = read_unembedding(find_model(str(folder)), Site(point, 1), N_TOKENS, "cpu")
    assert isinstance(found, NoUnembedding)
    return found.reason


@pytest.mark.parametrize("point", ["resid_pre", "resid_mid", "mlp_out", "attn_out"])
def test_what_is_added_to_the_stream_is_in_it(build: Build, point: Point) -> None:
    found = read(build("llama"), Site(point, 0)).effects(directions(2), N)
    assert found == read(build("llama")).effects(directions(2), N)


def test_a_site_behind_a_norm_writes_nothing(build: Build) -> None:
    assert "'layers.1.mlp_in' is read from the residual stream" in reason(build("llama"), "mlp_in")
    for point in ("mlp_in_normalized", "attn_in", "attn_in_normalized"):
        assert f"'layers.1.{point}' is read from the residual stream" in reason(build("llama"), point)


def test_experts_have_no_direction_of_their_own(build: Build) -> None:
    assert "another vector on every token" in reason(build("mixtral"), "experts")


def test_every_family_with_sites_has_promoted_tokens() -> None:
    assert set(FAMILIES) <= set(FINAL_NORMS)


def test_a_family_that_is_not_known_has_none(build: Build, tmp_path: Path) -> None:
    """Its norm could be of any kind; a wrong answer would look like a right one."""
    for path in build("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "strange"}))
    assert "'strange' model's final norm" in reason(tmp_path)


def changed(folder: Path, out: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


def test_tensors_that_are_not_there_or_not_plain_weights(build: Build, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["model.last.weight"] = tensors.pop("model.norm.weight")

    def twice(tensors: dict[str, Tensor]) -> None:
        tensors["other.norm.weight"] = tensors["model.norm.weight"].clone()

    def quantise(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)

    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].contiguous()

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"][3, 4] = float("nan")

    said = {}
    for change in (rename, twice, quantise, narrow, spoil):
        folder = tmp_path / change.__name__
        folder.mkdir()
        said[change.__name__] = reason(changed(build("llama"), folder, change))
    assert "no single tensor that is the final norm" in said["rename"]
    assert "no single tensor that is the final norm" in said["twice"]
    assert "torch.int8" in said["quantise"]
    assert f"[{VOCAB}, {D - 1}]" in said["narrow"]
    assert "NaN" in said["spoil"]


def test_a_damaged_file_is_an_error_not_a_missing_vocabulary(build: Build, tmp_path: Path) -> None:
    for path in build("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ModelError, match="Copy or download"):
        reason(tmp_path)


# --- the same for every company --------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.integers(0, 10_000), st.booleans(), st.booleans(), st.integers(20, 3000),
    st.lists(st.integers(0, 39), min_size=1, max_size=50),
)  # fmt: skip
def test_effects_do_not_depend_on_the_other_directions(
    seed: int, centres: bool, projected: bool, max_elements: int, asked: list[int]
) -> None:
    """Asked together, apart, twice, in another order and in small pieces: identical. Half of the tokens
    have nearly equal rows."""
    generator = torch.Generator().manual_seed(seed)
    rows_VD = torch.randn(200, 12, generator=generator)
    rows_VD[100:] = rows_VD[0] + 1e-7 * rows_VD[100:]
    projection_DH = torch.randn(12, 9, generator=generator) if projected else None
    x_QH = torch.randn(40, 9 if projected else 12, generator=generator)
    x_QH[13] = 0.0
    gain_D = torch.randn(12, generator=generator)

    def made(max_elements: int) -> Unembedding:
        return Unembedding(
            gain_D, rows_VD, centres=centres, projection_DH=projection_DH, max_elements=max_elements
        )

    known = made(2**22).effects(x_QH, 10)
    # The mean over the vocabulary is one sum a chunking: its last bits are rounded away.
    assert made(max_elements).effects(x_QH[asked], 10) == [known[at] for at in asked]
    assert [made(2**22).effects(x_QH[at : at + 1], 10)[0] for at in asked] == [known[at] for at in asked]
    nothing = TokenEffects((), ())
    assert known[13] == (nothing, nothing)
