"""Every format's files gone wrong in every way that `damage.py` knows.

Each ends as a described dictionary that encodes, or as one AutointerpError that can be shown: no other exception, no
code run, no memory beyond a bound, no endless wait. What a format means is tested in its own file.
"""

from __future__ import annotations

import dataclasses
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import test_batch_topk
import test_circuit_tracer
import test_dictionaries
import test_dictionary_learning
import test_gemma_scope
import test_llama_scope
import test_llamascopium_clt
import test_llamascopium_crosscoder
import test_lone_files
import test_minder
import test_native
import test_research_readers
import test_saelens_poly
import test_saelens_temporal
import test_temporal
import torch
import yaml
from damage import arrays_of, copied, damaged
from dense_codes import save_json, save_torch, tensors
from safetensors.numpy import save_file

from autointerp import plugins
from autointerp.dictionaries.calibrate import calibrated
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import AutointerpError

N_ALL, N_DEFAULT = 3_000, 400
LIST = "Known formats:"
"""Behind it stands what is known, which is an answer about sound files alone."""
MAX_SECONDS = 5.0
"""For one checkpoint of a few kilobytes; a sound one takes some milliseconds."""
MAX_MEMORY = 2**29
"""Bytes of address space that one may take beyond what the process has already."""

D = test_dictionaries.D
TENSORS = (".safetensors", ".npz", ".pt", ".pth")
DECODERS = {
    **dict.fromkeys(("saelens", "sparsify", "gemma_scope", "batch_topk", "state_dict", "afa"), "W_dec"),
    "native": "decoder",
    "gemma_scope_2": "w_dec",
}
"""The tensor that is the decoder as it is used, of formats that store one; not so where inputs are scaled, nor where
it is a factor."""


def state_dict(folder: Path, suffix: str) -> Path:
    four = {name: value for name, value in tensors().items() if name != "threshold"}
    if suffix == ".safetensors":
        folder.mkdir(parents=True)
        save_file(four, folder / "mine.safetensors")
    else:
        save_torch(folder / f"mine{suffix}", four)
    return folder / f"mine{suffix}"


def lone(folder: Path, file: str, names: tuple[str, ...], **more: Any) -> Path:
    return save_torch(folder / file, test_lone_files.linear(tensors(), *names) | more)


def learned(folder: Path, name: str, *, mid_run: bool = False) -> Path:
    arrays = test_dictionary_learning.CLASSES[name]
    saved = (
        test_dictionary_learning.mid_run(arrays, 2.0) if mid_run else test_dictionary_learning.tensors(arrays)
    )
    return test_dictionary_learning.checkpoint(folder, test_dictionary_learning.config_of(name), saved)


def transcoder(folder: Path) -> Path:
    config = test_dictionaries.V6 | {
        "architecture": "skip_transcoder",
        "d_out": D,
        "apply_b_dec_to_input": False,
    }
    weights = test_dictionaries.tensors() | {"W_skip": np.ones((D, D), np.float32)}
    return test_dictionaries.saelens(folder, config, weights)


def afa(folder: Path) -> Path:
    save_json(folder / "config.json", test_research_readers.AFA)
    save_torch(folder / "sae.pt", test_research_readers.WEAK)
    return folder


def crosscoder(folder: Path) -> Path:
    t = test_research_readers.forks() | test_research_readers.normaliser()
    t |= {"threshold": np.array(6.0, np.float32), "code_normalization_id": np.array(3)}
    return test_research_readers.save_fork(folder, t, k=4)


def pursuit(folder: Path) -> Path:
    ends = {"residual_below": 0.5, "ends_on_repeat": True}
    own = {"selector": "pursuit", "k": 4, "has_signs": True, "pursuit": ends}
    return test_native.native(folder, own, test_native.DECODER)


def uncalibrated(folder: Path) -> Path:
    calibration = {"rule": "sampled", "k": 2.5, "pool": 6, "column_score": "entropy"}
    own = {"selector": "jumprelu", "variant": "sampled", "calibration": calibration, "notes": ["a", "b"]}
    return test_native.native(folder, own | {"expected": {"l0": 2.5}, "group_sizes": [4, 6]})


def meta(folder: Path) -> Path:
    """With its parent in it, whose files are damaged as often."""
    test_native.native(folder / "parent", {"selector": "topk", "k": 3, "model": "org/m"})
    test_native.meta(folder, "parent", d=D, parent_rows="stored")
    return folder


