"""When a run's explanations and scores were written."""

from __future__ import annotations

from datetime import UTC, datetime

from autointerp.publish.publication import Publication
from autointerp.run import Run


def times_of(run: Run) -> list[float]:
    """Of each file of explanations and scores, when it was written last (seconds since 1970)."""
    return [
        path.stat().st_mtime for stage in ("explain", "score") for path in (run.path / stage).rglob("*.jsonl")
    ]


def written(run: Run, publication: Publication) -> tuple[str, str] | None:
    """First and last day (UTC); None before anything is. What was imported counts as it did where it was made."""
    before = publication.written
    times = [time for time in times_of(run) if before is None or time > before.until]
    days = [datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d") for time in times]
    days += [before.first, before.last] if before is not None else []
    return (min(days), max(days)) if days else None
