"""Statistics of features, histograms and keyed orders, against slow, obvious references."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import FEW, WIDTH, C, Made, corpora, make

from autointerp import draw
from autointerp.activations.histogram import EDGES, N_BINS, bins, histograms
from autointerp.activations.subset import chosen, with_silent
from autointerp.types import FeatureId

FEATURES = (2, 3, 6, 7, 9, 11)


def range_of(position: int) -> int:
    """0 to 1, 2 to 3, 4 to 7, ..., 128 and above."""
    return sum(position >= edge for edge in (2, 4, 8, 16, 32, 64, 128))


@settings(max_examples=30)
@given(made=corpora())
def test_what_a_sample_says_of_a_feature(made: Made) -> None:
    """Counts, maximum, mean, histogram and documents over all firings, dropped ones included; tokens and
    positions over the kept ones by weight."""
    sampled = made.sample(FEW, FEATURES)
    looked_at = Counter(
        range_of(position)
        for row, length in enumerate(made.rows.length.tolist())
        for position in range(1, length)
        if row * C + position not in made.masked
    )
    for sample, feature in zip(sampled.samples, FEATURES, strict=True):
        fired, kept = made.fired.get(feature, {}), made.kept(feature)
        rows = {token // C for token in fired}
        assert sample.n_tokens == looked_at.total()
        assert (sample.n_fired, sample.n_rows) == (len(fired), len(rows))
        assert sample.n_documents == len({int(made.rows.document[row]) for row in rows})
        assert sample.maximum == max(fired.values(), default=0.0)
        assert sample.mean == pytest.approx(sum(fired.values()) / max(1, len(fired)))
        bin_of = Counter(sum(value >= edge for edge in EDGES) for value in fired.values())
        assert sample.histogram == {str(number): n for number, n in sorted(bin_of.items())}
        on_token: Counter[int] = Counter()
        at_range: Counter[int] = Counter()
        for token, (_, weight) in kept.items():
            on_token[made.ids(token // C, token % C, 1)[0]] += weight  # type: ignore[assignment]
            at_range[range_of(token % C)] += weight  # type: ignore[assignment]
        counts = {token: round(n) for token, n in on_token.items()}
        best = sorted(counts, key=lambda token: (-counts[token], token))[:10]
        assert sample.top_tokens == [(token, counts[token]) for token in best]
        for number, rate in enumerate(sample.rates):
            expected = at_range[number] / looked_at[number] if looked_at[number] else None
            assert rate is expected if expected is None else rate == pytest.approx(expected)


def test_a_capped_feature_keeps_exact_counts() -> None:
    """Rows are dropped, and their weight is given to others."""
    made, capped = (make(1, 100, {7: 0.2}, max_rows=n) for n in (10**6, 12))
    whole, part = (one.sample(FEW).samples[0] for one in (made, capped))
    assert len(capped.kept(7)) < len(made.kept(7)) == whole.n_fired == part.n_fired
    assert (part.n_rows, part.n_documents, part.histogram) == (
        whole.n_rows,
        whole.n_documents,
        whole.histogram,
    )
    assert part.n_windows == pytest.approx(whole.n_windows, rel=0.4)


def test_features_that_never_fire_stand_among_the_others() -> None:
    made = make(1, 20, {2: 0.1, 7: 0.05, 9: 0.2}, max_rows=5)
    found = made.firings.read(0, WIDTH)
    ids = np.array([1, 2, 7, 8, 9])
    wide = with_silent(found, ids)
    assert wide.features.tolist() == ids.tolist() and wide.n_fired[[0, 3]].tolist() == [0, 0]
    one = chosen(wide, np.array([2, 3]))
    alone = made.firings.read_these(np.array([7, 8]))
    assert (
        one.tokens.tolist() == alone.tokens.tolist()
        and one.dropped_rows.tolist() == alone.dropped_rows.tolist()
    )
    assert one.offsets.tolist() == [0, len(alone.tokens), len(alone.tokens)]
    both = made.firings.read_these(np.array([2, 9]))
    assert both.features.tolist() == [2, 9] and both.n_fired.tolist() == [
        len(made.fired[2]),
        len(made.fired[9]),
    ]


@settings(max_examples=50)
@given(st.lists(st.floats(2.0**-40, 2.0**40, width=32), max_size=50))
def test_bins_are_those_of_the_edges(values: list[float]) -> None:
    near = [np.nextafter(np.float32(edge), np.float32(side)) for edge in EDGES for side in (0, 1e30)]
    x = np.array([*values, *near, *EDGES], np.float32)
    assert bins(x).tolist() == np.searchsorted(EDGES.astype(np.float32), x, side="right").tolist()
    counts = histograms(np.zeros(len(x), np.int64), x, 2)
    assert counts.shape == (2, N_BINS) and counts.sum(1).tolist() == [len(x), 0]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2000), st.sampled_from([0, 1, 2**63, 2**64 - 1])), max_size=60))
def test_fast_orders_are_those_of_lexsort(entries: list[tuple[int, int]]) -> None:
    cell = np.array([entry[0] for entry in entries], np.int64)
    keys = np.array([entry[1] for entry in entries], np.uint64)
    assert draw.by_cell(cell, keys).tolist() == np.lexsort((keys, cell)).tolist()
    assert draw.stable(cell).tolist() == np.argsort(cell, kind="stable").tolist()


def test_draws_below_n_are_even() -> None:
    hashes = draw.mix(draw.key(0, "test"), np.arange(70_000, dtype=np.uint64))
    assert np.allclose(np.bincount(draw.below(hashes, 7), minlength=7) / 70_000, 1 / 7, atol=0.005)
    n = np.array([0, 1, 5] * 10)
    assert (draw.below(hashes[:30], n) < np.maximum(n, 1)).all()


def test_a_key_an_item_is_as_good_as_a_key() -> None:
    names = [str(FeatureId("d", index)) for index in range(5)]
    keys, items = draw.keys(0, "feature", names), np.arange(5, dtype=np.uint64)
    together = draw.mix(keys, items)
    alone = [draw.mix(draw.key(0, "feature", name), items[at : at + 1])[0] for at, name in enumerate(names)]
    assert together.tolist() == [int(hashed) for hashed in alone]


# --- what `bench sample` measures ----------------------------------------------------------------------


def test_the_benchmark_measures_what_is_promised() -> None:
    """Small; times are not asserted. Records and windows keep to their sizes."""
    from autointerp.bench.sample import bench_sample

    benches = bench_sample(n_features=120, n_tokens=240_000)
    found = benches.whole
    assert found.n_features == 120 and found.n_firings > 400_000
    assert found.record_bytes < 8_000 and found.store_bytes < 25_000
    assert benches.quarter.n_features == 30 and benches.growth > 0
    assert found.ratio is not None and found.ratio > 1 and found.features_a_second > 0
