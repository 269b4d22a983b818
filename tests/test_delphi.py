"""delphi's cache folders: written here as `save_splits` writes them, read back whole.

The format's facts are in `activations/delphi.py`: latents count from their file's first, locations are
uint16 where they fit, activations float16, tokens int64 in every file.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from autointerp.activations.delphi import find_delphi, holds_delphi
from autointerp.activations.delphi_firings import DelphiFirings
from autointerp.errors import ActivationsError
from delphi_files import write


def dense(firings: DelphiFirings, first: int, stop: int, length: int, width: int) -> NDArray[np.float32]:
    """[rows, length, width] of what is read."""
    found = firings.read(first, stop)
    values = np.zeros(((stop - first) * length, width), np.float32)
    features = found.features.repeat(np.diff(found.offsets))
    values[found.tokens, features] = found.values
    return values.reshape(stop - first, length, width)


TOKENS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]])
LOCATIONS = np.array([[0, 1, 4], [0, 2, 0], [1, 0, 2], [2, 2, 3], [3, 1, 0], [3, 1, 4]])
VALUES = np.array([1.5, 2, 3, 4, -5, 6])


def test_a_cache_worked_out_by_hand(tmp_path: Path) -> None:
    """Two files, latents 0 to 2 and 3 to 4. The negative one and what lies at position 0 are left out."""
    write(tmp_path / "latents" / "layers.2", TOKENS, LOCATIONS, VALUES, [0, 3, 5])
    assert load_file(tmp_path / "latents/layers.2/3_4.safetensors")["locations"].tolist() == [
        [0, 1, 1],
        [2, 2, 0],
        [3, 1, 1],
    ]
    assert holds_delphi(tmp_path) and holds_delphi(tmp_path / "latents/layers.2")
    cache = find_delphi(tmp_path)
    assert (cache.n_rows, cache.context_length, cache.model, cache.prepend_bos) == (4, 3, "m", False)
    hook = cache.hooks["layers.2"]
    assert (hook.width, hook.n_firings) == (5, 6)
    rows = cache.rows(1, 3)
    assert rows["tokens"].tolist() == [[4, 5, 6], [7, 8, 9]] and rows["length"].tolist() == [3, 3]
    firings = DelphiFirings(cache, hook, first_position=1)
    assert (firings.n_firings, firings.n_negative) == (4, 1)
    found = firings.read(0, 4)
    assert found.features.tolist() == [0, 3, 4] and found.offsets.tolist() == [0, 1, 2, 4]
    assert found.tokens.tolist() == [2, 8, 1, 10] and found.values.tolist() == [2, 4, 1.5, 6]
    found = firings.read(2, 4)
    assert found.features.tolist() == [3, 4] and found.tokens.tolist() == [2, 4]
    assert DelphiFirings(cache, hook, first_position=0).read(1, 2).tokens.tolist() == [0]


def test_latents_written_absolute_before_october_2024_are_the_same(tmp_path: Path) -> None:
    write(tmp_path / "old" / ".model.layers.2", TOKENS, LOCATIONS, VALUES, [0, 3, 5], absolute=True)
    write(tmp_path / "new" / "layers.2", TOKENS, LOCATIONS, VALUES, [0, 3, 5])
    found: list[NDArray[np.float32]] = []
    for name in ("old", "new"):
        cache = find_delphi(tmp_path / name)
        found.append(dense(DelphiFirings(cache, cache.hooks["layers.2"], 0), 0, 4, 3, 5))
    assert np.array_equal(*found)


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(0, 1),
)
def test_any_cache_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    n_rows: int,
    length: int,
    width: int,
    rng: Any,
    piece: int,
    rows_a_shard: int,
    first_position: int,
) -> None:
    """Random sparse firings, random splits by latent, locations in any order, small pieces and shards."""
    draws = np.random.default_rng(rng.randrange(2**32))
    truth = draws.normal(size=(n_rows, length, width)) * (draws.random((n_rows, length, width)) < 0.3)
    truth = truth.astype(np.float16).astype(np.float32)
    locations = np.argwhere(truth != 0)[draws.permutation(int((truth != 0).sum()))]
    inner = draws.choice(np.arange(1, width), draws.integers(0, width), replace=False) if width > 1 else []
    borders = [0, *sorted(int(border) for border in inner), width]
    tokens = draws.integers(0, 50, (n_rows, length))
    folder = tmp_path_factory.mktemp("delphi") / "layers.1"
    write(folder, tokens, locations, truth[tuple(locations.T)], borders)
    cache = find_delphi(folder)
    firings = DelphiFirings(cache, cache.hooks["layers.1"], first_position, piece)
    expected = np.maximum(truth, 0)
    expected[:, :first_position] = 0
    for first in range(0, n_rows, rows_a_shard):
        stop = min(first + rows_a_shard, n_rows)
        assert np.array_equal(dense(firings, first, stop, length, width), expected[first:stop])
        assert np.array_equal(cache.rows(first, stop)["tokens"], tokens[first:stop])
    assert firings.n_firings == int((expected > 0).sum())


def rewritten(path: Path, **changed: Any) -> None:
    """A file with some of its arrays changed, or left out where None."""
    arrays = {**load_file(path), **changed}
    save_file({name: array for name, array in arrays.items() if array is not None}, path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": None}, r"3_4\.safetensors has no 'tokens'.*save_tokens=True"),
        ({"activations": None}, "has no tensor 'activations'"),
        ({"activations": np.ones(2, np.float16)}, r"expected locations \[M, 3\]"),
        ({"tokens": np.ones((4, 2), np.int64)}, "of 4 rows of 2, but 0_2.safetensors of 4 of 3"),
        ({"locations": np.array([[0, 1, 1], [9, 2, 0], [3, 1, 1]])}, "names row 9 and position 2"),
        ({"locations": np.array([[0, 1, 1], [2, 3, 0], [3, 1, 1]])}, "names row 3 and position 3"),
        ({"locations": np.array([[0, 1, 1], [2, 2, 7], [3, 1, 1]])}, "latents 1 to 7"),
        ({"locations": np.array([[0, 1, 1], [0, 1, 1], [3, 1, 1]])}, "two activations of a latent"),
        ({"activations": np.array([1, np.inf, 2], np.float16)}, "one in row 2 at position 2"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    folder = tmp_path / "layers.2"
    write(folder, TOKENS, LOCATIONS, VALUES, [0, 3, 5])
    rewritten(folder / "3_4.safetensors", **changed)
    with pytest.raises(ActivationsError, match=message):
        cache = find_delphi(tmp_path)
        DelphiFirings(cache, cache.hooks["layers.2"], 1).read(0, 4)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ActivationsError, match="holds no cache of delphi's"):
        find_delphi(tmp_path)
    write(tmp_path / "layers.2", TOKENS, LOCATIONS, VALUES, [0, 3, 4, 5])
    write(tmp_path / "layers.3", TOKENS + 1, LOCATIONS, VALUES, [0, 5])
    with pytest.raises(ActivationsError, match="not on the same text"):
        find_delphi(tmp_path)
    assert set(find_delphi(tmp_path / "layers.3").hooks) == {"layers.3"}
    (tmp_path / "layers.2" / "3_3.safetensors").unlink()
    with pytest.raises(ActivationsError, match=r"where latent 3 should come next lies 4_4\.safetensors"):
        find_delphi(tmp_path)


def test_memory_follows_the_rows_read_not_those_there_are(tmp_path: Path) -> None:
    """Eight times the rows: reading 16 at a time, in pieces of 1,024 firings, peaks within 10% plus
    64 KiB."""
    peaks: list[int] = []
    for n_rows in (128, 1_024):
        draws = np.random.default_rng(0)
        locations = np.stack(
            [
                np.arange(n_rows).repeat(160),
                np.tile(np.arange(32).repeat(5), n_rows),
                draws.integers(0, 9, n_rows * 160),
            ],
            axis=1,
        )
        locations = np.unique(locations, axis=0)
        values = np.ones(len(locations))
        write(tmp_path / str(n_rows) / "layers.1", np.ones((n_rows, 32)), locations, values, [0, 4, 9])
        cache = find_delphi(tmp_path / str(n_rows))  # reads up to a megabyte of a file at once
        tracemalloc.start()
        firings = DelphiFirings(cache, cache.hooks["layers.1"], 1, piece=1_024)
        for first in range(0, n_rows, 16):
            firings.read(first, first + 16)
            cache.rows(first, first + 16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 65_536
