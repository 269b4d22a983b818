"""Where a corpus' texts come from: one generator a format, each with bounded memory.

    text_file         UTF-8 text, split at a separator
    jsonl_file        one JSON object a line
    parquet_file      a column of a Parquet file
    dataset_contents  Hugging Face datasets: from the hub, or a local folder

All yield texts, and conversations where asked for, as they are, in order; `corpus.py` normalises them and
drops what is empty or double. Files ending in `.gz` are unpacked on the way. Bytes that are not UTF-8 become
U+FFFD. Errors are CorpusErrors.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import importlib
import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

from autointerp.errors import CorpusError
from autointerp.subject.chat import Conversation, conversation_in

Chat = bool | Literal["auto"]
"""Whether a field holds conversations; `auto`: where it holds lists."""

CHUNK_BYTES: Final = 2**20
MAX_DOCUMENT_CHARS: Final = 2**26
"""A document is held in memory whole; one of over 64 million characters is a file without separators."""
ROWS_A_BATCH: Final = 256
"""Rows of a Parquet file that are held at once."""


# --- text ----------------------------------------------------------------------------------------------


def text_file(path: Path, separator: str, block: int | None) -> Iterator[str]:
    """The documents of a text file: what lies between separators; the whole file if there are none.

    `separator` empty: the file is one document. `block`: documents are cut as by `blocks`, also while
    they are read, so that a file of any size needs little memory.
    """
    for text in split_stream(_decoded(path), separator, block):
        if len(text) > MAX_DOCUMENT_CHARS:
            raise CorpusError(
                f"{path} has no separator {separator!r} in {MAX_DOCUMENT_CHARS:,} characters. Name the "
                "one it has (--set corpus.separator=...), or cut it into blocks "
                "(--set corpus.document=block:4096)."
            )
        yield text


def split_stream(chunks: Iterable[str], separator: str, block: int | None = None) -> Iterator[str]:
    """`"".join(chunks).split(separator)`, each piece cut into `blocks`, in the memory of one piece.

    A piece over MAX_DOCUMENT_CHARS is given out where it stands, for the caller to refuse.
    """
    margin = max(1, len(separator))  # what lies this far from the end may belong to a separator
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(separator) if separator else [rest + chunk]
        for text in whole:
            yield from blocks(text, block)
        if block is None:
            if len(rest) > MAX_DOCUMENT_CHARS:
                yield rest
                return
            continue
        start = 0
        while len(rest) - start >= block + margin:
            end = _block_end(rest, start, block)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield from blocks(rest, block)


def blocks(text: str, size: int | None) -> Iterator[str]:
    """Cuts `text` into pieces of at most `size` characters, at a line's end where the second half of a
    piece has one, else behind a space, else anywhere. None: the whole text."""
    start = 0
    while size is not None and len(text) - start > size:
        end = _block_end(text, start, size)
        yield text[start:end]
        start = end
    yield text[start:]


def lines(text: str) -> Iterator[str]:
    """The lines of a text, without their ends."""
    yield from (line.removesuffix("\r") for line in text.split("\n"))


def _block_end(text: str, start: int, size: int) -> int:
    for mark in "\n ":
        at = text.rfind(mark, start + size // 2, start + size)
        if at >= 0:
            return at + 1
    return start + size


def _decoded(path: Path) -> Iterator[str]:
    """The file's text in chunks, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    with _opened(path) as file:
        first = True
        while chunk := file.read(CHUNK_BYTES):
            if first:
                _refuse_utf_16(path, chunk)
                first = False
            yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


# --- JSON lines ----------------------------------------------------------------------------------------


def jsonl_file(path: Path, field: str, chat: Chat = False) -> Iterator[str | Conversation]:
    """`field` of each object of a file with one JSON object a line; blank lines are passed over.

    A field that is null gives an empty text.
    """
    with _opened(path) as file:
        number = 0
        while line := file.readline(4 * MAX_DOCUMENT_CHARS):
            number += 1
            if number == 1:
                _refuse_utf_16(path, line)
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield content_in(_object(line, f"{path}:{number}"), field, f"{path}:{number}", chat)


def _object(line: bytes, place: str) -> Mapping[str, Any]:
    try:
        value: object = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        array = line.lstrip().startswith(b"[")
        ways = "If the file is one JSON array, write its items on lines: jq -c '.[]' FILE > FILE.jsonl."
        raise CorpusError(
            f"{place}: not a JSON object ({error}). {ways if array else 'Mend or remove the line.'}"
        ) from error
    if not isinstance(value, dict):
        raise CorpusError(f"{place}: a {type(value).__name__}, not a JSON object. One object a line is read.")
    return cast(Mapping[str, Any], value)


