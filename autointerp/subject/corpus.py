"""The corpus: from a recipe's section to documents, each with an id that follows its text.

A document's id is the hash of its text, so the same text is the same document in every corpus, and the
split between what explainers see and what scorers test (which goes by document) holds across corpora.
Text is normalised here, once, and nowhere else; text that looks like a chat turn passes unchanged, it is
quoted where a prompt is made. Formats are read in `corpus_sources.py`. No torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from autointerp.demo.corpus import stdlib_documents
from autointerp.errors import CorpusError
from autointerp.identity import fingerprint
from autointerp.subject.chat import Conversation, Turn, canonical
from autointerp.subject.corpus_hub import Hub, streamed
from autointerp.subject.corpus_sources import (
    blocks,
    jsonl_file,
    lines,
    parquet_file,
    text_file,
)
from autointerp.subject.corpus_spec import CorpusSpec, Place, block_size, format_of, place_of, reference_of
from autointerp.types import digest

NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
HUB: Final = Hub()
N_FIRST: Final = 64
"""Documents looked at before anything costly starts."""
TWO_DOCUMENTS: Final = 2
"""Needed to test an explanation on another document than it was made from."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document, normalised."""

    id: str
    """16 hex characters: blake2b of the text."""
    text: str
    """Of a conversation the canonical JSON of its messages (`chat.canonical`): its id follows what was said
    and by whom, and no tokenizer's way to render it."""
    turns: Conversation | None = None
    """None: a text."""


class Documents(Iterator[Document]):
    """The corpus' documents, each text once; made by `documents`."""

    def __init__(self, spec: CorpusSpec, hub: Hub = HUB, least: int = TWO_DOCUMENTS) -> None:
        self._spec, self._least = spec, least
        self._contents = _contents(spec, hub)
        self._seen: set[int] = set()
        self.n_documents = 0
        """Given out so far."""
        self.n_duplicates = 0
        """Dropped so far: the same text came before."""
        self.n_empty = 0
        """Dropped so far: nothing but white space."""

    def __next__(self) -> Document:
        for content in self._contents:
            turns = None if isinstance(content, str) else normalised(content)
            text = normalise(content) if isinstance(content, str) else canonical(turns or ())
            if not (text if turns is None else "".join(turn.content for turn in turns)).strip():
                self.n_empty += 1
                continue
            name = document_id(text)
            number = int(name, 16)
            if number in self._seen:
                self.n_duplicates += 1
                continue
            self._seen.add(number)
            self.n_documents += 1
            return Document(name, text, turns)
        require_documents(self.n_documents, self._spec, self._least)
        raise StopIteration


def documents(spec: CorpusSpec, hub: Hub = HUB, least: int = TWO_DOCUMENTS) -> Documents:
    """Reads a corpus; `hub` has the datasets. Memory: one document and 64 bits a document.

    Raises CorpusError: at once for a path, format or block size that can't be, on the way for what can't
    be read, at the end for a corpus with no document or fewer than `least` (see `require_documents`). `random-tokens`
    are no documents: who asks for them knows the tokenizer.
    """
    return Documents(spec, hub, least)


def check_first_documents(spec: CorpusSpec, hub: Hub = HUB, seconds: float = 1.0) -> None:
    """Reads the first 64 documents, or for `seconds` where that takes longer (at least one, and what a
    library takes to open them). Raises CorpusError for what `documents` raises on them: a field that isn't
    there, a corpus of one document, ..."""
    kind = place_of(spec).kind
    if kind == "random-tokens" and (reference := reference_of(spec)) is not None:
        check_first_documents(reference, hub, seconds)
    if kind in ("stdlib", "random-tokens"):
        return  # every Python has the one, and nobody runs out of the other
    begin = time.monotonic()
    for number, _ in enumerate(documents(spec, hub), start=1):
        if number >= N_FIRST or time.monotonic() - begin > seconds:
            return


