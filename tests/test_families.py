"""Every point of every family: what is captured equals what hooks written by hand see.

Nothing here goes through the tables under test. The hooks below sit on other modules than those that the
tables read where there is a choice (the MLP's input rather than its norm's output), and what no module emits
is computed in numpy from the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autointerp.errors import SiteError
from autointerp.subject.architecture import Architecture
from autointerp.subject.computed import value_of
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.types import Point, Site
from tiny_families import (
    CONFIGS,
    D_MODEL,
    EPSILON,
    EXPERTS,
    N_CHOSEN,
    N_EXPERTS,
    N_LAYERS,
    POST_NORM,
    SANDWICH,
    layers_of,
    points_of,
    reference,
    tokens,
    write,
)

Build = Callable[[str], Path]
Hooks = dict[Point, tuple[nn.Module, Literal["in", "out"]]]
LAYER = 1


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors are faster on one thread, and other work shares the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    built: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in built:
            built[name] = write(name, tmp_path_factory.mktemp(name))
        return built[name]

    return folder_of


# --- by hand ----------------------------------------------------------------------------------------------


def hooks_of(name: str, layer: Any) -> Hooks:
    """Where a layer of this family has what passes a module, read off its code in transformers."""
    hooks: Hooks = {"resid_pre": (layer, "in"), "resid_post": (layer, "out"), "mlp_in": (layer.mlp, "in")}
    if name == "gpt2":
        hooks |= {
            "resid_mid": (layer.ln_2, "in"), "attn_in": (layer.attn.c_attn, "in"),
            "z": (layer.attn.c_proj, "in"), "attn_out": (layer.attn.resid_dropout, "out"),
            "neurons": (layer.mlp.act, "out"), "mlp_out": (layer.mlp.dropout, "out"),
        }  # fmt: skip
    elif name in ("pythia", "neox"):
        hooks |= {
            "attn_in": (layer.attention.query_key_value, "in"), "z": (layer.attention.dense, "in"),
            "attn_out": (layer.post_attention_dropout, "out"), "neurons": (layer.mlp.act, "out"),
            "mlp_out": (layer.post_mlp_dropout, "out"),
        }  # fmt: skip
        if name == "neox":
            hooks["resid_mid"] = (layer.post_attention_layernorm, "in")
    else:
        projection = layer.self_attn.qkv_proj if name == "phi3" else layer.self_attn.q_proj
        hooks |= {"attn_in": (projection, "in"), "z": (layer.self_attn.o_proj, "in")}
        if name in (*SANDWICH, *POST_NORM):
            hooks["attn_out"] = (layer.post_attention_layernorm, "out")
            hooks["mlp_out"] = (layer.post_feedforward_layernorm, "out")
            hooks |= {"attn_raw": (layer.self_attn.o_proj, "out"), "mlp_raw": (layer.mlp.down_proj, "out")}
            in_front = layer.mlp if name in POST_NORM else layer.pre_feedforward_layernorm
        else:
            hooks["attn_out"] = (layer.self_attn.o_proj, "out")
            hooks["mlp_out"] = (layer.mlp if name in EXPERTS else layer.mlp.down_proj, "out")
            in_front = layer.post_attention_layernorm
        hooks["resid_mid"] = (in_front, "in")
        if name not in EXPERTS:
            hooks["neurons"] = (layer.mlp.down_proj, "in")
    return hooks


def seen_by_hand(model: Any, hooks: Hooks, ids: Tensor) -> dict[Point, Tensor]:
    seen: dict[Point, Tensor] = {}

    def first(value: Any) -> Any:
        return value[0].clone() if isinstance(value, tuple) else value.clone()

    for point, (module, side) in hooks.items():

        def before(_: Any, args: Any, named: Any, point: Point = point) -> None:
            seen[point] = first(args or named["hidden_states"])

        def behind(_: Any, _args: Any, output: Any, point: Point = point) -> None:
            seen[point] = first(output)

        if side == "in":
            module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            module.register_forward_hook(behind)
    with torch.no_grad():
        model(input_ids=ids)
    return seen


def normalized(name: str, x_BTD: np.ndarray) -> np.ndarray:
    """LayerNorm of GPT-2, NeoX and OLMo 1 (which fixes its epsilon), RMSNorm elsewhere; no gain, no bias."""
    if name in ("gpt2", "pythia", "neox", "olmo"):
        epsilon = 1e-5 if name == "olmo" else EPSILON
        centred_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
        return centred_BTD / np.sqrt((centred_BTD**2).mean(-1, keepdims=True) + epsilon)
    return x_BTD / np.sqrt((x_BTD**2).mean(-1, keepdims=True) + EPSILON)


def routed(name: str, layer: Any, x_D: np.ndarray) -> np.ndarray:
    """[E]: one token's weights of the experts, from the MLP's input."""
    router = layer.mlp.router if name == "gpt_oss" else layer.mlp.gate
    scores_E = router.weight.double().numpy() @ x_D
    if name == "gpt_oss":
        scores_E = scores_E + router.bias.double().numpy()
    chosen_K = np.argsort(-scores_E)[:N_CHOSEN]
    over_all_E = np.exp(scores_E) / np.exp(scores_E).sum()
    weights_K = over_all_E[chosen_K]
    if name == "gpt_oss":
        weights_K = np.exp(scores_E[chosen_K]) / np.exp(scores_E[chosen_K]).sum()
    elif name != "qwen3_moe":  # whose norm_topk_prob is false by default
        weights_K = weights_K / weights_K.sum()
    weights_E = np.zeros(N_EXPERTS)
    weights_E[chosen_K] = weights_K
    return weights_E


def expected(name: str, folder: Path, ids: Tensor) -> dict[Point, np.ndarray]:
    model = reference(folder)
    layer = layers_of(model)[LAYER]
    passed = seen_by_hand(model, hooks_of(name, layer), ids)
    seen = {point: value.double().numpy() for point, value in passed.items()}
    if name not in POST_NORM:
        middle = seen["resid_pre" if name == "pythia" else "resid_mid"]
        seen["attn_in_normalized"] = normalized(name, seen["resid_pre"])
        seen["mlp_in_normalized"] = normalized(name, middle)
    if name in EXPERTS:
        seen["experts"] = np.stack([[routed(name, layer, x_D) for x_D in row] for row in seen["mlp_in"]])
    return seen


# --- what is captured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_point_holds_what_hooks_by_hand_see(build: Build, name: str) -> None:
    """All points that the family has, none missing, one by one and all at once."""
    folder, ids = build(name), tokens()
    subject, by_hand = Subject.load(find_model(str(folder))), expected(name, folder, ids)
    assert set(by_hand) == set(points_of(name))
    together = subject.capture(ids, [Site(point, LAYER) for point in by_hand])
    for point, value in by_hand.items():
        site = Site(point, LAYER)
        alone = subject.capture(ids, [site])[site]
        assert torch.equal(alone, together[site])
        np.testing.assert_allclose(alone.numpy(), value, atol=2e-4, rtol=2e-4, err_msg=point)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_two_points_hold_the_same_but_where_a_family_says_so(build: Build, name: str) -> None:
    """Otherwise a point read at another one's place would pass every comparison here. OLMo 1's norms have no
    gain, so behind them and before the gain is one place; OLMo 2 and 3 have none in front at all; both norms
    of Pythia's layers normalise the same stream."""
    seen = expected(name, build(name), tokens())
    points = sorted(point for point in seen if seen[point].shape[-1] == D_MODEL)
    same = {
        frozenset((one, other))
        for one in points
        for other in points
        if one < other and np.allclose(seen[one], seen[other], atol=1e-2)
    }
    if name == "olmo":
        pairs = [("attn_in", "attn_in_normalized"), ("mlp_in", "mlp_in_normalized")]
    elif name in POST_NORM:
        pairs = [("attn_in", "resid_pre"), ("mlp_in", "resid_mid")]
    else:
        pairs = [("attn_in_normalized", "mlp_in_normalized")] if name == "pythia" else []
    assert same == set(map(frozenset, pairs))


