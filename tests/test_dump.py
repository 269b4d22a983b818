"""Folders of activations: what the format allows, worked out by hand, and what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from autointerp.activations.dump import Dump
from autointerp.activations.dump_files import find_dump
from autointerp.activations.vectors import FromDump
from autointerp.errors import ActivationsError
from autointerp.types import Site

HERE = Site("resid_post", 1)


def capture(dump: Dump, rows: list[int], longest: int, first: int = 0) -> NDArray[np.float32]:
    vectors = FromDump(dump, torch.device("cpu"), first)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    return vectors.capture(ids, [HERE], np.array(rows))[HERE].float().numpy()


def test_rows_of_one_length_in_two_files_are_counted_through(tmp_path: Path) -> None:
    """Files in order of name; row 2 of the run is row 0 of the second file."""
    for name, base in (("b", 100), ("a", 0)):
        activations = torch.arange(2 * 3 * 2).reshape(2, 3, 2).float() + base
        tokens = torch.tensor([[1, 2, 3], [4, 5, 6]]) + base
        save_file({"activations": activations, "tokens": tokens}, tmp_path / f"{name}.safetensors")
    dump = find_dump(tmp_path)
    assert (dump.n_rows, dump.context_length, dump.d_in, dump.n_tokens) == (4, 3, 2, 12)
    assert (dump.dtype, dump.prepend_bos, dump.has_documents) == ("float32", False, False)
    rows = dump.rows(1, 4, 3, own_documents=True)
    assert rows["tokens"].tolist() == [[4, 5, 6], [101, 102, 103], [104, 105, 106]]
    assert rows["length"].tolist() == [3, 3, 3] and not rows["position"].any()
    named = hashlib.blake2b(struct.pack("<3I", 4, 5, 6), digest_size=8).digest()
    assert int(rows["document"][0]) == int.from_bytes(named, "big")
    assert capture(dump, [2, 1], 2).tolist() == [[[100, 101], [102, 103]], [[6, 7], [8, 9]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ragged_rows_one_behind_the_other(tmp_path: Path, dtype: torch.dtype) -> None:
    """[N, D] with lengths 2, 1, 3: rows begin at 0, 2, 3; documents and positions are those given."""
    activations = torch.tensor([[1.5], [2], [3], [-4], [5], [6.25]], dtype=dtype)
    save_file(
        {
            "activations": activations,
            "tokens": torch.tensor([7, 8, 7, 7, 9, 9], dtype=torch.int32),
            "lengths": torch.tensor([2, 1, 3]),
            "documents": torch.tensor([11, 11, 12]),
            "positions": torch.tensor([0, 2, 0]),
        },
        tmp_path / "x.safetensors",
    )
    dump = find_dump(tmp_path)
    assert (dump.n_rows, dump.context_length, dump.n_tokens) == (3, 3, 6)
    assert dump.dtype == str(dtype).removeprefix("torch.")
    assert dump.has_documents and dump.prepend_bos  # all three begin with 7
    rows = dump.rows(0, 3, 4, own_documents=False)
    assert rows["tokens"].tolist() == [[7, 8, 0, 0], [7, 0, 0, 0], [7, 9, 9, 0]]
    assert rows["length"].tolist() == [2, 1, 3]
    assert rows["document"].tolist() == [11, 11, 12] and rows["position"].tolist() == [0, 2, 0]
    assert capture(dump, [0, 2], 3)[:, :, 0].tolist() == [[1.5, 2, 0], [-4, 5, 6.25]]


def test_npy_pairs_cut_by_the_context_length(tmp_path: Path) -> None:
    """[5, D] at 2 tokens a context: rows of 2, 2 and 1; config.json says so, or the recipe."""
    np.save(tmp_path / "activations-0.npy", np.arange(10, dtype=np.float16).reshape(5, 2))
    np.save(tmp_path / "tokens-0.npy", np.array([1, 2, 3, 4, 5], np.uint16))
    with pytest.raises(ActivationsError, match=r"cache\.context_length"):
        find_dump(tmp_path)
    said = {"context_length": 2, "hook": "blocks.3.hook_resid_post", "model": "m", "prepend_bos": True}
    (tmp_path / "config.json").write_text(json.dumps(said))
    dump = find_dump(tmp_path)
    assert (dump.n_rows, dump.context_length, dump.hook, dump.model) == (3, 2, said["hook"], "m")
    assert dump.prepend_bos
    assert dump.rows(1, 3, 2, own_documents=True)["tokens"].tolist() == [[3, 4], [5, 0]]
    assert capture(dump, [2, 0], 2).tolist() == [[[8, 9], [0, 0]], [[0, 1], [2, 3]]]
    assert find_dump(tmp_path, 5, False).n_rows == 1


def test_padded_rows_may_hold_anything_behind_their_end(tmp_path: Path) -> None:
    """Tokens -1 and NaN there."""
    activations = torch.tensor([[[1.0], [torch.nan]], [[2], [3]]])
    tokens = torch.tensor([[1, -1], [2, 3]])
    arrays = {"activations": activations, "tokens": tokens, "lengths": torch.tensor([1, 2])}
    save_file(arrays, tmp_path / "x.safetensors")
    dump = find_dump(tmp_path)
    assert dump.rows(0, 2, 2, own_documents=True)["tokens"].tolist() == [[1, 0], [2, 3]]
    assert capture(dump, [0, 1], 2)[:, :, 0].tolist() == [[1, 0], [2, 3]]


def test_what_is_not_finite_is_refused_but_where_nobody_looks(tmp_path: Path) -> None:
    activations = torch.ones(2, 3, 4, dtype=torch.float16)
    activations[1, 0, 2] = torch.inf
    arrays = {"activations": activations, "tokens": torch.ones(2, 3, dtype=torch.int64)}
    save_file(arrays, tmp_path / "x.safetensors")
    dump = find_dump(tmp_path)
    assert capture(dump, [0, 1], 3, first=1).shape == (2, 3, 4)
    with pytest.raises(ActivationsError, match=r"on 1 tokens of 2 rows .* in row 1 at position 0"):
        capture(dump, [0, 1], 3)


A = torch.ones(2, 3, 4)
T = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"activations": A}, "has no tensor 'tokens'. It has: activations"),
        ({"activations": A, "tokens": T[:, :2].contiguous()}, r"float32 \[2, 3, 4\] .* int64 \[2, 2\]"),
        ({"activations": A, "tokens": T.float()}, "its tokens float32; expected"),
        ({"activations": A.double(), "tokens": T}, "are float64"),
        ({"activations": A[0], "tokens": T[0].clone()}, "nothing says where its rows end"),
        (
            {"activations": A, "tokens": T, "lengths": torch.tensor([3, 4])},
            "run from 3 to 4; expected 1 to 3",
        ),
        ({"activations": A, "tokens": T, "lengths": torch.tensor([0, 3])}, "from 0 to 3"),
        ({"activations": A, "tokens": T, "lengths": torch.tensor([3])}, "of 1 rows, but there are 2"),
        ({"activations": A[0], "tokens": T[0].clone(), "lengths": torch.tensor([2])}, "add up to 2 tokens"),
        ({"activations": A, "tokens": T, "documents": torch.tensor([3, 4])}, "belong together"),
        ({"activations": torch.ones(0, 3, 4), "tokens": T[:0].clone()}, "at least one token"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ActivationsError, match=message):
        find_dump(tmp_path)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ActivationsError, match="there is no folder"):
        find_dump(tmp_path / "nowhere")
    with pytest.raises(ActivationsError, match=r"holds no activations.*It holds: nothing"):
        find_dump(tmp_path)
    np.save(tmp_path / "activations-7.npy", A.numpy())
    with pytest.raises(ActivationsError, match=r"lacks tokens-7\.npy, the partner of activations-7\.npy"):
        find_dump(tmp_path)
    np.save(tmp_path / "tokens-7.npy", T.numpy())
    assert find_dump(tmp_path).n_rows == 2
    save_file({"activations": torch.ones(2, 3, 5), "tokens": T}, tmp_path / "x.safetensors")
    with pytest.raises(ActivationsError, match="not of one site and dtype"):
        find_dump(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"\x10")
    with pytest.raises(ActivationsError, match=r"x\.safetensors is not a whole safetensors file"):
        find_dump(tmp_path)
    (tmp_path / "x.safetensors").unlink()
    (tmp_path / "tokens-7.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ActivationsError, match=r"tokens-7\.npy is not a \.npy array"):
        find_dump(tmp_path)
    np.save(tmp_path / "tokens-7.npy", np.array([object()], object), allow_pickle=True)
    with pytest.raises(ActivationsError, match=r"tokens-7\.npy is not a \.npy array"):
        find_dump(tmp_path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("[1]", "holds no JSON object"),
        ('{"context_length": "9"}', "context_length is '9', not a int"),
        ("{", "can't"),
    ],
)
def test_a_configuration_that_says_nonsense_is_refused(tmp_path: Path, said: str, message: str) -> None:
    save_file({"activations": A, "tokens": T}, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text(said)
    with pytest.raises(ActivationsError, match=message):
        find_dump(tmp_path)


def test_rows_longer_than_the_context_asked_for_and_tokens_that_are_none(tmp_path: Path) -> None:
    save_file({"activations": A, "tokens": T - 2}, tmp_path / "x.safetensors")
    with pytest.raises(ActivationsError, match="a row of 3 tokens, longer than a context of 2"):
        find_dump(tmp_path, 2)
    with pytest.raises(ActivationsError, match="holds -1 in row 0, which is no token id"):
        find_dump(tmp_path).rows(0, 2, 3, own_documents=True)


def test_memory_follows_the_rows_read_not_those_there_are(tmp_path: Path) -> None:
    """Eight times the rows, of 32 KiB each: reading 16 of them peaks within 10% plus 64 KiB."""
    peaks: list[int] = []
    for n_rows in (64, 512):
        folder = tmp_path / str(n_rows)
        folder.mkdir()
        np.save(folder / "activations-0.npy", np.ones((n_rows, 64, 256), np.float16))
        np.save(folder / "tokens-0.npy", np.arange(n_rows * 64).reshape(n_rows, 64))
        tracemalloc.start()
        dump = find_dump(folder)
        for first in range(0, n_rows, 16):
            dump.rows(first, first + 16, 64, own_documents=True)
            capture(dump, list(range(first, first + 16)), 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 65_536
