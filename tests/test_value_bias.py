"""Dictionaries of z from which TransformerLens had taken the values' biases: the same codes and reconstruction as on
that z, made by hand in float64 from the model's own tensors.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import test_native
import test_research_readers
import torch
from dense_codes import save_json, save_torch
from test_temporal import checkpoint, tensors
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import tiny_families
from autointerp.activations.looked_at import Inputs
from autointerp.cli import app
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.sources import DictionaryFound
from autointerp.stages.check import Convention, Reading, without_value_bias
from autointerp.stages.loading import bias_of_inputs, load_weights
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.subject.value_bias import read_folded_bias
from autointerp.types import Site
from tiny_families import D_MODEL

LAYER, HEADS = 1, 2
VALUES = {"gpt2": "transformer.h.1.attn.c_attn", "pythia": "gpt_neox.layers.1.attention.query_key_value"}
NORMS = {"gpt2": "transformer.h.1.ln_1", "pythia": "gpt_neox.layers.1.input_layernorm"}


def z_without_biases(name: str, folder: Path) -> torch.Tensor:
    """[N, H] float64: attention's own weights times values of which neither map nor norm has a bias."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double()
    norm, map_ = model.get_submodule(NORMS[name]), model.get_submodule(VALUES[name])
    assert norm.bias.abs().min() > 0 and map_.bias.abs().min() > 0, "without biases nothing is tested"
    seen: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        weights_BHTT = model(tiny_families.tokens(), output_attentions=True).attentions[LAYER]
        x_BTD = seen[0] - norm.bias
        if name == "gpt2":  # queries, keys, values one behind the other; [in, out]
            v_BTE = x_BTD @ map_.weight[:, 2 * D_MODEL :]
            v_BTHE = v_BTE.unflatten(2, (HEADS, -1))
        else:  # head by head queries, keys, values; [out, in]
            v_BTHE = (x_BTD @ map_.weight.T).unflatten(2, (HEADS, 3, -1))[:, :, :, 2]
        return torch.einsum("bhts,bshe->bthe", weights_BHTT, v_BTHE).flatten(2).flatten(0, 1)


def attention_sae(folder: Path) -> Path:
    """Of Kissane's layout, as wide as the tiny models' heads together."""
    config = test_research_readers.ATTENTION | {"act_size": D_MODEL, "dict_size": 24}
    save_json(folder / "a_cfg.json", config | {"act_name": f"blocks.{LAYER}.attn.hook_z"})
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (D_MODEL, 24), "b_enc": (24,), "W_dec": (24, D_MODEL), "b_dec": (D_MODEL,)}
    return save_torch(folder / "a.pt", {k: torch.randn(s, generator=generator) for k, s in shapes.items()})


@pytest.mark.parametrize("name", ["gpt2", "pythia"])
def test_codes_are_those_on_z_without_biases(name: str, tmp_path: Path) -> None:
    folder = tiny_families.write(name, tmp_path / name)
    model, site = find_model(str(folder)), Site("z", LAYER)
    z_ND = torch.as_tensor(Subject.load(model).capture(tiny_families.tokens(), [site])[site]).flatten(0, 1)
    bare_ND = z_without_biases(name, folder)
    bias_D = read_folded_bias(model, LAYER, "cpu")
    assert bias_D is not None
    torch.testing.assert_close((z_ND - bias_D).double(), bare_ND, rtol=1e-4, atol=1e-5)

    spec = find_dictionary(str(attention_sae(tmp_path / "sae")))
    found = DictionaryFound(spec, site, biases_of=model)
    encoder = Encoder(spec, load_weights(found, "cpu"))
    codes = encoder.encode(z_ND)
    stored = {k: v.double() for k, v in torch.load(spec.path).items()}
    expected = ((bare_ND - stored["b_dec"]) @ stored["W_enc"] + stored["b_enc"]).relu()
    dense = torch.zeros_like(expected)
    dense[codes.token_M, codes.feature_M] = codes.value_M.double()
    assert 0.1 < (expected > 0).double().mean() < 0.9
    torch.testing.assert_close(dense, expected, rtol=1e-4, atol=1e-4)
    # What is decoded is z as the model has it: the biases are added again.
    x_hat = expected @ stored["W_dec"] + stored["b_dec"] + bias_D
    torch.testing.assert_close(encoder.decode(codes, z_ND).double(), x_hat, rtol=1e-4, atol=1e-4)

    meta = test_native.meta(tmp_path / "meta", "../sae/a.pt", d=D_MODEL, parent_rows="stored")
    above = find_dictionary(str(tmp_path / "meta"))
    found_above = DictionaryFound(above, site, biases_of=model)
    codes_above = Encoder(above, load_weights(found_above, "cpu")).encode(z_ND)
    score = (stored["W_dec"] @ torch.tensor(meta["encoder"]).double()).relu()
    kept = torch.zeros_like(score).scatter(1, score.topk(2, dim=1).indices, 1)
    expected_above = expected @ (score * kept)
    dense = torch.zeros_like(expected_above)
    dense[codes_above.token_M, codes_above.feature_M] = codes_above.value_M.double()
    torch.testing.assert_close(dense, expected_above, rtol=1e-4, atol=1e-3)

    plain = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    with_bias = plain.encode(z_ND)
    assert not torch.equal(with_bias.value_M, codes.value_M), "the biases matter here"
    as_read = Reading(Convention("as read", spec, load_weights(found, "cpu")), Inputs(z_ND), z_ND)
    (other,) = without_value_bias(as_read, found, model)
    assert other.convention.name == "with the value bias left in z"
    left_in = encoder.encode(other.inputs.x_ND)
    assert torch.equal(left_in.feature_M, with_bias.feature_M)
    torch.testing.assert_close(left_in.value_M, with_bias.value_M, rtol=1e-4, atol=1e-4)


def test_converting_keeps_what_it_expects_of_z(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["sae", "convert", str(attention_sae(tmp_path / "a")), str(out)])
    assert done.exit_code == 0, done.output
    spec = find_dictionary(str(out))
    assert spec.format == "native" and spec.without_value_bias and spec.site == Site("z", LAYER)


def test_a_temporal_dictionary_has_no_other_layout(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "layer_1", tensors())
    done = CliRunner().invoke(app, ["sae", "convert", str(place), str(tmp_path / "out")])
    assert done.exit_code != 0 and "a prediction from the tokens" in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_of_a_crosscoder_biases_are_taken_out_of_each_z(tmp_path: Path) -> None:
    """And out of nothing else that it reads."""
    model = find_model(str(tiny_families.write("gpt2", tmp_path / "gpt2")))
    spec = find_dictionary(str(attention_sae(tmp_path / "sae")))
    sites = Site("resid_pre", 0), Site("z", 0), Site("z", 1)
    found = DictionaryFound(spec, sites[0], further_sites=sites[1:], biases_of=model)
    biases = [read_folded_bias(model, layer, "cpu") for layer in (0, 1)]
    expected = torch.cat([torch.zeros(D_MODEL), *[bias for bias in biases if bias is not None]])
    assert expected.shape == (3 * D_MODEL,) and expected[D_MODEL:].abs().min() > 0
    taken = bias_of_inputs(found, model, "cpu")
    assert taken is not None and torch.equal(taken, expected)
