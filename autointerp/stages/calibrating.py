"""Thresholds that a run finds for its dictionaries on its own tokens: once, before anything else is encoded.

Which rows they are found on is a keyed draw from all rows of the run, whoever keeps what fires there, and the
passes have one shape everywhere; so every process finds the same (on devices of one kind to the last bit).
They lie in the dictionary's cache with a checksum, and are never found anew while they are there.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp import draw
from autointerp.activations.collect import Attached, Collector
from autointerp.activations.looked_at import Masking
from autointerp.activations.rows import Rows, row_shards
from autointerp.activations.vectors import Vectors
from autointerp.dictionaries.calibrate import Calibrated, calibrated
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.finite import count_bad
from autointerp.dictionaries.spec import Weights
from autointerp.dictionaries.thresholds import NO_CANDIDATES, Calibration
from autointerp.files import write_sealed
from autointerp.journal import Part
from autointerp.portion import CHECK_TOKENS
from autointerp.progress import Progress, Stop
from autointerp.run import CALIBRATION, Run
from autointerp.sources import DictionaryFound
from autointerp.stages.loading import load_weights
from autointerp.types import Json

_BATCH: Final = 2_048
"""Tokens of a forward pass, whatever the run's batches have: activations differ in their last bits between
batch shapes, and thresholds must not."""


def weights_of(run: Run, name: str, found: DictionaryFound, device: str) -> Weights:
    """Of the dictionary called `name`, with the thresholds that the run found for it. Raises CheckpointError,
    and RunError where these are not what was written."""
    weights = load_weights(found, device)
    if found.spec.calibration is None:
        return weights
    threshold_F = run.thresholds(name)
    assert threshold_F is not None, "`calibrate_missing` comes first"
    return dataclasses.replace(weights, threshold_F=torch.from_numpy(threshold_F).to(device))


def calibrate_missing(
    run: Run,
    vectors: Vectors,
    found: Mapping[str, DictionaryFound],
    product_dtype: torch.dtype,
    progress: Progress,
    stop: Stop,
) -> None:
    """Finds the thresholds of those of `found` that lack them; the run's rows must be there. Raises
    CheckpointError, ModelError, DiskFull, Interrupted."""
    for name, one in found.items():
        if one.spec.calibration is not None and CALIBRATION not in run.cache(name).read(CALIBRATION):
            _calibrate(run, vectors, name, one, product_dtype, progress, stop)


def _calibrate(
    run: Run,
    vectors: Vectors,
    name: str,
    found: DictionaryFound,
    product_dtype: torch.dtype,
    progress: Progress,
    stop: Stop,
) -> None:
    weights = load_weights(found, str(vectors.device))
    encoder = Encoder(found.spec, weights, product_dtype=product_dtype, place=found.place)
    masking = Masking(run.first_position, run.recipe.cache.sink_ratio)
    collector = Collector(vectors, {name: Attached(found.inputs, encoder, None)}, masking, _BATCH)
    shards = ((shard.first_row, shard.read()) for shard in row_shards(run.rows()))
    first_ND = collector.first_vectors(shards, CHECK_TOKENS).inputs(name, found.inputs).x_ND
    ratio = float("inf") if masking.sink_ratio is None else masking.sink_ratio
    longest = ratio * float(first_ND.norm(dim=1).median())
    del first_ND
    rows, numbers = chosen_rows(run)
    n_tokens = int(np.maximum(rows["length"].astype(np.int64) - run.first_position, 0).sum())
    assert found.spec.calibration is not None
    n_passes = 2 if found.spec.calibration.rule == "sampled" else 1
    passes = f" ({n_passes} passes)" if n_passes > 1 else ""
    progress.begin(f"calibrate{passes} · {name}", n_passes * n_tokens, "tokens")

    def inputs() -> Iterator[Tensor]:
        for read in collector.inputs(name, rows, numbers):
            stop.check()
            x_nD = read.encoded
            progress.advance(len(x_nD))
            encoder.check_finite(count_bad(x_nD), len(x_nD))
            yield x_nD[read.x_ND.norm(dim=1) <= longest]

    with torch.inference_mode():
        thresholds = calibrated(encoder, inputs, n_tokens)
    progress.end()
    record = _record(found.spec.calibration, thresholds)
    content = io.BytesIO()
    np.save(content, thresholds.threshold_F.cpu().numpy())

    def save(path: Path) -> Json:
        return write_sealed(path, content.getbuffer())

    with Part(run.cache(name), CALIBRATION) as part:
        seal = part.attach(".npy", save)
        part.append(CALIBRATION, record | seal)
    progress.note(f"{name}: calibrated on {thresholds.n_tokens:,} tokens of the run ({described(record)})")
    if n_silent := found.spec.width - record["n_that_fire"]:
        progress.note(
            f"{name}: {record['n_that_fire']:,} of {found.spec.width:,} features can fire; the other {n_silent:,} "
            f"are {NO_CANDIDATES}"
        )


def chosen_rows(run: Run) -> tuple[Rows, NDArray[np.int64]]:
    """Of all rows of a run those with the smallest hashes, as many as hold `cache.calibration_tokens` tokens to
    look at, in order of these; and their numbers. Memory: 22 bytes a row of the run, and the rows chosen."""
    shards = list(row_shards(run.rows()))
    mapped = [shard.read() for shard in shards]
    document = np.concatenate([rows["document"] for rows in mapped]).astype(np.uint64)
    position = np.concatenate([rows["position"] for rows in mapped]).astype(np.int64)
    length = np.concatenate([rows["length"] for rows in mapped]).astype(np.int64)
    key = draw.key(run.recipe.seed, "calibration")
    order = draw.smallest(draw.mix(key, draw.pair(document, position)), len(document))
    looked_at = np.maximum(length[order] - run.first_position, 0).cumsum()
    chosen = order[: int(np.searchsorted(looked_at, run.recipe.cache.calibration_tokens)) + 1]
    rows = np.empty(len(chosen), mapped[0].dtype)
    first = np.concatenate([[0], np.cumsum([len(of_one) for of_one in mapped])])
    for number, of_one in enumerate(mapped):
        here = np.flatnonzero((chosen >= first[number]) & (chosen < first[number + 1]))
        rows[here] = of_one[chosen[here] - first[number]]
    return rows, chosen


def _record(calibration: Calibration, found: Calibrated) -> Json:
    """What a person may want to know of the thresholds, and what they were made by."""
    finite = found.threshold_F[torch.isfinite(found.threshold_F)]
    lowest, highest = float(finite.min()), float(finite.max())
    made_by = {key: value for key, value in dataclasses.asdict(calibration).items() if value is not None}
    return made_by | {
        "n_tokens": found.n_tokens,
        "lowest": lowest,
        "highest": highest,
        "n_that_fire": len(finite),
    }


def described(record: Json) -> str:
    """`batch_topk, threshold 1.83`."""
    low, high = record["lowest"], record["highest"]
    value = f"threshold {low:.4g}" if low == high else f"thresholds from {low:.4g} to {high:.4g}"
    return f"{record['rule']}, {value}"
