"""How many requests may be in flight by the files that this process may have open: each takes a socket."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

WANTED: Final = 16_384
"""Open files that nobody needs more of: 1,024 sockets an address, and the files of journals."""
OTHERS: Final = 400
"""Left for other files: 32 units are open at once, with three for each explainer and scorer."""


def room(n_servers: int) -> int:
    """Sockets for each of so many servers. The soft limit of open files, mostly 1,024 where the hard one is far
    higher, is raised before, and never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return WANTED
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # not where a system sets a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, max(soft - OTHERS, soft // 2) // n_servers)
