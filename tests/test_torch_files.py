"""Files of torch.save and numpy.savez: what is found in them without torch, and what is not opened."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.dictionaries import torch_files, zip_files
from autointerp.dictionaries.headers import TensorHeader
from autointerp.dictionaries.pickled import unpickled
from autointerp.dictionaries.tensors import read_headers, read_tensors
from autointerp.dictionaries.torch_files import read_contents
from autointerp.errors import CheckpointError

D, F = 4, 6


def saved(path: Path, value: object, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


# --- what is found -------------------------------------------------------------------------------------


def test_nested_values_have_dotted_names(tmp_path: Path) -> None:
    value = {
        "ae": OrderedDict(W=torch.zeros(D, F), b=torch.nn.Parameter(torch.zeros(F, dtype=torch.bfloat16))),
        "step": 3,
        "config": {"lr": 1e-4, "sizes": [4, 2], "name": "x", "gated": True, "none": None},
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "shape": torch.zeros(2, 3).shape,
    }
    found = read_contents(saved(tmp_path / "x.pt", value))
    assert found.tensors == {"ae.W": TensorHeader("F32", (D, F)), "ae.b": TensorHeader("BF16", (F,))}
    assert found.values == {
        "step": 3,
        "config.lr": 1e-4,
        "config.sizes.0": 4,
        "config.sizes.1": 2,
        "config.name": "x",
        "config.gated": True,
        "config.none": None,
        "dtype": "torch.float32",
        "device": "cpu",
        "shape.0": 2,
        "shape.1": 3,
    }


def test_a_modules_state_and_its_optimizers(tmp_path: Path) -> None:
    """A state dict carries `_metadata` as an attribute; an optimizer's has numbers as keys."""
    layer = torch.nn.Linear(D, F)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, D)).sum().backward()
    optimizer.step()
    found = read_headers(
        saved(tmp_path / "x.pth", {"model": layer.state_dict(), "opt": optimizer.state_dict()})
    )
    assert found["model.weight"] == TensorHeader("F32", (F, D))
    assert found["opt.state.0.exp_avg"] == TensorHeader("F32", (F, D))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_dtype_and_protocol_is_what_torch_says(tmp_path: Path, dtype: Any, protocol: int) -> None:
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    path = saved(tmp_path / "x.pt", {"a": torch.zeros(3, 2, dtype=dtype)}, pickle_protocol=protocol)
    header = read_headers(path)["a"]
    assert header.shape == (3, 2)
    assert names.get(header.dtype) == (dtype if dtype.is_floating_point else None)


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    transposed=st.booleans(),
    start=st.integers(0, 2),
    shared=st.booleans(),
)
def test_views_are_read_as_torch_reads_them(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], transposed: bool, start: int, shared: bool
) -> None:
    """Transposed, cut out of a larger tensor, two of one storage."""
    whole = torch.arange(float(2 + int(np.prod(shape)))).sqrt()
    view = whole[start : start + int(np.prod(shape))].reshape(shape)
    view = view.permute(tuple(reversed(range(view.ndim)))) if transposed else view
    value = {"a": view, "b": whole} if shared else {"a": view}
    path = saved(tmp_path_factory.mktemp("v") / "x.pt", value)
    axes = tuple(("axis", n) for n in view.shape)
    assert torch.equal(read_tensors(path, {"a": axes}, "cpu")["a"], view)


def test_npz(tmp_path: Path) -> None:
    arrays = {"W": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.array([1.5], ">f8")}
    for name, save in {"a.npz": np.savez, "b.npz": np.savez_compressed}.items():
        save(tmp_path / name, **arrays)
        headers = read_headers(tmp_path / name)
        assert headers == {"W": TensorHeader("F32", (2, 3)), "b": TensorHeader("F64", (1,))}
        found = read_tensors(tmp_path / name, {"W": (("rows", 2), ("columns", 3)), "b": (("one", 1),)}, "cpu")
        assert found["W"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["b"].tolist() == [1.5]


def test_fortran_order_is_kept(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "a.npz", W=array)
    found = read_tensors(tmp_path / "a.npz", {"W": (("rows", 2), ("columns", 3))}, "cpu")
    assert found["W"].tolist() == array.tolist()


def test_a_large_file_is_described_in_no_time_without_torch(tmp_path: Path) -> None:
    """2 GB that the disk doesn't hold: the numbers are a hole, and nobody reads them."""
    path = tmp_path / "x.pt"
    n = 2**29
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled_tensor(n_elements=n, shape=(2**14, 2**15)))
        info = zipfile.ZipInfo("x/data/0")
        with archive.open(info, "w", force_zip64=True) as file:
            for _ in range(4):
                file.write(b"")
    stretched(path, "x/data/0", n * 4)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from autointerp.dictionaries.tensors import read_headers\n"
        f"begin = time.perf_counter(); print(read_headers(Path({str(path)!r}))['a'].shape)\n"
        "print(time.perf_counter() - begin < 0.5, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["(16384, 32768)", "True False"]


