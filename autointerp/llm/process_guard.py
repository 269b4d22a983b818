"""Runs a command that dies with whoever started us, together with all that it has started.

    parent --stdin--> guard --starts--> command --starts--> its children, their children, ...

    python -m autointerp.llm.process_guard FD COMMAND...      FD: a file descriptor handed on to the command

The guard leads a process group (`start_new_session=True`). When its stdin ends, because the parent closed it
or was killed, the command has GRACE_S seconds to end by itself. Then, or when the command ends for whatever
reason, the whole group is killed. This needs a process of its own: a thread of one that loads a model waits
for the interpreter's lock, and a parent that was killed with -9 does nothing at all.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import Final, NoReturn

GRACE_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.2


def main() -> NoReturn:
    parent = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Schedulers send these to all of a job's processes; the parent says what they mean. A handler, which
        # the command does not inherit as it would SIG_IGN.
        signal.signal(number, pass_over)
    fd = int(sys.argv[1])
    command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, pass_fds=(fd,))
    os.close(fd)  # or the parent would not see it end with the command
    while command.poll() is None and os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _LOOK_EVERY_S)
        if readable and not os.read(0, 4096):
            break
    until = time.monotonic() + GRACE_S
    while command.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    if (status := command.poll()) is not None:
        sys.stderr.write(f"the engine's process ended with exit status {status}\n")
        sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("we are of that group")


def pass_over(number: int, frame: object) -> None:
    """Handles a signal by doing nothing."""


if __name__ == "__main__":
    main()
