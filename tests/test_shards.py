"""Shards, caps and what is read of them, against slow, obvious references."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from autointerp.activations.cap import FEWEST_ROWS, shard_arrays, share
from autointerp.activations.firing_store import FiringStore
from autointerp.activations.firings import Firings
from autointerp.activations.histogram import EDGES, N_BINS, histograms
from autointerp.activations.rows import Rows, row_dtype
from autointerp.activations.shards import FiringShard, save_shard, sort_by_feature

C = 8
"""Tokens a row."""
WIDTH = 12

Triples = list[tuple[int, int, float]]
"""(feature, token, value); the token counts over the whole cache."""


@dataclass
class Case:
    """Firings of a cache in shards of rows."""

    rows_a_shard: list[int]
    triples: Triples
    max_rows: int

    @property
    def n_rows(self) -> int:
        return sum(self.rows_a_shard)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows_a_shard = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    n_tokens = sum(rows_a_shard) * C
    places = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, n_tokens - 1))
    chosen = draw(st.lists(places, unique=True, max_size=80))
    everywhere = draw(st.sets(st.integers(0, WIDTH - 1), max_size=2))  # features that fire on every token
    chosen = sorted({*chosen, *((f, t) for f in everywhere for t in range(n_tokens))})
    values = st.sampled_from([2.0**-20, 0.5, 1.0, 1.5, 1.5, 3.25, 2.0**17])  # with ties
    triples = [(feature, token, draw(values)) for feature, token in chosen]
    return Case(rows_a_shard, triples, draw(st.integers(2, 14)))


def rows_of(first_row: int, n: int) -> Rows:
    rows = np.zeros(n, row_dtype(C))
    rows["document"] = 1_000 + np.arange(first_row, first_row + n)
    rows["length"] = C
    return rows


def store_of(case: Case, folder: Path, *, shuffle: int = 0) -> FiringStore:
    rng = np.random.default_rng(shuffle)
    shards: list[FiringShard] = []
    first_row = 0
    for n in case.rows_a_shard:
        begin, end = first_row * C, (first_row + n) * C
        mine = [t for t in case.triples if begin <= t[1] < end]
        order = rng.permutation(len(mine))
        feature = np.array([mine[i][0] for i in order], np.int32)
        token = np.array([mine[i][1] - begin for i in order], np.int32)
        value = np.array([mine[i][2] for i in order], np.float32)
        sorted_firings = sort_by_feature(feature, token, value, n * C, WIDTH)
        masked = np.array([0, n * C - 1], np.int64)
        path = folder / f"{first_row}.safetensors"
        save_shard(path, shard_arrays(sorted_firings, masked, rows_of(first_row, n), case.max_rows))
        shards.append(FiringShard(path, first_row))
        first_row += n
    return FiringStore(shards, C)


def piece(firings: Firings, feature: int) -> Triples:
    at = firings.at(feature)
    if at is None:
        return []
    where = slice(int(firings.offsets[at]), int(firings.offsets[at + 1]))
    pairs = zip(firings.tokens[where].tolist(), firings.values[where].tolist(), strict=True)
    return [(feature, token, value) for token, value in pairs]


def slow_bin(value: float) -> int:
    return sum(1 for edge in EDGES if np.float32(value) >= np.float32(edge))


@settings(max_examples=150)
@given(cases(), st.integers(0, 5))
def test_what_is_read_is_what_fired(case: Case, shuffle: int) -> None:
    """Without a cap: every firing, in order; counts, sums and histograms counted one by one."""
    case = Case(case.rows_a_shard, case.triples, max_rows=10**6)
    with tempfile.TemporaryDirectory() as folder:
        firings = store_of(case, Path(folder), shuffle=shuffle).read(0, WIDTH)
    for feature in range(WIDTH):
        mine = [t for t in case.triples if t[0] == feature]
        assert piece(firings, feature) == mine
        at = firings.at(feature)
        assert (at is None) == (not mine)
        if at is None:
            continue
        assert firings.n_fired[at] == len(mine)
        assert firings.n_rows[at] == len({token // C for _, token, _ in mine})
        assert firings.total[at] == pytest.approx(math.fsum(value for *_, value in mine))
        counts = [0] * N_BINS
        for *_, value in mine:
            counts[slow_bin(value)] += 1
        assert firings.histogram[at].tolist() == counts
    assert (firings.weights == 1).all() and not len(firings.dropped_rows)


@settings(max_examples=150)
@given(cases())
def test_rows_fired_are_counted_with_those_a_cap_dropped(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store_of(case, Path(folder))
        counts = np.zeros(WIDTH, np.int64)
        for path in Path(folder).iterdir():
            features, n_rows = FiringShard(path, int(path.stem)).rows_fired(C)
            counts[features] += n_rows
    rows = [{token // C for f, token, _ in case.triples if f == feature} for feature in range(WIDTH)]
    assert counts.tolist() == [len(of_one) for of_one in rows]


@settings(max_examples=150)
@given(cases())
def test_a_cap_keeps_whole_rows_and_exact_counts(case: Case) -> None:
    """What a capped feature keeps, by rows and shard, against a sort in Python."""
    with tempfile.TemporaryDirectory() as folder:
        firings = store_of(case, Path(folder)).read(0, WIDTH)
    shard_of_row = np.repeat(np.arange(len(case.rows_a_shard)), case.rows_a_shard).tolist()
    for feature in range(WIDTH):
        by_shard: dict[int, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        for f, token, value in case.triples:
            if f == feature:
                by_shard[shard_of_row[token // C]][token // C].append((token, value))
        at = firings.at(feature)
        if at is None:
            assert not by_shard
            continue
        where = slice(int(firings.offsets[at]), int(firings.offsets[at + 1]))
        tokens, weights = firings.tokens[where], firings.weights[where]
        kept_rows = set((tokens // C).tolist())
        dropped = slice(int(firings.dropped_offsets[at]), int(firings.dropped_offsets[at + 1]))
        dropped_rows = firings.dropped_rows[dropped].tolist()
        assert dropped_rows == sorted(set(dropped_rows) - kept_rows)
        everything = {row: fired for rows in by_shard.values() for row, fired in rows.items()}
        assert kept_rows | set(dropped_rows) == set(everything)
        # Whole rows: every firing of a kept row is there.
        assert tokens.tolist() == sorted(token for row in kept_rows for token, _ in everything[row])
        assert firings.n_fired[at] == sum(map(len, everything.values()))
        assert firings.n_rows[at] == len(everything)
        assert firings.total[at] == pytest.approx(
            math.fsum(v for fired in everything.values() for _, v in fired)
        )
        weight_of = dict(zip((tokens // C).tolist(), weights.tolist(), strict=True))
        for rows in by_shard.values():
            kept = [row for row in rows if row in kept_rows]
            if len(rows) <= case.max_rows:
                assert len(kept) == len(rows) and all(weight_of[row] == 1 for row in kept)
                continue
            assert len(kept) == case.max_rows
            strength = {row: max(value for _, value in fired) for row, fired in rows.items()}
            n_strongest = case.max_rows // 2
            strongest = [row for row in kept if weight_of[row] == 1]
            if len(rows) - n_strongest > case.max_rows - n_strongest:  # the others stand for more than one
                assert len(strongest) == n_strongest
            least = sorted(strength.values(), reverse=True)[:n_strongest]
            assert sorted((strength[row] for row in kept), reverse=True)[:n_strongest] == least
            # Weights of the kept rows add up to the rows in which it fires.
            assert sum(weight_of[row] for row in kept) == pytest.approx(len(rows), rel=1e-5)


@settings(max_examples=60)
@given(cases(), st.integers(0, WIDTH), st.integers(0, WIDTH))
def test_a_block_of_features_reads_as_the_whole(case: Case, first: int, n: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(case, Path(folder))
        whole, block = store.read(0, WIDTH), store.read(first, first + n)
        counts = store.counts(WIDTH)
        by_shard = list(store.shards())
    assert np.array_equal(store.masked % C, [0, C - 1] * len(case.rows_a_shard))
    for feature in range(WIDTH):
        inside = first <= feature < first + n
        assert piece(block, feature) == (piece(whole, feature) if inside else [])
        assert counts[feature] == len(piece(whole, feature))
        assert [t for shard in by_shard for t in piece(shard, feature)] == piece(whole, feature)
        at, there = block.at(feature), whole.at(feature)
        if at is not None and there is not None:
            assert np.array_equal(block.histogram[at], whole.histogram[there])
            assert block.n_rows[at] == whole.n_rows[there]


def test_a_firing_takes_seven_bytes(tmp_path: Path) -> None:
    n_rows, length = 1_000, 256
    rng = np.random.default_rng(0)
    token = np.repeat(np.arange(n_rows * length, dtype=np.int32), 8)
    feature = rng.integers(0, 1_000, len(token)).astype(np.int32)
    feature, token = np.unique(np.stack([feature, token]), axis=1).astype(np.int32)
    rows = np.zeros(n_rows, row_dtype(length))
    value = np.ones(len(token), np.float32)
    arrays = shard_arrays(
        sort_by_feature(feature, token, value, n_rows * length, 1_000), np.zeros(0, np.int64), rows, 10**6
    )
    seal = save_shard(tmp_path / "x.safetensors", arrays)
    assert seal["bytes"] == (tmp_path / "x.safetensors").stat().st_size < 7.02 * len(token)
    assert {name: array.dtype for name, array in load_file(tmp_path / "x.safetensors").items()}[
        "high"
    ] == "u1"


def test_a_cap_is_shared_by_shards_but_not_to_the_last_row() -> None:
    assert share(40_000, 1) == 40_000
    assert share(40_000, 38) == 1_053  # 40,000 / 38 = 1,052.6
    assert share(40_000, 625) == 64
    assert share(40_000, 3_815) == 11  # 1e9 tokens: all keep 41,965 rows
    assert share(40_000, 100_000) == FEWEST_ROWS == 2


def test_which_rows_are_drawn_depends_on_neither_seed_nor_order() -> None:
    """The same firings in another order give the same file."""
    case = Case([30], [(3, token, 1.0) for token in range(30 * C)], max_rows=6)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        store_of(case, Path(one))
        store_of(case, Path(two), shuffle=9)
        assert (Path(one) / "0.safetensors").read_bytes() == (Path(two) / "0.safetensors").read_bytes()


def test_bins_are_half_octaves() -> None:
    """1 lies on an edge and belongs to the bin above; 2**0.5 begins the next."""
    values = np.array([1.0, 1.4, 1.5, 2.0, 2.0**-30, 2.0**30], np.float32)
    counts: NDArray[np.int64] = histograms(np.zeros(6, np.int64), values, 1)[0]
    one = int(np.searchsorted(EDGES, 1.0, side="right"))
    assert EDGES[one - 1] == 1.0 and EDGES[one + 1] == 2.0
    assert (counts[one], counts[one + 1], counts[one + 2]) == (2, 1, 1)
    assert counts[0] == counts[-1] == 1
    assert counts.sum() == 6