def stretched(path: Path, name: str, n_bytes: int) -> None:
    """Makes the last member of an archive that long, with a hole in the file."""
    with zipfile.ZipFile(path) as archive:
        info, start = archive.getinfo(name), archive.start_dir
    content = path.read_bytes()
    directory = bytearray(content[start:])
    at = directory.rfind(b"PK\x01\x02")
    directory[at + 20 : at + 28] = n_bytes.to_bytes(4, "little") * 2
    end = directory.rfind(b"PK\x05\x06")
    directory[end + 16 : end + 20] = (start + n_bytes - info.file_size).to_bytes(4, "little")
    with path.open("r+b") as file:
        file.truncate(start)
        file.seek(start + n_bytes - info.file_size)
        file.write(directory)


# --- what is not opened --------------------------------------------------------------------------------


class Opener:
    """What an attacker writes: unpickled, it calls `system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch hacked",)


class Config:
    """What SAELens of 2023 saved beside its tensors."""


def archive_of(path: Path, pickle_bytes: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle_bytes)
        archive.writestr("x/version", "3")
        for name, content in members.items():
            archive.writestr(f"x/data/{name.removeprefix('_')}", content)
    return path


def pickled_tensor(n_elements: Any = 2, shape: Any = (2,), strides: Any = None, offset: Any = 0) -> bytes:
    """A pickle of {"a": tensor}, with what is said of it as it is given."""

    class Reference:
        def __reduce__(self) -> tuple[Any, ...]:
            even = strides if strides is not None else tuple(torch.empty(shape, device="meta").stride())
            return torch._utils._rebuild_tensor_v2, (STORAGE, offset, shape, even, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", n_elements) if obj is STORAGE else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"a": Reference()})
    return file.getvalue()


STORAGE = object()


def test_the_tensor_made_by_hand_is_one(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "x.pt", pickled_tensor(), _0=np.float32([1, 2]).tobytes())
    assert read_headers(path) == {"a": TensorHeader("F32", (2,))}
    assert read_tensors(path, {"a": (("two", 2),)}, "cpu")["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("said", "point"),
    [
        ({"n_elements": 3}, "storage of 12 bytes, of which the file has 8"),
        ({"n_elements": 2**62}, "of which the file has 8"),
        ({"n_elements": -1}, "damaged"),
        ({"shape": (3,), "strides": (1,)}, r"shape \[3\], more than the 2 numbers"),
        ({"shape": (10**12, 10**12), "strides": (0, 0)}, "more than the 2 numbers"),
        ({"shape": (2,), "strides": (7,)}, "more than the 2 numbers"),
        ({"shape": (2,), "offset": 1}, "more than the 2 numbers"),
        ({"shape": (-2,), "strides": (1,)}, "damaged"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "40 axes"),
    ],
)
def test_absurd_shapes_are_refused_before_anything_is_allocated(
    tmp_path: Path, said: dict[str, Any], point: str
) -> None:
    path = archive_of(tmp_path / "x.pt", pickled_tensor(**said), _0=bytes(8))
    with pytest.raises(CheckpointError, match=point):
        read_headers(path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Opener(), "posix.system"),
        ({"cfg": Config(), "state_dict": {}}, "test_torch_files.Config"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"a": np.float32(1.0)}, "numpy"),
        ({"a": {1, 2}}, "__builtin__.set"),
        ({"a": 1j}, "__builtin__.complex"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_are_named_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "x.pt", value, pickle_protocol=protocol)
    with pytest.raises(
        CheckpointError,
        match=f"instruction EMPTY_SET|class '{name.replace('__builtin__', '(__builtin__|builtins)')}",
    ) as caught:
        read_headers(tmp_path / "x.pt")
    assert "safetensors" in str(caught.value) or "EMPTY_SET" in str(caught.value)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch hacked'\ntR.",  # the classic
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02c__builtin__\ngetattr\n.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02\x82\x01.",  # EXT1: a class from the registry
        b"(S'x'\nios\nsystem\n.",  # INST
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02\x8a\xff",  # cut short
        b"\x80\x02h\x07.",  # memory that was never written
        b"\x80\x02u.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02K\x01}b.",  # attributes of a number
        b"\x80\x02}]K\x01s.",  # a list as key
        b"\x80\x02](h",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02K\x01\x87.",
        b"\x80\x02K\x01Q.",
        b"",
    ],
)
def test_programs_are_refused(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        read_headers(archive_of(tmp_path / "x.pt", program))


def test_a_remembered_place_far_away_costs_nothing(tmp_path: Path) -> None:
    """CPython's own machine would make room for two billion places."""
    assert unpickled(b"\x80\x02K\x01r\xff\xff\xff\x7f.", tmp_path) == 1


