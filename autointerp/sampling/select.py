"""From firings to the windows of three splits, for features that share one kind of contrast.

Shape letters: P features, N windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.firings import Firings
from autointerp.sampling import choose, graded, pools
from autointerp.sampling.any_place import AnyPlace
from autointerp.sampling.cofiring import Codes
from autointerp.sampling.contrast import Placed, Proposals, Slots, fill, slots_of
from autointerp.sampling.described import Described
from autointerp.sampling.embedding import Nearest, Pool
from autointerp.sampling.graded import LowerHalf
from autointerp.sampling.index import TokenIndex
from autointerp.sampling.repeats import Repeats
from autointerp.sampling.seen import Seen
from autointerp.sampling.selected import STRATA, Selected, gathered
from autointerp.sampling.settings import Rule, SamplingSettings
from autointerp.sampling.silence import Known
from autointerp.sampling.strata import (
    Around,
    DonorPlaces,
    Neighbour,
    SameDocument,
    SameToken,
    SimilarDensity,
)
from autointerp.sampling.text import SPLITS, Ints, SplitName, Text
from autointerp.sampling.thresholds import thresholds
from autointerp.sampling.windows import Active, Places, active_windows, firing_keys
from autointerp.types import Contrast, Stratum

IsGood = Callable[[Slots, Places], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all features of a dictionary share."""

    text: Text
    settings: SamplingSettings
    repeats: Repeats
    index: Mapping[SplitName, TokenIndex]
    """Of the splits in which windows are looked for by token."""
    codes: Codes | None
    donor_places: Mapping[SplitName, DonorPlaces]
    """Of the splits in which windows are looked for where other features fire."""
    pool: Pool | None


@dataclass(frozen=True, slots=True)
class Picked:
    """Windows of some of the features of a block."""

    windows: Selected
    n_windows: Ints
    """Of each feature, to choose from."""
    at: Ints
    """Which features of the block these are."""

    def among(self, at: Ints, shift: Ints) -> Picked:
        """The same, counted among all features of a block: these are `at`, and the firings of each lie
        `shift` further on."""
        windows, of = self.windows, self.windows.group
        moved = replace(windows, group=at[of], low=windows.low + shift[of], high=windows.high + shift[of])
        return Picked(moved, self.n_windows, at)

    def n_windows_among(self, n_groups: int) -> Ints:
        together = np.zeros(n_groups, np.int64)
        together[self.at] = self.n_windows
        return together


def pick(
    shared: Shared,
    firings: Firings,
    described: Described,
    donors: Ints,
    feature_keys: draw.Hashes,
    contrast: Contrast,
) -> Picked:
    """`donors` [P, D] and `feature_keys` [P]: of each feature."""
    text, settings, n_groups = shared.text, shared.settings, len(firings.features)
    keys = firing_keys(firings, text)
    known = Known(firings, keys, text)
    threshold = thresholds(firings, described, settings)
    is_graded = contrast == "graded"
    active = active_windows(
        firings,
        keys,
        text,
        settings,
        "aligned" if is_graded else settings.window,
        np.zeros_like(threshold) if is_graded else threshold,
        _keyed(text, "offset", feature_keys),
    )
    lower_half: LowerHalf | None = None
    if is_graded:
        lower_half, active = _graded(shared, known, active, threshold, feature_keys)
    n_windows = np.rint(np.bincount(active.group, active.weight, minlength=n_groups)).astype(np.int64)
    going = (n_windows >= settings.minimum) & (described.n_documents >= settings.minimum_documents)
    if not going.all():
        active = active[np.flatnonzero(going[active.group])]
    strata = _Strata(shared, firings, described, donors, feature_keys, known, lower_half)
    return Picked(_splits(shared, active, strata, feature_keys), n_windows, np.arange(n_groups))


def _keyed(text: Text, purpose: str, feature_keys: draw.Hashes) -> draw.Hashes:
    return draw.mix(draw.key(text.seed, purpose), feature_keys)


