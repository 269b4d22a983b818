"""A cache folder that delphi wrote: token rows and firings, ready made.

    latents/<hook>/<first>_<last>.safetensors   latents first to last, both counted in
        locations    [M, 3]     row, position, latent - first; uint16 where all fit, else uint32
        activations  [M]        float16, what is beyond 1e-5 in size, negative ones too
        tokens       [R, T]     int64, the same in every file; absent with save_tokens=False
    latents/<hook>/config.json                  model_name, cache_ctx_len, dataset_repo, ...

Facts from EleutherAI/delphi, delphi/latents/cache.py (`save_splits`) and loader.py at 3c2e139. Locations
come in order of row there, which is not relied on. Latents were written absolute before 2024-10-14
(f2e76bc). Rows are cut from one stream of all documents, so none of them says of which document it is; and
with delphi's default `filter_bos` no row holds BOS.

Shape letters: R rows, T positions, M firings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import orjson

from autointerp.activations.dump import row_document
from autointerp.activations.dump_files import LOOKED_AT, begin_alike
from autointerp.activations.rows import Rows, row_dtype
from autointerp.activations.stored import Stored, tensors_in
from autointerp.errors import ActivationsError, SiteError
from autointerp.identity import fingerprint
from autointerp.subject.sites import parse_hook
from autointerp.types import Json

_SPLIT: Final = re.compile(r"(?P<first>\d+)_(?P<last>\d+)\.safetensors")
_ROWS_AT_ONCE: Final = 4_096
"""Rows of tokens held while they are compared."""


@dataclass(frozen=True, slots=True)
class Split:
    """One file: the firings of a range of latents."""

    path: Path
    first: int
    last: int
    """Counted in."""
    locations: Stored
    activations: Stored
    tokens: Stored

    @property
    def n_firings(self) -> int:
        return self.activations.shape[0]


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook point's latents."""

    name: str
    """As delphi spells it: the folder's name."""
    site: str
    """The same, canonical where it is a site that `parse_hook` knows."""
    splits: tuple[Split, ...]
    """In order of latents, without a gap."""
    identity: str

    @property
    def width(self) -> int:
        return self.splits[-1].last + 1

    @property
    def n_firings(self) -> int:
        return sum(split.n_firings for split in self.splits)


@dataclass(frozen=True, slots=True)
class DelphiCache:
    """A cache folder, checked as far as headers and tokens say. All hooks are on the same rows."""

    folder: Path
    hooks: dict[str, Hook]
    """By site."""
    tokens: Stored
    model: str | None
    identity: str
    """Of the tokens."""
    prepend_bos: bool

    @property
    def n_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def context_length(self) -> int:
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """BOS counted."""
        return self.n_rows * self.context_length

    def rows(self, first: int, stop: int) -> Rows:
        """Rows [first, stop). Raises ActivationsError for a token id that can't be."""
        tokens = self.tokens.flat(self.context_length)[first:stop]
        if int(tokens.min()) < 0 or int(tokens.max()) >= 2**32:
            raise ActivationsError(f"{self.tokens} holds numbers that are no token ids. Cache again.")
        rows = np.zeros(len(tokens), row_dtype(self.context_length))
        rows["length"], rows["tokens"] = self.context_length, tokens
        rows["document"] = [row_document(row) for row in rows["tokens"]]
        return rows


def holds_delphi(folder: Path) -> bool:
    """Whether a folder looks like delphi's: `results/<run>`, its `latents`, or one hook's folder."""
    return bool(_hook_folders(folder))


def find_delphi(folder: Path, prepend_bos: bool | None = None) -> DelphiCache:
    """The cache in a folder: `results/<run>`, its `latents`, or one hook's folder. Reads headers and
    tokens. Raises ActivationsError."""
    folders = _hook_folders(folder)
    if not folders:
        raise ActivationsError(
            f"{folder} holds no cache of delphi's: no HOOK/FIRST_LAST.safetensors lies there, nor below "
            f"'latents'."
        )
    hooks = [_hook(path) for path in folders]
    by_site = {hook.site: hook for hook in hooks}
    if len(by_site) < len(hooks):
        raise ActivationsError(
            f"two of the hooks in {folder} are the same site: {', '.join(hook.name for hook in hooks)}. Give "
            f"one hook's folder."
        )
    stored = [hook.splits[0].tokens for hook in hooks]
    identities = [_of_tokens(tokens) for tokens in stored]
    for tokens, identity in zip(stored, identities, strict=True):
        if identity != identities[0]:
            raise ActivationsError(
                f"the hooks are not on the same text: {tokens} differs from {stored[0]}. Give one hook's "
                f"folder, or cache them together."
            )
    first_tokens = stored[0].flat(stored[0].shape[1])[:LOOKED_AT, 0]
    return DelphiCache(
        folder=folder,
        hooks=by_site,
        tokens=stored[0],
        model=_model(folders[0]),
        identity=identities[0],
        prepend_bos=begin_alike(first_tokens) if prepend_bos is None else prepend_bos,
    )


