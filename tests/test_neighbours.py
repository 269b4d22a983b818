"""Nearest features: against a plain reference, and the same in every company, order and chunking."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autointerp.dictionaries.neighbours import Nearest, Neighbourhood
from autointerp.subject import largest

Array = NDArray[np.float64]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]  # used by pytest
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_rows(width: int, d: int, seed: int = 0) -> torch.Tensor:
    """Rows of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, d, generator=generator)
    return rows * 10 ** (8 * torch.rand(width, 1, generator=generator) - 4)


def cosines(rows: torch.Tensor) -> Array:
    """[F, F] in float64; -2 where a row is zero, and of a row with itself."""
    x = rows.to(torch.float64).numpy()
    norm = np.sqrt((x * x).sum(1))
    unit = x / np.where(norm == 0, 1, norm)[:, None]
    cosine = unit @ unit.T
    cosine[norm == 0] = -2
    cosine[:, norm == 0] = -2
    np.fill_diagonal(cosine, -2)
    return cosine


def check(rows: torch.Tensor, feature: int, k: int, found: Nearest) -> None:
    """Right up to the sixth decimal, in order, ties to the lowest index, and nobody better left out."""
    cosine = cosines(rows)[feature]
    n_others = int((cosine > -1.5).sum())
    assert len(found.features) == len(set(found.features)) == len(found.similarity) == min(k, n_others)
    np.testing.assert_allclose(found.similarity, cosine[found.features], atol=0.6e-6)
    ranks = [(-similarity, index) for similarity, index in zip(found.similarity, found.features, strict=True)]
    assert ranks == sorted(ranks)
    if found.features:
        others = np.delete(cosine, found.features)
        assert (others <= found.similarity[-1] + 1.1e-6).all()


@st.composite
def dictionaries(draw: st.DrawFn) -> torch.Tensor:
    """Small whole numbers: full of zero rows, equal rows, opposite rows and equal cosines."""
    width, d = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    value = st.integers(-2, 2)
    flat = draw(st.lists(value, min_size=width * d, max_size=width * d))
    return torch.tensor(flat, dtype=torch.float32).reshape(width, d)


@settings(max_examples=40)
@given(dictionaries(), st.integers(1, 20), st.integers(20, 400), st.randoms(use_true_random=False))
def test_a_features_neighbours_do_not_depend_on_the_others_asked_for(
    rows: torch.Tensor, k: int, max_elements: int, random: Random
) -> None:
    """Together, apart, in another order, twice, and in chunks of any size: identical."""
    features = list(range(len(rows)))
    together = Neighbourhood(rows).nearest(features, k)
    small = Neighbourhood(rows, max_elements)
    apart = [small.nearest([feature], k)[0] for feature in features]
    assert together == apart
    mixed = features + features[: len(features) // 2]
    random.shuffle(mixed)
    assert small.nearest(mixed, k) == [together[feature] for feature in mixed]
    for feature in features:
        check(rows, feature, k, together[feature])


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([7, 33, 256]), st.lists(st.integers(0, 699), min_size=1))
def test_rounding_in_another_shape_changes_nothing(seed: int, d: int, features: list[int]) -> None:
    """Rows so close that float32 products of another shape rank them otherwise."""
    base = random_rows(7, d, seed).repeat(100, 1)
    rows = base * (1 + 1e-6 * torch.randn(700, d, generator=torch.Generator().manual_seed(seed)))
    known = Neighbourhood(rows).nearest(range(700), 16)
    assert Neighbourhood(rows, 2000).nearest(features, 16) == [known[feature] for feature in features]
    check(rows, features[0], 16, known[features[0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_random_directions_of_every_dtype(dtype: torch.dtype) -> None:
    rows = random_rows(500, 48).clamp(-6e4, 6e4).to(dtype)
    for feature, found in enumerate(Neighbourhood(rows).nearest(range(500), 16)):
        check(rows, feature, 16, found)


def test_rows_as_small_as_float32_has_them() -> None:
    """Squares and reciprocals of such rows leave float32's range."""
    rows = random_rows(200, 16)
    tiny = rows / rows.norm(dim=1, keepdim=True) * 1e-37
    huge = rows / rows.norm(dim=1, keepdim=True) * 1e37
    found = Neighbourhood(torch.cat([tiny, huge])).nearest([0, 200], 3)
    assert found[0].features[0] == 200 and found[0].similarity[0] == 1.0
    assert found[1].features[0] == 0 and found[1].similarity[0] == 1.0


def test_encoder_columns_are_rows_of_the_transpose() -> None:
    """A dictionary without a decoder is searched through a view."""
    columns = random_rows(100, 8).T.contiguous()
    rows = columns.T.contiguous()
    assert Neighbourhood(columns.T).nearest([3, 5], 4) == Neighbourhood(rows).nearest([3, 5], 4)


def test_equal_rows_go_by_index() -> None:
    """More copies than candidates: the lowest indices, whatever a matrix product makes of them."""
    rows = random_rows(1, 64).repeat(300, 1)
    rows[150:] *= 3.7
    nearest = Neighbourhood(rows, max_elements=5000).nearest([0, 5, 299], 16)
    assert [found.features for found in nearest] == [
        list(range(1, 17)), [n for n in range(17) if n != 5], list(range(16)),
    ]  # fmt: skip
    assert nearest[0].similarity == [1.0] * 16


def test_rows_of_zeros_have_no_neighbours_and_are_none() -> None:
    rows = random_rows(30, 4)
    rows[[0, 7, 29]] = 0
    nearest = Neighbourhood(rows).nearest(range(30), 40)
    assert [at for at, found in enumerate(nearest) if not found.features] == [0, 7, 29]
    assert {len(found.features) for found in nearest} == {0, 26}
    assert not {0, 7, 29} & {index for found in nearest for index in found.features}
    assert Neighbourhood(torch.zeros(4, 3)).nearest([1], 2) == [Nearest([], [])]
    assert Neighbourhood(rows).nearest([], 2) == []


def test_more_features_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(300, 12)
    known = Neighbourhood(rows).nearest(range(300), 5)
    monkeypatch.setattr(largest, "QUERIES_AT_ONCE", 7)
    assert Neighbourhood(rows).nearest(range(300), 5) == known


def test_memory_is_bounded_by_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of more elements than that is made, but for the answer and what is a number a row."""
    from torch.utils._python_dispatch import TorchDispatchMode

    rows, budget = random_rows(20_000, 16), 40_000
    seen: list[int] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own signature
            out = func(*args, **(kwargs or {}))
            views = ("view", "split", "slice", "select", "as_strided", "t.default", "alias", "transpose")
            if isinstance(out, torch.Tensor) and not any(name in str(func) for name in views):
                seen.append(out.numel())
            return out

    with Watching():
        Neighbourhood(rows, budget).nearest(range(0, 20_000, 40), 16)
    assert max(seen) <= 2 * budget
