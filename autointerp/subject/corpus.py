"""The corpus: from a recipe's section to documents, each with an id that follows its text.

A document's id is the hash of its text, so the same text is the same document in every corpus, and the
split between what explainers see and what scorers test (which goes by document) holds across corpora.
Text is normalised here, once, and nowhere else; text that looks like a chat turn passes unchanged, it is
quoted where a prompt is made. Formats are read in `corpus_sources.py`. No torch.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from autointerp.demo.corpus import stdlib_documents
from autointerp.errors import CorpusError
from autointerp.identity import fingerprint
from autointerp.subject.corpus_sources import (
    blocks,
    dataset_texts,
    jsonl_file,
    parquet_file,
    saved_by_datasets,
    text_file,
)
from autointerp.types import digest

FileFormat = Literal["text", "jsonl", "parquet"]

SUFFIXES: Final[dict[str, FileFormat]] = {
    ".txt": "text",
    ".txt.gz": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json": "jsonl",
    ".json.gz": "jsonl",
    ".parquet": "parquet",
}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
BLOCK = re.compile(r"block:([1-9]\d{0,8})")
SMALLEST_BLOCK: Final = 64
NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class CorpusSpec:
    """The text that the subject model reads; the recipe's section `corpus`."""

    path: str
    """A file, a folder, a dataset on the Hugging Face hub (`org/name`), or `stdlib`: the documentation
    and source that come with Python, in order of id."""
    format: Literal["auto", "text", "jsonl", "parquet", "hub", "stdlib"] = "auto"
    """`auto`: by the file's suffix, or by what a folder holds; `org/name` is on the hub. `hub` with a
    local folder reads it through the datasets library."""
    field: str = "text"
    """Field of a JSON object, column of a Parquet file or dataset."""
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
    """`whole`, or `block:N` to cut each text into blocks of at most N characters, for a corpus that is
    one long text. Weaker: neighbouring blocks share their subject, so held-out windows are less new."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document, normalised."""

    id: str
    """16 hex characters: blake2b of the text."""
    text: str


class Documents(Iterator[Document]):
    """The corpus' documents, each text once; made by `documents`."""

    def __init__(self, spec: CorpusSpec) -> None:
        self._spec = spec
        self._texts = _texts(spec)
        self._seen: set[int] = set()
        self.n_documents = 0
        """Given out so far."""
        self.n_duplicates = 0
        """Dropped so far: the same text came before."""
        self.n_empty = 0
        """Dropped so far: nothing but white space."""

    def __next__(self) -> Document:
        for raw in self._texts:
            text = normalise(raw)
            if not text or text.isspace():
                self.n_empty += 1
                continue
            name = document_id(text)
            number = int(name, 16)
            if number in self._seen:
                self.n_duplicates += 1
                continue
            self._seen.add(number)
            self.n_documents += 1
            return Document(name, text)
        require_documents(self.n_documents, self._spec)
        raise StopIteration


def documents(spec: CorpusSpec) -> Documents:
    """Reads a corpus. Memory: one document and 64 bits a document.

    Raises CorpusError: at once for a path, format or block size that can't be, on the way for what can't
    be read, at the end for a corpus with no document or only one (see `require_documents`).
    """
    return Documents(spec)


def require_documents(n_documents: int, spec: CorpusSpec) -> None:
    """Raises CorpusError for too few documents to keep explaining and testing apart.

    `n_documents`: those found in the part of the corpus that is used. Who stops reading early calls this.
    """
    if n_documents == 0:
        raise CorpusError(
            f"the corpus '{spec.path}' is empty: no text with anything but white space. Is corpus.field "
            f"('{spec.field}') the field that holds the text?"
        )
    if n_documents == 1 and spec.document == "whole":
        raise CorpusError(
            f"the corpus '{spec.path}' is a single document, and explanations must be tested on other "
            f"documents than they were made from. If its documents are separated by something else than "
            f"{spec.separator!r}, set corpus.separator; if it is one long text, cut it into blocks: "
            "--set corpus.document=block:4096"
        )


def corpus_identity(spec: CorpusSpec) -> str:
    """What names the corpus' content, for digests: equal for a moved or copied corpus, another after any
    change to it. For a dataset on the hub its commit. Raises CorpusError.
    """
    kind, files = _resolved(spec)
    if kind == "stdlib":
        return digest("stdlib", sorted({document_id(text) for text in _stdlib_texts()}))
    if files:
        return fingerprint(files)
    if spec.revision is not None and COMMIT.fullmatch(spec.revision):
        return f"{spec.path}@{spec.revision}"
    return f"{spec.path}@{_commit(spec)}"


def normalise(text: str) -> str:
    """Replaces what is no text by U+FFFD: NUL, and surrogates, which here never come in pairs (a decoder
    joins pairs). Nothing else is changed."""
    return NOT_TEXT.sub("\ufffd", text)