FORMATS: dict[str, Callable[[Path], Path]] = {
    "saelens": lambda folder: test_dictionaries.saelens(folder / "a", test_dictionaries.VARIANTS["topk"]),
    "saelens, flat": lambda folder: test_dictionaries.saelens(folder / "a", test_dictionaries.FLAT),
    "saelens, transcoder": lambda folder: transcoder(folder / "a"),
    "sparsify": lambda folder: test_dictionaries.sparsify(folder / "layers.1"),
    "gemma_scope": lambda folder: test_gemma_scope.scope_1(folder / test_gemma_scope.LAYER),
    "gemma_scope_2": lambda folder: test_gemma_scope.scope_2(
        folder / "resid_post" / "layer_3_width_16k_l0_small"
    ),
    "llama_scope": lambda folder: test_llama_scope.scope(folder / test_llama_scope.NAME, {}),
    "llamascopium": lambda folder: test_llama_scope.llamascopium(folder / "a", {"act_fn": "jumprelu"}),
    "llamascopium, crosscoder": lambda folder: test_llamascopium_crosscoder.crosscoder(
        folder / "a", {"act_fn": "topk"}
    ),
    "llamascopium, cross-layer": lambda folder: test_llamascopium_clt.clt(folder / "a", {}) / "layer_1",
    "qwen_scope": lambda folder: lone(
        folder / test_lone_files.QWEN, "layer12.sae.pt", test_lone_files.QWEN_NAMES
    ),
    "openai": lambda folder: lone(
        folder / test_lone_files.V5, "7.pt", test_lone_files.OPENAI_NAMES, **test_lone_files.TOPK
    ),
    "goodfire": lambda folder: lone(folder / "a", "m-SAE-l50.pth", test_lone_files.GOODFIRE_NAMES),
    "dictionary_learning": lambda folder: learned(folder / "a", "BatchTopKSAE"),
    "dictionary_learning, Matryoshka": lambda folder: learned(folder / "a", "MatryoshkaBatchTopKSAE"),
    "dictionary_learning, mid-run": lambda folder: learned(folder / "a", "GatedAutoEncoder", mid_run=True),
    "circuit_tracer": lambda folder: test_circuit_tracer.single(folder / "a", test_circuit_tracer.own()),
    "circuit_tracer, cross-layer": lambda folder: test_circuit_tracer.cross(
        folder / "a", test_circuit_tracer.own(), test_circuit_tracer.normal(12, 3, 6)
    ),
    "batch_topk": lambda folder: test_batch_topk.checkpoint(
        folder / "a", {"sae_type": "batchtopk"}, test_batch_topk.THRESHOLD
    ),
    "itda": lambda folder: test_research_readers.itda(folder / "a"),
    "afa": lambda folder: afa(folder / "a"),
    "kissane": lambda folder: test_research_readers.attention(folder / "a"),
    "kissane, crosscoder": lambda folder: test_research_readers.crosscoder(folder / "a")[0],
    "crosscoder": lambda folder: crosscoder(folder / "a"),
    "crosscoder, decoupled": lambda folder: test_research_readers.save_fork(
        folder / "a", test_minder.decoupled([2.0, 1.0], normalises=True)
    ),
    "batch_topk_sae": lambda folder: test_minder.one_input(folder / "a", test_minder.ONE),
    "temporal": lambda folder: test_temporal.checkpoint(folder / "layer_4", test_temporal.tensors()),
    "saelens, PolySAE": lambda folder: test_saelens_poly.checkpoint(
        folder / "a",
        test_saelens_poly.tensors(shared=True),
        rescale_acts_by_decoder_norm=True,
        **test_saelens_poly.OF_TRAINING,
    ),
    "saelens, temporal": lambda folder: test_saelens_temporal.checkpoint(
        folder / "a", test_temporal.tensors()
    ),
    "native, pursuit": lambda folder: pursuit(folder / "a"),
    "native, calibrated": lambda folder: uncalibrated(folder / "a"),
    "native, meta-SAE": lambda folder: meta(folder / "a"),
    "state_dict, pt": lambda folder: state_dict(folder / "a", ".pt"),
    "state_dict, safetensors": lambda folder: state_dict(folder / "a", ".safetensors"),
}
"""`reader` or `reader, what of it` -> writes one below a folder; gives what is named behind `--sae`."""


