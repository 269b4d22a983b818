"""Dictionaries on the hub, inspected: which bytes are asked for, and that it is told as of the whole files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_fuzz_formats
import test_native
import torch
from dense_codes import D, save_json

from autointerp.dictionaries.locate import find_dictionary
from autointerp.identity import WHOLE_UP_TO, fingerprint
from autointerp.report.dictionary import inspected
from loopback_hub import LoopbackHandler, LoopbackHub, commit_of

PROGRAM = """
import json, sys
from autointerp import distant
from autointerp.dictionaries import hub_parts
from autointerp.errors import CheckpointError
from autointerp.report.dictionary import inspected
asked = json.loads(sys.argv[1])
if asked["small"] is not None:
    distant.SMALL = hub_parts.SMALL = asked["small"]
said = {}
for text in asked["texts"]:
    try:
        said[text] = dict(inspected(text, identity=asked["identity"]))
    except CheckpointError as error:
        said[text] = {"error": str(error)}
print(json.dumps(said))
"""


def all_said(
    url: str, home: Path, texts: list[str], *, identity: bool = False, small: int | None = None, **env: str
) -> dict[str, dict[str, str]]:
    """What a process of its own, which is online, says of each. `small`: instead of `distant.SMALL`."""
    asked = json.dumps({"texts": texts, "identity": identity, "small": small})
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    online = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | env
    command = [sys.executable, "-c", PROGRAM, asked]
    done = subprocess.run(command, env=kept | online, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def said(hub: LoopbackHub, home: Path, text: str, **more: Any) -> dict[str, str]:
    return all_said(hub.url, home, [text], **more)[text]


def weights_below(home: Path) -> list[str]:
    return [path.name for path in home.rglob("*") if path.suffix in (".safetensors", ".npz", ".pt")]


WIDTH = 24_415  # 8,196 bytes each: 200 MB


def sparse_saelens(folder: Path, width: int = WIDTH) -> Path:
    """A file of 200 MB, or of 8 kB a feature, of which the disk holds the first and the last few bytes."""
    shapes = {"W_enc": [1_024, width], "W_dec": [width, 1_024], "b_enc": [width], "b_dec": [1_024]}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    config = {
        "architecture": "standard",
        "d_in": 1_024,
        "d_sae": width,
        "hook_name": "blocks.3.hook_resid_post",
    }
    save_json(folder / "cfg.json", config)
    with (folder / "sae_weights.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + end - 4)
        file.write(b"last")
    return folder


def test_of_a_large_file_the_header_is_read_and_nothing_is_kept(tmp_path: Path) -> None:
    """Two requests for bytes: the configuration, and 16 KiB of 200 MB."""
    repo, home = tmp_path / "models" / "org" / "sae", tmp_path / "home"
    folder = sparse_saelens(repo / "layer_3")
    with LoopbackHub(tmp_path) as hub:
        lines = said(hub, home, "org/sae:layer_3")
        assert hub.n_bytes < 100_000
        assert len([line for line in hub.requests if "/resolve/" in line]) == 2
        assert not home.exists() or not weights_below(home)
        hub.requests.clear()
        exact, before = said(hub, home, "org/sae:layer_3", identity=True), hub.n_bytes
    whole = dict(inspected(str(folder)))
    assert lines["path"] == f"org/sae:layer_3@{commit_of(repo)}"
    assert lines["identity"].startswith("known when the file is here (sae_weights.safetensors, 200.")
    assert lines["identity"].endswith("or with --identity, which reads at most 64 MiB of each file")
    assert lines | {"path": "", "identity": ""} == whole | {"path": "", "identity": ""}
    assert lines["features"] == f"{WIDTH:,}" and lines["reads"] == "layers.3 (blocks.3.hook_resid_post)"
    # The identity is made of 64 KiB and 16 samples of 1 MiB.
    assert exact == whole | {"path": lines["path"]}
    assert 16 * 2**20 < before < 18 * 2**20 < WHOLE_UP_TO


def test_a_long_configuration_is_one_request(tmp_path: Path) -> None:
    """Of 4 MB, more than what comes whole by itself; and one for the header of the weights."""
    folder = sparse_saelens(tmp_path / "models" / "org" / "sae" / "a", 400)
    config = json.loads((folder / "cfg.json").read_bytes())
    save_json(folder / "cfg.json", config | {"metadata": {"long": "x" * 4_000_000}})
    with LoopbackHub(tmp_path) as hub:
        assert said(hub, tmp_path / "home", "org/sae:a")["features"] == "400"
        asked = [line.rpartition("/")[2] for line in hub.requests if "/resolve/" in line]
    assert sorted(asked) == ["cfg.json", "sae_weights.safetensors"]


def big_npz(folder: Path) -> Path:
    """Gemma Scope's arrays, the large ones of zeros, which deflate a thousandfold but for the file's own check."""
    folder.mkdir(parents=True)
    arrays = {"W_enc": (1_024, 16_384), "W_dec": (16_384, 1_024), "b_enc": (16_384,), "b_dec": (1_024,)}
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        for name, shape in (arrays | {"threshold": (16_384,)}).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.zeros(shape, np.float32))
    return folder


def big_pt(folder: Path) -> Path:
    folder.mkdir(parents=True)
    four = {"W_enc": torch.zeros(1_024, 16_384), "W_dec": torch.zeros(16_384, 1_024)}
    torch.save(four | {"b_enc": torch.zeros(16_384), "b_dec": torch.zeros(1_024)}, folder / "mine.pt")
    return folder / "mine.pt"


def test_of_archives_the_table_of_contents_and_the_headers_are_read(tmp_path: Path) -> None:
    """Of 134 MB each: in blocks of 16 KiB the ends of two files, the pickle, and the head of each of five arrays."""
    repo, home = tmp_path / "models" / "org" / "sae", tmp_path / "home"
    place = "layer_5/width_16k/average_l0_50"
    local = {f"org/sae:{place}": big_npz(repo / place), "org/sae:own/mine.pt": big_pt(repo / "own")}
    with LoopbackHub(tmp_path) as hub:
        found = all_said(hub.url, home, list(local))
        assert hub.n_bytes < 250_000
    for text, path in local.items():
        whole = dict(inspected(str(path)))
        assert found[text] | {"path": "", "identity": ""} == whole | {"path": "", "identity": ""}
        assert found[text]["identity"].startswith("known when the file is here (")
    assert found["org/sae:own/mine.pt"]["features"] == "16,384"


def test_every_format_is_told_as_of_its_local_files(tmp_path: Path) -> None:
    """Read in parts, without its identity; with it, the same one; and as small files, which come whole."""
    local: dict[str, Path] = {}
    for number, (name, make) in enumerate(test_fuzz_formats.FORMATS.items()):
        repo = tmp_path / "models" / "org" / f"sae{number}"
        path = make(repo)
        if name != "native, meta-SAE":  # a folder's sub-folders are not fetched
            local[f"org/sae{number}:{path.relative_to(repo).as_posix()}"] = path
    assert len(local) > 20
    with LoopbackHub(tmp_path) as hub:
        whole = {text: dict(inspected(str(path))) for text, path in local.items()}
        for small, identity in ((0, False), (0, True), (None, False)):
            found = all_said(hub.url, tmp_path / "home", list(local), identity=identity, small=small)
            for text, lines in found.items():
                unknown = small == 0 and not identity
                assert lines.get("identity", "").startswith("known when the file") == unknown, (text, lines)
                left = {"path": "", **({"identity": ""} if unknown else {})}
                assert lines | left == whole[text] | left
    assert not weights_below(tmp_path / "home")


def test_a_meta_sae_is_not_named_by_parts_of_its_parent(tmp_path: Path) -> None:
    """Its identity is made of both."""
    models = tmp_path / "models" / "org"
    test_native.native(models / "parent" / "p", {"selector": "topk", "k": 3, "model": "org/m"})
    test_native.meta(models / "child" / "c", "org/parent:p", d=D, parent_rows="stored")
    own = fingerprint([models / "child" / "c" / f"dictionary.{suffix}" for suffix in ("json", "safetensors")])
    parent = find_dictionary(str(models / "parent" / "p")).identity
    with LoopbackHub(tmp_path) as hub:
        parts = said(hub, tmp_path / "home", "org/child:c", small=0)
        named = said(hub, tmp_path / "home", "org/child:c", small=0, identity=True)
    assert parts["identity"].startswith(
        "known when the files are here (org/child:c/dictionary.safetensors, 0.0 MB, org/parent:p/dictionary."
    )
    assert named["identity"] == hashlib.blake2b(f"{own}\0{parent}".encode(), digest_size=16).hexdigest()
    assert parts["features"] == named["features"]
    assert "a meta-SAE of org/parent:p (" in parts["note"]


def test_what_the_cache_holds_is_used(tmp_path: Path) -> None:
    """After a whole download nothing of it is asked for again, and the identity is known."""
    repo, home = tmp_path / "models" / "org" / "sae", tmp_path / "home"
    folder = sparse_saelens(repo / "layer_3")
    fetch = "import huggingface_hub as hub; hub.hf_hub_download('org/sae', 'layer_3/sae_weights.safetensors')"
    with LoopbackHub(tmp_path) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        subprocess.run([sys.executable, "-c", fetch], env=os.environ | env, check=True, capture_output=True)
        hub.requests.clear()
        lines = said(hub, home, "org/sae:layer_3")
        (asked,) = [line for line in hub.requests if "/resolve/" in line]
    assert asked.endswith("/layer_3/cfg.json")
    assert lines["identity"] == find_dictionary(str(folder)).identity


class BreaksOff(LoopbackHandler):
    """A part of a file ends in the middle, and with it the connection."""

    def do_GET(self) -> None:
        if "Range" not in self.headers:
            super().do_GET()
            return
        self.requests.append(f"{self.command} {self.path}")
        self.send_response(206)
        first, last = re.findall(r"\d+", self.headers["Range"])
        size = (self.root / "models/org/sae/a/sae_weights.safetensors").stat().st_size
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self._head("application/octet-stream", 16_384)
        self.wfile.write(b"x" * 100)
        self.close_connection = True


class Refuses(LoopbackHandler):
    def do_GET(self) -> None:
        if "Range" in self.headers:
            self.send_response(403)
            self._body(b"no", "text/plain")
        else:
            super().do_GET()


class RefusesSizes(LoopbackHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(403)
        self._body(b"no", "text/plain")


@pytest.mark.parametrize("answers", [BreaksOff, Refuses, RefusesSizes])
def test_where_parts_fail_the_whole_is_not_fetched_instead(
    tmp_path: Path, answers: type[LoopbackHandler]
) -> None:
    """One line says what came, not that it is of no known format."""
    sparse_saelens(tmp_path / "models" / "org" / "sae" / "a", 400)
    with LoopbackHub(tmp_path, answers) as hub:
        lines = said(hub, tmp_path / "home", "org/sae:a")
        assert hub.n_bytes < 100_000
    assert lines.keys() == {"error"} and "\n" not in lines["error"]
    assert lines["error"].startswith(
        "no file or folder is called 'org/sae', and it can't be fetched from Hug"
    )
    assert not weights_below(tmp_path / "home")


class WithoutRanges(LoopbackHandler):
    gives_ranges = False


class WithoutSizes(LoopbackHandler):
    """A mirror that serves files and lists, and no more of the protocol."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._missing("EntryNotFound")


