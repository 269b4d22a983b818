"""Where a recipe's dictionaries read and write a model, once its family is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny_families
from autointerp import recipe as recipes
from autointerp.errors import RecipeChanged, RecipeError
from autointerp.report.plan import planned
from autointerp.resolve import Resolved, resolve
from autointerp.run import Run
from autointerp.run.journals import Journals
from autointerp.sources import DictionaryFound
from autointerp.stages.cache import target_of
from autointerp.stages.preflight import plan
from autointerp.types import Site
from tiny_families import D_MODEL

F = 8


def sparsify(folder: Path, **config: object) -> Path:
    """A sparsify dictionary, whose place is its folder's name."""
    folder.mkdir(parents=True)
    tensors = {"encoder.weight": torch.ones(F, D_MODEL), "encoder.bias": torch.ones(F)}
    tensors |= {"W_dec": torch.ones(F, D_MODEL), "b_dec": torch.ones(D_MODEL)}
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D_MODEL, "num_latents": F, "k": 4} | config))
    return folder


def saelens(folder: Path, hook: str, versions: dict[str, str | None] | None = None, **kwargs: bool) -> Path:
    folder.mkdir(parents=True)
    tensors = {"W_enc": torch.ones(D_MODEL, F), "W_dec": torch.ones(F, D_MODEL)}
    save_file(
        tensors | {"b_enc": torch.ones(F), "b_dec": torch.ones(D_MODEL)}, folder / "sae_weights.safetensors"
    )
    metadata = {"hook_name": hook, "model_from_pretrained_kwargs": kwargs} | (versions or {})
    config = {"architecture": "standard", "d_in": D_MODEL, "d_sae": F, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def found_in(model: Path, sae: Path, hook: str | None = None) -> DictionaryFound:
    ((name, found),) = resolved_in(model, sae, hook).dictionaries.items()
    assert name == found.place
    return found


def resolved_in(model: Path, sae: Path, hook: str | None = None) -> Resolved:
    mapping: dict[str, Any] = {
        "dictionaries": {"auto": {"path": str(sae), "hook": hook}},
        "model": {"path": str(model)},
        "corpus": {"path": "stdlib"},
        "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
        "cache": {"context_length": 16, "n_tokens": 2000},
        "sampling": {"width": 8, "overlap": 2, "context_before": 0},
    }
    return resolve(recipes.parse(recipes.over_default_plugins(mapping)))


@pytest.mark.parametrize(
    ("name", "mlp", "attention"),
    [
        ("gemma2", "layers.1.mlp_raw", "layers.1.attn_raw"),
        ("olmo2", "layers.1.mlp_raw", "layers.1.attn_raw"),
        ("llama", "layers.1.mlp", "layers.1.attn"),
    ],
)
def test_a_module_path_is_the_modules_own_output(name: str, mlp: str, attention: str, tmp_path: Path) -> None:
    """sparsify's folders are module paths. Where a norm follows the module they are not what it adds to the stream,
    neither for what a dictionary reads, nor for what a transcoder predicts, nor in --hook."""
    model = tiny_families.write(name, tmp_path / "model")
    of_mlp = sparsify(tmp_path / "layers.1.mlp")
    assert str(found_in(model, of_mlp).site) == mlp
    assert str(found_in(model, sparsify(tmp_path / "layers.1.self_attn")).site) == attention
    assert str(found_in(model, of_mlp, "model.layers.1.mlp.output").site) == mlp
    assert str(found_in(model, of_mlp, "layers.1.mlp").site) == "layers.1.mlp"
    transcoder = found_in(model, sparsify(tmp_path / "run" / "layers.1.mlp", transcode=True))
    assert (str(transcoder.site), str(transcoder.site_out)) == ("layers.1.mlp_in", mlp)


def test_a_place_other_than_the_checkpoints_is_said_and_one_that_is_named_twice_refused(
    tmp_path: Path,
) -> None:
    model = tiny_families.write("llama", tmp_path / "model")
    sae = saelens(tmp_path / "sae", "blocks.1.hook_resid_post")
    for hook, stated in (
        (None, ()), ("layers.1", ()), ("blocks.1.hook_resid_post", ()), ("layers.0", (Site("resid_post", 1),)),
        ("layers.1.mlp", (Site("resid_post", 1),)),
    ):  # fmt: skip
        resolved = resolved_in(model, sae, hook)
        ((name, found),) = resolved.dictionaries.items()
        assert found.stated == stated
        words = (
            (f"dictionary '{name}' reads {hook}, as asked; its checkpoint says layers.1",) if stated else ()
        )
        run = Run.of(tmp_path / "run", resolved)
        assert plan(run, resolved).elsewhere == words
        lines = list(planned(run, plan(run, resolved), (), None))
        assert [line for line in lines if "its checkpoint says" in line] == [f"  {word}" for word in words]
    unsaid = resolved_in(model, saelens(tmp_path / "b", "somewhere"), "layers.0")
    assert [one.stated for one in unsaid.dictionaries.values()] == [()]
    for twice in ("layers.1+layers.1", "layers.0+blocks.0.hook_resid_post"):
        with pytest.raises(RecipeError, match=re.escape(f"--hook {twice}: each place is read once")):
            resolved_in(model, sae, twice)


def test_an_output_that_is_not_understood_costs_the_comparison_alone(tmp_path: Path) -> None:
    """The transcoder's input is known; nothing is captured behind it, so that no FVU is measured."""
    model = tiny_families.write("llama", tmp_path / "model")
    sae = sparsify(tmp_path / "layers.1.mlp.up_proj", transcode=True)
    found = found_in(model, sae, "layers.1.mlp_in")
    assert (found.site_out, target_of(found, from_model=True)) == (None, None)
    assert found.sites == (found.site,)
    with pytest.raises(Exception, match=r"understood \(it says 'layers.1.mlp.up_proj.output'\)"):
        _ = found.writes


@pytest.mark.parametrize(
    ("name", "kwargs", "site"),
    [
        ("gpt2", {}, "layers.1.mlp_in"),
        ("pythia", {"center_unembed": True}, "layers.1.mlp_in"),
        ("gpt2", {"fold_ln": True}, "layers.1.mlp_in_normalized"),
        ("llama", {}, "layers.1.mlp_in_normalized"),
        ("gemma2", {}, "layers.1.mlp_in_normalized"),
    ],
)
def test_saelens_hook_normalized_is_behind_the_gain_of_a_layer_norm(
    name: str, kwargs: dict[str, bool], site: str, tmp_path: Path
) -> None:
    """TransformerLens 2 fires it on x w + b in LayerNorm, and before the gain in RMSNorm and after folding. A user's
    own --hook is taken as this package means it."""
    model = tiny_families.write(name, tmp_path / "model")
    sae = saelens(tmp_path / "sae", "blocks.1.ln2.hook_normalized", **kwargs)
    found = found_in(model, sae)
    assert str(found.site) == site
    assert any("behind gain and bias" in note for note in found.spec.notes) == ("fold_ln" not in kwargs)
    asked = found_in(model, sae, "blocks.1.ln2.hook_normalized")
    assert str(asked.site) == "layers.1.mlp_in_normalized"


TRAINED, SAVED = "sae_lens_training_version", "sae_lens_version"


@pytest.mark.parametrize(
    ("versions", "is_behind"),
    [
        ({}, True),
        ({SAVED: "6.31.0"}, True),
        ({SAVED: "6.39.0"}, True),
        ({SAVED: "6.40.0"}, False),
        ({SAVED: "7.0.0", TRAINED: "6.9.1"}, True),
        ({SAVED: "6.54.12", TRAINED: "6.54.12"}, False),
        ({SAVED: "6.54.12", TRAINED: None}, True),
        ({SAVED: "main"}, True),
    ],
)
def test_saelens_hook_normalized_is_before_the_gain_since_transformer_lens_3(
    versions: dict[str, str | None], is_behind: bool, tmp_path: Path
) -> None:
    """SAELens 6.40 was the first after it. An old dictionary that a new version saved has null for the version of
    its training."""
    model = tiny_families.write("gpt2", tmp_path / "model")
    found = found_in(model, saelens(tmp_path / "sae", "blocks.1.ln2.hook_normalized", versions))
    assert str(found.site) == ("layers.1.mlp_in" if is_behind else "layers.1.mlp_in_normalized")
    assert any("TransformerLens 3" in note for note in found.spec.notes) != is_behind


def llamascopium(folder: Path) -> Path:
    folder.mkdir()
    tensors = {"W_E": torch.ones(D_MODEL, F), "W_D": torch.ones(F, D_MODEL)}
    save_file(
        tensors | {"b_E": torch.ones(F), "b_D": torch.ones(D_MODEL)}, folder / "sae_weights.safetensors"
    )
    config = {
        "sae_type": "sae",
        "d_model": D_MODEL,
        "expansion_factor": F / D_MODEL,
        "norm_activation": "inference",
    }
    (folder / "config.json").write_text(json.dumps(config | {"hook_point_in": "blocks.1.hook_resid_post"}))
    return folder


def test_a_cache_read_by_other_rules_is_not_gone_on_with(tmp_path: Path) -> None:
    """The same files, which the reader took otherwise before its version 2; of others nothing changes."""
    model = tiny_families.write("gpt2", tmp_path / "model")
    now = resolved_in(model, llamascopium(tmp_path / "a"))
    before = replace(now.identities, readers={})
    Journals(tmp_path / "run", now.recipe, before).cache("layers.1").found()
    Journals(tmp_path / "run", now.recipe, before).cache("layers.1").check()
    with pytest.raises(RecipeChanged, match=r"reader.*llamascopium 2"):
        Journals(tmp_path / "run", now.recipe, now.identities).cache("layers.1").check()
    of_first_rules = resolved_in(model, saelens(tmp_path / "b", "blocks.1.hook_resid_post"))
    assert of_first_rules.identities.readers == {}
    made_from = (
        Journals(tmp_path, of_first_rules.recipe, of_first_rules.identities).cache("layers.1").made_from
    )
    assert made_from is not None and made_from["dictionaries"]["layers.1"].keys() == {"identity", "hook"}