@pytest.mark.parametrize("name", [*SANDWICH, *POST_NORM])
def test_behind_sandwich_norms_is_not_what_the_modules_emit(build: Build, name: str) -> None:
    """In these families the MLP's and attention's own outputs are not what they add to the stream: the norm
    behind them, run by hand on the one, gives the other."""
    folder, ids = build(name), tokens()
    layer = layers_of(reference(folder))[LAYER]
    norms = {"attn": layer.post_attention_layernorm, "mlp": layer.post_feedforward_layernorm}
    for part, norm in norms.items():
        raw, added = (Site(cast(Point, f"{part}_{side}"), LAYER) for side in ("raw", "out"))
        captured = Subject.load(find_model(str(folder))).capture(ids, [raw, added])
        torch.testing.assert_close(norm(captured[raw]), captured[added], atol=2e-4, rtol=2e-4)
        assert (captured[raw] - captured[added]).abs().max() > 0.1


@pytest.mark.parametrize("name", EXPERTS)
def test_the_experts_weights_are_what_their_outputs_are_multiplied_by(build: Build, name: str) -> None:
    """Each expert run alone with weight 1, times what was captured, sums to what the MLP adds; exactly the
    chosen ones have a weight."""
    folder, ids = build(name), tokens()
    sites = [Site(point, LAYER) for point in ("experts", "mlp_in", "mlp_out")]
    captured = Subject.load(find_model(str(folder))).capture(ids, sites)
    weights_NE, x_ND, out_ND = (captured[site].flatten(0, 1) for site in sites)
    experts = layers_of(reference(folder))[LAYER].mlp.experts
    ones_N1 = torch.ones(len(x_ND), 1)
    total_ND = torch.zeros_like(x_ND)
    for expert in range(N_EXPERTS):
        alone_ND = experts(x_ND, torch.full((len(x_ND), 1), expert), ones_N1)
        total_ND += weights_NE[:, expert, None] * alone_ND
    torch.testing.assert_close(total_ND, out_ND, atol=2e-4, rtol=2e-4)
    assert ((weights_NE > 0).sum(dim=1) == N_CHOSEN).all()


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "gpt_oss"])
def test_heads_are_as_wide_as_config_json_says(build: Build, name: str) -> None:
    """Two heads of width 8 in a Qwen 2, that of the stream; of width 10 in the others, wider than it."""
    subject, site = Subject.load(find_model(str(build(name)))), Site("z", LAYER)
    assert subject.capture(tokens(), [site])[site].shape == (2, 9, 16 if name == "qwen2" else 20)


