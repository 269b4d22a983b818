"""Made-up corpora and what several features do on them: what tests of sampling run on."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from autointerp.activations.cap import shard_arrays
from autointerp.activations.firing_store import FiringStore
from autointerp.activations.rows import Rows, RowShard, RowStore, rows_of, save_rows
from autointerp.activations.shards import FiringShard, save_shard, sort_by_feature
from autointerp.sampling.sample import Sampled, Sampler
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.text import Text
from autointerp.types import FeatureId

C = 64
WIDTH = 40
"""Features of the made-up dictionary; those that are given a rate fire."""
FEW = SamplingSettings(
    width=16, context_before=5, n_shown=10, n_shown_silent=10, n_select=5, n_heldout=10, n_heldout_silent=10,
    n_same_token=4, n_neighbour=4, minimum=12, minimum_full=30, minimum_documents=4, minimum_split=2, overlap=13,
    contrast="silent",
)  # fmt: skip


@dataclasses.dataclass
class Made:
    """A corpus of rows and features on it."""

    rows: RowStore
    firings: FiringStore
    fired: dict[int, dict[int, float]]
    """Of each feature that fires: token -> value, also those that the cap dropped."""
    masked: set[int]

    def text(self, settings: SamplingSettings = FEW) -> Text:
        return Text(self.rows, self.firings.masked, seed=0, first=1, shares=settings.shares)

    def sampler(self, settings: SamplingSettings, **neighbours: NDArray[np.int64]) -> Sampler:
        near = {int(name[1:]): near for name, near in neighbours.items()}
        return Sampler(self.rows, self.firings, settings, seed=0, first=1, neighbours=near)

    def sample(self, settings: SamplingSettings, features: Sequence[int] = (7,)) -> Sampled:
        return self.sampler(settings).sample([FeatureId("d", feature) for feature in features])

    def kept(self, feature: int) -> dict[int, tuple[float, float]]:
        """Token -> value and weight, of the firings that are kept."""
        found = self.firings.read(feature, feature + 1)
        values, weights = found.values.tolist(), found.weights.tolist()
        return dict(zip(found.tokens.tolist(), zip(values, weights, strict=True), strict=True))

    def ids(self, row: int, start: int, length: int) -> list[int]:
        return self.rows.tokens(np.array([row]), np.array([start]), length)[0].tolist()


def make(
    seed: int,
    n_documents: int,
    rates: dict[int, float],
    n_masked: int = 0,
    max_rows: int = 10**6,
    boilerplate: float = 0.3,
) -> Made:
    """Documents of 10 to 200 tokens; a share of them hold the same 20 tokens somewhere. `rates`: share of
    tokens on which a feature fires; features of equal rates fire alike."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, 60, 20, dtype=np.uint32)
    made: list[Rows] = []
    for document in range(n_documents):
        ids = rng.integers(3, 60, int(rng.integers(10, 200)), dtype=np.uint32)
        if rng.random() < boilerplate and len(ids) > 30:
            at = int(rng.integers(0, len(ids) - 20))
            ids[at : at + 20] = shared
        made.append(rows_of(document * 0x9E3779B97F4A7C15 % 2**64, ids, C, bos=1))
    rows = np.concatenate(made)
    half = len(rows) // 2  # two shards, so that numbering over shards is tested
    pieces = [(0, rows[:half]), (half, rows[half:])] if half else [(0, rows)]
    folder = Path(tempfile.mkdtemp())
    shards: list[RowShard] = []
    firing_shards: list[FiringShard] = []
    fired: dict[int, dict[int, float]] = {}
    all_masked: set[int] = set()
    for first_row, piece in pieces:
        path = folder / f"{first_row}.npy"
        save_rows(path, piece)
        shards.append(RowShard(str(first_row), first_row, len(piece), path))
        looked_at = (np.arange(C) >= 1) & (np.arange(C) < piece["length"][:, None])
        places = np.flatnonzero(looked_at)
        masked = np.sort(rng.choice(places, min(n_masked, len(places)), replace=False))
        all_masked |= {int(token) + first_row * C for token in masked}
        places = np.setdiff1d(places, masked)
        features, tokens, values = _fire(rng, places, rates)
        for feature, token, value in zip(features, tokens, values, strict=True):
            fired.setdefault(int(feature), {})[int(token) + first_row * C] = float(value)
        found = sort_by_feature(
            features.astype(np.int32), tokens.astype(np.int32), values, len(piece) * C, WIDTH
        )
        path = folder / f"{first_row}.safetensors"
        save_shard(path, shard_arrays(found, masked, piece, max_rows))
        firing_shards.append(FiringShard(path, first_row))
    return Made(RowStore(shards, bos=True), FiringStore(firing_shards, C), fired, all_masked)


def _fire(
    rng: np.random.Generator, places: NDArray[np.int64], rates: dict[int, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    features: list[NDArray[np.int64]] = []
    tokens: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float32]] = []
    luck = rng.random(len(places))
    strength = rng.choice([0.5, 1.0, 2.0, 3.5], len(places)).astype(np.float32)  # with ties
    for feature, rate in rates.items():
        if feature % 3:  # every third feature fires where others of its rate do
            luck, strength = rng.random(len(places)), rng.permutation(strength)
        on = luck < rate
        features.append(np.full(int(on.sum()), feature))
        tokens.append(places[on])
        values.append(strength[on])
    if not features:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    return np.concatenate(features), np.concatenate(tokens), np.concatenate(values)


RATES = st.sampled_from([0.0, 0.001, 0.003, 0.02, 0.2, 0.9, 1.0])


def corpora(max_rows: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Made]:
    """One document or many; features that never fire, fire once, everywhere, or alike."""
    return st.builds(
        make,
        seed=st.integers(0, 2**32),
        n_documents=st.integers(1, 90),
        rates=st.fixed_dictionaries(dict.fromkeys((2, 3, 6, 7, 9), RATES)),
        n_masked=st.sampled_from([0, 5, 60]),
        max_rows=st.sampled_from([10**6, 10**6, 8, 30]) if max_rows is None else max_rows,
    )
