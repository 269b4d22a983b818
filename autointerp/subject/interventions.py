"""One feature pushed on the prompts of one split, beside its controls at equal KL -> a `Scene`.

Continuations are drawn, not greedy: the score is an expectation over what the model writes, and a push of a
tenth of a nat changes the likeliest token of hardly any prompt. The clean text and all pushed ones of a prompt
share their random numbers, so they part only where the push made them, and a push that does nothing changes
nothing. The numbers are keyed by the window, not by its place.

Shapes: P prompts, T tokens, O = what a decoder row writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp import draw
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.effects import Arm, Intervention, Scene, Steered
from autointerp.subject.steering import Ablating, Adding, Begun, Steering
from autointerp.subject.strengths import Found, Search, grid
from autointerp.types import FeatureId, Window

_MOST_DRAWS: Final = 100
"""For another feature whose row isn't zero, of a dictionary that has any."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of an active window."""

    window: int
    """Its place among the active windows of the split."""
    begin: int
    end: int
    token_ids: list[int]
    """BOS in front, where the run's rows have it."""
    item: int
    """Names the window in draws."""


def prompts(
    active: Sequence[Window],
    n: int,
    key: int,
    settings: Intervention,
    bos: int | None,
    *,
    behind: bool = False,
) -> list[Prompt]:
    """The n with the smallest keyed hashes, in the order of the windows: windows cut before their first active
    token, `behind` it to ablate. Shorter ones than the settings ask for are none."""
    found: list[Prompt] = []
    for number, window in enumerate(active):
        end = next(at for at, activation in enumerate(window.activations) if activation > 0) + behind
        begin = max(0, end - settings.longest)
        if window.token_ids[0] == bos:
            begin = max(begin, 1)
        if end - begin >= settings.shortest:
            ids = [*([] if bos is None else [bos]), *window.token_ids[begin:end]]
            found.append(Prompt(number, begin, end, ids, _item(window)))
    chosen = draw.smallest(draw.mix(key, np.array([prompt.item for prompt in found], np.uint64)), n)
    return [found[at] for at in sorted(chosen.tolist())]


def _item(window: Window) -> int:
    document = np.array([int(window.document, 16)], np.uint64)
    return int(draw.pair(document, np.array([window.position], np.int64))[0])


def uniform_numbers(chosen: Sequence[Prompt], n_tokens: int, seed: int, feature: str) -> Tensor:
    """[P, T] in [0, 1), float64, of each prompt its own."""
    items = np.array([prompt.item for prompt in chosen], np.uint64)
    columns = [draw.mix(draw.key(seed, "continue", feature, step), items) for step in range(n_tokens)]
    return torch.from_numpy(np.stack([draw.unit_interval(column) for column in columns], axis=1))


# --- directions ----------------------------------------------------------------------------------------


def direction(weights: Weights, feature: FeatureId) -> Tensor:
    """[O]: the decoder row, turned round for a negative pole."""
    (row_O,) = weights.directions([feature.index]).float()
    return -row_O if feature.pole else row_O


def random_direction(row_O: Tensor, widths: Sequence[int], seed: int, feature: str) -> Tensor:
    """[O]: uniform on the sphere, at each site (so many numbers as `widths` says) of the norm that the row has
    there."""
    items = np.arange(len(row_O), dtype=np.uint64)
    first, second = (
        draw.unit_interval(draw.mix(draw.key(seed, "random direction", feature, part), items))
        for part in (0, 1)
    )
    normal: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-first)) * np.cos(
        2 * np.pi * second
    )  # Box and Muller
    pieces = torch.from_numpy(normal).to(row_O.device, row_O.dtype).split(list(widths))
    parts = zip(pieces, row_O.split(list(widths)), strict=True)
    return torch.cat([piece * (part.norm() / piece.norm()) for piece, part in parts])


def other_feature(weights: Weights, spec: DictionarySpec, feature: FeatureId, seed: int) -> FeatureId | None:
    """Another feature of the dictionary whose row isn't zero; None where a hundred draws find none."""
    key = draw.key(seed, "other feature", str(feature))
    columns = draw.below(draw.mix(key, np.arange(_MOST_DRAWS, dtype=np.uint64)), spec.n_columns).tolist()
    others = (FeatureId.of_column(feature.dictionary, column, spec.n_poles) for column in columns)
    return next(
        (other for other in others if other.index != feature.index and bool(direction(weights, other).any())),
        None,
    )


