"""Which windows are taken: bands, spreads, runs, the graded contrast, each against a slow reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import FEW, C, Made, corpora, make
from numpy.typing import NDArray
from test_sampling import windows_of

from autointerp.sampling import choose
from autointerp.sampling.choose import Candidates
from autointerp.sampling.repeats import Repeats
from autointerp.sampling.runs import runs
from autointerp.sampling.seen import Seen
from autointerp.sampling.silence import overlaps_earlier
from autointerp.sampling.windows import Active, Places


def active_of(group: list[int], maximum: list[float], weight: list[float]) -> Active:
    n = len(group)
    zeros = np.zeros(n, np.int64)
    places = Places(zeros, zeros, zeros)
    return Active(
        np.array(group, np.int64),
        places,
        zeros,
        zeros,
        np.array(maximum, np.float32),
        np.array(weight, np.float32),
    )


WINDOWS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([1.0, 1.0, 2.5])),
    max_size=60,
).map(sorted)


@settings(max_examples=60)
@given(windows=WINDOWS, n_bands=st.sampled_from([1, 3, 10]))
def test_bands_are_ranks_in_which_a_window_counts_as_often_as_it_has_weight(
    windows: list[tuple[int, float, float]], n_bands: int
) -> None:
    active = (
        active_of(*(list(column) for column in zip(*windows, strict=True)))
        if windows
        else active_of([], [], [])
    )
    hashes = np.random.default_rng(len(windows)).integers(0, 2**63, len(windows)).astype(np.uint64)
    order = choose.strongest_first(active, hashes)
    before, total = choose.places_in_line(active, order, 4)
    band = choose.bands(before, total, active.group, n_bands)
    for group in range(4):
        mine = [at for at, window in enumerate(windows) if window[0] == group]
        ranked = sorted(mine, key=lambda at: (-windows[at][1], int(hashes[at]) >> 32))
        assert [at for at in order.tolist() if windows[at][0] == group] == ranked
        everything = sum(windows[at][2] for at in mine)
        stronger = 0.0
        for at in ranked:
            assert band[at] == int(stronger * n_bands / everything)
            stronger += windows[at][2]


CELLS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.booleans()), max_size=80)


def candidates(cells: list[tuple[int, int, bool]]) -> tuple[Candidates, NDArray[np.bool_]]:
    """By group, band and key; and which are good."""
    rng = np.random.default_rng(len(cells))
    keyed = sorted((group, band, int(rng.integers(0, 2**62)), good) for group, band, good in cells)
    columns = [[entry[at] for entry in keyed] for at in range(4)]
    found = Candidates(
        np.arange(len(keyed)), np.array(columns[0], np.int64), np.array(columns[1], np.int64),
        np.array(columns[2], np.uint64),
    )  # fmt: skip
    return found, np.array(columns[3], bool)


@settings(max_examples=80)
@given(cells=CELLS, n=st.integers(0, 30))
def test_windows_are_spread_over_bands(cells: list[tuple[int, int, bool]], n: int) -> None:
    """The first good ones of each band, then the first of what is left."""
    found, good = candidates(cells)
    taken = choose.over_bands(found, n, 5, 3, lambda at: good[at]).tolist()
    expected: list[int] = []
    for group in range(3):
        able = [at for at in range(len(good)) if found.group[at] == group and good[at]]
        mine: list[int] = []
        for band in range(5):
            quota = n // 5 + (band < n % 5)
            mine += [at for at in able if found.band[at] == band][:quota]
        rest = sorted((at for at in able if at not in mine), key=lambda at: int(found.keys[at]))
        expected += sorted(mine + rest[: n - len(mine)])
    assert taken == expected


@settings(max_examples=50)
@given(cells=CELLS, n=st.integers(1, 20), more=st.integers(0, 20))
def test_a_larger_draw_over_bands_contains_the_smaller(
    cells: list[tuple[int, int, bool]], n: int, more: int
) -> None:
    found, good = candidates(cells)
    small, large = (
        set(choose.over_bands(found, k, 5, 3, lambda at: good[at]).tolist()) for k in (n, n + more)
    )
    assert small <= large


def test_bands_are_drawn_from_evenly() -> None:
    """100 windows, 10 a band: 40 are 4 of each, and 43 give the odd ones to the three strongest."""
    band = np.repeat(np.arange(10), 10)
    keys = np.tile(np.arange(10, dtype=np.uint64), 10)
    found = Candidates(np.arange(100), np.zeros(100, np.int64), band, keys)
    for n, counts in ((40, [4] * 10), (43, [5, 5, 5, 4, 4, 4, 4, 4, 4, 4])):
        assert np.bincount(band[choose.over_bands(found, n, 10, 1, None)], minlength=10).tolist() == counts


@pytest.mark.parametrize(("n", "n_bands"), [(300, 1), (600, 2), (2_500, 10)])
def test_as_many_windows_are_taken_as_are_asked_for(n: int, n_bands: int) -> None:
    """More of a band than are compared with what was shown where few are asked for; every third is refused."""
    band = np.repeat(np.arange(n_bands), 1_000)
    keys = np.tile(np.arange(1_000, dtype=np.uint64), n_bands)
    found = Candidates(np.arange(len(band)), np.zeros(len(band), np.int64), band, keys)
    assert len(choose.over_bands(found, n, n_bands, 1, lambda at: at % 3 > 0)) == n


def test_a_weighted_draw_is_proportional() -> None:
    """Of weights 1 and 3 the first of the draw is the second kind three times in four."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (20_000, 2), dtype=np.uint64)
    keys = choose.weighted_keys(hashes.ravel(), np.tile(np.array([1, 3], np.float32), 20_000)).reshape(-1, 2)
    assert np.mean(keys[:, 1] < keys[:, 0]) == pytest.approx(0.75, abs=0.01)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 5)), max_size=25))