class Elsewhere(LoopbackHandler):
    """Large files lie behind a redirection, as on the hub, where what may come compressed is not given in parts."""

    def do_GET(self) -> None:
        self.gives_ranges = "gzip" not in (self.headers.get("Accept-Encoding") or "")
        if "/resolve/" in self.path and self.path.endswith(".safetensors"):
            self.requests.append(f"{self.command} {self.path}")
            self.send_response(302)
            self.send_header("Location", f"{self.path}?signed=1")
            self._head("text/plain", 0)
        else:
            super().do_GET()


@pytest.mark.parametrize(
    ("answers", "size"), [(WithoutRanges, "dictionary, 3.3 MB:"), (WithoutSizes, "dictionary:")]
)
def test_a_server_that_gives_no_parts_gives_the_whole(
    tmp_path: Path, answers: type[LoopbackHandler], size: str
) -> None:
    """400 features of 8,196 bytes, and told so."""
    repo, home = tmp_path / "models" / "org" / "sae", tmp_path / "home"
    whole = dict(inspected(str(sparse_saelens(repo / "a", 400))))
    with LoopbackHub(tmp_path, answers) as hub:
        lines = said(hub, home, "org/sae:a")
    assert size in lines.pop("fetched") and "fetched" not in whole
    assert lines.pop("path").endswith(f"/snapshots/{commit_of(repo)}/a")
    assert lines == {what: value for what, value in whole.items() if what != "path"}
    assert weights_below(home) == ["sae_weights.safetensors"]


