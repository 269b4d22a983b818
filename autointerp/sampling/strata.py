"""The strata: how a window is proposed that a feature's active windows are set against.

    random         any place of the split's rows, at the twin's position and of its length (`any_place.py`)
    same_token     a window around one of the feature's top tokens, cut as active windows are
    neighbour      a window around a token on which a donor fires, a feature like this one
    density        the same of a feature of similar density
    same_document  another place of the document of an active window
    embedding      those whose text is nearest to the active ones (`embedding.py`)
    graded         as `random`, for windows that fire weakly or not at all

Each proposes with the same odds whatever was refused before. Of a capped feature only `random` and `graded`
windows are drawn as if no row had been dropped; the others come more often from its strongest rows, which are
all kept. To weight them too, every place of a top token or donor would be looked up among the feature's rows: 3 ms
for 200,000 places, more than twice what all else takes a feature. Shape letters: P features, S slots, D donors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.sampling.cofiring import Codes
from autointerp.sampling.contrast import FEW_TRIES, Slots
from autointerp.sampling.index import TokenIndex
from autointerp.sampling.settings import SamplingSettings, WindowKind
from autointerp.sampling.text import Ints, Text
from autointerp.sampling.windows import (
    Places,
    anchored_places,
    block_places,
    centred_places,
    has_room,
    is_whole,
)


@dataclass(frozen=True, slots=True)
class Around:
    """How a window is cut around a token."""

    text: Text
    settings: SamplingSettings
    kind: WindowKind

    def places(self, token: Ints, hashes: draw.Hashes) -> Places:
        """Around tokens [S], as active windows are cut around a firing; row -1 where the token's block does
        not count, or has no room around it. `hashes` key the offsets."""
        row = token // self.text.context_length
        position = token - row * self.text.context_length
        if self.kind == "anchored":
            return anchored_places(row, position, hashes, self.text, self.settings)
        if self.kind == "centred":
            places = centred_places(row, position, self.settings.width)
            room = has_room(row, position, self.text, self.settings.width)
            return Places(np.where(room, row, -1), places.start, places.length)
        places = block_places(row, position, self.text, self.settings.width)
        whole = is_whole(places, self.text, self.settings.width)
        return Places(np.where(whole, row, -1), places.start, places.length)


@dataclass(frozen=True, slots=True)
class SameToken:
    """`same_token`."""

    index: TokenIndex
    ids: Ints
    """[P, 10], top tokens of each feature, -1 where there are fewer."""
    share: NDArray[np.float64]
    """[P, 10], cumulative share of its firings on its top tokens that fall on each."""
    around: Around

    tries: ClassVar[int] = FEW_TRIES

    def can(self, n_groups: int) -> NDArray[np.bool_]:
        counts = self.index.count(np.maximum(self.ids, 0)) * (self.ids >= 0)
        return counts.sum(1) > 0

    def __call__(self, slots: Slots, attempt: int) -> Places:
        hashes = slots.hashes(attempt)
        which = (self.share[slots.group] <= draw.unit_interval(hashes)[:, None]).sum(1)
        ids = self.ids[slots.group, np.minimum(which, self.ids.shape[1] - 1)]
        n_places = np.where(ids >= 0, self.index.count(np.maximum(ids, 0)), 0)
        found = np.flatnonzero(n_places)
        number = draw.below(draw.mix(1, hashes[found]), n_places[found])
        return _spread(
            len(slots),
            found,
            self.around.places(self.index.place(ids[found], number), draw.mix(2, hashes[found])),
        )


@dataclass(frozen=True, slots=True)
class DonorPlaces:
    """Where features fire, on the sampled tokens of one split."""

    offsets: Ints
    tokens: Ints

    @classmethod
    def of(cls, codes: Codes, text: Text, split: int) -> DonorPlaces:
        inside = np.flatnonzero(text.split[codes.tokens // text.context_length] == split)
        by_feature = codes.by_token[inside].tocsc()
        return cls(by_feature.indptr.astype(np.int64), codes.tokens[inside][by_feature.indices])

    def count(self, features: Ints) -> Ints:
        """Places of each; 0 for features that never fire on the sample, and for -1."""
        known = (features >= 0) & (features < len(self.offsets) - 1)
        at = np.where(known, features, 0)
        if len(self.offsets) < 2:
            return np.zeros(features.shape, np.int64)
        return np.where(known, self.offsets[at + 1] - self.offsets[at], 0)

    def place(self, features: Ints, hashes: draw.Hashes) -> Ints:
        """One of each feature's places, drawn by hash; each must have one."""
        number = draw.below(hashes, self.count(features))
        return self.tokens[self.offsets[features] + number]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`neighbour`: donors take turns, slot by slot and from one attempt to the next."""

    places: DonorPlaces
    donors: Ints
    """[P, D], -1 behind the last."""
    around: Around

    tries: ClassVar[int] = FEW_TRIES

    def can(self, n_groups: int) -> NDArray[np.bool_]:
        return self.places.count(self.donors).sum(1) > 0

    def __call__(self, slots: Slots, attempt: int) -> Places:
        n_donors = np.maximum((self.donors >= 0).sum(1), 1)[slots.group]
        donor = self.donors[slots.group, (slots.number + attempt) % n_donors]
        return _around_firing(self.places, donor, slots.hashes(attempt), self.around)


@dataclass(frozen=True, slots=True)
class SimilarDensity:
    """`density`: each slot draws a feature of its own among those that are next in density."""

    places: DonorPlaces
    by_density: Ints
    """[F] features that fire on the sample, by the number of tokens they fire on."""
    rank: Ints
    """[P], where each feature asked about stands, or would stand, among them."""
    features: Ints
    """[P]"""
    around: Around
    reach: int = 50
    """So many features on each side."""

    @classmethod
    def of(cls, places: DonorPlaces, codes: Codes, features: Ints, around: Around) -> SimilarDensity:
        fires = np.flatnonzero(codes.n_fired)
        by_density = fires[np.argsort(codes.n_fired[fires], kind="stable")]
        known = features < codes.width
        n_fired = np.where(known, codes.n_fired[np.where(known, features, 0)], 0) if codes.width else features
        rank = np.searchsorted(codes.n_fired[by_density], n_fired)
        return cls(places, by_density, rank, features, around)

    tries: ClassVar[int] = FEW_TRIES

    def can(self, n_groups: int) -> NDArray[np.bool_]:
        return np.full(n_groups, len(self.by_density) > 1)

    def __call__(self, slots: Slots, attempt: int) -> Places:
        hashes = slots.hashes(attempt)
        last = len(self.by_density) - 1
        low = np.clip(self.rank[slots.group] - self.reach, 0, max(0, last - 2 * self.reach))
        span = np.minimum(last, low + 2 * self.reach) - low + 1
        donor = self.by_density[low + draw.below(draw.mix(3, hashes), span)]
        donor = np.where(donor == self.features[slots.group], -1, donor)
        return _around_firing(self.places, donor, hashes, self.around)


@dataclass(frozen=True, slots=True)
class SameDocument:
    """`same_document`."""

    by_document: Ints
    """[R] rows, document by document."""
    offsets: Ints
    around: Around

    @classmethod
    def of(cls, text: Text, around: Around) -> SameDocument:
        by_document = np.argsort(text.document, kind="stable")
        counts = np.bincount(text.document, minlength=text.n_documents)
        return cls(by_document, np.concatenate([[0], np.cumsum(counts)]), around)

    tries: ClassVar[int] = FEW_TRIES

    def can(self, n_groups: int) -> NDArray[np.bool_]:
        return np.ones(n_groups, bool)

    def __call__(self, slots: Slots, attempt: int) -> Places:
        hashes, text = slots.hashes(attempt), self.around.text
        document = text.document[slots.twin.row]
        first, n_rows = self.offsets[document], np.diff(self.offsets)[document]
        row = self.by_document[first + draw.below(hashes, n_rows)]
        room = np.maximum(text.length[row] - text.first, 1)
        token = row * text.context_length + text.first + draw.below(draw.mix(1, hashes), room)
        return self.around.places(token, draw.mix(2, hashes))


def _around_firing(places: DonorPlaces, donor: Ints, hashes: draw.Hashes, around: Around) -> Places:
    """Around one of each donor's firings; nowhere where the donor has none."""
    found = np.flatnonzero(places.count(donor))
    token = places.place(donor[found], draw.mix(1, hashes[found]))
    return _spread(len(donor), found, around.places(token, draw.mix(2, hashes[found])))


def _spread(n: int, at: Ints, places: Places) -> Places:
    """n places of which those `at` are these, the others nowhere."""
    row, start, length = np.full(n, -1, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    row[at], start[at], length[at] = places.row, places.start, places.length
    return Places(row, start, length)
