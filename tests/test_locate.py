"""What is fetched of a repository: one dictionary, its configuration, and no pickle nobody asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dense_codes import save_json, save_torch, tensors

from autointerp.dictionaries.hub_files import wanted_files
from autointerp.dictionaries.locate import find_dictionary
from autointerp.errors import CheckpointError
from autointerp.shorthand import sae_sections
from autointerp.sources import local
from autointerp.types import Site
from loopback_hub import LoopbackHandler, LoopbackHub

FILES = [
    "README.md",
    "config.json",
    "a/cfg.json",
    "a/sae.pt",
    "a/sae.safetensors",
    "b/ae.pt",
    "b/config.json",
    "many/layer0.sae.pt",
    "many/layer1.sae.pt",
    "scope/checkpoints/final.safetensors",
    "scope/checkpoints/old/final.safetensors",
    "scope/hyperparams.json",
    *(f"clt/layer_{n}.safetensors" for n in range(6)),
    "clt/config.yaml",
    "npz/params.npz",
    "trained/ae.pt",
    "trained/config.json",
    "trained/checkpoints/ae_100.pt",
    "trained/checkpoints/ae_200.pt",
    "itda/atoms.pt",
    "itda/atom_indices.pt",
    "itda/metadata.yaml",
]


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("a", ["config.json", "a/cfg.json", "a/sae.safetensors"]),  # no pickle beside safetensors
        ("a/sae.pt", ["config.json", "a/cfg.json", "a/sae.pt"]),  # but where it is named
        ("b", ["config.json", "b/ae.pt", "b/config.json"]),
        ("many", ["config.json"]),
        ("many/layer1.sae.pt", ["config.json", "many/layer1.sae.pt"]),
        ("scope", ["config.json", "scope/checkpoints/final.safetensors", "scope/hyperparams.json"]),
        (
            "scope/checkpoints/final.safetensors",
            ["config.json", "scope/checkpoints/final.safetensors", "scope/hyperparams.json"],
        ),
        ("clt", ["config.json", "clt/config.yaml"]),
        ("clt/layer_3.safetensors", ["config.json", "clt/layer_3.safetensors", "clt/config.yaml"]),
        ("trained", ["config.json", "trained/ae.pt", "trained/config.json"]),
        ("trained/checkpoints", ["config.json", "trained/config.json"]),
        (
            "trained/checkpoints/ae_100.pt",
            ["config.json", "trained/config.json", "trained/checkpoints/ae_100.pt"],
        ),
        ("itda", ["config.json", "itda/atoms.pt", "itda/atom_indices.pt", "itda/metadata.yaml"]),
        ("npz", ["config.json", "npz/params.npz"]),
        ("", ["config.json"]),
        ("nowhere", ["config.json"]),
    ],
)
def test_wanted_files(place: str, wanted: list[str]) -> None:
    assert wanted_files(FILES, place) == wanted


def test_a_name_stands_in_front_of_the_first_equals_sign_of_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may have one in its name, alone or behind the dictionary's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "q" / "lr=0.1").mkdir(parents=True)
    for text, name, path in (
        ("lr=0.1", "auto", str(tmp_path / "lr=0.1")),
        ("mine=q/lr=0.1", "mine", str(tmp_path / "q" / "lr=0.1")),
        ("mine=lr=0.1", "mine", str(tmp_path / "lr=0.1")),
        ("q/lr=0.1", "auto", str(tmp_path / "q" / "lr=0.1")),
        ("mine=demo", "mine", "demo"),
        ("org/repo:lr=0.1/x", "auto", "org/repo:lr=0.1/x"),
    ):
        assert sae_sections([text]) == {name: {"path": path}}


def qwen(folder: Path, *layers: int) -> None:
    t = tensors()
    for layer in layers:
        linear = {"W_enc": t["W_enc"].T.copy(), "W_dec": t["W_dec"].T.copy()}
        save_torch(folder / f"layer{layer}.sae.pt", linear | {"b_enc": t["b_enc"], "b_dec": t["b_dec"]})


QWEN = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_3"


def found_on(hub: LoopbackHub, home: Path, text: str) -> str:
    """What a process of its own, which is online, finds, or the error's message."""
    program = (
        "from autointerp.dictionaries.locate import find_dictionary\n"
        "from autointerp.errors import CheckpointError\n"
        f"try: spec = find_dictionary({text!r}); print(spec.site, spec.k, spec.path.name)\n"
        "except CheckpointError as error: print(error)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=kept | online, capture_output=True, text=True, check=True).stdout


def test_one_file_of_a_repository_is_fetched(tmp_path: Path) -> None:
    qwen(tmp_path / "models" / QWEN, 0, 1)
    with LoopbackHub(tmp_path) as hub:
        assert found_on(hub, tmp_path / "home", f"{QWEN}:layer1.sae.pt") == "layers.1 3 layer1.sae.pt\n"
        several = found_on(hub, tmp_path / "home", QWEN)
        assert f"{QWEN}:layer0.sae.pt, {QWEN}:layer1.sae.pt. Name one" in several
        assert "no file or folder 'layer7.sae.pt'" in found_on(
            hub, tmp_path / "home", f"{QWEN}:layer7.sae.pt"
        )
    assert not list((tmp_path / "home").rglob("layer0.sae.pt"))
    assert list((tmp_path / "home").rglob("layer1.sae.pt"))


class WithoutThatRevision(LoopbackHandler):
    def _api(self, match: re.Match[str]) -> None:
        if match["rev"] == "nosuch":
            self._missing("RevisionNotFound")
        else:
            super()._api(match)


def test_a_revision_that_is_not_there_is_said_to_be_that(tmp_path: Path) -> None:
    qwen(tmp_path / "models" / QWEN, 0)
    with LoopbackHub(tmp_path, WithoutThatRevision) as hub:
        said = found_on(hub, tmp_path / "home", f"{QWEN}:layer0.sae.pt@nosuch")
        assert said.startswith(f"{QWEN} has no revision 'nosuch'.")
        assert found_on(hub, tmp_path / "home", f"{QWEN}:layer0.sae.pt@main").startswith("layers.0")


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    """In the hub's cache a file is a link to its content, whose name is a hash."""
    qwen(tmp_path / QWEN, 0)
    link = tmp_path / "snapshots" / Path(QWEN).name / "layer5.sae.pt"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / QWEN / "layer0.sae.pt")
    assert find_dictionary(local(str(link))).site == Site("resid_post", 5)


def test_layers_of_a_folder_are_listed_with_folders(tmp_path: Path) -> None:
    qwen(tmp_path / "one" / Path(QWEN).name, 0)
    folder = tmp_path / "layers.3"
    save_json(folder / "cfg.json", {"d_in": 6, "num_latents": 10, "k": 3})
    (folder / "sae.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"layers\.3, one/SAE-Res.*/layer0\.sae\.pt\. Name one"):
        find_dictionary(str(tmp_path))
