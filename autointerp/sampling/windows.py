"""Active windows of many features at once: where they are cut, how strongly each fires.

Shape letters: P features, M firings, N windows. Arrays over firings and windows are sorted by feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.firings import Firings, group_of
from autointerp.sampling.settings import SamplingSettings, WindowKind
from autointerp.sampling.text import Ints, Text


@dataclass(frozen=True, slots=True)
class Places:
    """N places in the rows: columns."""

    row: Ints
    start: Ints
    """First position of the window in its row."""
    length: Ints

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: Ints | NDArray[np.bool_] | slice) -> Places:
        return Places(self.row[chosen], self.start[chosen], self.length[chosen])


@dataclass(frozen=True, slots=True)
class Active:
    """Active windows of P features, by feature, row and start; no two of a feature overlap."""

    group: Ints
    """[N], which of the P features."""
    places: Places
    low: Ints
    high: Ints
    """[N], the feature's firings in the window are firings low to high - 1."""
    maximum: NDArray[np.float32]
    """[N], largest activation in the window."""
    weight: NDArray[np.float32]
    """[N], how many rows the window's row stands for."""

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, chosen: Ints | NDArray[np.bool_]) -> Active:
        return Active(
            self.group[chosen],
            self.places[chosen],
            self.low[chosen],
            self.high[chosen],
            self.maximum[chosen],
            self.weight[chosen],
        )


def firing_keys(firings: Firings, text: Text) -> Ints:
    """[M], ascending: feature and token in one number, group * tokens of the whole cache + token."""
    return group_of(firings.offsets) * token_span(text) + firings.tokens


def token_span(text: Text) -> int:
    """One more than the largest number that a token of the cache can have."""
    return text.rows.n_rows * text.context_length


