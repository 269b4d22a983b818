"""Sampling as one would write it first: a feature at a time, a window at a time, in plain Python.

What `bench sample` compares with. It does less than the sampler: random silent windows only, no statistics.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.activations.rows import RowStore
from autointerp.bench.made_up_cache import MadeUpCache
from autointerp.sampling.contrast import TRIES
from autointerp.sampling.settings import SamplingSettings

Tokens = list[int]


@dataclass(frozen=True, slots=True)
class _Window:
    row: int
    start: int
    maximum: float
    ids: Tokens
    activations: list[float]

    def runs(self, n: int) -> set[tuple[int, ...]]:
        return {tuple(self.ids[at : at + n]) for at in range(len(self.ids) - n + 1)}


class SlowSampler:
    """One feature after another."""

    def __init__(self, cache: MadeUpCache, settings: SamplingSettings) -> None:
        self._cache, self._settings = cache, settings
        documents: list[int] = cache.rows.document.tolist()
        self._split = [_split(document, settings.shares) for document in documents]
        self._length: list[int] = cache.rows.length.tolist()

    def sample(self, feature: int) -> bytes:
        """Its record and its windows, as bytes."""
        settings, rng = self._settings, random.Random(feature)
        found = self._cache.firings.read(feature, feature + 1)
        fired = dict(zip(found.tokens.tolist(), found.values.tolist(), strict=True))
        active = self._active(fired, rng)
        active.sort(key=lambda window: -window.maximum)
        bands = [at * settings.n_bands // len(active) for at in range(len(active))]
        seen: set[tuple[int, ...]] = set()
        record: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        wanted = (
            (settings.n_shown, settings.n_shown_silent),
            (settings.n_select, settings.n_select),
            (settings.n_heldout, settings.n_heldout_silent),
        )
        for split, (n, n_silent) in enumerate(wanted):
            inside = [at for at in range(len(active)) if self._split[active[at].row] == split]
            rng.shuffle(inside)
            chosen: list[int] = []
            for band in range(settings.n_bands):
                fresh = (at for at in inside if bands[at] == band)
                fresh = (at for at in fresh if not active[at].runs(settings.overlap) & seen)
                chosen += [at for at, _ in zip(fresh, range(n // settings.n_bands), strict=False)]
            silent = self._silent([active[at] for at in chosen], fired, split, n_silent, seen, rng)
            for window in [*(active[at] for at in chosen), *silent]:
                seen |= window.runs(settings.overlap)
                fields = ("row", "start", "ids", "activations")
                rows.append({name: getattr(window, name) for name in fields})
            record[str(split)] = [(active[at].row, active[at].start, bands[at]) for at in chosen]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
        return orjson.dumps(record) + sink.getvalue().to_pybytes()

    def _active(self, fired: dict[int, float], rng: random.Random) -> list[_Window]:
        windows: list[_Window] = []
        context_length, end = self._cache.rows.context_length, (-1, 0)
        for token in sorted(fired):
            row, position = divmod(token, context_length)
            width = min(self._settings.width, self._length[row] - 1)
            offset = rng.randrange(self._settings.context_before, self._settings.width)
            start = min(max(position - offset, 1), self._length[row] - width)
            if end[0] == row and start < end[1]:
                continue
            end = (row, start + width)
            windows.append(self._window(row, start, width, fired))
        return windows

    def _silent(
        self,
        active: list[_Window],
        fired: dict[int, float],
        split: int,
        n: int,
        seen: set[tuple[int, ...]],
        rng: random.Random,
    ) -> list[_Window]:
        windows: list[_Window] = []
        for _ in range(TRIES * n if active else 0):  # of a dense feature there may be no n silent windows
            if len(windows) == n:
                break
            twin = active[len(windows) % len(active)]
            row, width = rng.randrange(len(self._split)), len(twin.ids)
            if self._split[row] != split or self._length[row] < twin.start + width:
                continue
            window = self._window(row, twin.start, width, fired)
            taken = any(o.row == row and abs(o.start - window.start) < width for o in windows)
            if window.maximum == 0 and not taken and not window.runs(self._settings.overlap) & seen:
                windows.append(window)
        return windows

    def _window(self, row: int, start: int, width: int, fired: dict[int, float]) -> _Window:
        rows: RowStore = self._cache.rows
        begin = row * rows.context_length + start
        activations = [fired.get(token, 0.0) for token in range(begin, begin + width)]
        ids = _tokens(rows, row, start, width)
        return _Window(row, start, max(activations), ids, activations)


def _tokens(rows: RowStore, row: int, start: int, width: int) -> Tokens:
    return rows.tokens(np.array([row]), np.array([start]), width)[0].tolist()


def _split(document: int, shares: tuple[float, float, float]) -> int:
    where = random.Random(document).random() * sum(shares)
    return (where >= shares[0]) + (where >= shares[0] + shares[1])