def require_documents(n_documents: int, spec: CorpusSpec, least: int = TWO_DOCUMENTS) -> None:
    """Raises CorpusError for too few documents, by default to keep explaining and testing apart.

    `n_documents`: those found in the whole corpus.
    """
    if n_documents == 0:
        raise CorpusError(
            f"the corpus '{spec.path}' is empty: no text with anything but white space. Is corpus.field "
            f"('{spec.field}') the field that holds the text?"
        )
    if n_documents < least and spec.document == "whole":
        raise CorpusError(
            f"the corpus '{spec.path}' is a single document, and explanations must be tested on other "
            f"documents than they were made from. If its documents are separated by something else than "
            f"{spec.separator!r}, set corpus.separator; if each line is one, --set corpus.document=line; if "
            "it is one long text, cut it into blocks: --set corpus.document=block:4096"
        )


def refuse_one_document(spec: CorpusSpec, n_tokens: int) -> None:
    """Raises CorpusError: the first document alone has the `n_tokens` that are read of the corpus."""
    raise CorpusError(
        f"the first document of the corpus '{spec.path}' alone has the {n_tokens:,} tokens that are read, and "
        f"explanations must be tested on other documents than they were made from. Read more "
        f"(--set cache.n_tokens=...), or cut the texts: --set corpus.document=line makes each line a document, "
        f"--set corpus.document=block:4096 blocks of 4,096 characters."
    )


def corpus_identity(spec: CorpusSpec, hub: Hub = HUB) -> str:
    """What names the corpus' content, for digests: equal for a moved or copied corpus, another after any
    change to it. For a dataset on the hub its commit. Raises CorpusError.
    """
    place = place_of(spec)
    if place.kind == "random-tokens":
        reference = reference_of(spec)
        return digest("random-tokens", corpus_identity(reference, hub) if reference else None)
    if place.kind == "stdlib":
        return digest("stdlib", sorted({document_id(text) for text in _stdlib_texts()}))
    if place.files:
        return digest("files", [fingerprint([path]) for path in place.files])  # in their order
    return f"{spec.path}@{hub.commit(spec)}"


def normalise(text: str) -> str:
    """Replaces what is no text by U+FFFD: NUL, and surrogates, which here never come in pairs (a decoder
    joins pairs). Nothing else is changed."""
    return NOT_TEXT.sub("\ufffd", text)


def normalised(turns: Conversation) -> Conversation:
    return tuple(Turn(turn.role, normalise(turn.content)) for turn in turns)


def document_id(text: str) -> str:
    """16 hex characters of the blake2b hash of a normalised text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# --- where the texts are -------------------------------------------------------------------------------


def _contents(spec: CorpusSpec, hub: Hub) -> Iterator[str | Conversation]:
    """Raw texts and conversations. Checks the section before the first one is asked for."""
    size = block_size(spec)
    place = place_of(spec)
    if place.kind in ("text", "stdlib") and spec.chat is not False:
        raise CorpusError(
            f"corpus.chat is {spec.chat}, but '{spec.path}' is text. Conversations come as lists of messages in "
            "JSON lines, Parquet files or datasets."
        )
    raw = _raw_contents(spec, place, size, hub)
    if spec.document == "line":
        return (line for text in raw for line in lines(cast(str, text)))
    if size is None:
        return raw
    return (piece for text in raw for piece in blocks(cast(str, text), size))


def _raw_contents(spec: CorpusSpec, place: Place, size: int | None, hub: Hub) -> Iterator[str | Conversation]:
    if place.kind == "stdlib":
        yield from _stdlib_texts()
    elif place.kind == "hub":
        if not place.files:
            yield from hub.contents(spec)
            return
        at = dataclasses.replace(spec, path=str(Path(spec.path).expanduser()))
        yield from streamed(at, spec.revision)
        return
    for path in place.files:
        match format_of(path) if place.kind == "mixed" else place.kind:
            case "text":
                yield from text_file(path, "\n" if spec.document == "line" else spec.separator, size)
            case "jsonl":
                yield from jsonl_file(path, spec.field, spec.chat)
            case _:
                yield from parquet_file(path, spec.field, spec.chat)


def _stdlib_texts() -> Iterator[str]:
    """In order of id: in the order of files, the first ones would all be of a few modules."""
    texts = (normalise(text) for text in stdlib_documents())
    yield from (text for _, text in sorted((document_id(text), text) for text in texts))
