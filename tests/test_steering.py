"""Steering: what a cached, batched push computes equals the plain forward with a hook written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autointerp.errors import SiteError
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.subject.steering import Adding, Steering
from autointerp.types import Point, Site
from tiny_families import CONFIGS, D_MODEL, VOCAB, layers_of, points_of, reference, write

PROMPTS = [[5, 9, 30, 7, 12, 8], [11, 6, 20], [33, 8, 9, 21, 17]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(name: str, folder: Path) -> Subject:
    return Subject.load(find_model(str(write(name, folder)), None))


def by_hand(model: Any, site: Site, push: Tensor, ids: list[int]) -> Tensor:
    """Log-probabilities [V] of the next token, all tokens read anew, the push added at the last one.

    Every point below is a term of the residual stream, or the stream in front of a layer or behind it, so one
    hook on a layer's input or output does for all: what is added to a term ends up in the sum."""
    layers = layers_of(model)

    def behind(_module: Any, _args: Any, out: Any) -> Any:
        x = (out[0] if isinstance(out, tuple) else out).clone()
        x[:, -1] += push
        return (x, *out[1:]) if isinstance(out, tuple) else x

    at = {"resid_post": site.layer, "mlp_out": site.layer, "resid_pre": site.layer - 1}[site.point]
    handle = layers[at].register_forward_hook(behind)
    try:
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(0)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_pushed_as_by_a_plain_forward(name: str, tmp_path: Path) -> None:
    """Prompts of three lengths in one batch, two pushes, and three tokens written on, read without a cache by
    hand. Sliding windows of four tokens are shorter than a prompt."""
    subject, model = load(name, tmp_path / name), reference(tmp_path / name)
    generator = torch.Generator().manual_seed(3)
    push_SO = 2 * torch.randn(2, D_MODEL, generator=generator)
    uniform = torch.rand(3, 3, dtype=torch.float64, generator=generator)
    points: list[Point] = ["resid_post", "resid_pre", "mlp_out"]
    for site in [Site(point, 1) for point in points]:
        steering = Steering(subject, (site,), VOCAB, rows_at_once=4)
        begun = steering.begin(PROMPTS)
        pushes = Adding((site,), push_SO)
        kls = steering.kls(begun, pushes)
        texts = steering.continuations(begun, pushes, uniform, lambda: None)
        for number, push in enumerate(push_SO):
            expected = 0.0
            for prompt, ids in enumerate(PROMPTS):
                clean = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(0)
                torch.testing.assert_close(begun.clean_PV[prompt], clean, rtol=1e-3, atol=1e-4)
                steered = by_hand(model, site, push, ids)
                expected += float((clean.exp() * (clean - steered)).sum()) / len(PROMPTS)
            assert kls[number] == pytest.approx(expected, rel=1e-2, abs=1e-5)
            first = [int((by_hand(model, site, push, ids).double().exp().cumsum(0) > u).nonzero()[0])
                     for ids, u in zip(PROMPTS, uniform[:, 0].tolist(), strict=True)]  # fmt: skip
            assert [text[0] for text in texts[number]] == first


def test_the_push_goes_on_while_the_model_writes(tmp_path: Path) -> None:
    """Tokens written are pushed too: the whole continuation by hand, read anew for every token."""
    subject, model = load("llama", tmp_path / "m"), reference(tmp_path / "m")
    site = Site("resid_post", 1)
    push = 3 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    steering = Steering(subject, (site,), VOCAB)
    (texts,) = steering.continuations(
        steering.begin(PROMPTS), Adding((site,), push[None]), uniform, lambda: None
    )
    for ids, text, numbers in zip(PROMPTS, texts, uniform.tolist(), strict=True):
        start, read = len(ids) - 1, list(ids)

        def behind(_module: Any, _args: Any, out: Any, start: int = start) -> Any:
            x = (out[0] if isinstance(out, tuple) else out).clone()
            x[:, start:] += push
            return (x, *out[1:]) if isinstance(out, tuple) else x

        handle = layers_of(model)[1].register_forward_hook(behind)
        for u in numbers:
            logp = model(input_ids=torch.tensor([read]), use_cache=False).logits[0, -1].log_softmax(0)
            read.append(int((logp.double().exp().cumsum(0) > u).nonzero()[0]))
        handle.remove()
        assert text == read[len(ids) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_point_that_is_written_is_then_read_as_the_sum(name: str, tmp_path: Path) -> None:
    """What is added at a point is what its readers, and who reads the stream behind it, then see."""
    subject = load(name, tmp_path / name)
    ids = torch.tensor([PROMPTS[0]])
    for point in points_of(name):
        site, behind = Site(point, 1), Site("resid_post", 1)
        clean = subject.capture(ids, [site, behind])
        push = torch.randn(1, clean[site].shape[-1], generator=torch.Generator().manual_seed(2))
        pushes = Adding((site,), push)
        if point in ("experts", "attn_in_normalized", "mlp_in_normalized") and name != "olmo":
            with pytest.raises(SiteError, match="can't be written"), pushes.on(subject, torch.tensor([0])):
                pass
            continue
        with pushes.on(subject, torch.tensor([0])):
            seen = subject.capture(ids, [behind])
        assert not torch.allclose(seen[behind], clean[behind], atol=1e-3), point
        if point in ("resid_post", "mlp_out"):
            torch.testing.assert_close(seen[behind], clean[behind] + push, rtol=1e-3, atol=1e-4)
        if point == "resid_mid":
            parts = [site, Site("mlp_out", 1), behind]
            with pushes.on(subject, torch.tensor([0])):
                mid, mlp, post = subject.capture(ids, parts).values()
            torch.testing.assert_close(mid, clean[site] + push, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(post, mid + mlp, rtol=1e-3, atol=1e-4)