def test_every_reader_has_a_sound_file_here(tmp_path: Path) -> None:
    """A new format is one more line above."""
    read = set[str]()
    for number, (name, make) in enumerate(FORMATS.items()):
        place = make(tmp_path / str(number))
        spec = find_dictionary(str(place))
        assert spec.format == name.partition(",")[0]
        assert len(used(place)), name
        read.add(spec.format)
    # A basis and random directions have no file.
    assert read == set(plugins.names("dictionaries")) - {"basis", "random_topk"}


def used(place: Path) -> torch.Tensor:
    """The values that the dictionary there gives a few tokens; its decoder is what its file holds."""
    spec = find_dictionary(str(place))
    orjson.dumps(dataclasses.asdict(spec), default=str)  # a run writes it down
    weights = reader_of(spec).load(spec, "cpu")
    encoder = Encoder(spec, weights)
    x_ND = torch.linspace(-2, 3, 4 * spec.d_in).reshape(4, spec.d_in)
    if spec.needs_sequence:
        x_ND = x_ND - encoder.predicted(x_ND[None], [4])[0]
    if spec.calibration is not None:
        weights = dataclasses.replace(
            weights, threshold_F=calibrated(encoder, lambda: iter([x_ND]), len(x_ND)).threshold_F
        )
        encoder = Encoder(spec, weights)
    codes = encoder.encode(x_ND)
    encoder.decode(codes, x_ND)
    if spec.format in DECODERS and spec.reconstructs and not spec.needs_sequence:
        (file,) = [place] if place.is_file() else (one for one in place.iterdir() if one.suffix in TENSORS)
        stored = arrays_of(file)[DECODERS[spec.format]].astype(np.float32)
        np.testing.assert_array_equal(weights.decoder, stored)
    return codes.value_M


class TooSlow(BaseException):
    """Not an Exception: nothing on the way may take it for a damaged file."""


@contextmanager
def bounded() -> Iterator[None]:
    """Of time and of address space."""

    def stop(*_: object) -> None:
        raise TooSlow

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def case(number: int, sound: dict[str, tuple[Path, str]], tmp_path: Path) -> tuple[str, str | None]:
    """(what was done to which format, the message or None where it was read all the same)."""
    name = list(FORMATS)[number % len(FORMATS)]
    folder, place = sound[name]
    copy, canary = copied(folder, tmp_path / "case"), tmp_path / "canary"
    how = f"{number} {name}: {damaged(random.Random(f'{number}'), copy, canary)}"
    message = None
    try:
        with bounded():
            used(copy / place)
    except AutointerpError as error:
        message = str(error)
    except BaseException as error:
        raise AssertionError(how) from error
    assert not canary.exists(), f"code ran: {how}"
    if message is not None and LIST in message:
        left = [path for path in copy.rglob("*") if not path.is_dir()]
        assert any(path.suffix in TENSORS for path in left), how
        for path in left:
            check_sound(path)
    return how, message


def check_sound(path: Path) -> None:
    """The library of its kind reads the file whole. Raises what that raises."""
    if path.suffix in (".json", ".yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)
    elif path.suffix in (".pt", ".pth"):
        torch.load(path, map_location="cpu", weights_only=True)
    else:
        assert arrays_of(path)


def outcomes(numbers: range, tmp_path: Path) -> list[tuple[str, str | None]]:
    sound: dict[str, tuple[Path, str]] = {}
    for number, (name, make) in enumerate(FORMATS.items()):
        folder = tmp_path / "sound" / str(number)
        sound[name] = folder, make(folder).relative_to(folder).as_posix()
    return [case(number, sound, tmp_path) for number in numbers]


def assert_told(found: list[tuple[str, str | None]], tmp_path: Path) -> None:
    """Most damage is told, in a message that names the place and that a terminal can show; some is harmless. The list
    of formats is seldom what is told."""
    told = {how: message for how, message in found if message is not None}
    assert 0.5 < len(told) / len(found) < 0.95
    assert sum(LIST in message for message in told.values()) < 0.02 * len(told)
    for how, message in told.items():
        assert str(tmp_path) in message, how
        in_one_line = message.replace("\n  ", " ")  # known formats are a list
        assert len(message) < 3_000 and in_one_line.isprintable(), how


def test_damage_is_told_or_harmless(tmp_path: Path) -> None:
    assert_told(outcomes(range(N_DEFAULT), tmp_path), tmp_path)


@pytest.mark.slow
def test_all_damage_is_told_or_harmless(tmp_path: Path) -> None:
    assert_told(outcomes(range(N_DEFAULT, N_ALL), tmp_path), tmp_path)