def test_layers_of_a_mixture_may_be_dense(tmp_path: Path) -> None:
    """A Qwen3-MoE whose layer 1 is dense has neurons there, and experts in the other layers."""
    folder = write("qwen3_moe", tmp_path, mlp_only_layers=[1])
    subject = Subject.load(find_model(str(folder)))
    sites = [Site("neurons", 1), *(Site("experts", layer) for layer in range(N_LAYERS) if layer != 1)]
    captured = subject.capture(tokens(), sites)
    assert [captured[site].shape[-1] for site in sites] == [24, N_EXPERTS, N_EXPERTS]
    for site in (Site("neurons", 0), Site("experts", 1)):
        with pytest.raises(SiteError, match="MLP is"):
            subject.capture(tokens(), [site])


@pytest.mark.parametrize("name", ["gemma3", "olmo3", "qwen3_moe", "gpt_oss"])
def test_a_model_that_is_loaded_in_part_has_the_same_sites(build: Build, name: str) -> None:
    """Of configurations that list something for every layer, and of experts' weights, the rest is left out."""
    files = find_model(str(build(name)))
    sites = [Site(point, LAYER) for point in points_of(name)]
    whole, part = Subject.load(files), Subject.load(files, n_layers=LAYER + 1)
    expected_there, there = whole.capture(tokens(), sites), part.capture(tokens(), sites)
    assert all(torch.equal(expected_there[site], there[site]) for site in sites)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mixtral", "gpt_oss"])
def test_computed_points_keep_the_models_dtype(build: Build, name: str) -> None:
    """They are computed in float32 and rounded once, as the norm itself does it."""
    subject = Subject.load(find_model(str(build(name))), dtype="bfloat16")
    points = [point for point in points_of(name) if point.endswith("_normalized") or point == "experts"]
    captured = subject.capture(tokens(), [Site(point, LAYER) for point in [*points, "resid_pre"]])
    assert {value.dtype for value in captured.values()} == {torch.bfloat16}
    wanted = normalized(name, captured[Site("resid_pre", LAYER)].double().numpy())
    found = captured[Site("attn_in_normalized", LAYER)].double().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1.001 * 2**-8)  # half a step of bfloat16's 8 bits


@pytest.mark.parametrize(
    "model_type", ["gemma", "gemma2", "gemma3_text", "qwen3", "gpt_oss", "llama", "olmo2"]
)
def test_a_head_width_that_config_json_leaves_out_is_the_familys(model_type: str) -> None:
    """transformers' own configurations are the reference: some families fix it, others share out d_model."""
    from transformers import AutoConfig

    known: Any = AutoConfig.for_model(model_type)
    said = {"model_type": model_type, "num_hidden_layers": 2, "vocab_size": 9}
    said |= {"hidden_size": known.hidden_size, "num_attention_heads": known.num_attention_heads}
    each = getattr(known, "head_dim", None) or known.hidden_size // known.num_attention_heads
    assert Architecture.of(said, "x").d_heads == known.num_attention_heads * each


def test_a_router_or_norm_of_another_make_is_refused() -> None:
    """Another version of transformers may return or keep things elsewhere; nothing is read from a guess."""
    x_ND = torch.ones(2, 3)
    with pytest.raises(SiteError, match=r"router 'Linear'.*doesn't return logits, weights and experts"):
        value_of(x_ND, nn.Linear(3, 3), "routing")
    with pytest.raises(SiteError, match=r"router"):
        value_of((x_ND, x_ND, x_ND), nn.Linear(3, 3), "routing")  # experts that are no indices
    for rule in ("rms", "layer_norm"):
        with pytest.raises(SiteError, match=r"norm 'Identity'.*epsilon in no place that is known"):
            value_of(x_ND, nn.Identity(), rule)
