"""What all who start a child process share: where it finds modules, and the end of what it wrote."""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path


def import_path() -> str:
    """PYTHONPATH with which a child finds what its parent finds, plug-ins in the working folder included."""
    return os.pathsep.join(str(Path(place or ".").resolve()) for place in sys.path)


def end_of(log: Path, n_lines: int = 15) -> str:
    """The last lines of a log; empty where there is none."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, n_lines))
    except FileNotFoundError:
        return ""
