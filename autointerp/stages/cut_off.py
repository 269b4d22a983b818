"""Requests that no process can settle any more: what they can have cost goes into the run's usage, once."""

from __future__ import annotations

import math
from typing import Final

from autointerp.journal import Journal, Part
from autointerp.llm.exchange import Usage
from autointerp.llm.in_flight import FILE, begin, unfinished
from autointerp.llm.replay import LOST, REUSED, record_of
from autointerp.llm.spending import Spent
from autointerp.run import Run
from autointerp.stages.spent import USAGE, journals_below
from autointerp.types import digest

CUT_OFF: Final = "cut-off"
"""What stands for an asker where nobody knows any more who it was."""
_UNIT: Final = "0"
_REQUESTS: Final = "requests"


def settle(run: Run) -> Spent:
    """Counts what no process of this run can settle any more; how much that is. The caller holds the run's lock.

    Killed in between it counts nothing twice: records are named by the slots, which are given up last. What a server
    has taken into a batch stays where it is until its answer is there: a process without a budget, which has no
    slots, may have taken it. Raises RunError and DiskFull."""
    found = unfinished(run.path / FILE)
    total = Spent()
    names = {one.name for one in found if one.is_awaited}
    paid, answered = _paid(run, names), _answered(run, names)
    kept = [one for one in found if one.is_awaited and one.name not in paid | answered]
    if len(kept) == len(found):
        return total
    # Of a batch whose answer came from another run, or was not noted, nobody tells any more what it took.
    lost = [one for one in found if not one.is_awaited or one.name in answered - paid]
    journal = Journal(run.path / USAGE / CUT_OFF, None)
    known = journal.read(_UNIT)
    with Part(journal, _UNIT) as part:
        for one in lost:
            usage = Usage(counted=False, aside_tokens=math.ceil(one.n_tokens), aside_cost=one.cost)
            total.add(usage, is_answer=False)
            if (key := digest(CUT_OFF, one.place)) not in known:
                part.append(key, {LOST: True} | record_of(usage))
    begin(run.path / FILE, kept)
    return total


def _paid(run: Run, names: set[str]) -> set[str]:
    """Which of these requests have what they used noted."""
    journals = journals_below(run.path / USAGE) if names else ()
    records = (record for journal in journals for record in journal.records())
    return {record["key"] for record in records if record["key"] in names and not record.get(REUSED)}


def _answered(run: Run, names: set[str]) -> set[str]:
    journals = journals_below(run.path / _REQUESTS) if names else ()
    return names & {record["key"] for journal in journals for record in journal.records()}
