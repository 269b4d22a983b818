"""Windows, bands, splits and silence against slow, obvious references, over made-up corpora."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.cap import shard_arrays
from autointerp.activations.rows import (
    Mark,
    Rows,
    RowShard,
    RowStore,
    make_rows,
    row_dtype,
    rows_of,
    save_rows,
)
from autointerp.activations.shards import FiringShard, FiringStore, save_shard, sort_by_feature
from autointerp.sampling import windows as cut
from autointerp.sampling.sample import SPLITS, Sampled, Sampler, split_of
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.store import Windows, save_windows
from autointerp.types import FeatureId

C = 64
FEW = SamplingSettings(
    width=16, context_before=5, n_shown=10, n_shown_silent=10, n_select=5, n_heldout=10, n_heldout_silent=10,
    minimum=12, minimum_full=30, minimum_documents=4, minimum_split=2, overlap=13,
)  # fmt: skip


@dataclasses.dataclass
class Made:
    """A made-up corpus and what one feature does on it."""

    rows: RowStore
    firings: FiringStore
    tokens: NDArray[np.int64]
    values: NDArray[np.float32]

    def sample(self, given: SamplingSettings, feature: int = 7) -> Sampled:
        sampler = Sampler(self.rows, self.firings, given, seed=0, first=1)
        return sampler.sample(FeatureId("d", feature), self.tokens, self.values)


def make(seed: int, n_documents: int, rate: float, n_masked: int = 0, boilerplate: float = 0.3) -> Made:
    """Documents of 10 to 200 tokens; a share of them hold the same 20 tokens somewhere."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, 500, 20, dtype=np.uint32)
    made: list[Rows] = []
    for document in range(n_documents):
        ids = rng.integers(3, 500, int(rng.integers(10, 200)), dtype=np.uint32)
        if rng.random() < boilerplate and len(ids) > 30:
            at = int(rng.integers(0, len(ids) - 20))
            ids[at : at + 20] = shared
        made.append(rows_of(document * 0x9E3779B97F4A7C15 % 2**64, ids, C, bos=1))
    rows = np.concatenate(made)
    folder = Path(tempfile.mkdtemp())
    half = len(rows) // 2  # two shards, so that numbering over shards is tested
    pieces = [(0, rows[:half]), (half, rows[half:])] if half else [(0, rows)]
    shards: list[RowShard] = []
    fired: list[FiringShard] = []
    tokens_of: list[NDArray[np.int64]] = []
    values_of: list[NDArray[np.float32]] = []
    for first_row, piece in pieces:
        path = folder / f"{first_row}.npy"
        save_rows(path, piece)
        shards.append(RowShard(str(first_row), first_row, len(piece), path))
        looked_at = (np.arange(C) >= 1) & (np.arange(C) < piece["length"][:, None])
        places = np.flatnonzero(looked_at)
        masked = np.sort(rng.choice(places, min(n_masked, len(places)), replace=False))
        places = np.setdiff1d(places, masked)
        tokens = places[rng.random(len(places)) < rate]
        values = rng.choice([0.5, 1.0, 2.0, 3.5], len(tokens)).astype(np.float32)  # with ties
        sorted_firings = sort_by_feature(
            np.full(len(tokens), 7, np.int32), tokens.astype(np.int32), values, len(piece) * C, 8
        )
        save_shard(
            folder / f"{first_row}.safetensors", shard_arrays(sorted_firings, masked, piece, len(rows))
        )
        fired.append(FiringShard(folder / f"{first_row}.safetensors", first_row))
        tokens_of.append(tokens + first_row * C)
        values_of.append(values)
    store = FiringStore(fired, C)
    made_up = Made(RowStore(shards, bos=True), store, np.concatenate(tokens_of), np.concatenate(values_of))
    read = store.read(0, 100)
    assert np.array_equal(read.tokens, made_up.tokens) and np.array_equal(read.values, made_up.values)
    return made_up


