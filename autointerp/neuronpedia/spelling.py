"""Token texts as they are published -> the bytes they stand for.

Many are pieces of byte-level vocabularies, spelled with a character a byte ('âĢ', 'Ļ' together are ’), often with
spaces, line breaks and some dashes put right and the rest not. A sequence counts as so spelled where all of it,
read that way, is UTF-8 and some character of several bytes, or some space or control character, came of it; the
characters that the borders of a window cut in two may stay halves. Anything else is the text it says.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final

from autointerp.subject.vocabulary import BYTE_OF_CHARACTER

_LONGEST: Final = 4
"""Bytes of a character."""


def bytes_of(tokens: Sequence[str]) -> tuple[list[bytes], bool]:
    """[T]: of each token; and whether the sequence was spelled byte by byte."""
    text = "".join(tokens)
    if not text.isascii():
        spelled = [_as_bytes(token) for token in tokens]
        if _is_spelled(text, b"".join(spelled)):
            return spelled, True
    return [token.encode("utf-8", "replace") for token in tokens], False


def _as_bytes(token: str) -> bytes:
    """Characters that spell no byte are themselves."""
    return b"".join(
        character.encode("utf-8", "replace")
        if (byte := BYTE_OF_CHARACTER.get(character)) is None
        else bytes([byte])
        for character in token
    )


def _is_spelled(text: str, content: bytes) -> bool:
    begin = 0
    while begin < min(_LONGEST - 1, len(content)) and content[begin] & 0xC0 == 0x80:
        begin += 1
    try:
        # An unfinished character at the end is no fault of an incremental decoder's input.
        said = codecs.getincrementaldecoder("utf-8")().decode(content[begin:])
    except UnicodeDecodeError:
        return False
    if not said.isascii() and _has(text, range(128, 256)):
        return True
    # Where spaces are spelled none stands there as itself.
    return not any(map(str.isspace, text)) and _has(text, range(128))


def _has(text: str, spelled: range) -> bool:
    """Whether some character beyond ASCII spells one of these bytes."""
    return any(character > "\x7f" and BYTE_OF_CHARACTER.get(character) in spelled for character in text)
