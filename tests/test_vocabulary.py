"""Token ids as text: what the pieces say is what the tokenizer's own decode says, character by character."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from autointerp.errors import ModelError, RunError
from autointerp.subject.vocabulary import Vocabulary

REAL = Path(__file__).parents[2] / "shared" / "real" / "models"

MULTILINGUAL = [
    "The quick brown fox jumps over the lazy dog, naïvely.\n\tdef main():\n    return 'café'\n",
    "Быстрая лиса прыгает через ленивую собаку.",
    "いろはにほへと ちりぬるを 速い茶色の狐",
    "🙂🙃 👩‍👩‍👧 🇫🇷 emoji 🙂🙂",
    "سريع البني الثعلب",
]


class Wrapped:
    """As much of a transformers tokenizer as `Vocabulary.of` looks at, around any tokenizers.Tokenizer."""

    def __init__(self, backend: Any) -> None:
        self.backend_tokenizer = backend

    def encode(self, text: str) -> list[int]:
        return cast(list[int], self.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return cast(str, self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False))


def _trained(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any, normalizer: Any = None) -> Wrapped:
    backend = cast(Any, Tokenizer)(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(MULTILINGUAL * 3, trainer)
    return Wrapped(backend)


def byte_level() -> Wrapped:
    """GPT-2's kind, small enough that most characters beyond ASCII are several tokens."""
    alphabet = cast(Any, pre_tokenizers.ByteLevel).alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    wrapped = _trained(
        models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    )
    wrapped.backend_tokenizer.add_tokens(["\n\n\n", "naïve é"])
    return wrapped


BYTE_LEVEL = byte_level()
VOCABULARY = Vocabulary.of(BYTE_LEVEL)


def token(wrapped: Wrapped, spelling: str) -> int:
    found = wrapped.backend_tokenizer.token_to_id(spelling)
    assert found is not None
    return cast(int, found)


# --- byte level -------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.text(max_size=40) | st.text("aé日🙂\u200d \n\x00", max_size=30))
def test_joined_pieces_are_the_text(text: str) -> None:
    """For any text: as many pieces as tokens, which joined are the text and what `decode` says."""
    ids = BYTE_LEVEL.encode(text)
    pieces = VOCABULARY.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    if "naïve é" not in text:  # an added token that tokenizers' decode mangles and we don't
        assert BYTE_LEVEL.decode(ids) == text


@settings(max_examples=100)
@given(st.lists(st.integers(0, len(VOCABULARY) - 3), max_size=20))
def test_any_run_of_tokens_is_its_bytes_with_replacement(ids: list[int]) -> None:
    """Runs that are no UTF-8 give U+FFFD where `decode` does."""
    assert "".join(VOCABULARY.pieces(ids)) == BYTE_LEVEL.decode(ids)


@given(st.lists(st.binary(max_size=3) | st.sampled_from([b"\xf0\x9f", b"\x99\x82", b"\xe6\x97", b"\xa5"])))
def test_any_table_is_decoded_as_python_does(table: list[bytes]) -> None:
    """Joined pieces are the joined bytes under errors="replace", however the tokens cut them."""
    joined = "".join(Vocabulary(table).pieces(range(len(table))))
    assert joined == b"".join(table).decode("utf-8", "replace")


@given(
    st.lists(st.binary(max_size=3), min_size=1, max_size=20),
    st.lists(st.lists(st.integers(0, 25), min_size=6, max_size=6), max_size=8),
    st.data(),
)
def test_rows_of_tokens_are_read_as_each_alone(
    table: list[bytes], rows: list[list[int]], data: st.DataObject
) -> None:
    """Also ids beyond the table, and rows that are cut short."""
    vocabulary = Vocabulary(table)
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=len(rows), max_size=len(rows)))
    ids = np.array(rows, np.int32).reshape(-1, 6)
    found = vocabulary.pieces_of_rows(ids, np.array(lengths, np.uint16))
    assert found == [vocabulary.pieces(row[:n]) for row, n in zip(rows, lengths, strict=True)]


