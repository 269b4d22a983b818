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
from autointerp.subject.sites import FAMILIES, ModuleSite, check_site, locate, parse_hook, width_at
from autointerp.types import Point, Site

POINTS: tuple[Point, ...] = get_args(Point)


def shape(model_type: str = "llama", **changes: object) -> Architecture:
    config = {
        "model_type": model_type,
        "hidden_size": 16,
        "num_hidden_layers": 4,
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
        ("blocks.3.hook_resid_pre", "resid_pre"),
        ("blocks.3.hook_resid_mid", "resid_mid"),
        ("blocks.3.hook_resid_post", "resid_post"),
        ("blocks.3.hook_mlp_out", "mlp_out"),
        ("blocks.3.hook_attn_out", "attn_out"),
        ("blocks.3.mlp.hook_in", "mlp_in"),
        ("blocks.3.mlp.hook_out", "mlp_out"),
        ("blocks.3.mlp.hook_post", "neurons"),
        ("model.layers.3", "resid_post"),
        ("model.layers.3.output", "resid_post"),
        ("model.layers.3.input", "resid_pre"),
        ("model.language_model.layers.3", "resid_post"),
        ("model.layers.3.mlp.input", "mlp_in"),
        ("model.layers.3.mlp.down_proj.input", "neurons"),
        ("layers.3.mlp.down_proj.input", "neurons"),
        ("model.layers.3.self_attn", "attn_out"),
        ("model.layers.3.pre_feedforward_layernorm.output", "mlp_in"),
        ("model.layers.3.pre_feedforward_layernorm.input", "resid_mid"),
        ("layers.3.post_feedforward_layernorm", "mlp_out"),
        ("transformer.h.3.mlp", "mlp_out"),
        ("h.3", "resid_post"),
        ("h.3.attn", "attn_out"),
        ("h.3.ln_2.output", "mlp_in"),
        ("transformer.h.3.mlp.c_proj.input", "neurons"),
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


@pytest.mark.parametrize("model_type", FAMILIES)
def test_located_modules_are_read_back(model_type: str) -> None:
    """A family's own module path, side included, names the point that it was looked up for."""
    for point in POINTS:
        place = locate(Site(point, 2), model_type)
        assert parse_hook(f"model.layers.2.{place}", model_type) == Site(point, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("blocks.3.hook_mlp_in", "before the norm.*'layers.3.mlp_in' behind it"),
        ("blocks.3.hook_attn_in", "'layers.3.in'"),
        ("blocks.3.ln2.hook_normalized", "before its gain"),
        ("blocks.3.attn.hook_z", "attention heads"),
        ("model.layers.3.self_attn.o_proj.input", "attention heads"),
        ("model.layers.3.post_attention_layernorm.output", "mlp_in in .*llama.*; attn_out in gemma2"),
        ("blocks.3.hook_nothing", "not known.*'blocks.3.hook_resid_post'"),
        ("model.layers.3.in", "not known"),
        ("resid_post", "not the name of a hook point.*'layers.3.mlp'"),
        ("layers.x", "not the name"),
        ("layers.3.mlp.", "not known"),
        ("layers.99999999999", "not the name"),
        ("layers.٣", "not the name"),
        ("", "not the name"),
    ],
)
def test_what_is_refused_says_why(text: str, reason: str) -> None:
    """Unknown and ambiguous names raise SiteError with the reason and the way out."""
    with pytest.raises(SiteError, match=reason):
        parse_hook(text)


@pytest.mark.parametrize("text", ["model.layers.1.mlp.output", "blocks.1.mlp.hook_out", "layers.1.self_attn"])
def test_a_sandwich_family_has_no_site_at_raw_module_outputs(text: str) -> None:
    """In Gemma 2 the MLP module's output still goes through a norm: its path is not `mlp_out`."""
    site = parse_hook(text)
    check_site(site, shape("llama"), text)
    with pytest.raises(SiteError, match=r"no site lies at .* in a 'gemma2' model"):
        check_site(site, shape("gemma2"), text)
    check_site(site, shape("gemma2"))  # named by the user, as a place rather than a module


def test_a_hook_that_means_another_site_in_this_family_is_refused() -> None:
    """A Llama-like norm input is the attention's raw output in Gemma 2, so it can't pass unnoticed."""
    text = "model.layers.1.post_attention_layernorm.output"
    assert parse_hook(text, "llama") == Site("mlp_in", 1)
    assert parse_hook(text, "gemma2") == Site("attn_out", 1)
    with pytest.raises(SiteError, match=r"was read as 'layers.1.mlp_in'.*it is 'layers.1.attn'"):
        check_site(Site("mlp_in", 1), shape("gemma2"), text)


def test_gemma_2_adds_what_the_last_norm_gives() -> None:
    """What TransformerLens calls hook_mlp_out and hook_attn_out lies behind the sandwich norms."""
    assert locate(Site("mlp_out", 0), "gemma2") == ModuleSite("post_feedforward_layernorm", "output")
    assert locate(Site("attn_out", 0), "gemma3_text") == ModuleSite("post_attention_layernorm", "output")
    assert locate(Site("resid_post", 0), "gemma2") == ModuleSite("", "output")


def test_an_unknown_family_has_its_residual_stream_alone() -> None:
    """Layer inputs and outputs are structural; the others raise and name the families that have them."""
    strange = shape("strange")
    check_site(Site("resid_pre", 3), strange, "model.layers.3.input")
    check_site(Site("resid_post", 3), strange, "blocks.3.hook_resid_post")
    with pytest.raises(SiteError, match=r"'strange' model is not known.*gemma2.*qwen3"):
        check_site(Site("mlp_out", 3), strange)


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


def test_widths() -> None:
    """d_mlp at the neurons, d_model elsewhere; SiteError if config.json doesn't know d_mlp."""
    assert {point: width_at(Site(point, 0), shape()) for point in POINTS} == {
        point: 24 if point == "neurons" else 16 for point in POINTS
    }
    with pytest.raises(SiteError, match="how many neurons"):
        width_at(Site("neurons", 0), shape(intermediate_size=None))


def test_looking_up_sites_needs_no_torch() -> None:
    """The command line inspects dictionaries and models without waiting for torch or transformers."""
    modules = ("sites", "architecture", "model_files", "vocabulary")
    imports = "; ".join(f"import autointerp.subject.{name}" for name in modules)
    code = f"{imports}; import sys; sys.exit(bool({{'torch', 'transformers', 'pyarrow'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
