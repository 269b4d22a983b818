"""One feature's sample: its windows in three splits that share no document and no run of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.rows import RowStore
from autointerp.activations.shards import FiringStore
from autointerp.sampling import windows as cut
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.windows import NO_PLACES, Ints, Places
from autointerp.types import FeatureId, Sample, SampleStatus, Stratum, WindowRefs

SplitName = Literal["shown", "select", "heldout"]
RANDOM: Final[Stratum] = "random"
SPLITS: Final[tuple[SplitName, ...]] = ("shown", "select", "heldout")

_CANDIDATES_PER_BAND: Final = 200
"""So many windows a band and split are compared with what was shown; far more than any split takes."""
_TRIES: Final = 64
"""Places tried for one silent window before it is given up."""


@dataclass(frozen=True, slots=True)
class SplitWindows:
    """The windows of one split: active ones with their bands, and silent ones."""

    active: Places
    band: Ints
    silent: Places


NO_WINDOWS: Final = SplitWindows(NO_PLACES, NO_PLACES.row, NO_PLACES)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A feature's record and the windows it names."""

    sample: Sample
    splits: dict[SplitName, SplitWindows]
    tokens: Ints
    """Where the feature fires, ascending."""
    values: NDArray[np.float32]


class Sampler:
    """Samples features of one dictionary. Holds what all features share: rows, splits, masked tokens."""

    def __init__(
        self, rows: RowStore, firings: FiringStore, settings: SamplingSettings, *, seed: int, first: int
    ) -> None:
        """`first`: the first position of a row that a window may use (1 where position 0 is masked)."""
        self._rows = rows
        self._settings = settings
        self._seed = seed
        self._first = first
        self._masked = firings.masked
        self._n_tokens = int(np.maximum(rows.length - first, 0).sum()) - len(firings.masked)
        self._split = split_of(rows.document, seed, settings.shares)
        self._rows_of = [np.flatnonzero(self._split == number) for number in range(len(SPLITS))]

    def sample(self, feature: FeatureId, tokens: Ints, values: NDArray[np.float32]) -> Sampled:
        """`tokens` (ascending) and `values`: every firing of the feature."""
        places = self._active_places(str(feature), tokens)
        n_documents = len(np.unique(self._rows.document[tokens // self._rows.context_length]))
        splits: dict[SplitName, SplitWindows] = dict.fromkeys(SPLITS, NO_WINDOWS)
        status = self._status(len(tokens), len(places), n_documents)
        if status is None:
            splits = self._splits(str(feature), places, tokens, values)
            status = self._tier(len(places), splits)
        refs = [_refs(splits[name]) for name in SPLITS]
        sample = Sample(
            feature=str(feature),
            status=status,
            n_tokens=self._n_tokens,
            n_fired=len(tokens),
            n_documents=n_documents,
            n_windows=len(places),
            maximum=float(values.max(initial=0.0)),
            mean=float(values.mean(dtype=np.float64)) if len(values) else 0.0,
            shown=refs[0],
            select=refs[1],
            heldout=refs[2],
        )
        return Sampled(sample, splits, tokens, values)

    def _active_places(self, feature: str, tokens: Ints) -> Places:
        places = cut.active_places(
            tokens, self._rows, self._settings, self._first, draw.key(self._seed, "offset", feature)
        )
        return places[self._count(self._masked, places) == 0]

    def _count(self, tokens: Ints, places: Places) -> Ints:
        """How many of `tokens` (ascending) lie in each place."""
        begin = places.row * self._rows.context_length + places.start
        return np.searchsorted(tokens, begin + places.length) - np.searchsorted(tokens, begin)

    def _status(self, n_fired: int, n_windows: int, n_documents: int) -> SampleStatus | None:
        if n_fired == 0:
            return "dead"
        settings = self._settings
        if n_windows < settings.minimum or n_documents < settings.minimum_documents:
            return "too_few"
        return None

    def _tier(self, n_windows: int, splits: dict[SplitName, SplitWindows]) -> SampleStatus:
        tested = (splits["shown"], splits["heldout"])
        if min(len(split.active) for split in tested) < self._settings.minimum_split:
            return "too_few"
        if min(len(split.silent) for split in tested) < self._settings.minimum_split:
            return "dense"
        return "full" if n_windows >= self._settings.minimum_full else "small"

    def _splits(
        self, feature: str, places: Places, tokens: Ints, values: NDArray[np.float32]
    ) -> dict[SplitName, SplitWindows]:
        settings = self._settings
        hashes = draw.mix(draw.key(self._seed, "window", feature), places.items(self._rows))
        maximum = cut.maxima(places, tokens, values, self._rows.context_length)
        band = cut.bands(maximum, hashes, settings.n_bands)
        wanted: dict[SplitName, tuple[int, int]] = {
            "shown": (settings.n_shown, settings.n_shown_silent),
            "select": (settings.n_select, settings.n_select),
            "heldout": (settings.n_heldout, settings.n_heldout_silent),
        }
        seen = np.zeros(0, np.uint64)
        splits: dict[SplitName, SplitWindows] = {}
        for number, name in enumerate(SPLITS):
            n_active, n_silent = wanted[name]
            inside = np.flatnonzero(self._split[places.row] == number)
            inside = inside[_few_a_band(band[inside], hashes[inside])]
            inside = inside[~cut.shares_run(self._runs(places[inside]), seen)]
            chosen = inside[cut.spread_over_bands(band[inside], hashes[inside], n_active, settings.n_bands)]
            active = places[chosen]
            silent = self._silent(feature, number, active, hashes[chosen], n_silent, tokens, seen)
            splits[name] = SplitWindows(active, band[chosen], silent)
            seen = _union(seen, self._runs(active), self._runs(silent))
        return splits

    def _runs(self, places: Places) -> NDArray[np.uint64]:
        ids = self._rows.tokens(places.row, places.start, self._settings.width)
        ids[np.arange(ids.shape[1]) >= places.length[:, None]] = -1
        return cut.runs(ids, self._settings.overlap)

    def _silent(
        self,
        feature: str,
        split: int,
        active: Places,
        hashes: draw.Hashes,
        n: int,
        tokens: Ints,
        seen: NDArray[np.uint64],
    ) -> Places:
        """For each active window (in order of hash, round and round up to n) another place of the same
        position and length where the feature is known to be silent. Fewer where there are not enough."""
        rows = self._rows_of[split]
        if not len(active) or not len(rows):
            return NO_PLACES
        twin = np.resize(draw.smallest(hashes, len(active)), n)
        turn = np.arange(n) // len(active)
        own = draw.pair(hashes[twin], turn)
        key = draw.key(self._seed, "silent", feature, SPLITS[split])
        found = Places(np.full(n, -1, np.int64), active.start[twin], active.length[twin])
        pending = np.arange(n)
        for attempt in range(_TRIES):
            items = draw.pair(own[pending], np.full(len(pending), attempt))
            row = rows[(draw.mix(key, items) % np.uint64(len(rows))).astype(np.int64)]
            places = Places(row, found.start[pending], found.length[pending])
            good = np.flatnonzero(self._is_silent(places, tokens))
            good = good[~cut.shares_run(self._runs(places[good]), seen)]
            found.row[pending[good]] = row[good]
            _drop_overlapping(found)
            pending = np.flatnonzero(found.row < 0)
            if not len(pending):
                break
        return found[found.row >= 0]

    def _is_silent(self, places: Places, tokens: Ints) -> NDArray[np.bool_]:
        fits = self._rows.length[places.row] >= places.start + places.length
        known = self._count(self._masked, places) == 0
        return fits & known & (self._count(tokens, places) == 0)


def split_of(documents: NDArray[np.uint64], seed: int, shares: tuple[float, float, float]) -> Ints:
    """Split of each document, 0 shown, 1 select, 2 heldout: a keyed hash of its id."""
    where = draw.unit_interval(draw.mix(draw.key(seed, "split"), documents))
    edges = np.cumsum(shares) / sum(shares)
    return np.searchsorted(edges[:-1], where, side="right").astype(np.int64)


def _few_a_band(band: Ints, hashes: draw.Hashes) -> Ints:
    """Indices of each band's smallest hashes, at most `_CANDIDATES_PER_BAND`, ascending."""
    order = np.lexsort((hashes, band))
    rank = np.arange(len(order)) - np.searchsorted(band[order], band[order])
    return np.sort(order[rank < _CANDIDATES_PER_BAND])


def _union(*hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sorted, unique, without the 0 of runs that are none."""
    together = np.unique(np.concatenate([part.ravel() for part in hashes]))
    return together[together != 0]


def _drop_overlapping(found: Places) -> None:
    """Unsets, in place, places that overlap one of smaller index in the same row."""
    taken = np.flatnonzero(found.row >= 0)
    order = taken[np.lexsort((taken, found.row[taken]))]
    row = found.row[order]
    for at in np.flatnonzero(row[1:] == row[:-1]) + 1:
        same = order[:at][row[:at] == row[at]]
        same = same[found.row[same] >= 0]
        mine = order[at]
        begins, ends = found.start[mine], found.start[mine] + found.length[mine]
        if ((found.start[same] < ends) & (found.start[same] + found.length[same] > begins)).any():
            found.row[mine] = -1


def _refs(split: SplitWindows) -> WindowRefs:
    """Active windows first, then silent ones."""
    bands: list[int | None] = [*split.band.tolist(), *([None] * len(split.silent))]
    strata: list[Stratum | None] = [None for _ in range(len(split.active))]
    strata.extend(RANDOM for _ in range(len(split.silent)))
    return WindowRefs(
        rows=[*split.active.row.tolist(), *split.silent.row.tolist()],
        starts=[*split.active.start.tolist(), *split.silent.start.tolist()],
        bands=bands,
        strata=strata,
    )
