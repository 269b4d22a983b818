"""What is said of a place that no reader knows: the list of formats for a sound file, else what is wrong."""

from __future__ import annotations

import argparse
import gzip
import os
import pickle
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_dictionaries
import test_llamascopium_clt
import test_native
import torch
from dense_codes import save_torch, tensors
from safetensors.numpy import save_file

from autointerp.dictionaries.locate import find_dictionary
from autointerp.errors import CheckpointError

LIST = "Known formats:"
LEFT_OPEN = "not opened: a pickle runs what code it likes. If you trust where it comes from"
FOUR = {name: value for name, value in tensors().items() if name != "threshold"}
AS_TORCH = {name: torch.from_numpy(value) for name, value in FOUR.items()}


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def said_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_dictionary(str(path))
    return str(caught.value)


def lone(path: Path, four: dict[str, Any], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(four, path)
    else:
        torch.save(more | {name: torch.from_numpy(value) for name, value in four.items()}, path)
    return path


def half(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def module(path: Path) -> Path:
    torch.save(torch.nn.Linear(3, 4), path)
    return path


def of_training(path: Path) -> Path:
    """As mats_sae_training saved: the settings an object, the tensors in a state beside it."""
    torch.save({"cfg": argparse.Namespace(k=3), "state_dict": OrderedDict(AS_TORCH)}, path)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def old(path: Path) -> Path:
    torch.save(AS_TORCH, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda at: half(lone(at / "x.pt", FOUR)), ["x.pt is not a whole archive", "download it again"]),
        (lambda at: half(lone(at / "x.safetensors", FOUR)), ["x.safetensors", "it is cut short", "again"]),
        (lambda at: of_training(at / "x.pt"), ["class 'argparse.Namespace'", "take the tensors out"]),
        (lambda at: module(at / "x.pt"), ["class 'torch.nn.modules.linear.Linear'", "take the tensors"]),
        (
            lambda at: lone(at / "Llama-3-SAE-l5.pth", FOUR, cfg=Bomb(at / "canary")),
            ["class 'posix.system'", "take the tensors out"],
        ),
        (lambda at: old(at / "x.pt"), ["1.6, but of its format before that", LEFT_OPEN]),
        (
            lambda at: written(at / "x.pt", pickle.dumps(Bomb(at / "canary"))),
            ["1.6, but a plain pickle,", LEFT_OPEN],
        ),
        (lambda at: written(at / "x.pt", b"\xff" * 64), ["a plain pickle or damaged", LEFT_OPEN]),
        (lambda at: written(at / "x.pkl", pickle.dumps(Bomb(at / "canary"))), ["is a pickle", LEFT_OPEN]),
        (lambda at: written(at / "x.ckpt", b"cposix\nsystem\n"), ["is a pickle", LEFT_OPEN]),
        (
            lambda at: written(at / "x.pkl.gz", gzip.compress(pickle.dumps(Bomb(at / "canary")))),
            ["x.pkl.gz is compressed (gzip)", "Unpack it"],
        ),
        (lambda at: lone(at / "x.bin", FOUR), ["torch.save under another name", "ends in .pt"]),
        (
            lambda at: written(at / "x.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
            ["Git LFS pointer", "git lfs pull"],
        ),
        (lambda at: written(at / "x.txt", b"hello"), ["no file of tensors", ".safetensors, .npz, .pt"]),
        (lambda at: save_torch(at / "x.pt", {}), ["holds no tensor"]),
    ],
)  # fmt: skip
def test_a_lone_file_that_cant_be_opened_says_why(
    tmp_path: Path, make: Callable[[Path], Path], words: list[str]
) -> None:
    """Named by itself, and as the one file of its folder."""
    file = make(tmp_path)
    for path in (file, tmp_path):
        if path == tmp_path and file.suffix == ".txt":
            continue  # of a folder without tensors it is said what is there
        message = said_of(path)
        assert str(file) in message and LIST not in message
        assert [word for word in words if word not in message] == []
    assert not (tmp_path / "canary").exists()


def test_a_folder_without_tensors_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    message = said_of(tmp_path)
    assert "holds no file of tensors (.safetensors, .npz, .pt, .pth). It holds: notes.txt." in message
    (tmp_path / "x.safetensors").symlink_to("nowhere")
    assert said_of(tmp_path).endswith(
        "x.safetensors is a link that leads to no file. Copy or download it again."
    )
    assert "x.safetensors is a link that leads to nothing" in said_of(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("W_enc", "b_enc", "b_dec"), "holds W_enc, b_dec, b_enc, but no W_dec: without that"),
        (("W_dec", "b_enc", "b_dec"), "holds W_dec, b_dec, b_enc, but no W_enc: without that"),
        (("x.W_dec", "x.b_enc", "x.b_dec"), "holds x.W_dec, x.b_dec, x.b_enc, but no x.W_enc: without that"),
        (
            ("encoder.weight", "encoder.bias", "decoder.weight"),
            "holds decoder.weight, encoder.bias, encoder.weight, but no b_dec: without that",
        ),
        (("W_enc", "b_enc", "W_dec", "b_dec", "other"), "but is none that is known: .* It also holds other."),
        (("s.W_enc", "s.b_enc", "s.W_dec", "s.b_dec"), "a dictionary's tensors below 's' .* file of its own"),
        (("encoder", "decoder"), 'none that is known: .* a dictionary.json beside it that has "layout": 1'),
    ],
)
def test_tensors_that_nearly_are_a_layout_say_what_is_missing(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    path = lone(tmp_path / "x.safetensors", dict.fromkeys(names, np.zeros((2, 2), np.float32)))
    said = said_of(path)
    assert LIST not in said
    with pytest.raises(CheckpointError, match=message):
        find_dictionary(str(tmp_path))


def test_of_a_sound_file_of_no_format_the_list_and_its_tensors_are_said(tmp_path: Path) -> None:
    lone(tmp_path / "x.safetensors", {"model.layers.0.weight": FOUR["W_enc"], "lm_head": FOUR["W_enc"]})
    said = said_of(tmp_path)
    assert "It holds: x.safetensors. Its tensors: lm_head, model.layers.0.weight. Known formats:\n" in said
    # One of several that can't be opened is not why the others are of no format.
    (tmp_path / "optimizer.pt").write_bytes(b"\x80\x04")
    assert LIST in said_of(tmp_path)


def test_a_configuration_that_is_cut_short_says_so(tmp_path: Path) -> None:
    native = test_native.native(tmp_path / "native", {"selector": "relu"})
    (native / "dictionary.json").write_text('{"layout": 1,')
    clt = test_llamascopium_clt.clt(tmp_path / "clt", {})
    (clt / "config.json").write_text('{"sae_type": "clt"')
    sae = test_dictionaries.saelens(tmp_path / "sae", test_dictionaries.FLAT)
    (sae / "cfg.json").write_text("[]")
    for path, file in (
        (native, native / "dictionary.json"),
        (native / "dictionary.safetensors", native / "dictionary.json"),
        (clt / "layer_1", clt / "config.json"),
        (sae, sae / "cfg.json"),
    ):
        said = said_of(path)
        assert said.startswith(f"{file} ") and LIST not in said
        assert ("is not JSON" in said) or "holds a list, not an object" in said


def test_what_says_whose_a_file_is_must_be_readable(tmp_path: Path) -> None:
    """Else a file of somebody's would be read as one of nobody's, with other conventions."""
    path = lone(tmp_path / "sae.pt", FOUR)
    assert find_dictionary(str(path)).format == "state_dict"
    (tmp_path / "config.json").write_text('{"sae_type": "batchtopk", "act_size": 6')
    for place in (path, tmp_path):
        said = said_of(place)
        assert said.startswith(f"{tmp_path / 'config.json'} is not JSON")
        assert said.endswith("If it is of something else, move the tensors to a folder of their own.")


def test_many_tensors_are_looked_through_once(tmp_path: Path) -> None:
    """20,000 of them took minutes when each prefix was looked for among all names."""
    path = tmp_path / "model.safetensors"
    one = np.zeros(1, np.float32)
    save_file({f"model.layers.{n}.encoder.weight": one for n in range(20_000)}, path)
    before = time.process_time()
    assert LIST in said_of(path)
    assert time.process_time() - before < 20


def test_nothing_of_it_imports_torch(tmp_path: Path) -> None:
    of_training(tmp_path / "x.pt")
    program = (
        "import sys\n"
        "from autointerp.dictionaries.locate import find_dictionary\n"
        "from autointerp.errors import CheckpointError\n"
        f"try: find_dictionary({str(tmp_path)!r})\n"
        "except CheckpointError as error: print('Namespace' in str(error), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "True False\n"


def test_long_values_are_quoted_shortened(tmp_path: Path) -> None:
    for text in ("a" * 5000, f"{'a' * 2000}/{'b' * 2000}/c", f"org/{'a' * 5000}", "neurons:" + "a" * 5000):
        with pytest.raises(CheckpointError) as caught:
            find_dictionary(text)
        assert len(str(caught.value)) < 900
    native = test_native.native(tmp_path / "a", {"selector": "relu", "a" * 5000: 1})
    assert len(said_of(native)) < 900 + len(str(tmp_path))
