"""Requests that somebody else is to answer: which files, with which command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import join

from autointerp.llm.protocol import Awaited


def lines(run: Path, awaited: Sequence[Awaited]) -> Iterator[str]:
    """What to do, with commands to paste."""
    n = sum(file.n_requests for file in awaited)
    yield f"{n:,} requests wait for answers. Run these, each by itself, or answer them by any other means:"
    for file in awaited:
        command = [
            "vllm",
            "run-batch",
            "-i",
            str(file.requests),
            "-o",
            str(file.answers),
            "--model",
            file.model,
        ]
        yield f"  {join(command)}"
        if file.batch:
            yield f"    (sent before, as batch {file.batch}: the LLM's option submit: true takes its answers)"
    yield f"Answers that lie elsewhere: autointerp llm answers {run} FILE... (all at once or not, in any order)"