def test_a_shared_character_belongs_to_its_first_token() -> None:
    """An emoji in four tokens: the first has it, the others are empty, neighbours are untouched."""
    ids = [token(BYTE_LEVEL, character) for character in ("a", "ð", "Ł", "¦", "Ģ", "b")]  # a 🦀 b
    assert VOCABULARY.pieces(ids) == ("a", "🦀", "", "", "", "b")
    assert VOCABULARY.pieces(ids[:3]) == ("a", "\ufffd", "")
    assert VOCABULARY.pieces(ids[2:]) == ("\ufffd", "\ufffd", "\ufffd", "b")
    assert VOCABULARY.pieces([*ids[1:3], *ids[1:5]]) == ("\ufffd", "", "🦀", "", "", "")


def test_a_token_may_end_one_character_and_begin_another() -> None:
    """Each of its characters goes where its first byte is."""
    vocabulary = Vocabulary([b"\xc3", b"\xa9\xc3", b"\xa8x"])
    assert vocabulary.pieces([0, 1, 2]) == ("é", "è", "x")
    assert vocabulary.pieces([1, 2]) == ("\ufffdè", "x")


def test_added_tokens_are_their_own_text() -> None:
    """Special and added tokens stand for what they say, spaces and accents included."""
    ids = BYTE_LEVEL.encode("a<|end|>naïve é\n\n\nb")
    assert VOCABULARY.pieces(ids) == ("a", "<|end|>", "naïve é", "\n\n\n", "b")


def test_ids_the_tokenizer_does_not_have() -> None:
    """Rows that pad an embedding add no text, also within a character; negative ids are a mistake."""
    beyond, (first, second) = len(VOCABULARY), (token(BYTE_LEVEL, "Ã"), token(BYTE_LEVEL, "©"))
    assert VOCABULARY.pieces([first, beyond, second]) == ("é", "", "")
    with pytest.raises(ValueError, match="-1 is not a token id"):
        VOCABULARY.pieces([first, -1])
    assert VOCABULARY.pieces([]) == ()


# --- the other kinds --------------------------------------------------------------------------------------


def metaspace() -> Wrapped:
    """Unigram with ▁, as T5 has it."""
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def word_piece() -> Wrapped:
    """BERT's kind."""
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    model = models.WordPiece(unk_token="[UNK]")
    return _trained(model, trainer, pre_tokenizers.Whitespace(), decoders.WordPiece(cleanup=False))


def end_of_word() -> Wrapped:
    """The first GPT's kind: a suffix ends a word."""
    trainer = trainers.BpeTrainer(vocab_size=300, end_of_word_suffix="</w>", show_progress=False)
    model = models.BPE(end_of_word_suffix="</w>")
    return _trained(model, trainer, pre_tokenizers.Whitespace(), decoders.BPEDecoder())


