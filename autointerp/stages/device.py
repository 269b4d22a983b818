"""Device stages run in a child process, which frees the card by ending.

    parent                                        child (`python -m autointerp.stages.device`)
    run_on_device(run, "cache")  --stdin-->       one JSON line: run folder, stage; then "stop", or the end
                                 <--pipe--        JSON lines: progress, error, done

A plain subprocess, not multiprocessing: a user's script needs no `__main__` guard, and the child never
sees the parent's memory. It dies with its parent, because its stdin ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from typing import IO, Any, Literal, NoReturn

import orjson

from autointerp import errors
from autointerp.children import end_of, import_path
from autointerp.errors import AutointerpError, Interrupted, StageFailed
from autointerp.progress import Progress, Stop
from autointerp.run import Run
from autointerp.types import Json

DeviceStage = Literal["cache", "check", "intervene", "probe"]
_LOG = "device.log"


# --- parent --------------------------------------------------------------------------------------------


def run_on_device(run: Run, stage: DeviceStage, progress: Progress, stop: Stop) -> None:
    """Runs a stage in a child and reports what it reports.

    Raises what the stage raises, Interrupted, and StageFailed where the child ends without a word.
    """
    read_end, write_end = os.pipe()
    log = run.path / _LOG
    with log.open("ab") as output, os.fdopen(read_end, "rb") as messages:
        child = subprocess.Popen(
            [sys.executable, "-m", "autointerp.stages.device", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(write_end,),
            start_new_session=True,  # the terminal's Ctrl-C is for the parent, which says what it means
            env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": import_path()},
        )
        os.close(write_end)
        try:
            _send(child, orjson.dumps({"run": str(run.path.resolve()), "stage": stage}))
            stop.on_set(lambda: _send(child, b"stop"))
            done = any(_handle(orjson.loads(line), progress) for line in messages)
        finally:
            _end(child)
            progress.end()
    if not done:
        stop.check()
        if child.returncode == -signal.SIGTERM:  # a scheduler that signals every process of a job
            raise Interrupted
        raise StageFailed(
            f"the {stage} stage ended without a word (exit status {child.returncode}"
            f"{'; killed, perhaps out of memory' if child.returncode in (-9, 137) else ''}). What it "
            f"finished is written. The end of {log}:\n{end_of(log)}"
        )


def _send(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(line + b"\n")
        child.stdin.flush()
    except (BrokenPipeError, ValueError):  # it has ended: its last message says why
        return


def _end(child: subprocess.Popen[bytes]) -> None:
    """Closing its stdin tells it to go; a child that hangs is killed."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _handle(message: Json, progress: Progress) -> bool:
    """Passes one message on; True for the last."""
    match message["kind"]:
        case "begin":
            progress.begin(message["stage"], message["total"], message["unit"], message["done"])
        case "advance":
            progress.advance(message["n"], message["stage"])
        case "note":
            progress.note(message["text"])
        case "end":
            progress.end()
        case "error":
            kind = getattr(errors, message["type"])
            raise kind.__new__(kind, message["text"])  # the text is ready: no __init__ composes it anew
        case _:
            return True
    return False


# --- child ---------------------------------------------------------------------------------------------


class _Reported:
    """Progress that goes to the parent."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def send(self, kind: str, **content: Any) -> None:
        self._pipe.write(orjson.dumps({"kind": kind, **content}) + b"\n")
        self._pipe.flush()

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        self.send("begin", stage=stage, total=total, unit=unit, done=done)

    def advance(self, n: int = 1, stage: str = "") -> None:
        self.send("advance", n=n, stage=stage)

    def note(self, text: str) -> None:
        self.send("note", text=text)

    def end(self) -> None:
        self.send("end")


def _listen(stop: Stop) -> None:
    """Stops when the parent says so, and goes at once when the parent is gone."""
    for line in sys.stdin.buffer:
        if line.strip() == b"stop":
            stop.set()
    os._exit(1)


def _child(pipe_fd: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = Stop()
    asked: Json = orjson.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_listen, args=(stop,), daemon=True).start()
    with os.fdopen(pipe_fd, "wb") as pipe:
        report = _Reported(pipe)
        try:
            _run_stage(asked, report, stop)
            report.send("done")
        except (AutointerpError, Interrupted) as error:
            report.send("error", type=type(error).__name__, text=str(error))
        except BrokenPipeError:
            os._exit(1)
        except Exception:
            traceback.print_exc()
            raise


def _run_stage(asked: Json, report: _Reported, stop: Stop) -> None:
    from autointerp.resolve import resolve

    run = Run.open(asked["run"])
    if asked["stage"] == "cache":
        # Imported here: torch is for the child alone.
        from autointerp.stages.cache import run_cache

        run_cache(run, resolve(run.recipe), report, stop)
    elif asked["stage"] == "intervene":
        from autointerp.stages.intervene import run_intervene

        run_intervene(run, resolve(run.recipe), report, stop)
    elif asked["stage"] == "probe":
        from autointerp.stages.probe import run_probe

        run_probe(run, resolve(run.recipe), report, stop)
    elif asked["stage"] == "check":
        from autointerp.stages.check import run_check

        run_check(run, resolve(run.recipe), report, stop)


def _main() -> NoReturn:
    _child(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the listening thread waits on stdin, and nothing is left to clean up


if __name__ == "__main__":
    _main()