def test_what_multiplies_without_end_is_cut(tmp_path: Path) -> None:
    """Lists of the list before, twice, forty deep; and a list that holds itself."""
    doubling = b"\x80\x02]q\x00" + b"".join(
        b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(40)
    )
    for program in (doubling + b".", b"\x80\x02]q\x00h\x00a."):
        begin = time.perf_counter()
        with pytest.raises(CheckpointError):
            read_headers(archive_of(tmp_path / "x.pt", program))
        assert time.perf_counter() - begin < 2


def test_two_values_of_one_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a.b": torch.zeros(2), "a": {"b": torch.ones(2)}})
    with pytest.raises(CheckpointError, match=r"two values called 'a\.b'"):
        read_headers(path)


def test_old_and_foreign_files(tmp_path: Path) -> None:
    saved(tmp_path / "old.pt", {"a": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/__torch__.py"):
            archive.writestr(name, "")
    (tmp_path / "a.bin").write_bytes(b"x")
    for name, point in [
        ("old.pt", "since version 1.6.*torch.save"),
        ("plain.pt", "plain pickle"),
        ("lfs.pt", "git lfs pull"),
        ("zip.pt", "something else. It holds: readme.txt"),
        ("script.pt", "TorchScript"),
        ("none.pt", "is missing"),
        ("a.bin", r"not a file of tensors.*\.safetensors"),
    ]:
        with pytest.raises(CheckpointError, match=point):
            read_headers(tmp_path / name)


def test_npz_that_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "object.npz", a=np.array([Opener()], object))
    whole = io.BytesIO()
    np.save(whole, np.zeros(4, np.float32))
    npy = whole.getvalue()
    contents = {
        "shape.npz": npy.replace(b"(4,)", b"(9,)"),
        "huge.npz": npy.replace(b"(4,), ", b"(10**9,)"),
        "header.npz": npy[:20],
        "long.npz": npy[:8] + b"\xff\xff" + npy[10:] + b" " * 70_000,
    }
    for name, content in contents.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.npy", content)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("a.txt", "x")
    (tmp_path / "no.npz").write_bytes(npy)
    for name, point in [
        ("object.npz", "Python objects"),
        ("shape.npz", r"shape \[9\] and dtype float32 can't have 16 bytes"),
        ("huge.npz", "huge.npz"),
        ("header.npz", "not a whole archive"),
        ("long.npz", "not a whole archive"),
        ("other.npz", r"holds a\.txt"),
        ("no.npz", "not an .npz archive"),
    ]:
        with pytest.raises(CheckpointError, match=point):
            read_headers(tmp_path / name)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros shrink a thousandfold: a bias may, weights may not."""
    monkeypatch.setattr(zip_files, "FREELY_UNPACKED", 2**16)
    np.savez_compressed(tmp_path / "bias.npz", a=np.zeros(2**13, np.float32))
    assert read_headers(tmp_path / "bias.npz")["a"].shape == (2**13,)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**18, np.float32))
    with pytest.raises(CheckpointError, match="made to fill the memory"):
        read_headers(tmp_path / "bomb.npz")


def test_only_a_torch_that_loads_safely_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.zeros(2)})
    axes = {"a": (("two", 2),)}
    for version in ("2.9.1+cpu", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(CheckpointError, match=rf"torch {version[:3]}.*Install torch 2\.10"):
            read_tensors(path, axes, "cpu")
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+cu128")
    assert read_tensors(path, axes, "cpu")["a"].tolist() == [0, 0]


def test_tensors_outlive_their_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.ones(1000)})
    found = read_tensors(path, {"a": (("n", 1000),)}, "cpu")["a"]
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    assert found.sum() == 1000


def test_a_file_replaced_after_its_headers_were_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"b": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="no tensor a any more"):
        torch_files.load(path, ["a"], "cpu")
