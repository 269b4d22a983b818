"""A disk that is full stops with one message, loses nothing, and the run goes on when there is room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autointerp import pipeline
from autointerp.errors import DiskFull
from autointerp.run import Run
from autointerp.types import Json
from autointerp.verify import verify
from here import SHARDS, contents, device_here, records
from tiny import Tiny

SECTIONS: Json = {"cache": SHARDS, "features": {"n": 10}}


@pytest.fixture(scope="module")
def whole(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that always had room."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with device_here():
        pipeline.explain(made.recipe(**SECTIONS), out=out, until="sample")
    return out


@pytest.fixture(autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


def full_from(number: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, until the disk is full: from call `number` on, by whichever thread."""
    left = iter(range(number))

    def tried(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments, **options)

    return tried


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *(("fsync", number) for number in (0, 3, 9, 40, 70, 90)),
        *(("write", number) for number in (0, 5, 49, 70)),
        *(("replace", number) for number in (0, 2, 20, 35, 47)),
    ],
)
def test_wherever_the_disk_is_full_the_run_goes_on_later(
    made: Tiny, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """`write` fills up journals, `replace` and `fsync` files of every kind: rows, firings, windows."""
    monkeypatch.setattr(os, call, full_from(number, getattr(os, call)))
    with pytest.raises(DiskFull, match=r"no room left for .*free some space and start again"):
        pipeline.explain(made.recipe(**SECTIONS), out=tmp_path / "run", until="sample")
    monkeypatch.undo()
    written = contents(tmp_path / "run")
    pipeline.explain(made.recipe(**SECTIONS), out=tmp_path / "run", until="sample")
    assert written.items() <= contents(tmp_path / "run").items()  # nothing is thrown away, nothing touched
    assert records(tmp_path / "run") == records(whole)
    assert not verify(Run.open(tmp_path / "run")).faults


SCRIPT = """
mount -t tmpfs -o size=16m none "$DISK" || exit 77
explain() { "$PYTHON" -m autointerp explain --recipe "$RECIPE" --out "$DISK/run" --until sample; }
explain & process=$!
while ! ls "$DISK"/run/cache/*/0*.safetensors > /dev/null 2>&1 && kill -0 $process; do sleep 0.01; done
head -c 16m /dev/zero > "$DISK/filler" 2> /dev/null
wait $process; echo "first: $?"
rm "$DISK/filler"
explain; echo "second: $?"
cp -r "$DISK/run" "$KEPT"
"""


@pytest.mark.slow
def test_a_file_system_that_fills_up_while_shards_are_written(
    made: Tiny, whole: Path, tmp_path: Path
) -> None:
    """A real one, of 16 MB, which somebody else fills."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    recipe = tmp_path / "recipe.yaml"
    sections = SECTIONS | {"cache": SHARDS | {"shard_tokens": 512}}
    recipe.write_text(yaml.safe_dump(made.recipe(**sections)))
    (tmp_path / "disk").mkdir()
    places = {
        "DISK": tmp_path / "disk",
        "RECIPE": recipe,
        "KEPT": tmp_path / "kept",
        "PYTHON": sys.executable,
    }
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT],
        env=os.environ | {name: str(place) for name, place in places.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("no file system can be mounted here")
    assert "first: 2" in result.stdout and "second: 0" in result.stdout, result.stdout + result.stderr
    assert "no room left for" in result.stderr and "Traceback" not in result.stderr
    with device_here():
        pipeline.explain(yaml.safe_load(recipe.read_text()), out=tmp_path / "again", until="sample")
    assert records(tmp_path / "kept") == records(tmp_path / "again")
    assert not verify(Run.open(tmp_path / "kept")).faults
