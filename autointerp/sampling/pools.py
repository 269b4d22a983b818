"""Windows as published protocols draw them: from one pool, whatever documents they are of (invariant 5's
exception, for recipes marked `replica`).

`shared` is EleutherAI/delphi's (delphi/latents/samplers.py at 3c2e139): windows in order of strength, cut into as
many parts of equal size as there are bands, what is left over at the weak end unused; of each part a sample, by
Python's generator seeded with 22, anew for what is shown and for what is tested. Both read the same stream, so
the samples agree where they are in step: of 50 tested windows 10 were shown at 5,000 windows and more, 20 at 200.

`apart` is SAEBench's (sae_bench/evals/autointerp/main.py at fd85857): the strongest are dealt out between what is
shown and what is tested, and so are further ones, drawn by importance.

Shape letters: P features, N active windows of all of them.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.sampling.choose import ranks_in, weighted_keys
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.text import Ints

DELPHI_SEED: Final = 22
"""Part of the protocol, not of a run: all features and all of delphi's runs have it."""


def pooled(
    order: Ints,
    group: Ints,
    weight: NDArray[np.float32],
    hashes: draw.Hashes,
    settings: SamplingSettings,
    n_groups: int,
) -> tuple[Ints, Ints, Ints] | None:
    """What is shown, selected on (nothing) and tested; None where splits have documents of their own. Arguments
    as below."""
    match settings.pool:
        case "split":
            return None
        case "shared":
            shown, heldout = shared(order, group, settings, n_groups)
        case "apart":
            shown, heldout = apart(order, group, weight, hashes, settings)
    return shown, shown[:0], heldout


def shared(order: Ints, group: Ints, settings: SamplingSettings, n_groups: int) -> tuple[Ints, Ints]:
    """What is shown and what is tested; indices among all windows, ascending. `order` [N]: by feature, the
    strongest first. `group` [N]."""
    counts = np.bincount(group, minlength=n_groups)
    begins = np.cumsum(counts) - counts
    shown, heldout = [order[:0]], [order[:0]]
    for begin, n in zip(begins.tolist(), counts.tolist(), strict=True):
        of_shown = settings.shown_rule.others == "random"
        at_shown = (
            _any_of(n, settings.n_shown) if of_shown else _of_parts(n, settings.n_shown, settings.n_bands)
        )
        shown.append(order[begin + at_shown])
        heldout.append(order[begin + _of_parts(n, settings.n_heldout, settings.n_bands)])
    return np.sort(np.concatenate(shown)), np.sort(np.concatenate(heldout))


@lru_cache(maxsize=4096)
def _of_parts(n_windows: int, n: int, n_parts: int) -> Ints:
    """Places in line, 0 the strongest."""
    size, of_each = n_windows // n_parts, n // n_parts
    generator = random.Random(DELPHI_SEED)
    places: list[int] = []
    for part in range(n_parts):
        inside = range(part * size, (part + 1) * size)
        places += inside if size < of_each else generator.sample(inside, of_each)
    return np.array(places, np.int64)


@lru_cache(maxsize=4096)
def _any_of(n_windows: int, n: int) -> Ints:
    return np.array(random.Random(DELPHI_SEED).sample(range(n_windows), min(n, n_windows)), np.int64)


def apart(
    order: Ints,
    group: Ints,
    weight: NDArray[np.float32],
    hashes: draw.Hashes,
    settings: SamplingSettings,
) -> tuple[Ints, Ints]:
    """As `shared`. `weight` [N]: what it is drawn by (`importance_power`). `hashes` [N]: a number of each window."""
    shown, heldout = settings.shown_rule, settings.heldout_rule
    top = order[ranks_in(group[order]) < shown.n_top + heldout.n_top]
    others = np.ones(len(group), bool)
    others[top] = False
    rest = np.flatnonzero(others)
    rest = rest[draw.by_cell(group[rest], weighted_keys(hashes[rest], weight[rest]))]
    rest = rest[ranks_in(group[rest]) < shown.n + heldout.n - shown.n_top - heldout.n_top]
    is_shown = np.zeros(len(group), bool)
    for drawn, n_shown in ((top, shown.n_top), (rest, shown.n - shown.n_top)):
        # Dealt out by hashes of their own: those above go with the strength.
        dealt = drawn[draw.by_cell(group[drawn], draw.mix(2, hashes[drawn]))]
        is_shown[dealt[ranks_in(group[dealt]) < n_shown]] = True
    taken = np.sort(np.concatenate([top, rest]))
    return taken[is_shown[taken]], taken[~is_shown[taken]]