def corpora() -> st.SearchStrategy[Made]:
    return st.builds(
        make,
        seed=st.integers(0, 2**32),
        n_documents=st.integers(1, 150),
        rate=st.sampled_from([0.0, 0.003, 0.02, 0.2, 0.9, 1.0]),
        n_masked=st.sampled_from([0, 5, 60]),
    )


KINDS = st.sampled_from([FEW, dataclasses.replace(FEW, window="aligned")])


def token_list(made: Made, row: int, start: int, length: int) -> list[int]:
    return made.rows.tokens(np.array([row]), np.array([start]), length)[0].tolist()


def runs_of(ids: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)}


@settings(max_examples=60, deadline=None)
@given(made=corpora(), given_settings=KINDS)
def test_what_is_shown_and_what_is_held_out_share_no_document_and_no_run(
    made: Made, given_settings: SamplingSettings
) -> None:
    """Also what is selected on; documents by their ids, runs by comparing every tuple of 13 tokens."""
    sampled = made.sample(given_settings)
    documents: dict[str, set[int]] = {}
    runs: dict[str, set[tuple[int, ...]]] = {}
    for name in SPLITS:
        documents[name], runs[name] = set(), set()
        for places in (sampled.splits[name].active, sampled.splits[name].silent):
            for at in range(len(places)):
                row, start, length = places.row[at], places.start[at], places.length[at]
                documents[name].add(int(made.rows.document[row]))
                runs[name] |= runs_of(token_list(made, row, start, length), given_settings.overlap)
    for before, after in (("shown", "select"), ("shown", "heldout"), ("select", "heldout")):
        assert not documents[before] & documents[after]
        assert not runs[before] & runs[after]


@settings(max_examples=60, deadline=None)
@given(made=corpora(), given_settings=KINDS)
def test_silent_windows_hold_no_firing_and_match_an_active_one_in_position_and_length(
    made: Made, given_settings: SamplingSettings
) -> None:
    sampled = made.sample(given_settings)
    fired = set(made.tokens.tolist())
    masked = set(made.firings.masked.tolist())
    for name in SPLITS:
        split = sampled.splits[name]
        shapes = set(zip(split.active.start.tolist(), split.active.length.tolist(), strict=True))
        seen: set[int] = set()
        for row, start, length in zip(split.silent.row, split.silent.start, split.silent.length, strict=True):
            tokens = set(range(row * C + start, row * C + start + length))
            assert not tokens & fired
            assert not tokens & masked  # nobody looked there, so nobody knows
            assert (int(start), int(length)) in shapes
            assert start + length <= made.rows.length[row]
            assert not tokens & seen
            seen |= tokens


@settings(max_examples=60, deadline=None)
@given(made=corpora(), given_settings=KINDS)
def test_active_windows_hold_a_firing_stay_in_their_row_and_do_not_overlap(
    made: Made, given_settings: SamplingSettings
) -> None:
    places = cut.active_places(made.tokens, made.rows, given_settings, 1, key=5)
    fired = set(made.tokens.tolist())
    taken: set[int] = set()
    for row, start, length in zip(places.row, places.start, places.length, strict=True):
        tokens = set(range(row * C + start, row * C + start + length))
        inside = tokens & fired
        assert inside and not tokens & taken
        taken |= tokens
        assert start >= 1 and start + length <= made.rows.length[row]
        assert (
            length == min(given_settings.width, made.rows.length[row] - 1)
            or given_settings.window == "aligned"
        )
        if given_settings.window == "anchored" and start > 1:
            # some firing has its context before it inside the window
            assert max(inside) - (row * C + start) >= given_settings.context_before


