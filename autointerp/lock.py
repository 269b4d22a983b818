"""One process at a time on a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from autointerp.errors import RunBusy, RunError
from autointerp.files import disk_errors

_LOCK: Final = "run.lock"


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """The kernel frees it with the process. Raises RunBusy, and RunError where the folder can't be made."""
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / _LOCK).open("ab+", buffering=0)
    except OSError as error:
        raise RunError(f"{folder} can't be a run's folder: {error.strerror}. Use another --out.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RunBusy(
                f"{folder} is being worked on by {file.read().decode() or 'another process'}. "
                f"Wait for it, stop it, or use another --out."
            ) from error
        with contextlib.suppress(OSError):  # a full disk is told of by those who need the room
            file.truncate(0)
            who = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"
            file.write(who.encode())
        yield
