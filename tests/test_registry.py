"""SAELens' names, from its list: a package of that name is made up, and must not be imported."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from dense_codes import D, F, assert_parity, exact, inputs, save_json, tensors
from safetensors.numpy import save_file

from autointerp.dictionaries import locate, registry
from autointerp.dictionaries.locate import find_dictionary
from autointerp.dictionaries.registry import registered
from autointerp.dictionaries.spec import Expected
from autointerp.errors import CheckpointError
from tiny import Tiny

LIST = {
    "a-release": {
        "conversion_func": None, "model": "gpt2-small", "repo_id": "org/repo",
        "config_overrides": {
            "dataset_path": "org/text", "model_from_pretrained_kwargs": {"center_writing_weights": True}
        },
        "saes": [
            {"id": "blocks.1.hook_resid_post", "path": "layer_1", "l0": 24, "variance_explained": 0.75},
            {"id": "other", "path": "x/y"},
        ],
    },
    "a-release-2": {"model": "m", "repo_id": "o/r", "saes": [{"id": "x", "path": "p"}]},
    "scaled": {
        "model": "m", "repo_id": "o/r",
        "saes": [
            {"id": "x", "path": "p", "norm_scaling_factor": 2.5},
            {"id": "other", "path": "p", "norm_scaling_factor": 3},
            {"id": "none", "path": "p"},
            {"id": "zero", "path": "p", "norm_scaling_factor": 0},
        ],
    },
    "odd": {
        "model": "m", "repo_id": "o/r", "config_overrides": {"apply_b_dec_to_input": False},
        "saes": [{"id": "x", "path": "p"}],
    },
    "normalised": {
        "model": "mistral-7b", "repo_id": "o/r",
        "saes": [
            {"id": "x", "path": "p", "config_overrides": {"normalize_activations": "constant_norm_rescale"}},
            {"id": "none", "path": "p"},
            {"id": "odd", "path": "p", "config_overrides": {"normalize_activations": "by_magic"}},
        ],
    },
    "clt": {"model": "m", "repo_id": "o/r", "saes": [{"id": "layer_3", "path": 3}]},
}  # fmt: skip


@pytest.fixture
def sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packages" / "sae_lens"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "pretrained_saes.yaml").write_text(yaml.safe_dump(LIST))
    monkeypatch.syspath_prepend(str(folder.parent))


@pytest.mark.usefixtures("sae_lens")
def test_a_name_is_a_repository_folder_and_what_is_expected(
    made: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, str, str | None]] = []

    def fetch(repo: str, place: str, revision: str | None) -> Path:
        fetched.append((repo, place, revision))
        return made.sae

    monkeypatch.setattr(locate, "fetched", fetch)
    spec = find_dictionary("a-release/blocks.1.hook_resid_post")
    assert fetched == [("org/repo", "layer_1", None)]
    assert spec.expected == Expected(l0=24.0, fvu=0.25)
    assert (spec.model, spec.corpus, spec.model_was_centred) == ("tiny", "org/text", True)
    assert find_dictionary("a-release/other").expected == Expected()
    assert find_dictionary("a-release-2/x").model_was_centred is False
    assert fetched[1:] == [("org/repo", "x/y", None), ("o/r", "p", None)]
    assert "sae_lens" not in sys.modules


NEEDED = r"such names need sae-lens \(pip install sae-lens\)"


@pytest.mark.parametrize(
    ("text", "may_be_one"),
    [
        ("a-release/blocks.1.hook_resid_post", True),
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", True),
        ("org/repo:folder", False),
        ("org/repo@main", False),
        ("no such thing", False),
    ],
)
def test_of_what_may_be_such_a_name_it_is_said_what_these_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, may_be_one: bool
) -> None:
    """Where the list is not there: no network, or no such repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_list", lambda: None)

    class NoNetwork:
        def model_info(self, repo: str, revision: str | None) -> None:
            raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "HfApi", NoNetwork)
    with pytest.raises(CheckpointError, match="no file or folder is called") as caught:
        find_dictionary(text)
    assert bool(re.search(NEEDED, str(caught.value))) == may_be_one


