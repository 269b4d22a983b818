"""Windows, splits, strata and silence against slow, obvious references, over made-up corpora."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import FEW, WIDTH, C, Made, corpora, make

from autointerp import draw
from autointerp.activations.rows import Mark, Rows, make_rows, row_dtype, rows_of
from autointerp.sampling.cofiring import Codes
from autointerp.sampling.index import TokenIndex
from autointerp.sampling.sample import Sampled
from autointerp.sampling.selected import STRATA
from autointerp.sampling.settings import SamplingSettings, read_active_above
from autointerp.sampling.store import Windows, save_windows
from autointerp.sampling.text import SPLITS, split_of
from autointerp.sampling.windows import Active, active_windows, firing_keys
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import FeatureId

ALIGNED = dataclasses.replace(FEW, window="aligned")
CENTRED = dataclasses.replace(FEW, window="centred")
KINDS = st.sampled_from([FEW, ALIGNED, CENTRED])
FEATURES = (2, 3, 6, 7, 9, 11)  # the last never fires


@dataclass(frozen=True)
class One:
    """A window that was taken."""

    feature: int
    split: str
    row: int
    start: int
    length: int
    band: int | None
    stratum: str | None

    @property
    def tokens(self) -> set[int]:
        return set(range(self.row * C + self.start, self.row * C + self.start + self.length))


def windows_of(sampled: Sampled) -> list[One]:
    w = sampled.windows
    features = [FeatureId.parse(sample.feature).index for sample in sampled.samples]
    columns = (w.group, w.split, w.places.row, w.places.start, w.places.length, w.band, w.stratum)
    return [
        One(features[group], SPLITS[split], row, start, length,
            band if stratum < 0 else None, STRATA[stratum] if stratum >= 0 else None)
        for group, split, row, start, length, band, stratum in zip(*(c.tolist() for c in columns), strict=True)
    ]  # fmt: skip


def runs_of(ids: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)}


# --- what every sample keeps to ------------------------------------------------------------------------


@settings(max_examples=25)
@given(made=corpora(), given_settings=KINDS)
def test_what_is_shown_and_what_is_held_out_share_no_document_and_no_run(
    made: Made, given_settings: SamplingSettings
) -> None:
    """Also what is selected on; documents by their ids, runs by comparing every tuple of 13 tokens."""
    taken = windows_of(made.sample(given_settings, FEATURES))
    for feature in FEATURES:
        documents: dict[str, set[int]] = {name: set() for name in SPLITS}
        runs: dict[str, set[tuple[int, ...]]] = {name: set() for name in SPLITS}
        for one in taken:
            if one.feature == feature:
                documents[one.split].add(int(made.rows.document[one.row]))
                runs[one.split] |= runs_of(made.ids(one.row, one.start, one.length), given_settings.overlap)
        for before, after in (("shown", "select"), ("shown", "heldout"), ("select", "heldout")):
            assert not documents[before] & documents[after]
            assert not runs[before] & runs[after]


EVERY_STRATUM = dataclasses.replace(FEW, n_same_document=3, n_density=3)


@settings(max_examples=25)
@given(made=corpora(), kind=st.sampled_from(["anchored", "aligned", "centred"]))
def test_a_silent_window_is_silent_and_is_what_its_stratum_says(made: Made, kind: str) -> None:
    """No firing in it, kept or dropped, and no token nobody looked at; apart from all windows of its split."""
    given_settings = dataclasses.replace(EVERY_STRATUM, window=kind)
    sampled = made.sample(given_settings, FEATURES)
    taken = windows_of(sampled)
    for sample, feature in zip(sampled.samples, FEATURES, strict=True):
        fired = made.fired.get(feature, {})
        top = {token for token, _ in sample.top_tokens}
        for name in SPLITS:
            inside = [one for one in taken if one.feature == feature and one.split == name]
            active = [one for one in inside if one.stratum is None]
            shapes = {(one.start, one.length) for one in active}
            documents = {int(made.rows.document[one.row]) for one in active}
            seen: set[int] = set()
            for one in inside:
                assert not one.tokens & seen
                seen |= one.tokens
                assert one.start >= 1 and one.start + one.length <= made.rows.length[one.row]
                assert not one.tokens & made.masked
                if one.stratum is not None:
                    assert not one.tokens & fired.keys()
                match one.stratum:
                    case "random":
                        assert (one.start, one.length) in shapes
                    case "same_token":
                        assert top & set(made.ids(one.row, one.start, one.length))
                    case "neighbour":
                        assert any(one.tokens & made.fired[donor].keys() for donor in sample.donors)
                    case "density":
                        assert any(one.tokens & made.fired[other].keys() for other in made.fired)
                    case "same_document":
                        assert int(made.rows.document[one.row]) in documents
                    case _:
                        assert one.stratum is None
            if name != "heldout":
                assert {one.stratum for one in inside} <= {None, "random"}


@settings(max_examples=20)
@given(made=corpora(), given_settings=KINDS, data=st.data())
def test_a_feature_is_sampled_alike_whatever_else_is_sampled(
    made: Made, given_settings: SamplingSettings, data: st.DataObject
) -> None:
    """Alone, in any block, after any other."""
    given_settings = dataclasses.replace(given_settings, contrast="auto")
    sampler = made.sampler(given_settings)
    ids = [FeatureId("d", feature) for feature in FEATURES]
    together = sampler.sample(ids)
    by_feature = {sample.feature: sample for sample in together.samples}
    cut = data.draw(st.integers(1, len(ids) - 1))
    for block in (ids[cut:], ids[:cut], *([one] for one in ids)):
        again = sampler.sample(block)
        assert [by_feature[str(feature)] for feature in block] == again.samples
        wanted = {feature.index for feature in block}
        assert [one for one in windows_of(together) if one.feature in wanted] == windows_of(again)


def test_the_draw_is_the_features_own() -> None:
    """Features 2 and 3 fire on the same tokens."""
    sampled = make(4, 100, {2: 0.03, 3: 0.03}).sample(FEW, (2, 3))
    first, second = sampled.samples
    assert first.n_fired == second.n_fired and first.shown != second.shown


@settings(max_examples=15)
@given(made=corpora(), name=st.sampled_from(["n_heldout_silent", "n_same_token", "n_neighbour", "n_density"]))
def test_a_larger_n_contains_the_smaller(made: Made, name: str) -> None:
    """Of the strata asked for first nothing changes."""
    small = dataclasses.replace(FEW, **{name: 4})
    large = dataclasses.replace(FEW, **{name: 9})
    few, many = (set(windows_of(made.sample(given_settings, FEATURES))) for given_settings in (small, large))
    stratum = {"n_heldout_silent": "random"}.get(name, name.removeprefix("n_"))
    first = {None, *STRATA[: STRATA.index(stratum) + 1]}  # type: ignore[arg-type]
    explained = {one.feature for one in few} & {one.feature for one in many}
    assert {one for one in few if one.stratum in first and one.feature in explained} <= many


# --- active windows ------------------------------------------------------------------------------------


def slow_windows(
    made: Made, given_settings: SamplingSettings, feature: int, threshold: float, key: int
) -> Iterator[tuple[int, int, int, float, float]]:
    """(row, start, length, maximum, weight), one loop a firing."""
    text, width = made.text(), given_settings.width
    kept = made.kept(feature)
    slots: dict[tuple[int, int], list[int]] = {}
    for token in sorted(kept):
        if kept[token][0] > threshold:
            row, position = divmod(token, C)
            has_room = position - width // 2 >= 1 and position - width // 2 + width <= made.rows.length[row]
            if has_room or given_settings.window != "centred":
                slots.setdefault((row, (position - 1) // width), []).append(position)
    end: dict[int, int] = {}
    for (row, block), positions in sorted(slots.items()):
        room = int(made.rows.length[row])
        if given_settings.window == "aligned":
            start = 1 + block * width
            length = min(width, room - start)
            if length < width and start > 1:
                continue
        elif given_settings.window == "centred":
            anchor = max(positions, key=lambda position: kept[row * C + position][0])  # of equals the first
            start, length = anchor - width // 2, width
            if start < end.get(row, 0):
                continue
            end[row] = start + length
        else:
            items = text.items(np.full(len(positions), row), np.array(positions))
            hashes = draw.mix(key, items).tolist()
            at = hashes.index(min(hashes))
            position = positions[at]
            span = width - given_settings.context_before
            other = int(draw.mix(key + 1, items[at : at + 1])[0])
            start = position - given_settings.context_before - (other >> 32) * span // 2**32
            length = min(width, room - 1)
            start = min(max(start, 1), max(1, room - length))
            if start < end.get(row, 0):
                continue
            end[row] = start + length
        tokens = range(row * C + start, row * C + start + length)
        if made.masked.isdisjoint(tokens):
            inside = [kept[token] for token in tokens if token in kept]
            yield row, start, length, max(value for value, _ in inside), inside[0][1]


def fast_windows(
    made: Made, given_settings: SamplingSettings, threshold: float, keys: dict[int, int]
) -> dict[int, list[tuple[int, int, int, float, float]]]:
    firings, text = made.firings.read(0, WIDTH), made.text()
    active: Active = active_windows(
        firings,
        firing_keys(firings, text),
        text,
        given_settings,
        given_settings.window,
        np.full(len(firings.features), threshold, np.float32),
        np.array([keys[int(feature)] for feature in firings.features], np.uint64),
    )
    found: dict[int, list[tuple[int, int, int, float, float]]] = {int(f): [] for f in firings.features}
    p = active.places
    for at, group in enumerate(active.group):
        own = (
            int(p.row[at]),
            int(p.start[at]),
            int(p.length[at]),
            float(active.maximum[at]),
            float(active.weight[at]),
        )
        found[int(firings.features[group])].append(own)
        inside = firings.tokens[active.low[at] : active.high[at]]
        begin = own[0] * C + own[1]
        mine = firings.tokens[firings.offsets[group] : firings.offsets[group + 1]]
        assert inside.tolist() == [token for token in mine.tolist() if begin <= token < begin + own[2]]
    return found


@settings(max_examples=25)
@given(made=corpora(), given_settings=KINDS, threshold=st.sampled_from([0.0, 0.0, 0.5, 2.0]))
def test_active_windows_equal_a_slow_reference(
    made: Made, given_settings: SamplingSettings, threshold: float
) -> None:
    """Where they are cut, how strong they are, what weight their row has, and which firings they hold."""
    keys = {feature: draw.key(3, "offset", feature) // 2 for feature in range(WIDTH)}
    for feature, found in fast_windows(made, given_settings, threshold, keys).items():
        assert found == list(slow_windows(made, given_settings, feature, threshold, keys[feature]))


@settings(max_examples=20)
@given(made=corpora())
def test_anchored_windows_have_their_context_and_do_not_overlap(made: Made) -> None:
    keys = dict.fromkeys(range(WIDTH), 5)
    for feature, found in fast_windows(made, FEW, 0.0, keys).items():
        fired, taken = made.kept(feature).keys(), set[int]()
        for row, start, length, _, _ in found:
            tokens = set(range(row * C + start, row * C + start + length))
            inside = tokens & fired
            assert inside and not tokens & taken
            taken |= tokens
            if start > 1:
                assert max(inside) - (row * C + start) >= FEW.context_before


def test_active_above_is_read_in_three_spellings() -> None:
    for text, of_maximum, quantile in [(0, 0, 0), ("10% of maximum", 0.1, 0), ("quantile 0.9", 0, 0.9)]:
        above = read_active_above(text)
        assert above is not None and (above.of_maximum, above.quantile) == (of_maximum, quantile)
    for text in ("10%", "quantile 1.5", "-1", 0.3, "100% of maximum", ""):
        assert read_active_above(text) is None


@pytest.mark.parametrize("above", ["30% of maximum", "quantile 0.6"])
def test_a_window_that_fires_only_weakly_is_neither_active_nor_silent(above: str) -> None:
    made = make(5, 150, {7: 0.02})
    sampled = made.sample(dataclasses.replace(FEW, active_above=above))
    values = sorted(made.fired[7].values())
    floor = 0.3 * 3.5 if above.endswith("maximum") else values[int(np.ceil(0.6 * len(values))) - 1]
    taken = windows_of(sampled)
    assert sampled.samples[0].status == "full" and {one.stratum for one in taken} >= {None, "random"}
    for one in taken:
        inside = [made.fired[7][token] for token in one.tokens & made.fired[7].keys()]
        assert max(inside) > floor if one.stratum is None else not inside


# --- what is shown -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", ["quantiles", "top", "mix", "random", "importance"])
def test_what_is_shown(shown: str) -> None:
    """A large corpus, so that the split for it holds about 0.4 of 800 windows."""
    made = make(2, 400, {7: 0.03}, boilerplate=0.0)
    given_settings = dataclasses.replace(FEW, shown=shown, n_shown=40)
    taken = [one for one in windows_of(made.sample(given_settings)) if one.stratum is None]
    bands = [one.band for one in taken if one.split == "shown"]
    counts = np.bincount([band for band in bands if band is not None], minlength=10)
    assert counts.sum() == 40
    heldout = np.bincount([one.band or 0 for one in taken if one.split == "heldout"], minlength=10)
    assert heldout.tolist() == [1] * 10  # always spread over the bands
    if shown == "quantiles":
        assert counts.tolist() == [4] * 10
    elif shown == "top":
        assert counts[:2].sum() == 40
    elif shown == "mix":
        assert counts[:2].sum() >= 20 and (counts[2:] >= 2).all()
    else:
        assert (counts > 0).sum() >= 8


@pytest.mark.parametrize("shown", ["quantiles", "top", "mix", "random", "importance"])
def test_more_shown_contains_fewer(shown: str) -> None:
    made = make(3, 200, {7: 0.03})
    few, many = (
        {one for one in windows_of(made.sample(dataclasses.replace(FEW, shown=shown, n_shown=n)))
         if one.split == "shown" and one.stratum is None}
        for n in (11, 24)
    )  # fmt: skip
    assert len(few) == 11 and few <= many


# --- statuses, splits, parts ---------------------------------------------------------------------------


def test_statuses() -> None:
    """Never fires; too rarely; enough; nearly everywhere; in too few documents."""

    def status(made: Made, given_settings: SamplingSettings = FEW) -> str:
        sampled = made.sample(given_settings)
        kept = bool(len(sampled.windows))
        assert kept == (sampled.samples[0].status in ("full", "small"))
        return sampled.samples[0].status

    assert status(make(1, 50, {2: 0.1})) == "dead"
    assert status(make(1, 50, {7: 0.001})) == "too_few"
    assert status(make(1, 150, {7: 0.01})) == "full"
    assert status(make(1, 150, {7: 0.01}), dataclasses.replace(FEW, minimum_full=5000)) == "small"
    assert status(make(1, 150, {7: 1.0})) == "dense"
    assert status(make(1, 3, {7: 0.5})) == "too_few"


def test_the_split_takes_its_shares_and_depends_on_the_document_and_the_seed_alone() -> None:
    documents = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    split = split_of(documents, 0, (0.4, 0.2, 0.4))
    shares = np.bincount(split) / len(split)
    assert np.allclose(shares, [0.4, 0.2, 0.4], atol=0.015)
    assert np.array_equal(split[::-1], split_of(documents[::-1], 0, (0.4, 0.2, 0.4)))
    assert not np.array_equal(split, split_of(documents, 1, (0.4, 0.2, 0.4)))


@settings(max_examples=20)
@given(made=corpora(), most_tokens=st.sampled_from([10**6, 500]))
def test_the_token_index_knows_where_tokens_stand(made: Made, most_tokens: int) -> None:
    text = made.text()
    index = TokenIndex(text, text.rows_of[2], most_tokens)
    n_indexed = 0
    places_of: dict[int, list[int]] = {}
    for row in text.rows_of[2].tolist():
        for position, token_id in enumerate(made.ids(row, 1, int(made.rows.length[row]) - 1), start=1):
            places_of.setdefault(token_id, []).append(row * C + position)
    for token_id in range(70):
        ids = np.array([token_id])
        count = int(index.count(ids)[0])
        found = [int(index.place(ids, np.array([number]))[0]) for number in range(count)]
        n_indexed += count
        everywhere = places_of.get(token_id, [])
        assert len(set(found)) == count
        assert sorted(found) == everywhere if most_tokens == 10**6 else set(found) <= set(everywhere)
    assert n_indexed <= most_tokens


@settings(max_examples=15)
@given(made=corpora(max_rows=st.just(10**6)))
def test_co_firing_equals_a_table_of_all_pairs(made: Made) -> None:
    """Fewer tokens than are sampled at least, so all are."""
    codes = Codes(made.firings, made.text())
    fired = {feature: set(tokens) for feature, tokens in made.fired.items()}
    for feature, alike in zip(FEATURES, codes.alike(np.array(FEATURES), 3).tolist(), strict=True):
        mine = fired.get(feature, set())
        scores = {
            other: len(mine & theirs) / len(mine | theirs)
            for other, theirs in fired.items()
            if other != feature and len(mine & theirs) >= 2
        }
        expected = sorted(scores, key=lambda other: (-scores[other], other))[:3]
        assert [other for other in alike if other >= 0] == expected


def test_given_neighbours_come_first_and_are_recorded() -> None:
    made = make(6, 150, {2: 0.02, 3: 0.02, 7: 0.02, 8: 0.01})
    sampled = made.sampler(FEW, f7=np.array([8, 35, 7])).sample([FeatureId("d", 7)])
    assert sampled.samples[0].donors[:2] == [8, 35]
    near = [one for one in windows_of(sampled) if one.stratum == "neighbour"]
    assert near and any(one.tokens & made.fired[8].keys() for one in near)


# --- the store -----------------------------------------------------------------------------------------


BYTES = [bytes([byte]) for byte in "é🙂ß".encode()]
TOKENS = Vocabulary([b"", *(f"<{n}>".encode() for n in range(1, 40)), *BYTES])
"""From 40 to 47 a token is a byte; from 48 on there is none."""


@settings(max_examples=15)
@given(made=corpora(), which=st.sampled_from([slice(0, 6), slice(0, 3), slice(2, 5)]))
def test_windows_come_back_from_the_store_as_they_were(made: Made, which: slice) -> None:
    sampled = made.sample(dataclasses.replace(FEW, contrast="auto"), FEATURES)
    path = Path(tempfile.mkdtemp()) / "windows.parquet"
    save_windows(path, sampled, which)
    stored = Windows(path, TOKENS)
    for number, feature in enumerate(FEATURES):
        key = f"d/{feature}"
        for name, windows in (("shown", stored.shown(key)), ("select", stored.select(key)),
                              ("heldout", stored.heldout(key))):  # fmt: skip
            taken = [one for one in windows_of(sampled) if one.feature == feature and one.split == name]
            if not which.start <= number < which.stop:
                taken = []
            assert len(windows.active) == sum(one.stratum is None for one in taken)
            for one, window in zip(taken, windows.active + windows.silent, strict=True):
                assert (window.band, window.stratum) == (one.band, one.stratum)
                assert list(window.token_ids) == made.ids(one.row, one.start, one.length)
                assert window.texts == TOKENS.pieces(window.token_ids)
                expected = [made.fired[feature].get(token, 0.0) for token in sorted(one.tokens)]
                assert list(window.activations) == expected
                assert int(window.document, 16) == int(made.rows.document[one.row])
                assert window.position == int(made.rows.position[one.row]) + one.start - 1


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


def test_hard_windows_are_shown_from_documents_of_what_is_shown() -> None:
    """Half by token, half by a feature alike, silent, none from a held-out document; what else is shown, and what is
    chosen on, stays."""
    made = make(1, 300, {7: 0.02, 6: 0.05, 9: 0.05})
    few, more = (
        made.sampler(dataclasses.replace(FEW, n_shown_hard=n), f7=np.array([6])).sample([FeatureId("d", 7)])
        for n in (0, 6)
    )
    without, sample = few.samples[0], more.samples[0]
    assert sample.shown.strata == [*without.shown.strata, ("same_token", 3), ("neighbour", 3)]
    n = len(without.shown.rows)
    assert (sample.shown.rows[:n], sample.shown.starts[:n]) == (without.shown.rows, without.shown.starts)
    assert sample.select.n_active == without.select.n_active
    split = more.text.split
    assert {SPLITS[split[row]] for row in sample.shown.rows} == {"shown"}
    fired = made.fired[7]
    for row, start in zip(sample.shown.rows[n:], sample.shown.starts[n:], strict=True):
        assert not any(row * C + start + at in fired for at in range(FEW.width))