def _hook_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ActivationsError(f"there is no folder '{folder}' of delphi's cache.")
    if _split_files(folder):
        return [folder]
    latents = folder / "latents"
    return sorted(_below(latents if latents.is_dir() else folder))


def _below(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.iterdir() if path.is_dir() and _split_files(path))


def _split_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _SPLIT.fullmatch(path.name)]


def _hook(folder: Path) -> Hook:
    splits = sorted((_split(path) for path in _split_files(folder)), key=lambda split: split.first)
    expected = 0
    for split in splits:
        if split.first != expected or split.last < split.first:
            raise ActivationsError(
                f"{folder}: the files should hold latents without a gap or overlap, but where latent "
                f"{expected:,} should come next lies {split.path.name}. Is a file missing, or of another run?"
            )
        if split.tokens.shape != splits[0].tokens.shape:
            raise ActivationsError(
                f"{split.tokens} is of {split.tokens.shape[0]:,} rows of {split.tokens.shape[1]:,}, but "
                f"{splits[0].path.name} of {splits[0].tokens.shape[0]:,} of {splits[0].tokens.shape[1]:,}: "
                f"they are of different runs."
            )
        expected = split.last + 1
    name = folder.name.lstrip(".")  # the first versions of delphi wrote `.model.layers.3`
    return Hook(name, site_name(name), tuple(splits), fingerprint([split.path for split in splits]))


def site_name(name: str) -> str:
    """A hook's canonical name, or the one it has: no model is read there, so any will do."""
    try:
        return str(parse_hook(name))
    except SiteError:
        return name


def _split(path: Path) -> Split:
    match = _SPLIT.fullmatch(path.name)
    assert match is not None
    tensors = tensors_in(path)
    if "tokens" not in tensors and "locations" in tensors:
        raise ActivationsError(
            f"{path} has no 'tokens', so nobody knows what the latents fired on: it was written with "
            f"save_tokens=False. Cache again with save_splits(..., save_tokens=True)."
        )
    missing = [name for name in ("locations", "activations", "tokens") if name not in tensors]
    if missing:
        raise ActivationsError(
            f"{path} has no tensor '{missing[0]}', so delphi didn't write it. It has: {', '.join(tensors)}."
        )
    found = Split(
        path,
        int(match["first"]),
        int(match["last"]),
        tensors["locations"],
        tensors["activations"],
        tensors["tokens"],
    )
    fits = (
        found.locations.shape == (*found.activations.shape, 3)
        and found.locations.is_whole_numbers
        and found.activations.dtype in ("float16", "bfloat16", "float32")
        and len(found.tokens.shape) == 2
        and found.tokens.is_whole_numbers
        and 0 not in found.tokens.shape
        and found.tokens.shape[1] < 2**16
    )
    if not fits:
        shapes = ", ".join(f"{name} {part.dtype} {list(part.shape)}" for name, part in tensors.items())
        raise ActivationsError(
            f"{path} holds {shapes}; expected locations [M, 3] of whole numbers, activations [M] and tokens "
            f"[rows, T]."
        )
    return found


def _of_tokens(tokens: Stored) -> str:
    """32 hex characters that name rows of tokens, whatever type they are stored in."""
    found = hashlib.blake2b(repr(tokens.shape).encode(), digest_size=16)
    rows = tokens.flat(tokens.shape[1])
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        found.update(rows[first : first + _ROWS_AT_ONCE].astype("<i8").tobytes())
    return found.hexdigest()


def _model(folder: Path) -> str | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        said = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ActivationsError(f"{path} can't be read: {error}.") from error
    model = cast(Json, said).get("model_name") if isinstance(said, dict) else None
    return model if isinstance(model, str) else None