def gemma() -> Wrapped:
    """Byte fallback, spaces kept as they are, runs of ▁ among the added tokens."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<bos>", *alphabet], show_progress=False)
    wrapped = _trained(
        models.BPE(byte_fallback=True),
        trainer,
        pre_tokenizers.Split(" ", "merged_with_previous"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        normalizers.Replace(" ", "▁"),
    )
    wrapped.backend_tokenizer.add_tokens(["▁▁▁"])
    return wrapped


@pytest.mark.parametrize("make", [metaspace, word_piece, end_of_word, gemma])
@pytest.mark.parametrize("text", ["the quick brown fox", "a  lazy   dog's café", "прыгает 🙂 狐", "x"])
def test_other_kinds_of_tokenizers_agree_with_decode(make: Any, text: str) -> None:
    """But for the space at the very ends, which belongs to a word and not to the run."""
    wrapped = make()
    ids = wrapped.encode(text)
    pieces = Vocabulary.of(wrapped).pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces).strip(" ") == wrapped.decode(ids).strip(" ")


@settings(max_examples=100)
@given(text=st.text(max_size=30))
def test_byte_fallback_gives_any_text_back(text: str) -> None:
    """Characters that no token has come in bytes and are put together again."""
    if "▁" in text or "<" in text:  # which these tokenizers themselves take for spaces and bytes
        return
    ids = _GEMMA.encode(text)
    assert "".join(_GEMMA_VOCABULARY.pieces(ids)) == text == _GEMMA.decode(ids)


_GEMMA = gemma()
_GEMMA_VOCABULARY = Vocabulary.of(_GEMMA)


def test_an_unknown_decoder_is_refused() -> None:
    """Text that would be guessed is no text."""
    backend = cast(Any, Tokenizer)(models.BPE())
    backend.decoder = decoders.CTC()
    with pytest.raises(ModelError, match=r'rule that isn.t known here: .*"CTC"'):
        Vocabulary.of(Wrapped(backend))


# --- tokenizers of real models ----------------------------------------------------------------------------


def real(name: str) -> Wrapped:
    """Without transformers, which takes seconds to import; test_subject.py goes through it."""
    file = REAL / name / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    return Wrapped(cast(Any, Tokenizer).from_file(str(file)))


def test_a_real_sentencepiece_tokenizer() -> None:
    """Llama-type, byte fallback: spaces, accents and emoji come back; behind BOS decode says the same."""
    tokenizer = real("stories260K")
    vocabulary = Vocabulary.of(tokenizer)
    assert len(vocabulary) == 512
    for text in ("Once upon a time", "naïve  café 🙂!", "tab\tand\nline", "日本"):
        ids = [token(tokenizer, "<s>"), *tokenizer.encode(text)]
        pieces = vocabulary.pieces(ids)
        assert pieces[0] == "<s>"
        assert "".join(pieces) == tokenizer.decode(ids) == f"<s> {text}"
        assert "".join(vocabulary.pieces(ids[1:])) == f" {text}"
    assert vocabulary.pieces(tokenizer.encode("🙂")) == (" ", "🙂", "", "", "")


def test_a_real_word_level_tokenizer() -> None:
    """Words are joined by spaces, and each brings its own."""
    tokenizer = real("toy-routing-gpt2")
    vocabulary = Vocabulary.of(tokenizer)
    ids = tokenizer.encode("f1 f2 SEL0")
    assert vocabulary.pieces(ids) == (" f1", " f2", " SEL0")
    assert "".join(vocabulary.pieces(ids)) == " " + tokenizer.decode(ids)


# --- the file ---------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    """The table, its identity and its pieces survive; another table has another identity."""
    path = tmp_path / "vocabulary.parquet"
    VOCABULARY.save(path)
    loaded = Vocabulary.load(path)
    ids = BYTE_LEVEL.encode("".join(MULTILINGUAL))
    assert len(loaded) == len(VOCABULARY)
    assert loaded.identity == VOCABULARY.identity
    assert loaded.pieces(ids) == VOCABULARY.pieces(ids)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert Vocabulary([b"ab", b"c"]).identity != Vocabulary([b"a", b"bc"]).identity


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """RunError for a missing file and for one that is none."""
    path = tmp_path / "vocabulary.parquet"
    with pytest.raises(RunError, match=r"vocabulary.parquet is not a readable"):
        Vocabulary.load(path)
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(RunError, match=r"vocabulary.parquet is not a readable"):
        Vocabulary.load(path)


def test_twenty_thousand_windows_take_about_a_second() -> None:
    """Real runs ask for hundreds of thousands; the limit is loose because test machines are busy."""
    ids = BYTE_LEVEL.encode("".join(MULTILINGUAL) + MULTILINGUAL[0] * 10)
    windows = [ids[start : start + 32] for start in range(len(ids) - 32)]
    windows = (windows * (20_000 // len(windows) + 1))[:20_000]
    began = time.perf_counter()
    for window in windows:
        VOCABULARY.pieces(window)
    assert time.perf_counter() - began < 5.0