# --- Parquet -------------------------------------------------------------------------------------------


def parquet_file(path: Path, field: str, chat: Chat = False) -> Iterator[str | Conversation]:
    """Column `field` of a Parquet file, some rows at a time; a null gives an empty text."""
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise CorpusError(missing_field(field, schema.names, str(path)))
            kind = schema.field(field).type
            if arrow.types.is_dictionary(kind):
                kind = kind.value_type
            is_text = any(test(kind) for test in (arrow.types.is_string, arrow.types.is_large_string))
            is_list = any(test(kind) for test in (arrow.types.is_list, arrow.types.is_large_list))
            if not (is_list if chat is True else is_text or (chat == "auto" and is_list)):
                raise CorpusError(f"{path}: column {_not_content(field, kind, chat, is_list)}")
            for batch in file.iter_batches(batch_size=ROWS_A_BATCH, columns=[field]):
                if is_list:
                    for value in batch.column(0).to_pylist():
                        yield content_in({field: value}, field, str(path), chat)
                    continue
                # As bytes: Parquet doesn't promise that a string is UTF-8.
                for value in batch.column(0).cast(kind).cast(arrow.large_binary()):
                    yield (value.as_py() or b"").decode("utf-8", errors="replace")
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} can't be read as Parquet: {_first_line(error)}.") from error


# --- Hugging Face datasets -----------------------------------------------------------------------------


def saved_by_datasets(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def dataset_contents(
    path: str,
    field: str,
    *,
    chat: Chat = False,
    name: str | None,
    split: str,
    revision: str | None,
    streaming: bool,
) -> Iterator[str | Conversation]:
    """`field` of each row of a split. `path`: a name on the hub, or a folder.

    Any failure of the hub, the network or the library, also in mid-stream, is a CorpusError.
    """
    library: Any = importlib.import_module("datasets")
    place = f"dataset '{path}'"
    try:
        if saved_by_datasets(Path(path)):
            rows = _split_of(library.load_from_disk(path), split, place)
        else:
            rows = library.load_dataset(path, name, split=split, revision=revision, streaming=streaming)
        columns = rows.column_names
        if columns is not None:
            if field not in columns:
                raise CorpusError(missing_field(field, columns, place))
            rows = rows.select_columns([field])
        for row in rows:
            yield content_in(row, field, place, chat)
    except CorpusError:
        raise
    except Exception as error:  # hub, network, file formats: these have no common class
        raise CorpusError(
            f"{place}, split '{split}', can't be read: {_first_line(error)} ({type(error).__name__}). Check "
            "its name, corpus.name (its configuration), corpus.split and the network."
        ) from error


def _split_of(loaded: Any, split: str, place: str) -> Any:
    """A saved dataset is one split, a saved DatasetDict a mapping of them."""
    if not isinstance(loaded, dict):
        return loaded
    splits = cast(dict[str, Any], loaded)
    if split not in splits:
        raise CorpusError(f"{place} has no split '{split}'. It has: {', '.join(splits)}. Set corpus.split.")
    return splits[split]


# --- rows and files ------------------------------------------------------------------------------------


def content_in(row: Mapping[str, Any], field: str, place: str, chat: Chat) -> str | Conversation:
    """The text or conversation of a row; empty where the field is null. Raises CorpusError: no such field,
    or not what `chat` says it holds."""
    if field not in row:
        raise CorpusError(missing_field(field, row, place))
    value = row[field]
    if value is None:
        return ""
    if isinstance(value, str) and chat is not True:
        return value
    is_list = isinstance(value, list | Mapping)
    if is_list and chat is not False:
        return conversation_in(cast(object, value), f"{place}: field '{field}'")
    raise CorpusError(f"{place}: field {_not_content(field, type(value).__name__, chat, is_list)}")


def _not_content(field: str, kind: object, chat: Chat, is_list: bool) -> str:
    if chat is True:
        return (
            f"'{field}' holds a {kind}, not conversations. Set corpus.field to another, or corpus.chat=auto."
        )
    hint = " If it holds conversations, set corpus.chat=true." if is_list else ""
    return f"'{field}' holds a {kind}, not texts. Set corpus.field to another.{hint}"


def missing_field(field: str, known: Iterable[str], place: str) -> str:
    """The message for a field that isn't there; the nearest name is offered."""
    names = list(known)
    near = difflib.get_close_matches(field, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
    return f"{place}: no field '{field}'.{hint} There are: {shown or 'none'}. Set corpus.field."


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    """The file's bytes, unpacked. What goes wrong while it is open and read is a CorpusError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} can't be read: {_first_line(error)}.") from error


def _refuse_utf_16(path: Path, start: bytes) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorpusError(f"{path} is UTF-16. Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
