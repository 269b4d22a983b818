"""What all tests share: one thread of torch, no network, one tiny model a session, device stages without a child."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tiny
from here import device_child, device_here

REAL = Path(__file__).parent.parent.parent / "shared" / "real"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    """A tiny model, dictionary and corpus."""
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True, scope="session")
def stages_here() -> Generator[None]:
    """What a test runs in its own process has the device stages there too: importing torch takes a child longer than
    all that it does here."""
    with device_here():
        yield


@pytest.fixture(autouse=True)
def stages_in_a_child(request: pytest.FixtureRequest) -> Generator[None]:
    """Unless it is marked `child`."""
    if request.node.get_closest_marker("child"):
        with device_child():
            yield
    else:
        yield


@pytest.fixture(scope="session")
def real() -> Path:
    """A folder of real models and corpora, where there is one."""
    if not REAL.is_dir():
        pytest.skip("no folder of real models and corpora lies beside this checkout")
    return REAL
