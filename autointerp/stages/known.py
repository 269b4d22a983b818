"""What is known of features from the weights alone, read back. No torch: the stages behind need it."""

from __future__ import annotations

from autointerp.run import Run
from autointerp.types import Directions, Json, TokenEffects


def load_directions(run: Run, dictionary: str, unit: str) -> dict[str, Directions]:
    """Of each feature of a unit that has a record, by key."""
    records = run.existing("directions", dictionary).read(unit)
    return {key: _directions(record) for key, record in records.items()}


def _directions(record: Json) -> Directions:
    return Directions(
        neighbours=tuple(record["neighbours"]),
        similarity=tuple(record["similarity"]),
        promoted=_effects(record["promoted"]),
        suppressed=_effects(record["suppressed"]),
    )


def _effects(record: Json | None) -> TokenEffects | None:
    return None if record is None else TokenEffects(tuple(record["ids"]), tuple(record["effects"]))
