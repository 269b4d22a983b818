"""How many steps a checkpoint may ask of a matching pursuit: each takes time and room for every token."""

from __future__ import annotations

from autointerp.dictionaries.checkpoint import Settings


def pursuit_steps(
    settings: Settings, key: str, d_in: int, width: int, *, ends_on_repeat: bool = False
) -> int:
    """What `key` says. Raises CheckpointError: none, or more than dimensions and than features, unless it ends by
    itself when it repeats."""
    n_steps, most = settings.count(key), max(d_in, width)
    if n_steps > most and not ends_on_repeat:
        settings.refuse(
            key, f"of {width} features in {d_in} dimensions a pursuit takes {most} steps at most."
        )
    return n_steps
