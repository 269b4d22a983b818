"""For the tests of readers: checkpoints' tensors, and codes against a dense reference in float64.

path -> describe, load, encode, decode    must equal    (activations [N, F], reconstruction [N, O])
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.dictionaries.spec import DictionarySpec

Array = NDArray[Any]
N, D, F = 40, 6, 10


def tensors(seed: int = 0, d_in: int = D, width: int = F, d_out: int | None = None) -> dict[str, Array]:
    """W_enc [D, F], b_enc, W_dec [F, O], b_dec, threshold, random; decoder rows have norms far from one."""
    rng = np.random.default_rng(seed)
    shapes = {
        "W_enc": (d_in, width),
        "b_enc": (width,),
        "W_dec": (width, d_out or d_in),
        "b_dec": (d_out or d_in,),
    }
    found: dict[str, Array] = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    return found | {"threshold": rng.uniform(0.2, 1.5, width).astype(np.float32)}


def inputs(d_in: int = D) -> Array:
    return np.random.default_rng(5).normal(0.5, 2.0, size=(N, d_in)).astype(np.float32)


def exact(t: dict[str, Array]) -> dict[str, Array]:
    return {name: value.astype(np.float64) for name, value in t.items()}


def save_torch(path: Path, t: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.tensor(v) if isinstance(v, np.ndarray) else v for name, v in t.items()}, path)
    return path


def save_json(path: Path, value: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def largest(score: Array, k: int) -> Array:
    """1 at each row's k largest."""
    return (score >= np.sort(score, axis=1)[:, -k][:, None]).astype(np.float64)


def assert_parity(path: Path | str, x: Array, activations: Array, x_hat: Array) -> DictionarySpec:
    """Codes and reconstruction of what lies at `path` to a relative error of 1e-5; the spec, to look at."""
    assert (activations > 0).any(axis=1).mean() > 0.5, "a reference that hardly fires tests nothing"
    assert (activations <= 0).any(), "a reference that always fires tests nothing"
    spec = find_dictionary(str(path))
    encoder = Encoder(spec, reader_of(spec).load(spec, "cpu"))
    x_ND = torch.tensor(x)
    codes = encoder.encode(x_ND)
    found = np.zeros_like(activations)
    found[codes.token_M, codes.feature_M] = codes.value_M
    scale = float(np.abs(activations).max())
    np.testing.assert_array_equal(found > 0, activations > 0)
    np.testing.assert_allclose(found, activations, rtol=1e-5, atol=1e-6 * scale)
    decoded = encoder.decode(codes, x_ND).numpy()
    np.testing.assert_allclose(decoded, x_hat, rtol=1e-5, atol=3e-6 * float(np.abs(x_hat).max()))
    return spec
