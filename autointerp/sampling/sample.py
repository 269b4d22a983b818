"""Samples of many features at once: their windows in three splits that share no document and no run.

Nothing here depends on which features stand together: every array operation keeps features apart, and every
draw is keyed by the feature. Shape letters: P features, M firings, N windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations import statistics
from autointerp.activations.firing_store import FiringStore
from autointerp.activations.firings import Firings
from autointerp.activations.rows import RowStore
from autointerp.activations.subset import chosen, with_silent
from autointerp.sampling.cofiring import Codes
from autointerp.sampling.described import Described, describe
from autointerp.sampling.embedding import Pool
from autointerp.sampling.index import TokenIndex
from autointerp.sampling.repeats import Repeats
from autointerp.sampling.select import Picked, Shared, pick
from autointerp.sampling.selected import STRATA, Selected, gathered, window_refs
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.strata import DonorPlaces
from autointerp.sampling.text import SPLITS, Ints, SplitName, Text
from autointerp.types import Contrast, FeatureId, Sample, SampleStatus

N_DONORS: Final = 10
"""Nearest neighbours by weights, and as many by co-firing."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Samples of P features, and the windows they name."""

    samples: list[Sample]
    windows: Selected
    """`group` counts the samples."""
    firings: Firings
    """What the windows' `low` and `high` count."""
    text: Text


