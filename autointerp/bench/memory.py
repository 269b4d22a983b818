"""How much memory a process had at most."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")


def peak_rss() -> int:
    """Bytes, of this program. Linux' `ru_maxrss` counts what the process was before its `exec`: a copy of its
    parent, which may be larger than the program ever gets."""
    status = _STATUS.read_text() if _STATUS.exists() else ""
    if found := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
