"""Hook points: every spelling, what is refused and why, and where a family has its sites."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.errors import SiteError
from autointerp.subject.architecture import Architecture
from autointerp.subject.families import FAMILIES, ModuleSite, Place
from autointerp.subject.sites import check_site, locate, parse_hook, read_again, width_at
from autointerp.types import Point, Site

POINTS: tuple[Point, ...] = get_args(Point)


def shape(model_type: str = "llama", **changes: object) -> Architecture:
    config = {
        "model_type": model_type,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 9,
    }
    return Architecture.of(config | changes, "a config")


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("layers.3", "resid_post"),
        ("layers.3.in", "resid_pre"),
        ("layers.3.mid", "resid_mid"),
        ("layers.3.mlp", "mlp_out"),
        ("layers.3.mlp_in", "mlp_in"),
        ("layers.3.attn", "attn_out"),
        ("layers.3.neurons", "neurons"),
        ("layers.3.z", "z"),
        ("layers.3.experts", "experts"),
        ("layers.3.mlp_in_normalized", "mlp_in_normalized"),
        ("layers.3.attn_in_normalized", "attn_in_normalized"),
        ("3", "resid_post"),
        ("blocks.3.hook_resid_pre", "resid_pre"),
        ("blocks.3.hook_resid_mid", "resid_mid"),
        ("blocks.3.hook_resid_post", "resid_post"),
        ("blocks.3.hook_mlp_out", "mlp_out"),
        ("blocks.3.hook_attn_out", "attn_out"),
        ("blocks.3.mlp.hook_in", "mlp_in"),
        ("blocks.3.mlp.hook_out", "mlp_out"),
        ("blocks.3.mlp.hook_post", "neurons"),
        ("blocks.3.attn.hook_in", "attn_in"),
        ("blocks.3.attn.hook_z", "z"),
        ("blocks.3.ln1.hook_normalized", "attn_in_normalized"),
        ("blocks.3.ln2.hook_normalized", "mlp_in_normalized"),
        ("model.layers.3", "resid_post"),
        ("model.layers.3.output", "resid_post"),
        ("model.layers.3.input", "resid_pre"),
        ("model.language_model.layers.3", "resid_post"),
        ("model.layers.3.mlp.input", "mlp_in"),
        ("model.layers.3.mlp.down_proj.input", "neurons"),
        ("layers.3.mlp.down_proj.input", "neurons"),
        ("model.layers.3.self_attn", "attn_out"),
        ("model.layers.3.self_attn.input", "attn_in"),
        ("model.layers.3.self_attn.o_proj.input", "z"),
        ("model.layers.3.self_attn.o_proj", "attn_out"),
        ("model.language_model.layers.3.self_attn.o_proj.input", "z"),
        ("model.layers.3.input_layernorm.input", "resid_pre"),
        ("model.layers.3.input_layernorm", "attn_in"),
        ("model.layers.3.pre_feedforward_layernorm.output", "mlp_in"),
        ("model.layers.3.pre_feedforward_layernorm.input", "resid_mid"),
        ("layers.3.post_feedforward_layernorm", "mlp_out"),
        ("model.layers.3.block_sparse_moe", "mlp_out"),
        ("layers.3.block_sparse_moe.input", "mlp_in"),
        ("transformer.h.3.mlp", "mlp_out"),
        ("h.3", "resid_post"),
        ("h.3.attn", "attn_out"),
        ("h.3.ln_2.output", "mlp_in"),
        ("transformer.h.3.mlp.c_proj.input", "neurons"),
        ("transformer.h.3.attn.c_proj.input", "z"),
        ("gpt_neox.layers.3.attention.dense.input", "z"),
        ("gpt_neox.layers.3.mlp.output", "mlp_out"),
        ("gpt_neox.layers.3.attention", "attn_out"),
    ],
)
def test_every_spelling_means_its_site(text: str, point: Point) -> None:
    """TransformerLens, canonical and module-path names give the same canonical site."""
    assert parse_hook(text) == Site(point, 3)


@given(st.sampled_from(POINTS), st.integers(0, 9999))
def test_canonical_names_are_read_back(point: Point, layer: int) -> None:
    """`parse_hook` is the inverse of `str` on sites."""
    assert parse_hook(str(Site(point, layer))) == Site(point, layer)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("mlp.hook_in", "mlp_in"),
        ("hook_resid_mid", "resid_mid"),
        ("ln2.hook_normalized", "mlp_in_normalized"),
        ("hook_mlp_out", "mlp_out"),
        ("mlp.down_proj.input", "neurons"),
        ("output", "resid_post"),
        ("blocks.7.hook_resid_mid", "resid_mid"),
        ("7", "resid_post"),
    ],
)
def test_a_name_without_a_layer_is_read_in_the_layer_given(text: str, point: Point) -> None:
    """circuit-tracer names hooks below the layer; a name that has a layer agrees with the one given."""
    assert parse_hook(text, layer=7) == Site(point, 7)


def test_a_name_in_another_layer_than_the_one_given_is_refused() -> None:
    """Neither of the two can be believed."""
    for text in ("blocks.3.hook_resid_mid", "3"):
        with pytest.raises(SiteError, match=r"in layer 3, but layer 5 was asked for"):
            parse_hook(text, layer=5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_located_modules_are_read_back(model_type: str) -> None:
    """A family's own module path, side included, leads back to where it was looked up."""
    for point in POINTS:
        if FAMILIES[model_type].place(point) is None:
            continue
        place = locate(Site(point, 2), model_type)
        if place.rule is None:
            assert locate(parse_hook(f"model.layers.2.{place.at}", model_type), model_type) == place


