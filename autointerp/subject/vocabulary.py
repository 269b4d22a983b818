"""Token ids -> the text each token adds.

A tokenizer's own `decode` answers for a whole run of tokens; windows need the text token by token, many
thousands a second, in processes that load no tokenizer. So each token's bytes are worked out once from the
tokenizer's decoder and kept in a table, and a run of tokens is bytes joined and decoded as UTF-8.

Decoders follow huggingface/tokenizers src/decoders and src/pre_tokenizers/byte_level.rs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from autointerp.errors import ModelError, RunError
from autointerp.files import write_sealed
from autointerp.types import Json


class _Backend(Protocol):
    def to_str(self) -> str: ...


class FastTokenizer(Protocol):
    """As much of a transformers tokenizer as is needed: the one written in Rust behind it."""

    @property
    def backend_tokenizer(self) -> _Backend: ...


class Vocabulary:
    """A table: token id -> the bytes the token stands for; empty where the tokenizer has no such id.

    Where a tokenizer joins words by spaces (SentencePiece, WordPiece, word level), a token that begins a
    word brings its space, also as the first of a run: whether something stood before it is not known here.
    `decode` of the whole text drops that one space.
    """

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = tuple(table)
        # Tokens that are complete characters have the same text wherever they stand.
        self._alone: dict[int, str] = {}
        for token_id, content in enumerate(self._table):
            text = content.decode("utf-8", "replace")
            if content and text.encode() == content:
                self._alone[token_id] = text

    @classmethod
    def of(cls, tokenizer: FastTokenizer) -> Vocabulary:
        """Raises ModelError where the tokenizer's decoder is of an unknown kind."""
        content = orjson.loads(tokenizer.backend_tokenizer.to_str())
        tokens = _tokens(content["model"]["vocab"])
        to_bytes = _decoder(content["decoder"])
        table = [b""] * (1 + max([*tokens, *(added["id"] for added in content["added_tokens"])], default=-1))
        for token_id, token in tokens.items():
            table[token_id] = to_bytes(token)
        byte_level = "ByteLevel" in _kinds(content["decoder"])
        for added in content["added_tokens"]:
            text = added["content"]
            # Behind byte-level vocabularies these are found in the raw text, so their own text is what
            # stood there. Others went through the normaliser ("▁▁" of Gemma), so the decoder undoes it.
            table[added["id"]] = text.encode() if byte_level else to_bytes(text)
        return cls(table)

    def __len__(self) -> int:
        """One more than the largest token id."""
        return len(self._table)

    @cached_property
    def identity(self) -> str:
        """32 hex characters that name the table's content."""
        found = hashlib.blake2b(digest_size=16)
        for content in self._table:
            found.update(len(content).to_bytes(4, "little") + content)
        return found.hexdigest()

    def pieces(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """[T]: the text each token adds. Joined they are the run's bytes as UTF-8.

        A character that several tokens share belongs to the first of them, the others get "". Bytes that
        are no UTF-8, such as the rest of a character cut by the run's border, become U+FFFD, as Python's
        `errors="replace"` has it. An id beyond the table adds nothing; a negative one is a ValueError.
        """
        alone = self._alone
        texts = [alone.get(token_id) for token_id in token_ids]
        if None not in texts:
            return tuple(cast(list[str], texts))
        start = 0
        while start < len(texts):
            if texts[start] is not None:
                start += 1
                continue
            end = start
            while end < len(texts) and texts[end] is None:
                end += 1
            texts[start:end] = _shared([self._bytes_of(token_id) for token_id in token_ids[start:end]])
            start = end
        return tuple(cast(list[str], texts))

    def pieces_of_rows(
        self, token_ids_NT: NDArray[np.int32], length_N: NDArray[np.integer[Any]]
    ) -> list[tuple[str, ...]]:
        """`pieces` of each row's first tokens, none negative: in a fraction of the time where nearly all
        tokens are whole characters."""
        width, lengths = token_ids_NT.shape[1], cast(list[int], length_N.tolist())
        at_NT = token_ids_NT.astype(np.intp)
        # `take` sends ids beyond the table to its last place, and is the fastest way to look up objects.
        found = list(map(tuple, cast(list[list[str]], self._texts.take(at_NT, mode="clip").tolist())))
        for number in np.flatnonzero(length_N < width).tolist():
            found[number] = found[number][: lengths[number]]
        # A row with such a token behind its end is read again for nothing.
        for number in np.flatnonzero(self._is_shared.take(at_NT, mode="clip").any(1)).tolist():
            found[number] = self.pieces(token_ids_NT[number, : lengths[number]].tolist())
        return found

    @cached_property
    def _texts(self) -> NDArray[np.object_]:
        """[V + 1]: the text of each token that is whole characters; the last stands for ids beyond."""
        texts = np.full(len(self._table) + 1, None, object)
        for token_id, text in self._alone.items():
            texts[token_id] = text
        return texts

    @cached_property
    def _is_shared(self) -> NDArray[np.bool_]:
        """[V + 1]: whether a token's text depends on what stands beside it."""
        return np.array([text is None for text in self._texts], bool)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id < 0:
            raise ValueError(f"{token_id} is not a token id")
        return self._table[token_id] if token_id < len(self._table) else b""

    def save(self, path: Path) -> Json:
        """Writes the table as Parquet, one binary column; its seal. Raises DiskFull."""
        arrow, parquet = _pyarrow()
        sink = arrow.BufferOutputStream()
        column = arrow.array(self._table, arrow.binary())
        parquet.write_table(arrow.table({"bytes": column}), sink, compression="zstd")
        return write_sealed(path, sink.getvalue().to_pybytes())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Raises RunError where the file is missing or not what `save` wrote."""
        arrow, parquet = _pyarrow()
        try:
            column = parquet.read_table(path, columns=["bytes"]).column("bytes").to_pylist()
        except (OSError, arrow.ArrowException, KeyError) as error:
            raise RunError(
                f"{path} is not a readable vocabulary: {error}. Delete it and run again."
            ) from error
        return cls(cast(list[bytes], column))


def _pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet: imported when needed because slow, `Any` because they have no types."""
    import pyarrow
    import pyarrow.parquet

    return cast(Any, pyarrow), cast(Any, pyarrow.parquet)


def _shared(parts: Sequence[bytes]) -> list[str]:
    """[n]: the text each of n byte strings adds to their sum; a character belongs where its first byte is."""
    texts = [""] * len(parts)
    owner = [number for number, part in enumerate(parts) for _ in part]
    for position, character in _characters(b"".join(parts)):
        texts[owner[position]] += character
    return texts


def _characters(content: bytes) -> Iterator[tuple[int, str]]:
    """(position of its first byte, character); what is no UTF-8 as U+FFFD, one for each broken sequence."""
    start = 0
    while start < len(content):
        try:
            valid, broken = content[start:].decode("utf-8"), None
        except UnicodeDecodeError as error:
            valid, broken = content[start : start + error.start].decode("utf-8"), error
        position = start
        for character in valid:
            yield position, character
            position += len(character.encode())
        if broken is None:
            return
        yield position, "\ufffd"
        start += broken.end


# --- one token's bytes -----------------------------------------------------------------------------------


def _tokens(vocabulary: Json | list[list[Any]]) -> dict[int, str]:
    """id -> token as the tokenizer's file spells it; unigram models keep a list of [token, score]."""
    if isinstance(vocabulary, list):
        return {token_id: entry[0] for token_id, entry in enumerate(vocabulary)}
    return {token_id: token for token, token_id in vocabulary.items()}


def _steps(decoder: Json | None) -> list[Json]:
    """A decoder's steps, nested sequences flattened."""
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


def _kinds(decoder: Json | None) -> set[str]:
    return {step["type"] for step in _steps(decoder)}


def _decoder(decoder: Json | None) -> Callable[[str], bytes]:
    """The function from a token's spelling to its bytes.

    `Strip` and Metaspace's own dropping of a text's first space concern whole texts and are left out;
    `Fuse` only joins. Raises ModelError for a kind that isn't known.
    """
    steps = _steps(decoder)
    if not steps:
        return lambda token: f" {token}".encode()
    rules = [_rule(step) for step in steps]
    kinds = _kinds(decoder)
    if "ByteLevel" in kinds:
        return _of_byte_level
    byte_fallback = "ByteFallback" in kinds

    def to_bytes(token: str) -> bytes:
        if byte_fallback and (match := _BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for rule in rules:
            token = rule(token)
        return token.encode()

    return to_bytes


_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _rule(step: Json) -> Callable[[str], str]:
    """What one step of a decoder does to one token."""
    match step:
        case {"type": "Metaspace", "replacement": str(mark)}:
            return lambda token: token.replace(mark, " ")
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return lambda token: token.replace(old, new)
        case {"type": "WordPiece", "prefix": str(prefix)}:
            return lambda token: token[len(prefix) :] if token.startswith(prefix) else f" {token}"
        case {"type": "BPEDecoder", "suffix": str(suffix)}:
            return lambda token: token.replace(suffix, " ")
        case {"type": "ByteLevel" | "ByteFallback" | "Fuse" | "Strip"}:
            return lambda token: token
        case _:
            raise ModelError(
                f"the model's tokenizer turns tokens into text by a rule that isn't known here: "
                f"{orjson.dumps(step).decode()}."
            )


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes, inverted: printable ones as themselves, the 68 others, in order, as the
    characters from U+0100 on (openai/gpt-2 src/encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER: Final = _byte_of_character()


def _of_byte_level(token: str) -> bytes:
    """A token with a character that spells no byte stands for itself, as in tokenizers."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()
