"""`autointerp sae convert`: what was written has the activations and reconstructions of what was read."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from autointerp.cli import app
from autointerp.dictionaries import convert as converting
from autointerp.dictionaries.convert import convert
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import (
    BY_DECODER,
    Calibration,
    DictionarySpec,
    Expected,
    Gate,
    Pursuit,
    Transform,
    Weights,
)
from autointerp.errors import CheckpointError
from autointerp.report.dictionary import inspected
from autointerp.types import Site

D, F, D_OUT = 6, 20, 5
PLAIN = DictionarySpec(
    format="made up", path=Path("made/up"), identity="x", d_in=D, width=F, selector="relu", k=None,
    hook="blocks.3.hook_resid_post", site=Site("resid_post", 3), model="org/m", corpus="org/text",
    context_length=64, prepend_bos=False,
)  # fmt: skip
OUT: dict[str, Any] = {
    "is_transcoder": True,
    "d_out": D_OUT,
    "site": Site("mlp_in", 3),
    "site_out": Site("mlp_out", 3),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "relu": {},
    "layer norm": {"transform": ("layer_norm",)},
    "jumprelu": {"selector": "jumprelu"},
    "jumprelu by norms": {"selector": "jumprelu", "decoder_norm_gate": True, "value_is_score": False},
    "scores": {"selector": "topk", "k": 4, "decoder_norm_gate": True},
    "topk": {"selector": "topk", "k": 4},
    "signed": {"selector": "abstopk", "k": 4},
    "gated": {"selector": "gated"},
    "levels": {"selector": "jumprelu", "group_sizes": (4, 6, 10)},
    "transcoder": OUT,
    "skip": OUT | {"selector": "jumprelu"},
}


def weights_of(spec: DictionarySpec, pre_bias: str, skip: bool) -> Weights:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    d_out = spec.d_out or D
    b_dec = normal(d_out)
    pre = {"b_dec": b_dec[:D], "none": torch.zeros(D), "other": normal(D)}[pre_bias]
    return Weights(
        normal(D, F), normal(F), pre, normal(F, d_out), b_dec, threshold_F=torch.rand(F, generator=generator),
        gate=Gate(normal(F), torch.rand(F, generator=generator) + 0.5, normal(F)),
        w_skip_DO=normal(D, d_out) if skip else None,
    )  # fmt: skip


class Given:
    """A reader of what is in memory."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        return self.weights


def converted(
    spec: DictionarySpec, weights: Weights, out: Path, monkeypatch: pytest.MonkeyPatch
) -> DictionarySpec:
    with monkeypatch.context() as patch:
        patch.setattr(
            converting, "find_dictionary", lambda text: find_dictionary(text) if out.exists() else spec
        )
        patch.setattr(converting, "reader_of", lambda _: Given(weights))
        return convert("given", out).spec


@pytest.mark.parametrize("pre_bias", ["b_dec", "none", "other"])
@pytest.mark.parametrize("name", VARIANTS)
def test_codes_and_reconstructions_stay(
    name: str, pre_bias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(PLAIN, **VARIANTS[name])
    if spec.is_transcoder and pre_bias == "b_dec":
        pytest.skip("a transcoder's b_dec lies in another space")
    weights = weights_of(spec, pre_bias, skip=name == "skip")
    written = converted(spec, weights, tmp_path / "out", monkeypatch)
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(1)) * 2
    before, after = Encoder(spec, weights), Encoder(written, reader_of(written).load(written, "cpu"))
    codes, again = before.encode(x), after.encode(x)
    assert torch.equal(codes.token_M, again.token_M) and torch.equal(codes.feature_M, again.feature_M)
    assert torch.allclose(codes.value_M, again.value_M, rtol=1e-5, atol=1e-5)
    assert torch.allclose(before.decode(codes, x), after.decode(again, x), rtol=1e-4, atol=1e-4)
    assert written.format == "saelens" and len(codes) > 60
    for field in ("site", "site_out", "model", "corpus", "context_length", "prepend_bos", "group_sizes", "k"):
        assert getattr(written, field) == getattr(spec, field), field


