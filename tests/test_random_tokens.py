"""Random tokens: which are drawn, how often, and that they are the same from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare
from transformers import AutoTokenizer

from autointerp import draw, pipeline
from autointerp.activations.random_tokens import (
    N_REFERENCE_TOKENS,
    TokenUrn,
    drawable,
    random_documents,
    random_rows,
)
from autointerp.activations.rows import row_shards
from autointerp.errors import CorpusError, Interrupted, RecipeChanged
from autointerp.progress import Silent, Stop
from autointerp.run import Run
from autointerp.stages.rows import read_corpus
from autointerp.subject.corpus import CorpusSpec, corpus_identity
from tiny import Tiny


def ids(*numbers: int) -> NDArray[np.uint32]:
    return np.array(numbers, np.uint32)


@pytest.fixture(scope="module")
def tokenizer(made: Tiny) -> Any:
    return AutoTokenizer.from_pretrained(made.model)


# --- drawing -------------------------------------------------------------------------------------------


def test_the_urn_is_counted() -> None:
    """Of 5, 7, 9, 11 the lists hold 7 once, 9 three times, 11 not at all; 8 may not be drawn."""
    lists = [(1, ids(7, 9, 8)), (2, ids(9, 9, 8))]
    urn = TokenUrn.unigram(ids(5, 7, 9, 11), lists)
    assert urn.cumulative.tolist() == [0, 1, 4, 4]
    assert TokenUrn.unigram(ids(5, 7), [(1, ids(8))]).cumulative.tolist() == [1, 2]
    n = N_REFERENCE_TOKENS
    cut = TokenUrn.unigram(ids(5, 7), [(1, np.full(n - 1, 5, np.uint32)), (2, ids(7, 7, 7))])
    assert cut.cumulative.tolist() == [n - 1, n]


def test_each_token_is_its_own_hash() -> None:
    """Against the formula, one position at a time."""
    urn = TokenUrn(ids(5, 7, 9), np.array([2, 2, 10]))  # 7 has no balls
    drawn = urn.draw(3, 41, 50)
    key = draw.key(3, "random-tokens", 41)
    for position, token in enumerate(drawn):
        number = int(draw.mix(key, np.array([position], np.uint64))[0]) >> 11
        assert token == (5 if number * 10 // 2**53 < 2 else 9)


def test_frequencies_are_those_of_the_urn() -> None:
    weights = np.array([1, 2, 3, 4, 10])
    urn = TokenUrn(ids(10, 20, 30, 40, 50), np.cumsum(weights))
    drawn = np.concatenate([urn.draw(0, document, 100) for document in range(400)])
    counts = np.array([(drawn == token).sum() for token in urn.token_ids])
    assert chisquare(counts, weights / 20 * len(drawn)).pvalue > 0.001
    # Neighbours are independent: 400 x 99 pairs are spread as the products of the weights.
    places = np.searchsorted(urn.token_ids, drawn.reshape(-1, 100))
    pairs = np.bincount((places[:, :-1] * 5 + places[:, 1:]).ravel(), minlength=25)
    assert chisquare(pairs, np.outer(weights, weights).ravel() / 400 * pairs.sum()).pvalue > 0.001


@settings(max_examples=30)
@given(seed=st.integers(0, 5), first=st.integers(0, 9), length=st.integers(1, 40))
def test_documents_are_the_same_from_anywhere(seed: int, first: int, length: int) -> None:
    urn = TokenUrn.uniform(np.arange(100, dtype=np.uint32))
    from_start = random_documents(urn, length=length, seed=seed)
    expected = [next(from_start) for _ in range(12)][first:]
    there = random_documents(urn, length=length, seed=seed, first=first)
    for (document, tokens), (other, others) in zip(expected, there, strict=False):
        assert document == other and tokens.tolist() == others.tolist()
    assert urn.draw(seed, first, length + 5)[:length].tolist() == expected[0][1].tolist()


def test_special_tokens_and_holes_are_not_drawn(tokenizer: Any) -> None:
    assert drawable(tokenizer).tolist() == list(range(1, 300))  # 0 is <|endoftext|>


# --- rows ----------------------------------------------------------------------------------------------


def test_rows_hold_so_many_tokens() -> None:
    """25 tokens in rows of 1 + 10: 10, 10 and 5."""
    urn = TokenUrn.uniform(np.arange(5, 50, dtype=np.uint32))
    rows = random_rows(urn, n_tokens=25, context_length=11, bos=3, seed=0)
    assert rows["length"].tolist() == [11, 11, 6]
    assert rows["tokens"][:, 0].tolist() == [3, 3, 3] and (rows["position"] == 0).all()
    assert len(set(rows["document"].tolist())) == 3
    more = random_rows(urn, n_tokens=20, context_length=11, bos=3, seed=0)
    assert more.tobytes() == rows[:2].tobytes()
    assert random_rows(urn, n_tokens=20, context_length=10, bos=None, seed=1)["length"].tolist() == [10, 10]


def a_run(made: Tiny, out: Path, seed: int = 0, **section: Any) -> Run:
    recipe = made.recipe(
        corpus={"path": "random-tokens"} | section,
        cache={"n_tokens": 3000, "shard_tokens": 512, "context_length": 64},
        seed=seed,
    )
    return pipeline.prepare(recipe, out)[1]


def rows_made(run: Run) -> Any:
    return np.concatenate([shard.read() for shard in row_shards(run.rows())])


def test_a_run_on_random_tokens_goes_on_where_it_was_killed(
    made: Tiny, tokenizer: Any, tmp_path: Path
) -> None:
    run = a_run(made, tmp_path / "run")
    stop = Stop()

    class StopAtOnce(Silent):
        def advance(self, n: int = 1) -> None:
            stop.set()

    with pytest.raises(Interrupted):
        read_corpus(run, tokenizer, StopAtOnce(), stop)
    read_corpus(run, tokenizer, Silent(), Stop())
    urn = TokenUrn.uniform(drawable(tokenizer))
    expected = random_rows(urn, n_tokens=3000, context_length=64, bos=0, seed=0)
    assert rows_made(run).tobytes() == expected.tobytes()


def test_unigram_follows_the_reference(made: Tiny, tokenizer: Any, tmp_path: Path) -> None:
    run = a_run(made, tmp_path / "run", distribution="unigram", reference=str(made.corpus))
    read_corpus(run, tokenizer, Silent(), Stop())
    texts = made.corpus.read_text().split("<|endoftext|>")
    count = np.bincount(
        np.concatenate(tokenizer(texts, add_special_tokens=False)["input_ids"]), minlength=300
    )
    drawn = np.bincount(rows_made(run)["tokens"][:, 1:].ravel(), minlength=300)
    drawn[0] = 0  # behind the end of the last row
    assert not drawn[count == 0].any()
    assert np.corrcoef(count, drawn)[0, 1] > 0.95


def test_seed_and_reference_are_part_of_what_rows_are_made_from(
    made: Tiny, tokenizer: Any, tmp_path: Path
) -> None:
    run = a_run(made, tmp_path / "run")
    run.save()
    read_corpus(run, tokenizer, Silent(), Stop())
    with pytest.raises(RecipeChanged, match="seed: was 0, is now 1"):
        a_run(made, tmp_path / "run", seed=1)
    uniform = corpus_identity(CorpusSpec("random-tokens"))
    one, two = tmp_path / "1.txt", tmp_path / "2.txt"
    one.write_text("a<|endoftext|>b")
    two.write_text("a<|endoftext|>c")
    referred = [
        corpus_identity(CorpusSpec("random-tokens", distribution="unigram", reference=str(path)))
        for path in (one, two)
    ]
    assert len({uniform, *referred}) == 3


@pytest.mark.parametrize(
    "more",
    [{"distribution": "unigram"}, {"reference": "stdlib"}],
)
def test_unigram_wants_a_reference_and_uniform_none(more: dict[str, Any]) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.reference.*set both"):
        corpus_identity(CorpusSpec("random-tokens", **more))
    with pytest.raises(CorpusError, match="random-tokens too"):
        corpus_identity(CorpusSpec("random-tokens", distribution="unigram", reference="random-tokens"))


def test_the_whole_line_runs_on_random_tokens(made: Tiny, tmp_path: Path) -> None:
    run = pipeline.explain(
        made.recipe(
            corpus={"path": "random-tokens"},
            cache={"n_tokens": 12_000, "shard_tokens": 4096},
            features={"n": 3},
        ),
        out=tmp_path / "run",
    )
    assert {row["status"] for row in run.features().to_pylist()} & {"full", "small"}