class Sampler:
    """Samples features of one dictionary. Holds what all features share."""

    def __init__(
        self,
        rows: RowStore,
        firings: FiringStore,
        settings: SamplingSettings,
        *,
        seed: int,
        first: int,
        neighbours: Mapping[int, NDArray[np.int64]] | None = None,
        is_whole: bool = True,
        n_poles: int = 1,
        codes: Codes | None = None,
        token_embedding: NDArray[np.float16] | None = None,
    ) -> None:
        """`first`: the first position of a row that a window may use (1 where position 0 is masked).
        `neighbours`: for features asked about, those with the most similar decoder or encoder rows, the
        nearest first. `is_whole`: the dictionary is always cached whole, so that which features co-fire
        doesn't depend on what is asked for; else only neighbours are donors. `n_poles`: of each feature;
        firings, neighbours and donors go by column (`FeatureId.column`). `codes`: where `firings` know of
        some features in more of the rows than of others, what fires together where all are known (rows that
        come first among `rows`): shares of other rows would be compared with each other. `token_embedding`
        [V, K]: where windows are compared by it."""
        self._is_whole = is_whole
        self._n_poles = n_poles
        self._store = firings
        self._neighbours = neighbours or {}
        text = Text(rows, firings.masked, seed=seed, first=first, shares=settings.shares)
        by_token: dict[SplitName, int] = {"shown": settings.shown_hard[0], "heldout": settings.n_same_token}
        by_codes: dict[SplitName, int] = {
            "shown": settings.shown_hard[1],
            "heldout": settings.n_neighbour + settings.n_density,
        }
        self._codes = (codes or Codes(firings, text, is_whole=is_whole)) if settings.needs_codes else None
        self._shared = Shared(
            text=text,
            settings=settings,
            repeats=Repeats(text, settings.width, settings.overlap),
            index={
                name: TokenIndex(text, text.rows_of[SPLITS.index(name)]) for name, n in by_token.items() if n
            },
            codes=self._codes,
            donor_places={
                name: DonorPlaces.of(self._codes, text, SPLITS.index(name))
                for name, n in by_codes.items()
                if n and self._codes
            },
            pool=None if token_embedding is None else Pool.of(text, settings, token_embedding),
        )
        self._tokens_by_position = statistics.tokens_by_position(
            text.length, first, text.masked, text.context_length
        )

    def sample(self, features: Sequence[FeatureId]) -> Sampled:
        """One sample a feature. `features`: ascending, at most `statistics.MOST_FEATURES`."""
        ids = np.array([feature.column(self._n_poles) for feature in features], np.int64)
        firings = with_silent(self._store.read_these(ids), ids)
        described = describe(firings, self._shared.text, self._tokens_by_position)
        donors = self._donors(ids)
        keys = draw.keys(self._shared.text.seed, "feature", map(str, features))
        graded = self._is_graded(described)
        pieces: list[Picked] = []
        contrasts: tuple[Contrast, Contrast] = ("silent", "graded")
        for contrast, which in zip(contrasts, (~graded, graded), strict=True):
            at = np.flatnonzero(which)
            if not len(at):
                continue
            of_these = firings if len(at) == len(ids) else chosen(firings, at)
            picked = pick(self._shared, of_these, described.of(at), donors[at], keys[at], contrast)
            pieces.append(picked.among(at, firings.offsets[:-1][at] - of_these.offsets[:-1]))
        n_windows = np.zeros(len(ids), np.int64)
        for piece in pieces:
            n_windows += piece.n_windows_among(len(ids))
        windows = gathered([piece.windows for piece in pieces])
        statuses = self._statuses(described, n_windows, windows)
        explainable = np.array([status in ("full", "small") for status in statuses])
        windows = windows[explainable[windows.group]]
        refs = window_refs(windows, len(ids))
        samples = [
            Sample(
                feature=str(feature),
                status=statuses[at],
                contrast="graded" if graded[at] else "silent",
                n_tokens=self._shared.text.n_tokens,
                n_windows=int(n_windows[at]),
                donors=[donor for donor in donors[at].tolist() if donor >= 0],
                shown=refs[at][0],
                select=refs[at][1],
                heldout=refs[at][2],
                **fields,
            )
            for at, (feature, fields) in enumerate(zip(features, described.rows(), strict=True))
        ]
        return Sampled(samples, windows, firings, self._shared.text)

    def _is_graded(self, described: Described) -> NDArray[np.bool_]:
        settings = self._shared.settings
        if settings.contrast != "auto":
            return np.full(len(described.n_fired), settings.contrast == "graded")
        return described.n_fired > settings.graded_from * self._shared.text.n_tokens

    def _donors(self, ids: Ints) -> NDArray[np.int64]:
        """[P, 2 * N_DONORS]: features alike, those by weights first; -1 behind the last."""
        donors = np.full((len(ids), 2 * N_DONORS), -1, np.int64)
        settings = self._shared.settings
        if not settings.n_neighbour + settings.shown_hard[1] or self._codes is None:
            return donors
        by_codes = self._codes.alike(ids, N_DONORS)
        for at, feature in enumerate(ids.tolist()):
            near = self._neighbours.get(feature, ids[:0])[:N_DONORS].tolist()
            found = dict.fromkeys([*near, *(by_codes[at].tolist() if self._is_whole else ())])
            alike = [donor for donor in found if donor not in (-1, feature)]
            donors[at, : len(alike)] = alike
        return donors

    def _statuses(self, described: Described, n_windows: Ints, windows: Selected) -> list[SampleStatus]:
        settings, n = self._shared.settings, len(n_windows)
        headline = np.isin(windows.stratum, [STRATA.index("random"), STRATA.index("graded")])
        cell = windows.group * len(SPLITS) + windows.split
        wanted = (settings.n_shown, settings.n_heldout), (settings.n_shown_silent, settings.n_heldout_silent)
        lacks_active, lacks_silent = (
            # Who asks for fewer than the minimum gets what was asked for.
            (found < np.minimum(settings.minimum_split, of_kind)).any(1)
            for kind, of_kind in zip((windows.stratum < 0, headline), wanted, strict=True)
            for found in [np.bincount(cell[kind], minlength=n * len(SPLITS)).reshape(n, -1)[:, [0, 2]]]
        )
        status = np.where(n_windows >= settings.minimum_full, "full", "small")
        status = np.where(lacks_silent, "dense", status)
        is_few = (n_windows < settings.minimum) | (described.n_documents < settings.minimum_documents)
        status = np.where(is_few | lacks_active, "too_few", status)
        return np.where(described.n_fired == 0, "dead", status).tolist()
