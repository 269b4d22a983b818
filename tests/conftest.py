"""What all tests share: one thread of torch, no network, one tiny model a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tiny

REAL = Path(__file__).parent.parent.parent / "shared" / "real"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    """A tiny model, dictionary and corpus."""
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def real() -> Path:
    """A folder of real models and corpora, where there is one."""
    if not REAL.is_dir():
        pytest.skip("no folder of real models and corpora lies beside this checkout")
    return REAL
