"""Finding the activations that lie in a folder (`dump.py` has the format), and whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from autointerp.activations.dump import Dump, DumpFile, Ints
from autointerp.activations.stored import Stored, npy_array, tensors_in
from autointerp.errors import ActivationsError
from autointerp.identity import fingerprint
from autointerp.types import Json

FLOATS: Final = ("float16", "bfloat16", "float32")
_A_ROW: Final = ("lengths", "documents", "positions")
_LONGEST: Final = 65_535
"""Tokens a row: what its length, 16 bits, can count."""
LOOKED_AT: Final = 64
"""First rows that tell whether all begin with the same token."""


def find_dump(folder: Path, context_length: int | None = None, prepend_bos: bool | None = None) -> Dump:
    """The activations in a folder. What is given goes before what `config.json` says, and that before what
    the rows look like: where all begin with the same token, that is BOS.

    Reads headers and lengths. Raises ActivationsError.
    """
    said = _config(folder)
    context_length = context_length or _field(folder, said, "context_length", int)
    files = tuple(_file(*group, context_length) for group in _groups(folder))
    first = files[0]
    for file in files:
        of_both = {(one.activations.shape[-1], one.activations.dtype) for one in (first, file)}
        if len(of_both) > 1:
            shapes = " and ".join(
                f"{one.activations} has {_shaped(one.activations)}" for one in (first, file)
            )
            raise ActivationsError(f"the files are not of one site and dtype: {shapes}.")
    lengths = [_checked_lengths(file) for file in files]
    longest = max(int(of_file.max()) for of_file in lengths)
    if longest > min(context_length or _LONGEST, _LONGEST):
        raise ActivationsError(
            f"{folder} has a row of {longest:,} tokens, longer than a context of "
            f"{min(context_length or _LONGEST, _LONGEST):,}. Leave cache.context_length out to take rows as "
            f"they are."
        )
    if prepend_bos is None:
        prepend_bos = _field(folder, said, "prepend_bos", bool)
    return Dump(
        folder=folder,
        files=files,
        context_length=context_length or longest,
        d_in=first.activations.shape[-1],
        dtype=first.activations.dtype,
        hook=_field(folder, said, "hook", str),
        model=_field(folder, said, "model", str),
        prepend_bos=begin_alike(first.tokens.flat()[first.begins(np.arange(min(first.n_rows, LOOKED_AT)))])
        if prepend_bos is None
        else prepend_bos,
        has_documents=all("documents" in file.a_row for file in files),
        n_tokens=sum(int(of_file.sum()) for of_file in lengths),
        identity=fingerprint([path for file in files for path in file.paths]),
    )


def begin_alike(first_tokens: NDArray[Any]) -> bool:
    """Whether rows that begin with these tokens all begin with BOS, as far as one can tell."""
    return len(first_tokens) > 1 and len(np.unique(first_tokens)) == 1


def _config(folder: Path) -> Json:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        said = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ActivationsError(f"{path} can't be read: {error}.") from error
    if not isinstance(said, dict):
        raise ActivationsError(f"{path} holds no JSON object.")
    return cast(Json, said)


def _field(folder: Path, said: Json, name: str, kind: type[Any]) -> Any:
    value = said.get(name)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ActivationsError(f"{folder / 'config.json'}: {name} is {value!r}, not a {kind.__name__}.")
    return value


def _groups(folder: Path) -> Iterator[tuple[str, dict[str, Stored]]]:
    """(name, its arrays) of each file or group of files, in order of name."""
    if not folder.is_dir():
        raise ActivationsError(f"there is no folder '{folder}' of activations.")
    names = sorted(path.name for path in folder.iterdir())
    groups: dict[str, dict[str, Stored]] = {}
    for name in names:
        if name.endswith(".safetensors"):
            groups[name] = tensors_in(folder / name)
        elif name.endswith(".npy"):
            kind, _, rest = name.partition("-")
            if kind in ("activations", "tokens", *_A_ROW):
                groups.setdefault(rest, {})[kind] = npy_array(folder / name)
    if not groups:
        raise ActivationsError(
            f"{folder} holds no activations: neither NAME.safetensors, nor activations-NAME.npy with "
            f"tokens-NAME.npy. It holds: {', '.join(names[:12]) or 'nothing'}."
        )
    for name, arrays in sorted(groups.items()):
        missing = [kind for kind in ("activations", "tokens") if kind not in arrays]
        if missing and name.endswith(".npy"):
            raise ActivationsError(
                f"{folder} lacks {missing[0]}-{name}, the partner of {', '.join(arrays)}-{name}."
            )
        if missing:
            raise ActivationsError(
                f"{folder / name} has no tensor '{missing[0]}'. It has: {', '.join(arrays) or 'none'}."
            )
        yield name, arrays


def _file(name: str, arrays: dict[str, Stored], context_length: int | None) -> DumpFile:
    activations, tokens = arrays["activations"], arrays["tokens"]
    a_row = {kind: arrays[kind] for kind in _A_ROW if kind in arrays}
    if activations.dtype not in FLOATS or not tokens.is_whole_numbers:
        raise ActivationsError(
            f"{activations} are {activations.dtype} and its tokens {tokens.dtype}; expected one of "
            f"{', '.join(FLOATS)}, and whole numbers."
        )
    if activations.shape[:-1] != tokens.shape or len(tokens.shape) not in (1, 2) or 0 in activations.shape:
        raise ActivationsError(
            f"{activations} is {_shaped(activations)} and its tokens are {_shaped(tokens)}; expected "
            f"[rows, T, D] and [rows, T], or [N, D] and [N], of at least one token."
        )
    row_length = tokens.shape[1] if len(tokens.shape) == 2 else None if "lengths" in a_row else context_length
    if row_length is None and "lengths" not in a_row:
        raise ActivationsError(
            f"{activations} is {_shaped(activations)}, and nothing says where its rows end. Say how many "
            f"tokens the model read at once: --set cache.context_length=..., or give 'lengths'."
        )
    if ("documents" in a_row) != ("positions" in a_row):
        raise ActivationsError(
            f"{activations}: 'documents' and 'positions' belong together: where in its document does each "
            f"row begin?"
        )
    file = DumpFile(name, activations, tokens, a_row, row_length)
    for part in a_row.values():
        if part.shape != (file.n_rows,) or not part.is_whole_numbers:
            raise ActivationsError(f"{part} is {_shaped(part)}; expected a whole number for each row.")
    if len(tokens.shape) == 2 and file.n_rows != tokens.shape[0]:
        raise ActivationsError(
            f"{a_row['lengths']} is of {file.n_rows:,} rows, but there are {tokens.shape[0]:,}."
        )
    return file


def _checked_lengths(file: DumpFile) -> Ints:
    lengths = file.lengths(np.arange(file.n_rows))
    if lengths.min() < 1 or (file.row_length is not None and lengths.max() > file.row_length):
        raise ActivationsError(
            f"{file.name}: lengths run from {lengths.min()} to {lengths.max()}; expected 1 to "
            f"{file.row_length or 'the context length'}."
        )
    if file.row_length is None and int(lengths.sum()) != file.n_tokens:
        raise ActivationsError(
            f"{file.name}: the lengths of its rows add up to {int(lengths.sum()):,} tokens, but it holds "
            f"{file.n_tokens:,}."
        )
    return lengths


def _shaped(part: Stored) -> str:
    return f"{part.dtype} [{', '.join(f'{n:,}' for n in part.shape)}]"
