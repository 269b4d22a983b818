"""Checkpoints gone wrong: every way in which a file of some kind is damaged, or made to harm, by a seeded draw.

`damaged(rng, folder, canary)` changes one file below `folder` and says how. What is planted to run code makes
`canary`, a folder: where it stands afterwards, code ran.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from safetensors import numpy as safetensors_numpy

ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 2**31, 10**40, -(10**40), 1.5, -0.5, 1e-320, math.inf, math.nan),
    *("", "x", "\ud800", "\x00\x1b[31m", "a" * 5000, "relu", "topk", "jumprelu", "[2, 3, 5]", "[[", "../.."),
    *("blocks.1.hook_resid_post", "blocks.99999.hook_x", "expected_average_only_in", "2024-01-01"),
    *(
        [],
        {},
        [[]],
        [1] * 50,
        [2, 3, 5],
        [None],
        {"k": None},
        {"in": 0, "out": "x"},
        {"k": 3, "x": {"y": []}},
    ),
]
KEYS = """architecture activation_fn_str activation_fn_kwargs normalize_activations reshape_activations k d_in d_sae
d_out hook_name hook_point hook_layer hook_head_index hook_name_out metadata model_from_pretrained_kwargs
matryoshka_widths rescale_acts_by_decoder_norm apply_b_dec_to_input prepend_bos context_size signed transcode
skip_connection activation num_latents expansion_factor n_targets sae_type act_fn top_k norm_activation
sparsity_include_decoder_norm dataset_average_activation_norm jump_relu_threshold use_glu_encoder d_model
hook_point_in hook_point_out use_decoder_bias model_kind model_name feature_input_hook feature_output_hook
transcoders trainer buffer dict_class layer lm_name submodule_name activation_dim dict_size group_sizes act_size
input_unit_norm hf_hook_point_in hf_hook_point_out l0 sae scaling_factor model dataset ctx_len io
layout selector parent parent_rows transform decoder_norm_gate value_is_score reconstructs has_signs pursuit n_models
variant calibration rule pool column_score batch_tokens expected notes further_hooks is_transcoder residual_below
ends_on_repeat input_unit_norm act_name head lm_name seq_len encoder_layers code_normalization_alpha_cc""".split()
"""Keys that some reader looks at."""
TENSORS = """W_enc W_dec b_enc b_dec threshold log_threshold topk_threshold W_skip b_gate b_mag r_mag k
affine_skip_connection scaling_factor encoder.weight decoder.weight bias W_E W_D b_E b_D norm_factor activation
W_E_glu W_decs.0 encoder decoder pre_bias decoder_u1 skip code_normalization_id activation_mean
__metadata__ ae\x00 \ud7ff""".split()


BARE = ""
"""Name of a tensor that is all that a file holds."""


def damaged(rng: random.Random, folder: Path, canary: Path) -> str:
    """Damages one file below `folder`; says which, and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    own = _OF_KIND[path.suffix]
    # What is made for its kind reaches further into a reader than a file that is not whole.
    ways = own if rng.random() < 0.8 else _OF_ANY
    way = rng.choice(ways)
    return f"{path.relative_to(folder)}: {way.__name__.strip('_')} {way(rng, path, canary) or ''}"


# --- any file --------------------------------------------------------------------------------------------


def _cut_short(rng: random.Random, path: Path, _: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: rng.randrange(len(whole))])