def test_a_place_with_two_points_has_the_name_that_dictionaries_use() -> None:
    """OLMo 2's MLP reads the stream itself, OLMo 1's norms have no gain: one tensor, two points."""
    assert parse_hook("model.layers.2.mlp.input", "olmo2") == Site("mlp_in", 2)
    assert locate(Site("resid_mid", 2), "olmo2") == locate(Site("mlp_in", 2), "olmo2")
    assert parse_hook("model.layers.2.post_attention_layernorm.output", "olmo") == Site("mlp_in", 2)
    assert locate(Site("mlp_in_normalized", 2), "olmo") == locate(Site("mlp_in", 2), "olmo")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("blocks.3.hook_mlp_in", "before the norm.*'layers.3.mlp_in' behind it"),
        ("blocks.3.hook_attn_in", "'layers.3.in'"),
        ("model.layers.3.post_attention_layernorm.output", "mlp_in in .*llama.*; attn_out in gemma2"),
        ("blocks.3.hook_nothing", "not known.*'blocks.3.hook_resid_post'"),
        ("model.layers.3.in", "not known"),
        ("resid_post", "not the name of a hook point.*'layers.3.mlp'"),
        ("layers.x", "not the name"),
        ("layers.3.mlp.", "not known"),
        ("layers.99999999999", "not the name"),
        ("99999999999", "not the name"),
        ("-3", "not the name"),
        ("mlp.hook_in", "not the name"),
        ("model.layers.3.mlp.gate", "not known"),
        ("layers.٣", "not the name"),
        ("", "not the name"),
    ],
)
def test_what_is_refused_says_why(text: str, reason: str) -> None:
    """Unknown and ambiguous names raise SiteError with the reason and the way out."""
    with pytest.raises(SiteError, match=reason):
        parse_hook(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model.layers.1.mlp.output", "mlp"),
        ("blocks.1.mlp.hook_out", "mlp"),
        ("layers.1.self_attn", "attn"),
        ("model.layers.1.self_attn.o_proj", "attn"),
    ],
)
def test_raw_module_outputs_are_sites_of_their_own_before_a_norm(text: str, part: str) -> None:
    """In Gemma 2 and OLMo 2 the module's output still goes through a norm: its path is not `mlp_out`. A site that was
    read off a path without the family is read again with it."""
    site = parse_hook(text)
    assert str(site) == f"layers.1.{part}" == str(read_again(site, text, "llama"))
    for family in ("gemma2", "gemma3_text", "olmo2", "olmo3"):
        raw = read_again(site, text, family)
        assert raw is not None and str(raw) == f"layers.1.{part}_raw"
        check_site(raw, shape(family))
        check_site(site, shape(family))  # named by the user, as a place rather than a module
    with pytest.raises(SiteError, match=r"'llama' model have no such place"):
        check_site(raw, shape("llama"))


def test_a_path_that_families_read_differently_is_settled_by_the_family() -> None:
    """A Llama-like norm input is what attention adds in Gemma 2; without the family there is no telling."""
    text = "model.layers.1.post_attention_layernorm.output"
    assert read_again(None, text, "llama") == Site("mlp_in", 1)
    assert read_again(None, text, "gemma2") == Site("attn_out", 1)
    assert read_again(None, None, "gemma2") is None
    with pytest.raises(SiteError, match=r"no site lies at 'mlp.gate_proj.output'"):
        read_again(None, "model.layers.1.mlp.gate_proj", "gemma2")


def test_sandwich_families_add_what_the_last_norm_gives() -> None:
    """What TransformerLens calls hook_mlp_out and hook_attn_out lies behind the sandwich norms."""
    mlp = Place(ModuleSite("post_feedforward_layernorm", "output"))
    assert locate(Site("mlp_out", 0), "gemma2") == mlp == locate(Site("mlp_out", 0), "olmo3")
    attention = Place(ModuleSite("post_attention_layernorm", "output"))
    assert locate(Site("attn_out", 0), "gemma3_text") == attention == locate(Site("attn_out", 0), "olmo2")
    assert locate(Site("resid_post", 0), "gemma2") == Place(ModuleSite("", "output"))