def test_parts_come_from_where_the_hub_sends_to(tmp_path: Path) -> None:
    sparse_saelens(tmp_path / "models" / "org" / "sae" / "a", 400)
    with LoopbackHub(tmp_path, Elsewhere) as hub:
        lines = said(hub, tmp_path / "home", "org/sae:a")
        assert hub.requests[-1].endswith("signed=1") and hub.n_bytes < 100_000
    assert lines["identity"].startswith("known when") and not weights_below(tmp_path / "home")


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (
            9 * 2**20,
            "org/sae:a/sae_weights.safetensors: the safetensors header has 9,437,184 bytes, and none",
        ),
        (2**60, "org/sae:a/sae_weights.safetensors is not a whole safetensors file: it has 20,000,"),
    ],
)
def test_an_absurd_header_is_refused_and_not_fetched(tmp_path: Path, length: int, message: str) -> None:
    folder = tmp_path / "models" / "org" / "sae" / "a"
    save_json(folder / "cfg.json", {"architecture": "standard", "d_in": 4, "d_sae": 8, "hook_name": "x"})
    with (folder / "sae_weights.safetensors").open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(20_000_000)
    with LoopbackHub(tmp_path) as hub:
        error = said(hub, tmp_path / "home", "org/sae:a")["error"]
        assert hub.n_bytes < 100_000
    assert error.startswith(message) and str(tmp_path) not in error


