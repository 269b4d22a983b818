"""What answers that can't be read do to a score: they enter no rate, but a reader is told."""

from __future__ import annotations

from typing import Final

MOST_UNREADABLE: Final = 0.10
"""Above this share a score is flagged: those that could be read may not be like the others."""


def flags(n: int, n_unreadable: int) -> list[str]:
    return ["unreliable"] if n_unreadable > MOST_UNREADABLE * n else []
