"""A subject model spread over several cards: vectors come to the dictionaries' card, and accelerate is asked for."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from autointerp.activations.looked_at import LookedAt
from autointerp.errors import PackageMissing
from autointerp.subject import model
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.types import Site
from tiny import Tiny

FIRST, LAST = Site("resid_post", 0), Site("resid_post", 1)


def test_vectors_of_every_site_come_to_the_device_of_the_dictionaries() -> None:
    captured = {site: torch.ones(2, 3, 4) for site in (FIRST, LAST)}  # on their layer's device, the CPU
    elsewhere = torch.device("meta")
    looked_at = LookedAt(captured, np.array([3, 2]), np.ones((2, 3), dtype=bool), elsewhere)
    for site in captured:
        assert (looked_at.at(site).device, looked_at.at(site).shape) == (elsewhere, (6, 4))


def test_a_device_map_changes_no_activation(made: Tiny) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed here; pip install '.[cards]'")
    files = find_model(str(made.model))
    ids_BT = torch.arange(12).reshape(2, 6) % files.architecture.vocab_size
    plain, spread = (Subject.load(files, device_map=which) for which in (None, "cpu"))
    for site in (FIRST, LAST):
        torch.testing.assert_close(
            spread.capture(ids_BT, [site])[site], plain.capture(ids_BT, [site])[site], rtol=0, atol=0
        )


def test_without_accelerate_a_device_map_says_what_to_install(
    made: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"device_map=auto .*'\.\[cards\]'"):
        Subject.load(find_model(str(made.model)), device_map="auto")
