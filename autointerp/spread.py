"""Work on many pieces, spread over processes. Results come in the order of the pieces, whatever the processes did.

Processes are spawned, since a fork takes locks of other threads along and waits for them forever. They ignore Ctrl-C,
which is for their parent, and go when it is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Final, TypeVar

from autointerp.errors import RunError
from autointerp.garbage import uncollected

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST_JOBS: Final = 8
WORTH_A_PROCESS: Final = 500
"""Features: some two seconds of work, where a process takes one to start."""
FEATURES_A_BUNDLE: Final = 128
_AHEAD: Final = 2
"""Pieces that wait for a process, so that none waits for a piece."""


def n_cores() -> int:
    """That this process may use, up to MOST_JOBS."""
    if hasattr(os, "sched_getaffinity"):
        return min(MOST_JOBS, len(os.sched_getaffinity(0)))
    return min(MOST_JOBS, os.cpu_count() or 1)


def worth(jobs: int, n_features: int) -> int:
    """How many of so many processes pay."""
    return max(1, min(jobs, n_features // WORTH_A_PROCESS))


def bundles(pieces: Sequence[Piece], sizes: Sequence[int]) -> Iterator[list[Piece]]:
    """Neighbours together until they have 128 features: units of few are not worth a message each."""
    bundle: list[Piece] = []
    n_features = 0
    for piece, size in zip(pieces, sizes, strict=True):
        bundle.append(piece)
        n_features += size
        if n_features >= FEATURES_A_BUNDLE:
            yield bundle
            bundle, n_features = [], 0
    if bundle:
        yield bundle


def spread(
    make: Callable[[], Callable[[Piece], Result]], pieces: Sequence[Piece], jobs: int
) -> Iterator[Result]:
    """What `make()` gives of each piece. With more than one job `make` is called in each process, and goes there by
    pickle, as pieces and results do.

    Raises what the work raises, and RunError where a process is killed. Memory: the results of a few pieces.
    """
    jobs = min(jobs, len(pieces))
    if jobs > 1:
        yield from _in_processes(make, pieces, jobs)
    elif pieces:
        work = make()
        for piece in pieces:
            with uncollected():
                result = work(piece)
            yield result


def _in_processes(
    make: Callable[[], Callable[[Piece], Result]], pieces: Sequence[Piece], jobs: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(make,)) as pool:
        waiting = iter(pieces)
        under_way: deque[Future[Result]] = deque()
        try:
            while True:
                for piece in islice(waiting, jobs + _AHEAD - len(under_way)):
                    under_way.append(pool.submit(_do, piece))
                if not under_way:
                    return
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise RunError(
                f"one of {jobs} processes was ended from outside, by the system if memory ran out. Fewer take less: "
                f"--jobs 1."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # what is under way is waited for


# --- in a process of the pool ----------------------------------------------------------------------------

_make: Callable[[], Callable[[Any], Any]] | None = None
_work: Callable[[Any], Any] | None = None


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _make
    _make = make
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(piece: Any) -> Any:
    """The work is made here, not in `_begin`: an error there would break the pool and not be told."""
    global _work
    if _work is None:
        assert _make is not None  # `_begin` was called
        _work = _make()
    with uncollected():
        return _work(piece)