def _window_hashes(text: Text, active: Active, feature_keys: draw.Hashes) -> draw.Hashes:
    places = active.places
    keys = _keyed(text, "window", feature_keys)
    return draw.mix(keys[active.group], text.items(places.row, places.start))


def _graded(
    shared: Shared, known: Known, blocks: Active, threshold: NDArray[np.float32], feature_keys: draw.Hashes
) -> tuple[LowerHalf, Active]:
    """From all blocks with a firing to the weak ones, and those of the top decile."""
    n_groups, text = len(threshold), shared.text
    order = choose.strongest_first(blocks, _window_hashes(text, blocks, feature_keys))
    before, _ = choose.places_in_line(blocks, order, n_groups)
    n_all = graded.n_blocks(text, shared.settings.width)
    strong = graded.in_top_decile(before, n_all) & (blocks.maximum > threshold[blocks.group])
    weak = LowerHalf.of(known, text, shared.settings.width, blocks, before, n_all)
    return weak, blocks[np.flatnonzero(strong)]


def _splits(shared: Shared, active: Active, strata: _Strata, feature_keys: draw.Hashes) -> Selected:
    text, settings, n_groups = shared.text, shared.settings, len(feature_keys)
    hashes = _window_hashes(text, active, feature_keys)
    order = choose.strongest_first(active, hashes)
    before, total = choose.places_in_line(active, order, n_groups)
    band = choose.bands(before, total, active.group, settings.n_bands)
    # Hashes of their own: those above order windows of equal strength, so they go with the band.
    keys = choose.draw_keys(draw.mix(1, hashes), active.weight, active.group, n_groups)
    split = text.split[active.places.row]
    by_split = choose.candidates_by_split(split, active.group, band, keys, n_groups, len(SPLITS))
    seen = Seen(n_groups, text, shared.repeats, settings.width, settings.overlap)

    def is_new(at: Ints) -> NDArray[np.bool_]:
        return ~seen.holds(active.group[at], active.places[at])

    rank = np.empty(len(active), np.int64)
    rank[order] = choose.ranks_in(active.group)
    worth = active.maximum**settings.importance_power * active.weight
    pooled = pools.pooled(order, active.group, worth, draw.mix(1, hashes), settings, n_groups)
    rules = (settings.shown_rule, Rule(settings.n_select, 0, "quantiles"), settings.heldout_rule)
    pieces: list[Selected] = []
    for number, (name, found, rule) in enumerate(zip(SPLITS, by_split, rules, strict=True)):
        if pooled is not None:
            at = pooled[number]
        else:
            check = None if name == "shown" else is_new
            place, worths = rank[found.at], worth[found.at]
            at = found.at[choose.drawn(found, rule, place, worths, settings.n_bands, n_groups, check)]
        piece = _active_piece(active, at, band[at], number)
        others = strata.windows(name, piece, hashes[at], seen)
        pieces += [piece, *others]
        if name != "heldout" and pooled is None:
            for part in (piece, *others):
                seen.add(part.group, part.places)
    return gathered(pieces)


def _active_piece(active: Active, at: Ints, band: Ints, split: int) -> Selected:
    return Selected(
        group=active.group[at],
        split=np.full(len(at), split, np.int8),
        places=active.places[at],
        band=band.astype(np.int16),
        stratum=np.full(len(at), -1, np.int8),
        low=active.low[at],
        high=active.high[at],
    )


