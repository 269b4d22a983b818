"""How large what `bench cache` runs on is. No torch: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Of the model and its dictionary. The default is the configuration of the project's speed claims."""

    d_model: int = 256
    n_layers: int = 4
    width: int = 16_384
    k: int = 32
    context_length: int = 256
    layer: int = 2
    """Behind which layer the dictionary reads; not the last one."""