@pytest.mark.usefixtures("sae_lens")
def test_where_the_list_is_nothing_is_said_to_be_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no file or folder is called") as caught:
        find_dictionary("another/place/x")
    assert re.search(NEEDED, str(caught.value)) is None


@pytest.mark.usefixtures("sae_lens")
def test_what_the_list_does_not_have(made: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registered("some-org/some-repo") is None and registered("a") is None
    with pytest.raises(
        CheckpointError, match=r"release 'a-release' has no 'x'. It has: blocks.1.hook_resid_post, other"
    ):
        registered("a-release/x")
    monkeypatch.setattr(locate, "fetched", lambda *_: made.sae)
    with pytest.raises(CheckpointError, match="overrides apply_b_dec_to_input of o/r:p, which is not read"):
        find_dictionary("odd/x")


@pytest.mark.usefixtures("sae_lens")
def test_a_factor_of_the_list_multiplies_inputs_of_weights_that_expect_one(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """relu((2.5 x - b_dec) W_enc + b_enc) W_dec / 2.5 + b_dec / 2.5, in float64; SAELens folds it in the same."""
    t, x = tensors(), inputs()
    del t["threshold"]
    config = {
        "architecture": "standard", "d_in": D, "d_sae": F, "apply_b_dec_to_input": True,
        "normalize_activations": "expected_average_only_in", "metadata": {"hook_name": "blocks.0.hook_mlp_out"},
    }  # fmt: skip
    folder = tmp_path / "p"
    save_json(folder / "cfg.json", config)
    save_file(t, folder / "sae_weights.safetensors")
    monkeypatch.setattr(locate, "fetched", lambda *_: folder)
    e = exact(t)
    z = np.maximum((2.5 * x.astype(np.float64) - e["b_dec"]) @ e["W_enc"] + e["b_enc"], 0)
    spec = assert_parity("scaled/x", x, z, (z @ e["W_dec"] + e["b_dec"]) / 2.5)
    assert "inputs are multiplied by 2.5 (norm_scaling_factor in SAELens' list)" in spec.notes
    other = find_dictionary("scaled/other")
    assert other.input_factor == 3.0 and other.identity != spec.identity
    for name in ("scaled/none", str(folder)):
        with pytest.raises(CheckpointError, match=r"times a factor .* that is not in these files"):
            find_dictionary(name)
    with pytest.raises(CheckpointError, match="norm_scaling_factor 0 for zero: expected a number above 0"):
        find_dictionary("scaled/zero")
    save_json(folder / "cfg.json", config | {"normalize_activations": "none"})
    plain = find_dictionary("scaled/x")
    assert plain.input_factor == 1.0 and not any("multiplied" in note for note in plain.notes)


def test_without_the_package_a_name_is_a_repository() -> None:
    assert registered("a-release/other") is None


@pytest.mark.usefixtures("sae_lens")
def test_a_number_is_a_layer_of_a_cross_layer_transcoder() -> None:
    """Whose files circuit-tracer numbers."""
    known = registered("clt/layer_3")
    assert known is not None and known.place == "o/r:W_enc_3.safetensors"


@pytest.mark.usefixtures("sae_lens")
def test_an_input_transform_of_the_list_takes_the_place_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token scaled to norm sqrt(d), which makes it another dictionary; one that isn't read is refused."""
    config = {"architecture": "standard", "d_in": D, "d_sae": F, "hook_name": "blocks.1.hook_resid_pre"}
    save_json(tmp_path / "p" / "cfg.json", config)
    save_file(
        {n: v for n, v in tensors().items() if n != "threshold"}, tmp_path / "p" / "sae_weights.safetensors"
    )
    monkeypatch.setattr(locate, "fetched", lambda repo, place, revision: tmp_path / place)
    found, plain = find_dictionary("normalised/x"), find_dictionary("normalised/none")
    assert (found.transform, plain.transform) == (("constant_norm",), ())
    assert found.identity != plain.identity and found.model == "mistralai/Mistral-7B-v0.1"
    assert "normalize_activations: constant_norm_rescale (SAELens' list)" in found.notes
    with pytest.raises(CheckpointError, match=r"overrides normalize_activations of o/r:p with .*by_magic"):
        find_dictionary("normalised/odd")