@dataclass(frozen=True, slots=True)
class _Strata:
    """What the active windows of P features are set against."""

    shared: Shared
    firings: Firings
    described: Described
    donors: Ints
    feature_keys: draw.Hashes
    known: Known
    lower_half: LowerHalf | None
    """None: silent windows."""

    def windows(
        self,
        name: SplitName,
        active: Selected,
        hashes: draw.Hashes,
        seen: Seen,
    ) -> list[Selected]:
        """Windows of each stratum of a split. `hashes`: of the active windows. Later strata make way for
        earlier ones, so the headline does not depend on how many of the others are asked for."""

        def is_good(slots: Slots, places: Places) -> NDArray[np.bool_]:
            judge: IsGood = self.lower_half or self._is_silent
            good = judge(slots, places)
            at = np.flatnonzero(good)
            if name != "shown":
                good[at] = ~seen.holds(slots.group[at], places[at])
            return good

        n_groups = len(self.feature_keys)
        taken = own = Placed(active.group, active.places)
        pieces: list[Selected] = []
        for stratum, n, propose in self._wanted(name, own):
            keys = _keyed(self.shared.text, f"{stratum} {name}", self.feature_keys)
            slots = slots_of(own, hashes, n, keys)
            places = fill(slots, propose, is_good, taken, n_groups)
            at = np.flatnonzero(places.row >= 0)
            piece = self._piece(stratum, SPLITS.index(name), slots.group[at], places[at])
            taken = Placed.of(taken, Placed(piece.group, piece.places))
            pieces.append(piece)
        return pieces

    def _is_silent(self, slots: Slots, places: Places) -> NDArray[np.bool_]:
        if self.shared.settings.silence == "assumed":
            return self.known.is_known(slots.group, places)
        return self.known.is_silent(slots.group, places)

    def _piece(self, stratum: Stratum, split: int, group: Ints, places: Places) -> Selected:
        low = high = np.zeros(len(group), np.int64)
        if self.lower_half is not None or self.shared.settings.silence == "assumed":
            low, high = self.known.firings_in(group, places)
        return Selected(
            group=group,
            split=np.full(len(group), split, np.int8),
            places=places,
            band=np.full(len(group), -1, np.int16),
            stratum=np.full(len(group), STRATA.index(stratum), np.int8),
            low=low,
            high=high,
        )

    def _wanted(self, name: SplitName, active: Placed) -> list[tuple[Stratum, int, Proposals]]:
        shared, settings = self.shared, self.shared.settings
        text = shared.text
        rows = text.rows_of[SPLITS.index(name)] if settings.pool == "split" else np.arange(text.rows.n_rows)
        any_place = AnyPlace.of(rows, self.firings, text.context_length)
        counts = {
            "shown": settings.n_shown_silent,
            "select": settings.n_select,
            "heldout": settings.n_heldout_silent,
        }
        if self.lower_half is not None:
            return [("graded", counts[name], any_place)]
        wanted: list[tuple[Stratum, int, Proposals]] = [("random", counts[name], any_place)]
        around = Around(text, settings, settings.window)
        n_same_token, n_neighbour = {
            "shown": settings.shown_hard,
            "select": (0, 0),
            "heldout": (settings.n_same_token, settings.n_neighbour),
        }[name]
        if n_same_token:
            top = self.described.top
            share = np.cumsum(top.counts, 1) / np.maximum(top.counts.sum(1, keepdims=True), 1)
            wanted.append(("same_token", n_same_token, SameToken(shared.index[name], top.ids, share, around)))
        if n_neighbour:
            wanted.append(
                ("neighbour", n_neighbour, Neighbour(shared.donor_places[name], self.donors, around))
            )
        if name != "heldout":
            return wanted
        if settings.n_same_document:
            wanted.append(("same_document", settings.n_same_document, SameDocument.of(text, around)))
        if settings.n_density and shared.codes is not None:
            density = SimilarDensity.of(
                shared.donor_places[name], shared.codes, self.firings.features.astype(np.int64), around
            )
            wanted.append(("density", settings.n_density, density))
        if settings.n_embedding and shared.pool is not None:
            nearest = Nearest.of(shared.pool, text, active, len(self.feature_keys))
            wanted.append(("embedding", settings.n_embedding, nearest))
        return wanted
