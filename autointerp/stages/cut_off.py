"""Requests that a kill cut off: what they can have cost goes into the run's usage, once."""

from __future__ import annotations

import math
from typing import Final

from autointerp.journal import Journal, Part
from autointerp.llm.exchange import Usage
from autointerp.llm.in_flight import FILE, begin, unfinished
from autointerp.llm.replay import LOST, record_of
from autointerp.llm.spending import Spent
from autointerp.run import Run
from autointerp.stages.spent import USAGE
from autointerp.types import digest

CUT_OFF: Final = "cut-off"
"""What stands for an asker where nobody knows any more who it was."""
_UNIT: Final = "0"


def settle(run: Run) -> Spent:
    """Counts what no process of this run can settle any more; how much that is. The caller holds the run's lock.

    Killed in between it counts nothing twice: records are named by the slots, which are given up last. What a server
    has taken into a batch stays where it is. Raises RunError and DiskFull."""
    found = unfinished(run.path / FILE)
    sent = [one for one in found if not one.is_awaited]
    total = Spent()
    if not sent:
        return total
    journal = Journal(run.path / USAGE / CUT_OFF, None)
    known = journal.read(_UNIT)
    with Part(journal, _UNIT) as part:
        for one in sent:
            usage = Usage(counted=False, aside_tokens=math.ceil(one.n_tokens), aside_cost=one.cost)
            total.add(usage, is_answer=False)
            if (key := digest(CUT_OFF, one.place)) not in known:
                part.append(key, {LOST: True} | record_of(usage))
    begin(run.path / FILE, [one for one in found if one.is_awaited])
    return total