def _bytes_changed(rng: random.Random, path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    for _n in range(rng.randint(1, 6)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def _empty(_rng: random.Random, path: Path, _: Path) -> None:
    path.write_bytes(b"")


def _missing(_rng: random.Random, path: Path, _: Path) -> None:
    path.unlink()


def _a_folder(_rng: random.Random, path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_pipe(_rng: random.Random, path: Path, _: Path) -> None:
    """Opening one waits for somebody who writes."""
    path.unlink()
    os.mkfifo(path)


def _a_link_to_itself(_rng: random.Random, path: Path, _: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _other_content(rng: random.Random, path: Path, _: Path) -> None:
    path.write_bytes(
        rng.choice([b"\x00" * 64, b"\xff" * 64, b"version https://git-lfs", b"<html>", b"PK\x03\x04"])
    )


def _longer(rng: random.Random, path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice([1, 8, 1000])))


def _a_plain_pickle(_rng: random.Random, path: Path, canary: Path) -> None:
    """Of a class that acts, under the file's own name."""
    path.write_bytes(pickle.dumps(Bomb(canary)))


Way = Callable[[random.Random, Path, Path], str | None]
_OF_ANY: list[Way] = [
    *(_cut_short, _bytes_changed, _empty, _missing, _a_folder, _a_pipe, _a_link_to_itself, _other_content),
    *(_longer, _a_plain_pickle),
]


# --- configuration ---------------------------------------------------------------------------------------


def _value(rng: random.Random, path: Path, _: Path) -> str:
    """One value, at any depth, becomes an odd one."""
    values = _configuration(path)
    within = _somewhere(rng, values)
    key = rng.choice(list(within) or ["x"])
    within[key] = rng.choice(ODD)
    _configure(path, values)
    return f"{key}={str(within[key])[:40]!r}"


def _added_key(rng: random.Random, path: Path, _: Path) -> str:
    """A key that means something to some reader has an odd value."""
    values = _configuration(path)
    key = rng.choice(KEYS)
    _somewhere(rng, values)[key] = odd = rng.choice(ODD)
    _configure(path, values)
    return f"{key}={str(odd)[:40]!r}"


def _dropped_key(rng: random.Random, path: Path, _: Path) -> str:
    values = _configuration(path)
    within = _somewhere(rng, values)
    key = rng.choice(list(within) or ["x"])
    within.pop(key, None)
    _configure(path, values)
    return key


def _another_root(rng: random.Random, path: Path, _: Path) -> None:
    path.write_text(
        rng.choice(["[]", "3", "null", '"text"', "[" * 10_000, '{"a":' * 10_000, "9" * 5000, "{}"])
    )


def _not_utf_8(rng: random.Random, path: Path, _: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(rng.choice([b"\xef\xbb\xbf" + content, b"\xff\xfe" + content, content[:-2] + b"\xff}"]))


def _doubled_key(rng: random.Random, path: Path, _: Path) -> None:
    key, value = rng.choice(KEYS), json.dumps(rng.choice(ODD))
    content = path.read_text().rstrip()
    line = f"{key}: {value}\n{key}: 1" if _is_yaml(path) else f', "{key}": {value}, "{key}": 1}}'
    path.write_text(f"{content}\n{line}" if _is_yaml(path) else content[:-1] + line)


_OF_CONFIGURATION: list[Way] = [
    *(_value, _value, _value, _added_key, _added_key, _dropped_key, _another_root, _not_utf_8, _doubled_key)
]


def _yaml_tag(rng: random.Random, path: Path, canary: Path) -> str:
    """Python's own tags call what they like; others fail on odd values."""
    tag = rng.choice(
        [
            f"!!python/object/apply:os.mkdir ['{canary}']",
            f"!!python/object/new:os.mkdir ['{canary}']",
            *('!!int ""', "!!float x", "!!timestamp x", "!!binary '='", "!!set {a, b}", "!!bool maybe"),
            *(
                "2024-13-45",
                "2024-01-01",
                "0o9",
                "1_000",
                "0x",
                "12:30:45",
                ".inf",
                "!!omap [a]",
                "!unknown {}",
            ),
        ]
    )
    key = rng.choice([*_configuration(path), *KEYS])
    path.write_text(f"{path.read_text()}\n{key}: {tag}\n")
    return f"{key}: {tag[:30]}"


def _yaml_that_grows(_rng: random.Random, path: Path, _: Path) -> None:
    """Forty lines that stand for 2^40 values."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    path.write_text(path.read_text() + "\n" + "\n".join(lines) + "\nmodel_name: *a39\n")


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _configuration(path: Path) -> dict[str, Any]:
    text = path.read_text()
    return yaml.safe_load(text) if _is_yaml(path) else json.loads(text)


def _configure(path: Path, values: dict[str, Any]) -> None:
    # JSON is YAML too, but for the two words that stand for no number.
    text = json.dumps(values)
    path.write_text(text.replace("NaN", ".nan").replace("Infinity", ".inf") if _is_yaml(path) else text)


def _somewhere(rng: random.Random, values: dict[str, Any]) -> dict[str, Any]:
    """The object itself, or one that lies in it."""
    inner = [value for value in values.values() if isinstance(value, dict)]
    return _somewhere(rng, rng.choice(inner)) if inner and rng.random() < 0.6 else values


# --- tensors, whatever file they lie in --------------------------------------------------------------------


def _tensor(rng: random.Random, path: Path, _: Path) -> str:
    """One tensor is dropped, renamed, added, of another shape, dtype or content; the file is whole."""
    arrays = arrays_of(path)
    name = rng.choice(list(arrays))
    way = rng.choice(list(_OF_TENSOR))
    if way == "dropped":
        arrays.pop(name)
    elif way == "renamed":
        arrays[rng.choice(TENSORS)] = arrays.pop(name)
    elif way == "added":
        arrays[rng.choice(TENSORS)] = rng.choice(list(arrays.values())).copy()
    else:
        arrays[name] = np.ascontiguousarray(_OF_TENSOR[way](arrays[name]))
    _write_arrays(path, arrays)
    return f"{name} {way}"


def _with(value: float) -> Callable[[Any], Any]:
    def changed(array: Any) -> Any:
        changed = np.array(array, dtype=np.float32)
        changed.reshape(-1)[:1] = value
        return changed

    return changed


_OF_TENSOR: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("dropped", "renamed", "added"), lambda array: array),
    "transposed": lambda array: array.T,
    "flat": lambda array: array.reshape(-1),
    "one number": lambda array: np.float32(1.0),
    "one axis more": lambda array: array[..., None],
    "one row less": lambda array: array[:-1] if array.ndim else array,
    "no rows": lambda array: array[:0] if array.ndim else array,
    "no columns": lambda array: array[..., :0] if array.ndim else array,
    "NaN": _with(math.nan),
    "infinite": _with(math.inf),
    "huge": _with(3e38),
    "negative": lambda array: -abs(array),
    "zeros": lambda array: array * 0,
    **{
        dtype: (lambda array, dtype=dtype: array.astype(dtype))
        for dtype in ("float64", "float16", "int32", "uint8", "bool", "complex64")
    },
}


def arrays_of(path: Path) -> dict[str, Any]:
    """A file's tensors, by name, as the library of its kind reads them."""
    if path.suffix == ".safetensors":
        return cast(Any, safetensors_numpy).load_file(path)
    if path.suffix == ".npz":
        return dict(np.load(path))
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return {BARE: saved.numpy()} if isinstance(saved, torch.Tensor) else _flat(saved)


def _flat(value: dict[Any, Any]) -> dict[str, Any]:
    """A state's tensors, as arrays; those of a state in it too."""
    found: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, torch.Tensor):
            found[name] = entry.detach().numpy()
        elif isinstance(entry, dict):
            found |= _flat(entry)
    return found


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name.replace("\x00", ""): array for name, array in arrays.items()})
        return
    if path.suffix == ".safetensors":
        whole = {name: array for name, array in arrays.items() if name != "__metadata__"}
        cast(Any, safetensors_numpy).save_file(whole, path)
        return
    saved = torch.load(path, weights_only=True)
    if isinstance(saved, torch.Tensor):
        whole = {name: torch.tensor(array) for name, array in arrays.items()}
        torch.save(whole.get(BARE, whole), path)
        return
    # In a training's file the tensors lie one deeper.
    inner = next(
        (one for one in saved.values() if isinstance(one, dict) and arrays.keys() & one.keys()), saved
    )
    for name in [
        name for name, entry in inner.items() if isinstance(entry, torch.Tensor) and name not in arrays
    ]:
        del inner[name]
    inner.update({name: torch.tensor(array) for name, array in arrays.items()})
    torch.save(saved, path)


# --- safetensors -----------------------------------------------------------------------------------------


def _header(rng: random.Random, path: Path, _: Path) -> str:
    """The header lies about a tensor, or about itself."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry, data = header[name], raw[8 + length :]
    n_bytes = len(data)
    field = rng.choice(["length", "dtype", "shape", "data_offsets", "entry", "metadata", "text", "added"])
    if field == "length":
        n = rng.choice([0, 1, length - 1, length + 1, len(raw), 10**8, 2**40, 2**63, 2**64 - 1])
        path.write_bytes(n.to_bytes(8, "little") + raw[8:])
        return f"length {n}"
    if field == "dtype":
        entry["dtype"] = rng.choice(
            ["F64", "BF16", "F16", "I32", "F8_E4M3", "BOOL", "", "nonsense", 7, None, []]
        )
    elif field == "shape":
        absurd = [[2**40, 2**40], [0], [0, 2**62], [2**63], [-1, -1], [1.0], ["6"], None, [1] * 500, [10**30]]
        entry["shape"] = rng.choice([entry["shape"][::-1], [*entry["shape"], 1], *absurd])
    elif field == "data_offsets":
        absurd = [
            [0, 4],
            [4, 0],
            [-4, 0],
            [0],
            None,
            [0, 2**70],
            ["0", 4],
            [n_bytes, n_bytes + 4],
            [0, n_bytes],
        ]
        entry["data_offsets"] = rng.choice(absurd)
    elif field == "entry":
        header[name] = rng.choice(ODD)
    elif field == "metadata":
        header["__metadata__"] = rng.choice(ODD)
    elif field == "added":
        header[rng.choice(TENSORS)] = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, n_bytes]}
    text = json.dumps(header).encode()
    if field == "text":
        text = rng.choice([b"[]", b"null", b"[" * 10_000, b"{" + b'"a":{' * 5000, text[:-1], b"\xff" + text])
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return f"{field} of {name}"


# --- archives: .npz and .pt --------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _member(rng: random.Random, path: Path, _: Path) -> str:
    """A file of the archive is damaged, with a checksum that fits."""
    members = _members(path)
    name = rng.choice([one for one in members if members[one]])
    way = rng.choice(["bytes", "bytes", "cut", "dropped", "renamed", "compressed", "outside"])
    content = bytearray(members[name])
    if way == "bytes":
        for _n in range(rng.randint(1, 4)):
            content[rng.randrange(min(len(content), 128))] = rng.randrange(256)
    elif way == "cut":
        content = content[: rng.randrange(len(content))]
    if way in ("dropped", "renamed", "outside"):
        del members[name]
    if way != "dropped":
        members[{"renamed": "x/y", "outside": "../" + name}.get(way, name)] = bytes(content)
    _archive(path, members, zipfile.ZIP_DEFLATED if way == "compressed" else zipfile.ZIP_STORED)
    return f"{name} {way}"


def _program(rng: random.Random, path: Path, _: Path) -> str:
    """Bytes of the pickle change, with a checksum that fits: another program runs."""
    members = _members(path)
    name = next(one for one in members if one.endswith("data.pkl"))
    content = bytearray(members[name])
    for _n in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    _archive(path, members | {name: bytes(content)})
    return name


def _objects_in_npz(rng: random.Random, path: Path, canary: Path) -> str:
    arrays = arrays_of(path)
    name = rng.choice(list(arrays))
    np.savez(path, **{**arrays, name: np.array([Bomb(canary)], object)})
    return name


def _array_header(rng: random.Random, path: Path, canary: Path) -> str:
    """An array's header is a Python expression."""
    members = _members(path)
    name = rng.choice(list(members))
    shape = rng.choice(
        [
            *(
                "(10**9,)",
                "(2**62, 4)",
                "(-1, 4)",
                "()",
                "(0,)",
                "None",
                "'x'",
                "(1.5,)",
                "(" * 300,
                "9" * 300,
                "-" * 3500,
            ),
            *("(" + "1, " * 100 + ")", f"(__import__('os').mkdir({str(canary)!r}),)"),
        ]
    )
    text = f"{{'descr': {rng.choice(['<f4', '<f8', '|O', '<U9', '|V4', 'x', '<f4,<f4'])!r}, 'fortran_order': "
    text += f"{rng.choice(['False', 'True', '3'])}, 'shape': {shape}, }}\n"
    data = members[name][128:]
    members[name] = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data
    _archive(path, members)
    return f"{name} {shape[:20]}"


def _value_in_pt(rng: random.Random, path: Path, canary: Path) -> str:
    """A value of the file, at some depth, becomes an odd one, an odd tensor, or an object that acts."""
    saved = torch.load(path, weights_only=True)
    saved = {BARE: saved} if isinstance(saved, torch.Tensor) else saved
    within = _somewhere(rng, saved)
    key = rng.choice([*within, *TENSORS])
    table = torch.zeros(4, 6)
    odd = [
        *(Bomb(canary), [Bomb(canary)], {"x": Bomb(canary)}, range(3), {1, 2}, 1j, b"bytes", (1, (2, [3]))),
        *(torch.zeros(1).expand(10**6, 10**6), table.to_sparse(), table.to(torch.complex64), table.T),
        *(torch.zeros(4, 6, device="meta"), torch.nn.Parameter(table), table.to(torch.float8_e4m3fn)),
        *(torch.zeros(()), torch.tensor(math.nan), torch.zeros(0), torch.Size([3]), torch.float32),
        *(torch.tensor(2**40), torch.tensor([2, 3, 5]), torch.tensor(-1)),
    ]
    within[key] = rng.choice([*odd, *ODD])
    torch.save(saved[BARE] if list(saved) == [BARE] else saved, path)
    return f"{key}: {type(within[key]).__name__}"


def _root_of_pt(rng: random.Random, path: Path, canary: Path) -> str:
    """The whole file is one value: of another kind, an object, a state without names, or nested deep."""
    deep: Any = torch.zeros(2)
    for _n in range(60):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    many = {str(number): torch.zeros(1) for number in range(300)}
    kind = rng.choice(["bomb", "tensor", "list", "deep", "many", "none", "module", "numbers"])
    values = {
        "bomb": Bomb(canary),
        "tensor": torch.zeros(3),
        "list": [torch.zeros(3)],
        "deep": deep,
        "many": many,
    }
    values |= {
        "none": None,
        "module": torch.nn.Linear(2, 2),
        "numbers": {0: torch.zeros(6), 1.5: torch.zeros(6)},
    }
    torch.save(values[kind], path, _use_new_zipfile_serialization=rng.random() < 0.8)
    return kind


def _bomb_beside(rng: random.Random, path: Path, canary: Path) -> str:
    """The archive's own pickle acts, and then gives what stood there."""
    members = _members(path)
    name = next(one for one in members if one.endswith("data.pkl"))
    protocol = rng.choice([0, 2, 4])
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol).dump(Bomb(canary))
    _archive(path, members | {name: stream.getvalue()[:-1] + b"0" + members[name]})  # POP, then the rest
    return f"protocol {protocol}"


_OF_TORCH: list[Way] = [_tensor, _tensor, _member, _program, _program, _value_in_pt, _value_in_pt]
_OF_TORCH += [_root_of_pt, _bomb_beside]
_OF_KIND: dict[str, list[Way]] = {
    ".json": _OF_CONFIGURATION,
    ".yaml": [*_OF_CONFIGURATION, _yaml_tag, _yaml_tag, _yaml_that_grows],
    ".safetensors": [_tensor, _tensor, _header],
    ".npz": [_tensor, _tensor, _member, _array_header, _objects_in_npz],
    ".pt": _OF_TORCH,
    ".pth": _OF_TORCH,
}


def copied(folder: Path, to: Path) -> Path:
    """`folder` anew, whatever lay at `to`."""
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(folder, to)
    return to