def test_an_unknown_family_has_its_residual_stream_alone() -> None:
    """Layer inputs and outputs are structural; the others raise and name the families that have them."""
    strange = shape("strange")
    for point, hook in (("resid_pre", "model.layers.3.input"), ("resid_post", "blocks.3.hook_resid_post")):
        site = parse_hook(hook)
        assert site == read_again(site, hook, "strange") == Site(point, 3)
        check_site(site, strange)
    with pytest.raises(SiteError, match=r"'strange' model is not known.*gemma2.*qwen3"):
        check_site(Site("mlp_out", 3), strange)
    with pytest.raises(SiteError, match=r"'strange' model is not known.*gemma2.*qwen3"):
        read_again(Site("mlp_out", 3), "model.layers.3.mlp", "strange")


def test_layers_are_counted_from_zero() -> None:
    """The error for a layer that isn't there names the number of layers and the last one."""
    check_site(Site("resid_post", 3), shape())
    with pytest.raises(SiteError, match=r"4 layers.*'layers.3'"):
        check_site(Site("resid_post", 4), shape())


def test_parallel_attention_has_no_middle() -> None:
    """Pythia's attention and MLP read the same stream; only a NeoX config that says otherwise has it."""
    with pytest.raises(SiteError, match=r"no residual stream between.*'layers.1.in'"):
        check_site(Site("resid_mid", 1), shape("gpt_neox"))
    check_site(Site("resid_mid", 1), shape("gpt_neox", use_parallel_residual=False))


def test_a_name_that_releases_use_for_two_places_is_settled_by_who_knows_the_release() -> None:
    """`hook_mlp_in` alone is refused; a reader that gives the site beside it is believed."""
    for point in ("resid_mid", "mlp_in"):
        assert read_again(Site(point, 3), "blocks.3.hook_mlp_in", "llama") == Site(point, 3)
        assert read_again(Site(point, 3), "hook_mlp_in", "llama") == Site(point, 3)
    with pytest.raises(SiteError, match="both sides"):
        read_again(None, "blocks.3.hook_mlp_in", "llama")


def test_a_checkpoints_name_without_a_layer_is_read_again_in_its_sites_layer() -> None:
    """circuit-tracer's `mlp.hook_out` is what the MLP adds in a Llama, and not yet that in a Gemma 2."""
    assert read_again(Site("mlp_out", 3), "mlp.hook_out", "llama") == Site("mlp_out", 3)
    assert read_again(Site("mlp_out", 3), "mlp.hook_out", "gemma2") == Site("mlp_raw", 3)


def test_a_point_that_a_family_lacks_is_refused_with_those_it_has() -> None:
    """OLMo 2 has no norm in front of its MLP; a Llama has no experts."""
    with pytest.raises(SiteError, match=r"'olmo2' model have no such place.*'layers.3.mlp_in'"):
        check_site(Site("mlp_in_normalized", 3), shape("olmo2"))
    with pytest.raises(SiteError, match=r"'llama' model have no such place.*'layers.3.neurons'"):
        check_site(Site("experts", 3), shape())


def test_dense_layers_have_neurons_and_mixtures_have_experts() -> None:
    """Which layers of a Qwen3-MoE are which follows from its config.json: of four layers every second one,
    counted from 1, has experts, and layer 3 is listed as dense; so only layer 1 has."""
    mixed = shape("qwen3_moe", num_experts=6, decoder_sparse_step=2, mlp_only_layers=[3])
    assert mixed.expert_layers == {1}
    check_site(Site("experts", 1), mixed)
    check_site(Site("neurons", 3), mixed)
    with pytest.raises(SiteError, match=r"mixture of 6 experts.*'layers.1.experts'"):
        check_site(Site("neurons", 1), mixed)
    with pytest.raises(SiteError, match=r"is dense.*that have: 1"):
        check_site(Site("experts", 3), mixed)
    assert shape("mixtral", num_local_experts=6).expert_layers == {0, 1, 2, 3}
    assert shape("llama", num_local_experts=6).expert_layers == frozenset()


def test_widths() -> None:
    """d_mlp at the neurons, all heads at z, the experts' number at their weights, d_model elsewhere;
    SiteError if config.json doesn't say."""
    model = shape(head_dim=10, num_local_experts=6)
    widths = {"neurons": 24, "z": 20, "experts": 6}
    assert {point: width_at(Site(point, 0), model) for point in POINTS} == {
        point: widths.get(point, 16) for point in POINTS
    }
    assert width_at(Site("z", 0), shape()) == 16  # two heads that share d_model
    silent = shape(intermediate_size=None, num_attention_heads=None)
    for point, what in (("neurons", "neurons"), ("z", "attention heads"), ("experts", "experts")):
        with pytest.raises(SiteError, match=f"how many {what}"):
            width_at(Site(point, 0), silent)


def test_looking_up_sites_needs_no_torch() -> None:
    """The command line inspects dictionaries and models without waiting for torch or transformers."""
    modules = ("sites", "architecture", "model_files", "vocabulary")
    imports = "; ".join(f"import autointerp.subject.{name}" for name in modules)
    code = f"{imports}; import sys; sys.exit(bool({{'torch', 'transformers', 'pyarrow'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
