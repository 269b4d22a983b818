"""From documents to token rows: what a row holds, and going on behind any kill."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from autointerp import pipeline
from autointerp.activations.rows import START, Mark, Rows, make_rows, row_shards
from autointerp.errors import CorpusError, Interrupted
from autointerp.progress import Silent, Stop
from autointerp.run import Run
from autointerp.stages.rows import read_corpus
from autointerp.subject.corpus import Document
from autointerp.subject.tokenizer import Tokenised
from tiny import Tiny

# --- packing -------------------------------------------------------------------------------------------


def packed(
    lengths: list[int], *, context: int, bos: int | None, per_shard: int, n_tokens: int, begin: Mark = START
) -> list[tuple[Mark, bytes]]:
    """Shards of documents of these lengths, made behind `begin`."""
    made: list[tuple[Mark, bytes]] = []

    def lists() -> Iterator[tuple[int, NDArray[np.uint32]]]:
        for number in range(begin.n_documents, len(lengths)):
            ids = np.arange(lengths[number], dtype=np.uint32) + 1000 * (number + 1)
            yield number, ids

    def on_shard(rows: Rows, mark: Mark) -> None:
        made.append((mark, rows.tobytes()))

    make_rows(
        lists(), context_length=context, bos=bos, rows_per_shard=per_shard, n_tokens=n_tokens,
        on_shard=on_shard, begin=begin,
    )  # fmt: skip
    return made


def test_a_shard_may_end_inside_a_document_and_says_so() -> None:
    """45 tokens in rows of 1 + 10: four rows, the tail of 5 dropped as too short. Two rows a shard: the first
    ends inside the document, the second behind it. Then 3 and 12 tokens, of which the last 2 are too few."""
    marks = [mark for mark, _ in packed([45, 3, 12], context=11, bos=0, per_shard=2, n_tokens=1000)]
    assert marks == [Mark(2, 20, 0, 2), Mark(4, 40, 1, 0), Mark(6, 53, 3, 0)]


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 70), max_size=12),
    context=st.integers(2, 24),
    bos=st.sampled_from([None, 7]),
    per_shard=st.integers(1, 5),
    n_tokens=st.integers(1, 300),
)
def test_going_on_behind_any_shard_makes_the_same_rows(
    lengths: list[int], context: int, bos: int | None, per_shard: int, n_tokens: int
) -> None:
    def made(begin: Mark) -> list[tuple[Mark, bytes]]:
        return packed(lengths, context=context, bos=bos, per_shard=per_shard, n_tokens=n_tokens, begin=begin)

    unbroken = made(START)
    for number, (mark, _) in enumerate(unbroken, start=1):
        assert made(mark) == unbroken[number:]


# --- a run's rows --------------------------------------------------------------------------------------


class Counting:
    """A tokenizer that counts the documents it is given."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.n = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.n += len(texts)
        return self._inner(texts, **options)


class StopAfter(Silent):
    """Asks to stop when so many shards are written; the one behind them is not."""

    def __init__(self, n_shards: int, stop: Stop) -> None:
        self._left, self._stop = n_shards, stop
        if not n_shards:
            stop.set()

    def advance(self, n: int = 1) -> None:
        self._left -= 1
        if self._left <= 0:
            self._stop.set()


@pytest.fixture(scope="module")
def tokenizer(made: Tiny) -> Any:
    return AutoTokenizer.from_pretrained(made.model)


def a_run(made: Tiny, corpus: Path, out: Path, n_tokens: int = 8000, **section: Any) -> Run:
    recipe = made.recipe(
        corpus={"path": str(corpus), **section},
        cache={"n_tokens": n_tokens, "shard_tokens": 512, "context_length": 64},
    )
    _, run = pipeline.prepare(recipe, out)
    return run


def content(run: Run) -> tuple[list[bytes], list[bytes]]:
    """Records and files of the rows."""
    records = [orjson.dumps(record) for record in run.rows().records()]
    return records, [shard.path.read_bytes() for shard in row_shards(run.rows())]


