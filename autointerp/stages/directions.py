"""Directions: what the weights alone say of each feature asked for. Runs in the device stages' child.

Needs the dictionary's decoder and, of the model, two or three tensors: more features of a cached run cost no
model. Every result is exact, so that it is the same on every device, in every order, after every kill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Final

from torch import Tensor

from autointerp.dictionaries.locate import reader_of
from autointerp.dictionaries.neighbours import Nearest, Neighbourhood
from autointerp.dictionaries.spec import Weights
from autointerp.journal import Part, unit_of_feature
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import N_NEIGHBOURS, N_TOKENS, Run
from autointerp.sources import DictionaryFound
from autointerp.subject.unembedding import NoUnembedding, Unembedding, read_unembedding
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Directions, FeatureId, TokenEffects

NONE_LOADED: Final[Mapping[str, Weights]] = MappingProxyType({})
_AT_ONCE: Final = 1_024
"""Features of one pass over the dictionary: more cost memory, fewer cost passes. A kill loses one pass."""


def run_directions(
    run: Run,
    resolved: Resolved,
    device: str,
    progress: Progress,
    stop: Stop,
    loaded: Mapping[str, Weights] = NONE_LOADED,
) -> None:
    """Writes the records that are missing. The run's vocabulary must be there. Of dictionaries that are not
    `loaded` the tensors are read. Raises CheckpointError, ModelError, DiskFull, Interrupted."""
    missing = {
        name: features for name in run.recipe.dictionaries if (features := run.without_directions(name))
    }
    if not missing:
        return
    n_asked = sum(len(run.asked(name)) for name in resolved.dictionaries)
    n_missing = sum(map(len, missing.values()))
    progress.begin("directions", n_asked, "features", done=n_asked - n_missing)
    n_tokens = len(Vocabulary.load(run.vocabulary))
    for name, features in missing.items():
        found = resolved.dictionaries[name]
        weights = loaded.get(name) or reader_of(found.spec).load(found.spec, device)
        unembedding = _unembedding(resolved, found, n_tokens, device)
        if isinstance(unembedding, NoUnembedding):
            progress.note(f"{name}: no promoted and suppressed tokens, because {unembedding.reason}")
            unembedding = None
        write_directions(run, name, features, weights, unembedding, progress, stop)
    progress.end()


def _unembedding(
    resolved: Resolved, found: DictionaryFound, n_tokens: int, device: str
) -> Unembedding | NoUnembedding:
    if resolved.model is None:
        return NoUnembedding("the model's weights are not here")
    if resolved.model.random_seed is not None:
        return NoUnembedding("the model's weights are random")
    site = found.site_out if found.spec.is_transcoder else found.inputs[-1]
    if site is None:
        return NoUnembedding(f"the checkpoint doesn't say where the transcoder writes{found.unread_output}")
    return read_unembedding(resolved.model, site, n_tokens, device)


def write_directions(
    run: Run,
    name: str,
    features: Sequence[FeatureId],
    weights: Weights,
    unembedding: Unembedding | None,
    progress: Progress,
    stop: Stop,
) -> None:
    """Writes the records of `features`, which are in ascending order, of the dictionary called `name`.
    Raises DiskFull, Interrupted."""
    neighbourhood = None if weights.w_dec_FO is None else Neighbourhood(weights.w_dec_FO)
    journal = run.directions(name)
    for begin in range(0, len(features), _AT_ONCE):
        stop.check()
        block = features[begin : begin + _AT_ONCE]
        records = zip(block, _directions(neighbourhood, weights, unembedding, block), strict=True)
        for unit, group in groupby(records, lambda record: unit_of_feature(record[0].index)):
            with Part(journal, unit) as part:
                for feature, directions in group:
                    part.append(str(feature), dataclasses.asdict(directions))
                    progress.advance()


def _directions(
    neighbourhood: Neighbourhood | None,
    weights: Weights,
    unembedding: Unembedding | None,
    features: Sequence[FeatureId],
) -> Iterator[Directions]:
    indices = [feature.index for feature in features]
    nearest = [Nearest([], [])] * len(indices)  # units of a basis: each is at right angles to all others
    if neighbourhood is not None:
        nearest = neighbourhood.nearest(indices, N_NEIGHBOURS)
    effects = None if unembedding is None else _effects(unembedding, weights.directions(indices))
    for at, near in enumerate(nearest):
        promoted, suppressed = (None, None) if effects is None else effects[at]
        if features[at].pole:  # what one pole raises the other lowers
            promoted, suppressed = _negative(suppressed), _negative(promoted)
        yield Directions(tuple(near.features), tuple(near.similarity), promoted, suppressed)


def _effects(unembedding: Unembedding, directions_QO: Tensor) -> list[tuple[TokenEffects, TokenEffects]]:
    """A crosscoder writes to several places: what its directions do at the last."""
    return unembedding.effects(directions_QO[:, -unembedding.d_in :], N_TOKENS)


def _negative(effects: TokenEffects | None) -> TokenEffects | None:
    return (
        None if effects is None else TokenEffects(effects.ids, tuple(-effect for effect in effects.effects))
    )
