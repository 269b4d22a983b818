"""How often Python looks for cycles that nothing refers to."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

RARELY: Final = (10_000, 20, 20)
"""Objects of the youngest generation, and collections of each before the next older one is looked through."""


@contextmanager
def rarely_collected() -> Generator[None]:
    """Inside, cycles are looked for less often: where many objects live that form none, and more come and go.

    A request makes hundreds of objects, so by Python's own thresholds everything that is open (windows, replies, all
    that was imported) is looked through every 800 requests: a seventh of the work on them, and nothing is found.
    Who has turned the search off keeps it off.
    """
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(*map(max, before, RARELY))
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def uncollected() -> Generator[None]:
    """Inside, cycles are not looked for. Records make millions of small objects and no cycle: where they are read,
    looking for one takes a quarter of the time and more."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