@pytest.fixture(scope="module")
def corpus(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of many rows and of a few tokens, one in three of them twice."""
    texts = made.corpus.read_text().split("<|endoftext|>")[:60]
    texts = [text * (1 + 3 * (number % 11 == 0)) for number, text in enumerate(texts)]
    both = [text for number, text in enumerate(texts) for _ in range(2 if number % 3 == 0 else 1)]
    path = tmp_path_factory.mktemp("doubles") / "corpus.txt"
    path.write_text("<|endoftext|>".join([*both[: len(both) // 2], *both]), encoding="utf-8")
    return path


@settings(max_examples=8)
@given(kills=st.lists(st.integers(0, 9), max_size=4))
def test_killed_at_any_shard_rows_are_those_of_an_unbroken_run(
    made: Tiny, corpus: Path, tokenizer: Any, kills: list[int]
) -> None:
    """Records and files, byte for byte; and nothing behind a finished shard is tokenised twice."""
    with tempfile.TemporaryDirectory() as folder:
        unbroken = a_run(made, corpus, Path(folder) / "unbroken")
        read_corpus(unbroken, tokenizer, Silent(), Stop())
        run = a_run(made, corpus, Path(folder) / "killed")
        for n_shards in kills:
            stop = Stop()
            try:
                read_corpus(run, tokenizer, StopAfter(n_shards, stop), stop)
            except Interrupted:
                continue
            break
        if not run.has_all_rows():
            read_corpus(run, tokenizer, Silent(), Stop())
        assert content(run) == content(unbroken)


def test_what_is_made_is_not_tokenised_again(
    made: Tiny, corpus: Path, tokenizer: Any, tmp_path: Path
) -> None:
    run = a_run(made, corpus, tmp_path / "run")
    stop = Stop()
    with pytest.raises(Interrupted):
        read_corpus(run, tokenizer, StopAfter(10, stop), stop)
    behind = [run.rows().read(unit)[unit] for unit in run.rows().units()][-1]
    assert behind["n_documents"] > 5
    again = Counting(tokenizer)
    read_corpus(run, again, Silent(), Stop())
    assert again.n == 60 - behind["n_documents"]  # 60 different documents, read in one batch


def test_killed_behind_the_last_shard_nothing_is_made_again(
    made: Tiny, corpus: Path, tokenizer: Any, tmp_path: Path
) -> None:
    run = a_run(made, corpus, tmp_path / "run")
    read_corpus(run, tokenizer, Silent(), Stop())
    before = content(run)
    for part in run.rows().parts("all"):
        part.unlink()
    again = Counting(tokenizer)
    read_corpus(run, again, Silent(), Stop())
    assert content(run) == before and again.n == 0


def test_a_shard_deleted_in_the_middle_is_made_again(
    made: Tiny, corpus: Path, tokenizer: Any, tmp_path: Path
) -> None:
    run = a_run(made, corpus, tmp_path / "run")
    read_corpus(run, tokenizer, Silent(), Stop())
    before = content(run)
    (part,) = run.rows().parts("000000016")
    for path in (part, part.with_suffix(".npy"), *run.rows().parts("all")):
        path.unlink()
    read_corpus(run, tokenizer, Silent(), Stop())
    assert content(run) == before


def test_no_row_holds_two_documents_and_each_begins_with_bos(
    made: Tiny, corpus: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Against the tokenizer itself: a document's rows joined are its tokens, but for a short tail."""
    run = a_run(made, corpus, tmp_path / "run", n_tokens=100_000)
    read_corpus(run, tokenizer, Silent(), Stop())
    texts = list(dict.fromkeys(corpus.read_text().split("<|endoftext|>")))
    joined: dict[int, list[int]] = {}
    for shard in row_shards(run.rows()):
        for row in shard.read():
            assert row["tokens"][0] == tokenizer.bos_token_id
            ids = joined.setdefault(int(row["document"]), [])
            assert row["position"] == len(ids)
            ids += row["tokens"][1 : row["length"]].tolist()
    assert len(joined) == len(texts)
    for text, ids in zip(texts, joined.values(), strict=True):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == expected[: len(ids)] and len(expected) - len(ids) < 16


def test_a_first_document_that_fills_the_budget_is_refused(
    made: Tiny, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(f"{name}\n" + "cat dog\n" * 4000)
    run = a_run(made, tmp_path / "texts", tmp_path / "run", n_tokens=63 * 100)
    with pytest.raises(CorpusError, match=r"first document.*alone has the 6,300 tokens.*document=line"):
        read_corpus(run, tokenizer, Silent(), Stop())


def test_a_text_that_a_tokenizer_has_no_tokens_for_is_named() -> None:
    """One of whole words, without a token for what it doesn't know."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = iter([Document("01", "a b a"), Document("02", "a sea of words"), Document("03", "b")])
    found = Tokenised(texts, PreTrainedTokenizerFast(tokenizer_object=words), None, Stop())
    with pytest.raises(
        CorpusError, match=r"can't take a document that begins with 'a sea of words': WordLevel.*UNK"
    ):
        list(found)


def test_a_dry_run_reads_the_first_documents(made: Tiny, tmp_path: Path) -> None:
    """A field that isn't there, and a corpus of one document, are errors before anything starts."""
    (tmp_path / "a.jsonl").write_text('{"content": "a"}\n{"content": "b"}\n')
    with pytest.raises(CorpusError, match="no field 'text'"):
        a_run(made, tmp_path / "a.jsonl", tmp_path / "run")
    (tmp_path / "b.txt").write_text("one text")
    with pytest.raises(CorpusError, match="single document"):
        a_run(made, tmp_path / "b.txt", tmp_path / "run")
    assert not (tmp_path / "run").exists()