def test_places_that_overlap_an_earlier_one(places: list[tuple[int, int, int]]) -> None:
    columns = np.array(places, np.int64).reshape(-1, 3).T
    lost = overlaps_earlier(columns[0], columns[1], columns[1] + columns[2]).tolist()
    for at, (row, start, length) in enumerate(places):
        mine = set(range(start, start + length))
        earlier = (set(range(s, s + n)) for r, s, n in places[:at] if r == row)
        assert lost[at] == any(mine & other for other in earlier)


# --- runs ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 2), min_size=0, max_size=9), min_size=1, max_size=12))
def test_runs_are_equal_where_tokens_are(texts: list[list[int]]) -> None:
    ids = np.full((len(texts), 9), -1, np.int32)
    for at, text in enumerate(texts):
        ids[at, : len(text)] = text
    hashes = runs(ids, np.array([len(text) for text in texts]), 4)
    tuples = {}
    for at, text in enumerate(texts):
        for start in range(6):
            run = tuple(text[start : start + 4])
            if len(run) < 4:
                assert hashes[at, start] == 0
            else:
                assert tuples.setdefault(run, int(hashes[at, start])) == hashes[at, start] != 0
    assert len(set(tuples.values())) == len(tuples)


@settings(max_examples=20)
@given(made=corpora(), data=st.data())
def test_what_was_seen_is_found_again_and_nothing_else(made: Made, data: st.DataObject) -> None:
    """Windows of two features; also that a window passed over as unique is."""
    text = made.text()
    width, n = 16, 13
    repeats = Repeats(text, width, n)
    seen = Seen(2, text, repeats, width, n)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # As splits do: what is asked about stands in other documents.
    halves = [np.flatnonzero((text.length > 1) & (text.document % 2 == half)) for half in (0, 1)]
    if not min(map(len, halves)):
        return

    def draw_windows(k: int, half: int) -> tuple[NDArray[np.int64], Places]:
        row = rng.choice(halves[half], k)
        length = np.minimum(width, text.length[row] - 1)
        start = 1 + (rng.random(k) * (text.length[row] - length)).astype(np.int64)
        return np.sort(rng.integers(0, 2, k)), Places(row, start, length)

    def runs_of(places: Places, at: int) -> set[tuple[int, ...]]:
        ids = made.ids(int(places.row[at]), int(places.start[at]), int(places.length[at]))
        return {tuple(ids[begin : begin + n]) for begin in range(len(ids) - n + 1)}

    known: list[set[tuple[int, ...]]] = [set(), set()]
    for _ in range(2):
        group, places = draw_windows(30, 0)
        seen.add(group, places)
        for at in range(30):
            known[group[at]] |= runs_of(places, at)
    group, places = draw_windows(60, 1)
    found = seen.holds(group, places).tolist()
    assert found == [bool(runs_of(places, at) & known[group[at]]) for at in range(60)]