# --- one split -----------------------------------------------------------------------------------------


def pushed(
    steering: Steering,
    chosen: Sequence[Prompt],
    directions: dict[Arm, Tensor],
    settings: Intervention,
    uniform_PT: Tensor,
    adding: Callable[[Tensor], Adding],
    check: Callable[[], None],
) -> Scene:
    """Each direction at each target. `adding(push_SO)` is the pushes; `check` may raise to stop."""
    begun = steering.begin([prompt.token_ids for prompt in chosen])
    found = _strengths(steering, begun, directions, settings, adding, check)
    push_SO = torch.stack([one.strength * directions[arm] for arm, _, one in found])
    changes = steering.changes(begun, adding(push_SO), settings.n_changes)
    ok = [at for at, (_, _, one) in enumerate(found) if one.status == "ok"]
    written = steering.continuations(begun, adding(push_SO[ok]), uniform_PT, check) if ok else []
    texts = dict(zip(ok, written, strict=True))
    steered = [
        Steered(arm, target, one.status, one.strength, one.kl, *changes[at], texts.get(at, []))
        for at, (arm, target, one) in enumerate(found)
    ]
    return _scene(steering, begun, chosen, uniform_PT, steered, check)


def _strengths(
    steering: Steering,
    begun: Begun,
    directions: dict[Arm, Tensor],
    settings: Intervention,
    adding: Callable[[Tensor], Adding],
    check: Callable[[], None],
) -> list[tuple[Arm, float, Found]]:
    """Of each arm and target, all arms searched together."""
    relative = grid(settings.weakest, settings.strongest, settings.n_strengths)
    searches: dict[Arm, Search] = {}
    for arm, row_O in directions.items():
        unit = begun.norm / float(row_O.norm())
        searches[arm] = Search(settings.targets, [strength * unit for strength in relative])
    while any(wanted := {arm: search.wanted() for arm, search in searches.items()}.values()):
        check()
        asked = [(arm, strength) for arm, search in searches.items() for strength in search.wanted()]
        kls = steering.kls(begun, adding(torch.stack([s * directions[arm] for arm, s in asked])))
        for arm, search in searches.items():
            of_arm = [at for at, (its_arm, _) in enumerate(asked) if its_arm == arm]
            if of_arm:
                search.note([asked[at][1] for at in of_arm], [kls[at] for at in of_arm])
    return [
        (arm, target, found)
        for arm, search in searches.items()
        for target in settings.targets
        if (found := search.found(target)) is not None
    ]


def ablated(
    steering: Steering,
    chosen: Sequence[Prompt],
    pushes: Ablating,
    settings: Intervention,
    uniform_PT: Tensor,
    check: Callable[[], None],
) -> Scene:
    """The feature's own contribution taken away; there is nothing to search."""
    begun = steering.begin([prompt.token_ids for prompt in chosen])
    (kl,) = steering.kls(begun, pushes)
    (changes,) = steering.changes(begun, pushes, settings.n_changes)
    (texts,) = steering.continuations(begun, pushes, uniform_PT, check)
    steered = [Steered("ablated", None, "ok", 0.0, kl, *changes, texts)]
    return _scene(steering, begun, chosen, uniform_PT, steered, check)


def _scene(
    steering: Steering,
    begun: Begun,
    chosen: Sequence[Prompt],
    uniform_PT: Tensor,
    steered: list[Steered],
    check: Callable[[], None],
) -> Scene:
    (clean,) = steering.continuations(begun, None, uniform_PT, check)
    return Scene(
        windows=[prompt.window for prompt in chosen],
        begins=[prompt.begin for prompt in chosen],
        ends=[prompt.end for prompt in chosen],
        clean=clean,
        steered=[dataclasses.replace(one, strength=_kept(one.strength), kl=_kept(one.kl)) for one in steered],
    )


def _kept(value: float) -> float:
    return float(f"{value:.6g}")