def active_windows(
    firings: Firings,
    keys: Ints,
    text: Text,
    settings: SamplingSettings,
    kind: WindowKind,
    threshold: NDArray[np.float32],
    offset_keys: draw.Hashes,
) -> Active:
    """Windows that hold a firing above the threshold, at most one a block of `width` tokens.

    `keys`: of `firing_keys`. `threshold`, `offset_keys` [P]: of each feature; the latter key the hashed
    offsets of anchored windows.
    """
    group = group_of(firings.offsets)
    at = None
    if threshold.any():
        at = np.flatnonzero(firings.values > threshold[group])
    if kind == "centred":
        at = _with_room(firings.tokens, np.arange(len(group)) if at is None else at, text, settings.width)
    if at is not None:
        group = group[at]
    token = firings.tokens if at is None else firings.tokens[at]
    row = token // text.context_length
    position = token - row * text.context_length
    slot = _slots(group, row, (position - text.first) // settings.width)
    first, size = slot, np.diff(slot, append=len(token))
    if kind == "anchored":
        first = _smallest_hash(slot, size, group, row, position, text, offset_keys)
    if kind == "centred":
        first = _strongest(slot, size, firings.values if at is None else firings.values[at])
    group, row, position = group[first], row[first], position[first]
    if kind == "aligned":
        places, keep = _blocks(row, position, text, settings.width)
    elif kind == "centred":
        places = centred_places(row, position, settings.width)
        keep = _without_overlap(group, places)
    else:
        places = anchored_places(
            row,
            position,
            draw.mix(offset_keys[group] + np.uint64(1), text.items(row, position)),
            text,
            settings,
        )
        keep = _without_overlap(group, places)
    if len(text.masked):
        keep = keep & ~text.touches_masked(places.row, places.start, places.length)
    if not keep.all():
        first, group, places = first[keep], group[keep], places[keep]
    anchor = first if at is None else at[first]
    begin = group * token_span(text) + places.row * text.context_length + places.start
    low, high = _firings_inside(anchor, begin, begin + places.length, keys)
    maximum = _maxima(low, high, firings.values)
    return Active(group, places, low, high, maximum, firings.weights[anchor])


def _slots(group: Ints, row: Ints, block: Ints) -> Ints:
    """Index of the first firing of each (feature, row, block)."""
    is_first = np.ones(len(group), bool)
    np.not_equal(row[1:], row[:-1], out=is_first[1:])
    is_first[1:] |= block[1:] != block[:-1]
    is_first[1:] |= group[1:] != group[:-1]
    return np.flatnonzero(is_first)


def _smallest_hash(
    slot: Ints, size: Ints, group: Ints, row: Ints, position: Ints, text: Text, keys: draw.Hashes
) -> Ints:
    """Of each slot the firing with the smallest hash; of equal hashes the first."""
    several = np.flatnonzero(size > 1)
    if not len(several):
        return slot
    at, begins, number = _members(slot, size, several)
    hashes = draw.mix(keys[group[at]], text.items(row[at], position[at]))
    least = np.minimum.reduceat(hashes, begins)
    anchor = slot.copy()
    anchor[several] = at[_first_of_each(hashes == least[number], number)]
    return anchor


def _strongest(slot: Ints, size: Ints, values: NDArray[np.float32]) -> Ints:
    """Of each slot the firing with the largest value; of equal ones the first."""
    several = np.flatnonzero(size > 1)
    if not len(several):
        return slot
    at, begins, number = _members(slot, size, several)
    most = np.maximum.reduceat(values[at], begins)
    anchor = slot.copy()
    anchor[several] = at[_first_of_each(values[at] == most[number], number)]
    return anchor


def _members(slot: Ints, size: Ints, several: Ints) -> tuple[Ints, Ints, Ints]:
    """The firings of these slots, one slot behind the other; where each slot begins among them; and which of the
    slots each is of."""
    sizes = size[several]
    ends = np.cumsum(sizes)
    at = np.arange(ends[-1]) + np.repeat(slot[several] - (ends - sizes), sizes)
    return at, ends - sizes, np.repeat(np.arange(len(several)), sizes)


def _first_of_each(wins: NDArray[np.bool_], number: Ints) -> Ints:
    winners = np.flatnonzero(wins)
    _, first = np.unique(number[winners], return_index=True)
    return winners[first]


def _with_room(tokens: Ints, at: Ints, text: Text, width: int) -> Ints:
    """Those of the firings `at` that can stand in the middle of a window inside their row."""
    row = tokens[at] // text.context_length
    return at[has_room(row, tokens[at] - row * text.context_length, text, width)]


def has_room(row: Ints, position: Ints, text: Text, width: int) -> NDArray[np.bool_]:
    """Whether a window with each position in its middle lies inside its row."""
    start = position - width // 2
    return (start >= text.first) & (start + width <= text.length[row])


def centred_places(row: Ints, position: Ints, width: int) -> Places:
    """A window with each position in its middle; of an even width one more token stands before it than behind."""
    return Places(row, position - width // 2, np.full(len(row), width, np.int64))


def anchored_places(
    row: Ints, position: Ints, hashes: draw.Hashes, text: Text, settings: SamplingSettings
) -> Places:
    """A window around each anchor, which stands at a hashed place of it with `context_before` tokens before
    it wherever its row has them."""
    span = settings.width - settings.context_before
    offset = settings.context_before + draw.below(hashes, span)
    room = text.length[row]
    length = np.minimum(settings.width, room - text.first)
    start = np.clip(position - offset, text.first, np.maximum(text.first, room - length))
    return Places(row, start, length)


def block_places(row: Ints, position: Ints, text: Text, width: int) -> Places:
    """The fixed block of `width` tokens that holds each position, or what is left of it in its row."""
    start = text.first + (position - text.first) // width * width
    return Places(row, start, np.minimum(width, text.length[row] - start))


def _blocks(row: Ints, position: Ints, text: Text, width: int) -> tuple[Places, NDArray[np.bool_]]:
    places = block_places(row, position, text, width)
    return places, is_whole(places, text, width)


def is_whole(places: Places, text: Text, width: int) -> NDArray[np.bool_]:
    """Which blocks count: whole ones, and a row's single short one where the row has no whole one."""
    return (places.length == width) | ((places.start == text.first) & (places.length > 0))


def _without_overlap(group: Ints, places: Places) -> NDArray[np.bool_]:
    """Which windows stay: of two that overlap the earlier. In order of feature, row and block."""
    same_row = np.zeros(len(group), bool)
    same_row[1:] = (group[1:] == group[:-1]) & (places.row[1:] == places.row[:-1])
    keep = np.ones(len(group), bool)
    at = np.flatnonzero(~same_row)  # the first window of each row
    end = places.start[at] + places.length[at]
    # One step along all rows at once; few rows have a second window, fewer a third.
    while len(at):
        at = at + 1
        alive = at < len(group)
        alive[alive] = same_row[at[alive]]
        at, end = at[alive], end[alive]
        fits = places.start[at] >= end
        keep[at] = fits
        end = np.where(fits, places.start[at] + places.length[at], end)
    return keep


def _firings_inside(anchor: Ints, begin: Ints, stop: Ints, keys: Ints) -> tuple[Ints, Ints]:
    """[N] first and one behind the last firing of each window; `anchor` is one of them.

    Walks outwards from the anchor, for most windows hold few firings: a binary search of all of them costs
    ten times as much.
    """
    low, high = anchor.copy(), anchor + 1
    walking = np.flatnonzero(low > 0)
    while len(walking):
        walking = walking[keys[low[walking] - 1] >= begin[walking]]
        low[walking] -= 1
        walking = walking[low[walking] > 0]
    walking = np.flatnonzero(high < len(keys))
    while len(walking):
        walking = walking[keys[high[walking]] < stop[walking]]
        high[walking] += 1
        walking = walking[high[walking] < len(keys)]
    return low, high


def _maxima(low: Ints, high: Ints, values: NDArray[np.float32]) -> NDArray[np.float32]:
    maximum = values[low]
    several = np.flatnonzero(high - low > 1)
    if len(several):
        edges = np.stack([low[several], high[several]], 1).ravel()
        # reduceat needs every edge inside; a last edge behind the end would be out of range.
        padded = np.append(values, np.float32(-np.inf))
        maximum[several] = np.maximum.reduceat(padded, edges)[::2]
    return maximum