def test_windows_too_short_for_a_run_are_nothing_seen() -> None:
    """Where they alone were shown, and more was selected on."""
    text = make(0, 8, {}, boilerplate=1.0).text()
    seen = Seen(1, text, Repeats(text, 16, 13), 16, 13)
    row = np.flatnonzero(text.length > 40)
    start = np.tile(np.arange(1, 25), len(row))
    row, group = np.repeat(row, 24), np.zeros(24 * len(row), np.int64)
    seen.add(group, Places(row, start, np.full_like(row, 5)))
    whole = Places(row, start, np.full_like(row, 16))
    assert not seen.holds(group, whole).any()
    seen.add(group, whole)
    assert seen.holds(group, whole).any()


# --- the graded contrast -------------------------------------------------------------------------------

GRADED = dataclasses.replace(FEW, contrast="auto", graded_from=0.03)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([0.05, 0.3, 1.0]),
    n_masked=st.sampled_from([0, 40]),
    max_rows=st.sampled_from([10**6, 60]),
)
def test_a_dense_feature_is_shown_at_its_strongest_and_its_weakest(
    seed: int, rate: float, n_masked: int, max_rows: int
) -> None:
    """Blocks of the top decile against blocks of the lower half, of all blocks that are known."""
    made = make(seed, 120, {7: rate}, n_masked, max_rows)
    sampled = made.sample(GRADED)
    assert sampled.samples[0].contrast == "graded"
    fired, kept = made.fired[7], made.kept(7)
    blocks: list[float] = []
    for row, room in enumerate((made.rows.length - 1).tolist()):
        for block in range(max(room // 16, room > 0)):
            tokens = range(row * C + 1 + block * 16, row * C + 1 + min(room, block * 16 + 16))
            if made.masked.isdisjoint(tokens):
                blocks.append(max((fired.get(token, 0.0) for token in tokens), default=0.0))
    blocks.sort(reverse=True)
    taken = windows_of(sampled)
    assert {one.stratum for one in taken} <= {None, "graded"}
    rows_kept = {token // C for token in kept}
    for one in taken:
        assert (one.start - 1) % 16 == 0 and not one.tokens & made.masked
        maximum = max(fired.get(token, 0.0) for token in one.tokens)
        # a row that fires is wholly kept, or nothing of it is known
        assert one.row in rows_kept or not any(token // C == one.row for token in fired)
        if max_rows == 10**6:
            stronger = sum(block > maximum for block in blocks)
            weaker = sum(block < maximum for block in blocks)
            if one.stratum is None:
                assert stronger < len(blocks) / 10
            else:
                assert weaker <= len(blocks) / 2
        elif one.stratum is None:
            # Estimated from the rows kept: of a feature that fires seldom it may reach the next value.
            assert maximum == 3.5 or (rate < 0.1 and maximum == 2.0)


def test_a_rare_feature_stays_with_silence() -> None:
    sampled = make(3, 150, {7: 0.02}).sample(GRADED)
    assert sampled.samples[0].contrast == "silent"
    assert (
        make(3, 150, {7: 0.02}).sample(dataclasses.replace(FEW, contrast="graded")).samples[0].contrast
        == "graded"
    )
