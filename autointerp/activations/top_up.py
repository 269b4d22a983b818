"""More rows for the features that fire in too few: which these are, and what of the further rows is kept.

After a cache is made, further rows go through the model, and of these only firings of *lacking* features are
stored, in a journal of their own: of these features everything is known in all rows, of the others nothing
beyond the cache. Which features lack follows from the cache alone, not from which are asked for; the answer
is kept, pass by pass of the cache (`passes.py`), as a pass of the same number over the further rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autointerp.activations.firing_store import firing_shards
from autointerp.activations.passes import Pass, begun, passes_of, put_down
from autointerp.journal import Journal


def rows_fired(
    cache: Journal, width: int, context_length: int, on_shard: Callable[[], None] = lambda: None
) -> NDArray[np.int64]:
    """[width]: rows in which each feature fires. Memory: one shard's firings. Raises RunError where a file is
    missing; `on_shard` may raise to stop."""
    n_rows = np.zeros(width, np.int64)
    for shard in firing_shards(cache):
        on_shard()
        features, of_each = shard.rows_fired(context_length)
        n_rows[features] += of_each
    return n_rows


def note_lacking(
    cache: Journal, more: Journal, units: list[str], n_rows: Callable[[], NDArray[np.int64]], below: int
) -> list[Pass]:
    """Puts down in the journal `more` which features lack windows, of each finished pass of `cache` of which
    it isn't known: those that fire in fewer than `below` rows. The new passes.

    `units`: the cache's shards. `n_rows` gives `rows_fired`; it is asked only where something is to be put
    down. Raises DiskFull, RunError.
    """
    known = {entry.number for entry in begun(more)}
    new = [entry for entry in passes_of(cache) if entry.number not in known and entry.is_done(cache, units)]
    if not new:
        return []
    lacks = n_rows() < below
    found: list[Pass] = []
    for entry in new:
        features = np.flatnonzero(lacks) if entry.features is None else entry.features[lacks[entry.features]]
        found.append(Pass(entry.number, features.astype(np.uint32)))
        put_down(more, found[-1])
    return found


def passes_to_top_up(
    cache: Journal, more: Journal, units: list[str], needed: NDArray[np.int64]
) -> list[Pass] | None:
    """Passes over the further rows that must be finished before all is known of the features `needed`; None
    where it isn't known yet which of them lack. `units`: the further shards, none where they aren't made."""
    known = {entry.number: entry for entry in begun(more)}
    numbers = [entry.number for entry in passes_of(cache) if entry.holds(needed).any()]
    if not known.keys() >= set(numbers):
        return None
    passes = [known[number] for number in numbers if len(_features(known[number]))]
    return [entry for entry in passes if not units or not entry.is_done(more, units)]


def lacking(more: Journal) -> NDArray[np.int64]:
    """The features that are topped up, ascending."""
    found = [_features(entry).astype(np.int64) for entry in begun(more)]
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _features(entry: Pass) -> NDArray[np.uint32]:
    assert entry.features is not None  # of what tops up, they are always named
    return entry.features