def test_an_archive_whose_table_of_contents_is_all_of_it_is_refused(tmp_path: Path) -> None:
    """Its last 22 bytes say that it begins at byte 4 of 100 MB."""
    folder = tmp_path / "models" / "org" / "sae" / "a"
    folder.mkdir(parents=True)
    with (folder / "params.npz").open("wb") as file:
        file.write(b"PK\x03\x04")
        size = 100_000_000
        file.seek(size)
        file.write(b"PK\x05\x06" + bytes(4) + (1).to_bytes(2, "little") * 2)
        file.write((size - 4).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(2))
    with LoopbackHub(tmp_path) as hub:
        error = said(hub, tmp_path / "home", "org/sae:a")["error"]
        assert hub.n_bytes < 200_000
    assert "more than 84 MB of its 100,000,022 bytes would have to be fetched" in error


def test_offline_it_says_so(tmp_path: Path) -> None:
    """Unless the cache has it, which is then read whole."""
    test_fuzz_formats.FORMATS["saelens"](tmp_path / "models" / "org" / "sae")
    with LoopbackHub(tmp_path) as hub:
        fetch = "import huggingface_hub as hub; hub.snapshot_download('org/sae')"
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        subprocess.run([sys.executable, "-c", fetch], env=os.environ | env, check=True, capture_output=True)
        hub.requests.clear()
        here = said(hub, tmp_path / "home", "org/sae:a", HF_HUB_OFFLINE="1")
        gone = said(hub, tmp_path / "other", "org/sae:a", HF_HUB_OFFLINE="1")
        assert not hub.requests
    local = find_dictionary(str(tmp_path / "models" / "org" / "sae" / "a"))
    assert here["identity"] == local.identity
    assert gone["error"] == (
        "no file or folder is called 'org/sae', Hugging Face's cache doesn't hold it, and HF_HUB_OFFLINE is set. "
        "Unset it, or fetch the dictionary where there is a network (autointerp prefetch)."
    )