def document_id(text: str) -> str:
    """16 hex characters of the blake2b hash of a normalised text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# --- where the texts are -------------------------------------------------------------------------------


def _texts(spec: CorpusSpec) -> Iterator[str]:
    """Raw texts. Checks the section before the first one is asked for."""
    size = _block_size(spec)
    kind, files = _resolved(spec)
    raw = _raw_texts(spec, kind, files, size)
    return (piece for text in raw for piece in blocks(text, size))


def _raw_texts(spec: CorpusSpec, kind: str, files: list[Path], size: int | None) -> Iterator[str]:
    if kind == "stdlib":
        yield from _stdlib_texts()
    elif kind == "hub":
        yield from dataset_texts(
            str(Path(spec.path).expanduser()) if files else spec.path,
            spec.field,
            name=spec.name,
            split=spec.split,
            revision=spec.revision,
            streaming=spec.streaming,
        )
    for path in files:
        if kind == "text":
            yield from text_file(path, spec.separator, size)
        elif kind == "jsonl":
            yield from jsonl_file(path, spec.field)
        elif kind == "parquet":
            yield from parquet_file(path, spec.field)


def _stdlib_texts() -> Iterator[str]:
    """In order of id: in the order of files, the first ones would all be of a few modules."""
    texts = (normalise(text) for text in stdlib_documents())
    yield from (text for _, text in sorted((document_id(text), text) for text in texts))


def _block_size(spec: CorpusSpec) -> int | None:
    if spec.document == "whole":
        return None
    match = BLOCK.fullmatch(spec.document)
    if match is None or int(match[1]) < SMALLEST_BLOCK:
        raise CorpusError(
            f"corpus.document is '{spec.document}': expected whole, or block:N with a number N of characters "
            f"from {SMALLEST_BLOCK}, e.g. block:4096."
        )
    return int(match[1])


def _resolved(spec: CorpusSpec) -> tuple[str, list[Path]]:
    """(format, local files in order of name; none for what isn't local). Raises CorpusError."""
    if spec.format == "stdlib" or (spec.format == "auto" and spec.path == "stdlib"):
        return "stdlib", []
    path = Path(spec.path).expanduser()
    if not path.exists():
        looks_local = spec.path.startswith((".", "~", "/")) or _format_of(path) is not None
        if spec.format == "hub" or (
            spec.format == "auto" and HUB_NAME.fullmatch(spec.path) and not looks_local
        ):
            return "hub", []
        raise CorpusError(
            f"no file or folder is called '{spec.path}'. A dataset on the hub is named org/name (or set "
            "corpus.format=hub); 'stdlib' needs no file."
        )
    if path.is_dir():
        return _resolved_folder(spec, path)
    kind = _format_of(path) if spec.format == "auto" else spec.format
    if kind is None or kind == "hub":
        raise CorpusError(
            f"'{spec.path}' is a file, and its format isn't known from its name. Set corpus.format to text, "
            "jsonl or parquet."
        )
    return kind, [path]


def _resolved_folder(spec: CorpusSpec, folder: Path) -> tuple[str, list[Path]]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise CorpusError(f"the folder '{spec.path}' holds no files.")
    kind: str = spec.format
    if kind == "auto" and saved_by_datasets(folder):
        kind = "hub"
    if kind == "hub":
        return "hub", files
    by_format = Counter(found for path in files if (found := _format_of(path)))
    if kind == "auto":
        if len(by_format) != 1:
            held = ", ".join(f"{n} {found}" for found, n in by_format.items()) or f"{len(files)} others"
            raise CorpusError(
                f"the folder '{spec.path}' holds files of {len(by_format)} known formats ({held}). Name the "
                "files you mean, or set corpus.format to text, jsonl or parquet."
            )
        kind = next(iter(by_format))
    chosen = [path for path in files if _format_of(path) == kind]
    if not chosen:
        suffixes = ", ".join(suffix for suffix, known in SUFFIXES.items() if known == kind)
        raise CorpusError(f"the folder '{spec.path}' holds no {kind} file ({suffixes}).")
    return kind, chosen


def _format_of(path: Path) -> FileFormat | None:
    name = path.name.lower()
    return next((known for suffix, known in SUFFIXES.items() if name.endswith(suffix)), None)


def _commit(spec: CorpusSpec) -> str:
    """The commit that the hub has now for the dataset's revision."""
    import huggingface_hub

    try:
        info = cast(Any, huggingface_hub).HfApi().dataset_info(spec.path, revision=spec.revision)
        return str(info.sha)
    except Exception as error:  # no such dataset, no network: the hub client's errors have no common class
        first = str(error).strip().partition("\n")[0][:300]
        raise CorpusError(
            f"the Hugging Face hub didn't say which commit of dataset '{spec.path}' this is: {first} "
            f"({type(error).__name__}). Check the name and the network, or set corpus.revision to a commit "
            "(40 hex characters)."
        ) from error
