"""Sockets are bounded by the files that may be open, and running out of these is one message."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Generator
from pathlib import Path

import pytest
import typer

from autointerp.cli.apps import errors
from autointerp.errors import TooManyFiles
from autointerp.journal import Journal, Part
from autointerp.llm.openai import Openai
from autointerp.llm.pacing import Level
from autointerp.llm.protocol import Place
from autointerp.llm.sockets import OTHERS, WANTED, room

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
MOST = WANTED if HARD == resource.RLIM_INFINITY else min(HARD, WANTED)


@pytest.fixture(autouse=True)
def limits() -> Generator[None]:
    """The limit of before, when a test has ended."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_soft_limit_is_raised_and_divided() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (900, HARD))
    assert room(2) == (MOST - OTHERS) // 2
    assert soft() == MOST


@pytest.mark.skipif(HARD != resource.RLIM_INFINITY and HARD <= WANTED, reason="no limit above what we want")
def test_it_is_never_lowered() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (WANTED + 7, HARD))
    room(1)
    assert soft() == WANTED + 7


def no_more(_kind: int, _limits: tuple[int, int]) -> None:
    raise ValueError("not allowed to raise maximum limit")


@pytest.mark.parametrize(
    ("files", "n", "each"), [(1024, 1, 624), (1024, 4, 156), (300, 3, 50), (300, 999, 1)]
)
def test_where_it_cannot_be_raised_levels_keep_below(
    files: int, n: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, HARD))
    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", no_more)
        assert room(n) == each
        llm = Openai("tiny", base_url="http://127.0.0.1:1/v1").connect(Place(n_servers=n, n_in_flight=1_000))
    (endpoint,) = llm._endpoints
    assert endpoint.pace.level == each


def test_a_level_grows_to_the_highest_and_no_further() -> None:
    """Twice as many at once are always twice as fast."""
    level, now = Level(highest=40), 0.0
    for _ in range(2_000):
        level.sent(level.limit, now)
        now += 1.0 / level.limit
        level.answered(now)
    assert level.limit == 40


def test_a_file_too_many_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(Journal(tmp_path, None), "000")

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(TooManyFiles, match="ulimit -n"):
            part.append("k", {})


def test_elsewhere_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), errors():
        raise OSError(errno.EMFILE, "Too many open files")
    assert capsys.readouterr().err.startswith("Error: this process may open no more files")
    with pytest.raises(OSError, match="no such device"), errors():
        raise OSError(errno.ENODEV, "no such device")
