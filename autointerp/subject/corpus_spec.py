"""The recipe's section `corpus`, and what it points to: a format, and files if they are local. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from autointerp.errors import CorpusError
from autointerp.subject.corpus_sources import saved_by_datasets

FileFormat = Literal["text", "jsonl", "parquet"]
Kind = Literal["text", "jsonl", "parquet", "mixed", "hub", "stdlib", "random-tokens"]

SUFFIXES: Final[dict[str, FileFormat]] = {
    ".txt": "text",
    ".txt.gz": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json": "jsonl",
    ".json.gz": "jsonl",
    ".parquet": "parquet",
}
STDLIB: Final = "stdlib"
"""The name of the corpus that comes with Python."""
RANDOM: Final = "random-tokens"
"""The name of the corpus of random tokens (`activations/random_tokens.py`)."""
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
BLOCK = re.compile(r"block:([1-9]\d{0,8})")
SMALLEST_BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class CorpusSpec:
    """The text that the subject model reads; the recipe's section `corpus`."""

    path: str
    """A file, a folder, a dataset on the Hugging Face hub (`org/name`), `stdlib`: the documentation and
    source that come with Python, in order of id; or `random-tokens`: sequences of random tokens, each as
    long as a row, the control that a feature of meaning is silent on (LangFIR, arXiv 2604.03532)."""
    format: Literal["auto", "text", "jsonl", "parquet", "mixed", "hub", "stdlib", "random-tokens"] = "auto"
    """`auto`: by the file's suffix, or by what a folder holds; `org/name` is on the hub. `mixed`: a folder
    of several formats, each file by its suffix. `hub` with a local folder reads it through the datasets
    library."""
    field: str = "text"
    """Field of a JSON object, column of a Parquet file or dataset."""
    chat: bool | Literal["auto"] = False
    """`true`: the field holds conversations, lists of {role, content} or {from, value}, which are rendered
    by the tokenizer's chat template. `auto`: conversations where it holds lists, texts where it holds texts."""
    separator: str = "<|endoftext|>"
    """Between the documents of a text file. Empty: a file is a document."""
    name: str | None = None
    """Configuration of a dataset on the hub that has several."""
    split: str = "train"
    revision: str | None = None
    """Commit, tag or branch of a dataset on the hub."""
    streaming: bool = True
    """Read a dataset on the hub as it comes, instead of downloading it first."""
    document: str = "whole"
    """`whole`; `line`: each line of a text is a document; or `block:N` to cut each text into blocks of at
    most N characters, for a corpus that is one long text. Blocks are weaker: neighbouring ones share their
    subject, so held-out windows are less new."""
    distribution: Literal["uniform", "unigram"] = "uniform"
    """Of `random-tokens`: over the vocabulary without special tokens; or as often as in the first million
    tokens of `reference`."""
    reference: str | None = None
    """Of `random-tokens`, for `unigram`: the path of another corpus; the other fields are then about it."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a corpus' path turned out to be."""

    kind: Kind
    files: tuple[Path, ...] = ()
    """In order of path; none for what isn't local."""


def place_of(spec: CorpusSpec) -> Place:
    """Looks where `spec.path` is. Raises CorpusError: nothing there, or no format that is known."""
    for kind in (STDLIB, RANDOM):
        if spec.format == kind or (spec.format == "auto" and spec.path == kind):
            return Place(kind)
    path = Path(spec.path).expanduser()
    if not path.exists():
        looks_local = spec.path.startswith((".", "~", "/")) or format_of(path) is not None
        if spec.format == "hub" or (
            spec.format == "auto" and HUB_NAME.fullmatch(spec.path) and not looks_local
        ):
            return Place("hub")
        raise CorpusError(
            f"no file or folder is called '{spec.path}'. A dataset on the hub is named org/name (or set "
            "corpus.format=hub); 'stdlib' and 'random-tokens' need no file."
        )
    if path.is_dir():
        return _folder(spec, path)
    kind = format_of(path) if spec.format in ("auto", "mixed") else spec.format
    if kind is None or kind == "hub":
        raise CorpusError(
            f"'{spec.path}' is a file, and its format isn't known from its name. Set corpus.format to text, "
            "jsonl or parquet."
        )
    return Place(kind, (path,))


def _folder(spec: CorpusSpec, folder: Path) -> Place:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise CorpusError(f"the folder '{spec.path}' holds no files.")
    if spec.format == "hub" or (spec.format == "auto" and saved_by_datasets(folder)):
        return Place("hub", tuple(files))
    by_format: Counter[FileFormat] = Counter(found for path in files if (found := format_of(path)))
    if spec.format == "auto" and len(by_format) != 1:
        held = ", ".join(f"{n} {found}" for found, n in by_format.items()) or f"{len(files)} others"
        raise CorpusError(
            f"the folder '{spec.path}' holds files of {len(by_format)} known formats ({held}). Name the "
            "files you mean, or set corpus.format to text, jsonl or parquet; mixed reads them all."
        )
    kind = next(iter(by_format)) if spec.format == "auto" else spec.format
    chosen = tuple(path for path in files if format_of(path) in ([*by_format] if kind == "mixed" else [kind]))
    if not chosen:
        suffixes = ", ".join(suffix for suffix, known in SUFFIXES.items() if kind in ("mixed", known))
        raise CorpusError(f"the folder '{spec.path}' holds no {kind} file ({suffixes}).")
    return Place(kind, chosen)


def format_of(path: Path) -> FileFormat | None:
    """By the file's suffix; None for one that isn't known."""
    name = path.name.lower()
    return next((known for suffix, known in SUFFIXES.items() if name.endswith(suffix)), None)


def reference_of(spec: CorpusSpec) -> CorpusSpec | None:
    """The corpus whose tokens `random-tokens` are drawn as often as; None for uniform ones. Raises
    CorpusError where it isn't said, or said in vain."""
    if (spec.distribution == "unigram") != (spec.reference is not None):
        raise CorpusError(
            "corpus.distribution=unigram draws tokens as often as they are in corpus.reference, the path of "
            f"another corpus: set both (found {spec.distribution}, {spec.reference})."
        )
    if spec.reference is None:
        return None
    if spec.reference == RANDOM:
        raise CorpusError("corpus.reference is random-tokens too: name a corpus of texts.")
    return dataclasses.replace(
        spec, path=spec.reference, format="auto", distribution="uniform", reference=None
    )


def block_size(spec: CorpusSpec) -> int | None:
    """Characters a block; None where texts aren't cut into blocks. Raises CorpusError for what
    `corpus.document` can't be."""
    if spec.document != "whole" and spec.chat is not False:
        raise CorpusError(
            f"corpus.document is '{spec.document}', but conversations (corpus.chat) aren't cut. Leave one out."
        )
    if spec.document in ("whole", "line"):
        return None
    match = BLOCK.fullmatch(spec.document)
    if match is None or int(match[1]) < SMALLEST_BLOCK:
        raise CorpusError(
            f"corpus.document is '{spec.document}': expected whole, line, or block:N with a number N of "
            f"characters from {SMALLEST_BLOCK}, e.g. block:4096."
        )
    return int(match[1])
