"""Caching on a GPU against the same on the CPU. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autointerp import pipeline
from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.activations.firings import Firings
from autointerp.bench.cache import bench_cache
from autointerp.bench.size import Size
from autointerp.run import Run
from autointerp.stages.frozen import SMALLEST_GPU_BATCH, read_frozen
from tiny import WIDTH, Tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]


def cached(made: Tiny, out: Path, device: str, dtype: str, sae: Path | None = None) -> tuple[Run, Firings]:
    recipe = made.recipe(
        dictionaries={"layers.1": {"path": str(sae or made.sae)}},
        resources={"device": device},
        model={"path": str(made.model), "dtype": dtype},
    )
    run = pipeline.explain(recipe, out=out, until="cache")
    return run, FiringStore(list(firing_shards(run.cache("layers.1"))), 64).read(0, WIDTH)


def chosen_by_gradient(made: Tiny, folder: Path) -> Path:
    stored = load_file(made.sae / "sae_weights.safetensors")
    folder.mkdir()
    save_file({"encoder": stored["W_enc"], "decoder": stored["W_dec"]}, folder / "dictionary.safetensors")
    settings = {"layout": 1, "selector": "topk", "k": 12, "hook": "layers.1", "gradient_weight": 60.0}
    (folder / "dictionary.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("by_gradient", [False, True])
def test_the_same_fires_on_a_gpu(made: Tiny, tmp_path: Path, by_gradient: bool) -> None:
    """In float32: 99.9% of the firings, each within 1e-3."""
    sae = chosen_by_gradient(made, tmp_path / "sae") if by_gradient else None
    _, on_cpu = cached(made, tmp_path / "cpu", "cpu", "float32", sae)
    run, on_gpu = cached(made, tmp_path / "gpu", "cuda", "float32", sae)
    found: list[dict[tuple[int, int], float]] = []
    for firings in (on_cpu, on_gpu):
        features = firings.features.repeat(np.diff(firings.offsets)).tolist()
        keys = zip(features, firings.tokens.tolist(), strict=True)
        found.append(dict(zip(keys, firings.values.tolist(), strict=True)))
    shared = found[0].keys() & found[1].keys()
    assert len(shared) >= 0.999 * max(map(len, found))
    assert max(abs(found[0][key] - found[1][key]) for key in shared) < 1e-3
    frozen = read_frozen(run)
    assert frozen is not None and frozen.device == "cuda" and frozen.batch_tokens >= SMALLEST_GPU_BATCH


def test_bfloat16_is_the_default_on_a_gpu(made: Tiny, tmp_path: Path) -> None:
    run, firings = cached(made, tmp_path / "run", "auto", "auto")
    frozen = read_frozen(run)
    assert frozen is not None and frozen.dtype == "bfloat16"
    assert len(firings.values) > 0


def test_a_second_start_uses_the_frozen_batch_and_gives_the_same_bytes(made: Tiny, tmp_path: Path) -> None:
    run, _ = cached(made, tmp_path / "run", "cuda", "float32")
    folder = tmp_path / "run" / "cache" / "layers.1"
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    last = sorted(folder.glob("0*.jsonl"))[-1]
    last.unlink()
    last.with_suffix(".safetensors").unlink()
    pipeline.run_line(run, until="cache")
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before


def test_the_bench_runs_on_a_gpu() -> None:
    found = bench_cache(60_000, Size(d_model=64, n_layers=2, width=4_096, layer=0))
    assert "CPU" not in found.device and found.ratio is not None