@settings(max_examples=40, deadline=None)
@given(made=corpora())
def test_aligned_windows_are_the_fixed_blocks_that_hold_a_firing(made: Made) -> None:
    given_settings = dataclasses.replace(FEW, window="aligned")
    places = cut.active_places(made.tokens, made.rows, given_settings, 1, key=5)
    expected: set[tuple[int, int, int]] = set()
    for token in made.tokens.tolist():
        row, position = divmod(token, C)
        start = 1 + (position - 1) // 16 * 16
        length = min(16, int(made.rows.length[row]) - start)
        if length == 16 or start == 1:
            expected.add((row, start, length))
    found = set(zip(places.row.tolist(), places.start.tolist(), places.length.tolist(), strict=True))
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(made=corpora(), given_settings=KINDS)
def test_maxima_and_bands_equal_a_slow_reference(made: Made, given_settings: SamplingSettings) -> None:
    places = cut.active_places(made.tokens, made.rows, given_settings, 1, key=5)
    value = dict(zip(made.tokens.tolist(), made.values.tolist(), strict=True))
    slow = [
        max(value.get(row * C + p, 0.0) for p in range(start, start + length))
        for row, start, length in zip(places.row, places.start, places.length, strict=True)
    ]
    fast = cut.maxima(places, made.tokens, made.values, C)
    assert fast.tolist() == slow
    hashes = draw.mix(1, places.items(made.rows))
    band = cut.bands(fast, hashes, 10)
    ranked = sorted(range(len(slow)), key=lambda at: (-slow[at], int(hashes[at])))
    assert [int(band[at]) for at in ranked] == [rank * 10 // len(ranked) for rank in range(len(ranked))]


@settings(max_examples=60, deadline=None)
@given(
    band=st.lists(st.integers(0, 9), max_size=120),
    n=st.integers(1, 60),
    more=st.integers(0, 60),
    seed=st.integers(0, 2**32),
)
def test_a_larger_draw_over_bands_contains_the_smaller(band: list[int], n: int, more: int, seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**63, len(band)).astype(np.uint64)
    small = cut.spread_over_bands(np.array(band, np.int64), hashes, n, 10)
    large = cut.spread_over_bands(np.array(band, np.int64), hashes, n + more, 10)
    assert len(small) == min(n, len(band)) == len(set(small.tolist()))
    assert set(small.tolist()) <= set(large.tolist())


def test_bands_are_drawn_from_evenly() -> None:
    """100 windows, 10 a band: 40 are 4 of each, and 43 give the odd ones to the three strongest."""
    band = np.repeat(np.arange(10), 10)
    hashes = np.random.default_rng(0).integers(0, 2**63, 100).astype(np.uint64)
    counts = np.bincount(band[cut.spread_over_bands(band, hashes, 40, 10)], minlength=10)
    assert counts.tolist() == [4] * 10
    counts = np.bincount(band[cut.spread_over_bands(band, hashes, 43, 10)], minlength=10)
    assert counts.tolist() == [5, 5, 5, 4, 4, 4, 4, 4, 4, 4]


def test_the_split_takes_its_shares_and_depends_on_the_document_and_the_seed_alone() -> None:
    documents = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    split = split_of(documents, 0, (0.4, 0.2, 0.4))
    shares = np.bincount(split) / len(split)
    assert np.allclose(shares, [0.4, 0.2, 0.4], atol=0.015)
    assert np.array_equal(split[::-1], split_of(documents[::-1], 0, (0.4, 0.2, 0.4)))
    assert not np.array_equal(split, split_of(documents, 1, (0.4, 0.2, 0.4)))


def test_statuses() -> None:
    """Never fires; too rarely; enough; nearly everywhere; in too few documents."""
    assert make(1, 50, 0.0).sample(FEW).sample.status == "dead"
    assert make(1, 50, 0.001).sample(FEW).sample.status == "too_few"
    assert make(1, 150, 0.01).sample(FEW).sample.status == "full"
    assert make(1, 150, 0.01).sample(dataclasses.replace(FEW, minimum_full=5000)).sample.status == "small"
    assert make(1, 150, 1.0).sample(FEW).sample.status == "dense"
    assert make(1, 3, 0.5).sample(FEW).sample.status == "too_few"


def test_counts_are_exact() -> None:
    made = make(3, 80, 0.05, n_masked=9)
    sample = made.sample(FEW).sample
    assert sample.n_fired == len(made.tokens)
    assert sample.n_tokens == int((made.rows.length - 1).sum()) - len(made.firings.masked)
    assert sample.maximum == float(made.values.max())
    assert sample.mean == pytest.approx(float(made.values.astype(np.float64).mean()))
    assert sample.n_documents == len({int(made.rows.document[token // C]) for token in made.tokens})


def test_a_feature_is_sampled_alike_whatever_else_is_sampled() -> None:
    made = make(4, 100, 0.03)
    sampler = Sampler(made.rows, made.firings, FEW, seed=0, first=1)
    alone = sampler.sample(FeatureId("d", 7), made.tokens, made.values).sample
    sampler.sample(FeatureId("d", 8), made.tokens[::2], made.values[::2])
    assert sampler.sample(FeatureId("d", 7), made.tokens, made.values).sample == alone
    other = sampler.sample(FeatureId("d", 9), made.tokens, made.values).sample
    assert other.shown != alone.shown  # the draw is the feature's own


class Letters:
    """A vocabulary in which token n is `<n>`."""

    def pieces(self, token_ids: object) -> tuple[str, ...]:
        return tuple(f"<{n}>" for n in token_ids)  # type: ignore[attr-defined]


@settings(max_examples=20, deadline=None)
@given(made=corpora())
def test_windows_come_back_from_the_store_as_they_were(made: Made) -> None:
    sampled = made.sample(FEW)
    path = Path(tempfile.mkdtemp()) / "windows.parquet"
    save_windows(path, [sampled], made.rows)
    stored = Windows(path, Letters())  # type: ignore[arg-type]
    value = dict(zip(made.tokens.tolist(), made.values.tolist(), strict=True))
    for name, windows in (("shown", stored.shown("d/7")), ("heldout", stored.heldout("d/7"))):
        split = sampled.splits[name]  # type: ignore[index]
        assert (len(windows.active), len(windows.silent)) == (len(split.active), len(split.silent))
        assert [window.band for window in windows.active] == split.band.tolist()
        for places, found in ((split.active, windows.active), (split.silent, windows.silent)):
            for at, window in enumerate(found):
                row, start, length = int(places.row[at]), int(places.start[at]), int(places.length[at])
                assert list(window.token_ids) == token_list(made, row, start, length)
                expected = [value.get(row * C + p, 0.0) for p in range(start, start + length)]
                assert list(window.activations) == expected
                assert int(window.document, 16) == int(made.rows.document[row])
                assert window.position == int(made.rows.position[row]) + start - 1


# --- rows ----------------------------------------------------------------------------------------------


def test_rows_cut_documents_and_put_bos_before_each_row() -> None:
    """40 tokens in rows of 17 with BOS: 16 + 16, and the tail of 8 is dropped as too short."""
    rows = rows_of(9, np.arange(100, 140, dtype=np.uint32), 17, bos=1)
    assert rows["length"].tolist() == [17, 17]
    assert rows["position"].tolist() == [0, 16]
    assert rows["tokens"][1].tolist() == [1, *range(116, 132)]
    whole = rows_of(9, np.arange(8, dtype=np.uint32), 17, bos=None)
    assert (len(whole), int(whole["length"][0]), whole["tokens"][0, :9].tolist()) == (1, 8, [*range(8), 0])


def test_shards_of_rows_are_filled_in_order_until_the_tokens_are_reached() -> None:
    made: list[tuple[Mark, Rows]] = []
    documents = ((n, np.full(10, n, np.uint32)) for n in range(1, 100))
    make_rows(
        documents,
        context_length=11,
        bos=0,
        rows_per_shard=4,
        n_tokens=95,
        on_shard=lambda rows, mark: made.append((mark, rows)),
    )
    assert [len(rows) for _, rows in made] == [4, 4, 2]
    # 40 and 80 tokens behind 4 and 8 whole documents; the last one is cut to 5 tokens.
    assert [mark for mark, _ in made] == [Mark(4, 40, 4), Mark(8, 80, 8), Mark(10, 95, 10)]
    assert sum(int((rows["length"] - 1).sum()) for _, rows in made) == 95
    assert made[0][1].dtype == row_dtype(11)