STATED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "L0 and FVU": {"expected": Expected(l0=71, fvu=0.25)},
    "L0": {"expected": Expected(l0=2.5)},
    "notes": {"notes": ("b_dec is subtracted, as is usual: the file doesn't say", "mid-run: inputs divided by 2")},
    "all": {
        "expected": Expected(l0=3, fvu=0.5), "notes": ("one", "two"), "model_was_centred": True,
        "centring_is_default": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("name", ["jumprelu", "jumprelu by norms", "levels", "skip"])
def test_what_the_source_states_stays_and_converting_again_changes_nothing(
    name: str, stated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(PLAIN, **VARIANTS[name], **STATED[stated])
    weights = weights_of(spec, "other", skip=name == "skip")
    written = converted(spec, weights, tmp_path / "out", monkeypatch)
    assert (written.format, written.expected) == ("saelens", spec.expected)
    assert written.notes == (spec.notes or ("b_dec is not subtracted",))
    for field in ("model_was_centred", "centring_is_default"):
        assert getattr(written, field) == getattr(spec, field), field
    said = dict(inspected(str(tmp_path / "out")))
    assert said["states"] == {"nothing": "neither L0 nor FVU", "L0 and FVU": "L0 71, FVU 0.25", "L0": "L0 2.5",
                              "notes": "neither L0 nor FVU", "all": "L0 3, FVU 0.5"}[stated]  # fmt: skip
    again = convert(str(tmp_path / "out"), tmp_path / "again").spec
    assert replace(again, path=written.path) == written
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize(
    ("kept", "point"),
    [
        ("x", "autointerp is x: expected an object"),
        ({"expected": {"l0": "many"}}, "l0 is many: expected a number"),
        ({"notes": "b"}, "notes is b: expected a list of texts"),
        ({"notes": ["\ud800"]}, "expected a list of texts"),
        ({"centring_is_default": 1}, "centring_is_default is 1: expected true or false"),
    ],
)
def test_what_is_kept_is_checked(kept: object, point: str, tmp_path: Path) -> None:
    convert("demo", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    config["metadata"]["autointerp"] = kept
    (tmp_path / "out" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=point):
        find_dictionary(str(tmp_path / "out"))


OURS: dict[str, dict[str, Any]] = {
    "a dictionary with selector groupmax": {"selector": "groupmax", "k": 4},
    "the input transform centre": {"transform": ("centre",)},
    "what doesn't reconstruct by itself": {"reconstructs": False, "notes": ("one layer of several",)},
    "or what doesn't reconstruct": OUT | {"reconstructs": False, "writes_to": "layers 3 to 5"},
    "a top k chosen": {"selector": "topk", "k": 4, "decoder_norm_gate": True, "value_is_score": False},
    "a transcoder with selector topk": OUT | {"selector": "topk", "k": 4},
    "what is approximated": {"selector": "topk", "k": 4, "approximation": "plain top k"},
    "a crosscoder": {"d_in": 6, "further_sites": (Site("resid_post", 5), Site("mlp_out", 6))},
    "a crosscoder, of whose inputs": {"d_in": 6, "n_inputs": 2, "transform": ("constant_norm",)},
    "thresholds that are still to be found": {
        "selector": "jumprelu", "calibration": Calibration("sampled", 2.5, 64, 7, "entropy"),
        "expected": Expected(l0=2.5, fvu=0.25), "model_was_centred": True,
        "centring_is_default": True,
        "normalized_behind_gain": True,
    },
}  # fmt: skip
"""Why our own layout is taken; with what it has to keep."""


@pytest.mark.parametrize("pre_bias", ["none", "other"])
@pytest.mark.parametrize("missing", OURS)
def test_what_has_no_place_there_goes_into_our_own_layout(
    missing: str, pre_bias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same description and the same tensors to the bit."""
    spec = replace(PLAIN, **OURS[missing])
    weights = weights_of(spec, pre_bias, skip=spec.is_transcoder)
    written = converted(spec, weights, tmp_path / "out", monkeypatch)
    hooks = {"hook": written.hook, "hook_out": written.hook_out}
    known = replace(spec, format="native", path=tmp_path / "out", identity=written.identity, **hooks)
    assert written == known and written.site_out == spec.site_out
    again = reader_of(written).load(written, "cpu")
    for name in ("w_enc_DF", "b_enc_F", "b_pre_D", "w_dec_FO", "b_dec_O", "w_skip_DO"):
        given, read = getattr(weights, name), getattr(again, name)
        assert given is read is None or torch.equal(given, read), name
    if spec.calibration is not None:
        assert again.threshold_F is None
        return
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(1)) * 2
    codes, read_codes = Encoder(spec, weights).encode(x), Encoder(written, again).encode(x)
    assert torch.equal(codes.value_M, read_codes.value_M) and len(codes) > 60


@settings(max_examples=30)
@given(
    own=st.one_of(
        st.builds(
            dict,
            selector=st.just("pursuit"),
            k=st.one_of(st.none(), st.integers(1, F)),
            has_signs=st.booleans(),
            pursuit=st.builds(
                Pursuit, residual_below=st.sampled_from([0.0, 0.5, 2.0]), ends_on_repeat=st.booleans()
            ),
        ),
        st.just({"selector": "nnls"}),
        st.builds(
            dict,
            selector=st.just("top_afa"),
            decoder_norm_gate=st.booleans(),
            value_is_score=st.booleans(),
        ),
    ),
    pre_bias=st.sampled_from(["b_dec", "none", "other"]),
    transform=st.sampled_from([(), ("centre",), ("layer_norm",)]),
    n_models=st.sampled_from([1, 2]),
)
def test_codes_by_the_decoder_or_by_norms_stay_to_the_bit(
    own: dict[str, Any], pre_bias: str, transform: tuple[Transform, ...], n_models: int
) -> None:
    """Selectors that SAELens has no place for, and crosscoders of several models, in our own layout."""
    spec = replace(PLAIN, transform=transform, n_models=n_models, **own)
    weights = weights_of(spec, pre_bias, skip=False)
    if spec.selector in BY_DECODER:
        rows = weights.decoder / weights.decoder.norm(dim=1, keepdim=True)
        weights = replace(weights, w_enc_DF=None, b_enc_F=torch.zeros(F), w_dec_FO=rows)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        written = converted(spec, weights, Path(folder) / "out", patch)
        again = reader_of(written).load(written, "cpu")
    known_k = D if spec.selector == "pursuit" and spec.k is None else spec.k
    known = replace(spec, format="native", path=written.path, identity=written.identity, k=known_k)
    assert written == known
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(1)) * 2
    before, after = Encoder(spec, weights), Encoder(written, again)
    codes, read_codes = before.encode(x), after.encode(x)
    for name in ("token_M", "feature_M", "value_M"):
        assert torch.equal(getattr(codes, name), getattr(read_codes, name)), name
    assert len(codes) > 20
    assert torch.equal(before.decode(codes, x), after.decode(read_codes, x))


def test_a_crosscoder_of_several_models_keeps_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(PLAIN, n_models=2)
    written = converted(spec, weights_of(spec, "none", skip=False), tmp_path / "out", monkeypatch)
    assert (written.format, written.n_models) == ("native", 2)


def test_code_and_bases_can_not_be_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in ({"selector": "custom"}, {"basis": "neurons"}):
        spec = replace(PLAIN, **change)
        with pytest.raises(CheckpointError, match="can't be written as files: there is no place for"):
            converted(spec, weights_of(spec, "none", skip=False), tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["sae", "convert", "demo", str(out)])
    assert done.exit_code == 0 and "topk, 2,048 features" in done.output, done.output
    assert "In SAELens' layout." in done.output
    demo, written = find_dictionary("demo"), find_dictionary(str(out))
    assert replace(written, path=demo.path, identity=demo.identity) == demo
    again = CliRunner().invoke(app, ["sae", "convert", "demo", str(out)])
    assert again.exit_code == 2 and "is there already" in again.output
