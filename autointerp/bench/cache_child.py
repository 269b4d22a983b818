"""The process that `bench/cache.py` measures in: `python -m autointerp.bench.cache_child FOLDER RECIPE
COMPARE`, which also tells the peak memory."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autointerp.activations.collect import Collector, batches
from autointerp.activations.rows import Rows, row_shards
from autointerp.activations.vectors import FromModel
from autointerp.bench.cache import CacheBench
from autointerp.bench.memory import peak_rss
from autointerp.pipeline import prepare
from autointerp.progress import Silent, Stop
from autointerp.stages.cache import Opened, choose_device, open_cache
from autointerp.stages.collecting import Target, collect_shards
from autointerp.subject.model import Subject


def _measure(folder: Path, recipe: dict[str, Any], compare: bool) -> CacheBench:
    resolved, run = prepare(recipe, folder / "run", until="cache")
    run.save()
    opened = open_cache(run, resolved, choose_device("auto"), Silent(), Stop())
    assert isinstance(opened, Opened) and resolved.model is not None
    assert opened.source.vectors is not None
    device = opened.source.vectors.device
    whole = Subject.load(resolved.model, device=str(device)) if compare else None
    clock = _Clock(device)
    n_done, target = 0, Target.cache(run)
    for shard in row_shards(run.rows()):
        rows = np.asarray(shard.read())
        n_done += int(rows["length"].sum())
        clock.time("cached", lambda: collect_shards(opened, [shard], target, Silent(), Stop()))  # noqa: B023
        if whole is not None:
            _compare(clock, opened, whole, rows)
    a_token = {name: seconds / n_done * 1e6 for name, seconds in clock.seconds.items()}
    records = [record for record in run.cache("bench").records() if "n_firings" in record]
    return CacheBench(
        device=_device_name(device),
        n_tokens=n_done,
        cached=a_token["cached"],
        bare=a_token.get("bare"),
        bare_with_torch_topk=a_token.get("bare_with_torch_topk"),
        forward=a_token.get("forward"),
        forward_to_hook=a_token.get("forward_to_hook"),
        bytes_a_firing=sum(r["bytes"] for r in records) / sum(r["n_firings"] for r in records),
        peak_rss=peak_rss(),
    )


class _Clock:
    """Seconds by name: of CPU on a CPU, of the wall on a GPU, whose work is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    def _now(self) -> float:
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def time(self, name: str, work: Callable[[], object]) -> None:
        began = self._now()
        work()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began


def _compare(clock: _Clock, opened: Opened, whole: Subject, rows: Rows) -> None:
    """The bare work on one shard, in the same batches."""
    collector: Collector = opened.collector
    assert isinstance(opened.source.vectors, FromModel)
    subject = opened.source.vectors.subject
    (attached,) = opened.attached.values()
    spec = attached.encoder.spec
    weights = opened.weights["bench"]
    w_enc_DF = weights.encoder
    bias_F = weights.b_enc_F - weights.b_pre_D @ w_enc_DF
    with torch.inference_mode():
        for batch in batches(rows, collector.batch_tokens, by_length=True):
            longest = int(rows["length"][batch].max())
            ids_BT = torch.from_numpy(rows["tokens"][batch, :longest].astype(np.int64))
            ids_BT = ids_BT.to(subject.device)

            def to_hook() -> torch.Tensor:
                (site,) = attached.sites
                return subject.capture(ids_BT, [site])[site].flatten(0, 1).float()  # noqa: B023  called at once

            def with_torch_topk() -> None:
                for x_nD in to_hook().split(256):
                    pre_nF = torch.addmm(bias_F, x_nD, w_enc_DF)
                    torch.topk(pre_nF, spec.k or 1, dim=1, sorted=False)

            clock.time("forward_to_hook", to_hook)
            clock.time("bare", lambda: attached.encoder.candidates(to_hook()))
            clock.time("bare_with_torch_topk", with_torch_topk)
            clock.time("forward", lambda: whole.logits(ids_BT))  # noqa: B023


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    _found = _measure(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == "1")
    sys.stdout.write(json.dumps(dataclasses.asdict(_found)) + "\n")
