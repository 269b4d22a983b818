"""Whether a dictionary was read as it was meant: what it does on some thousand tokens, as read and otherwise.

Runs in a child process (`device.py`); its result is a file in the run's folder.
"""

from __future__ import annotations

import dataclasses

import orjson
import torch
from torch import Tensor

from autointerp.activations.collect import Attached, Collector, Masking, joined, unexplained
from autointerp.activations.rows import row_shards
from autointerp.dictionaries.calibrate import calibrated
from autointerp.dictionaries.conventions import Convention, alternatives
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import reader_of
from autointerp.files import write_atomically
from autointerp.fits import CHECKED, Fit
from autointerp.journal import Part
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import VOCABULARY, Run
from autointerp.stages.cache import choose_device, target_of
from autointerp.stages.frozen import CPU_BATCH
from autointerp.stages.sources import open_source
from autointerp.subject.vocabulary import Vocabulary


def run_check(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> None:
    """Measures the run's dictionaries on all of its tokens. Raises InputErrors, Interrupted."""
    device = choose_device(run.recipe.resources.device)
    source = open_source(run, resolved, device, None, progress)
    with Part(run.rows(), VOCABULARY) as part:
        part.append(VOCABULARY, part.attach(".parquet", Vocabulary.of(source.tokenizer).save))
    source.make_rows(run, progress, stop)
    assert source.vectors is not None
    fits: dict[str, list[Fit]] = {}
    for name, found in resolved.dictionaries.items():
        weights = reader_of(found.spec).load(found.spec, str(source.vectors.device))
        target = target_of(found, from_model=resolved.model is not None)
        attached = Attached(found.inputs, Encoder(found.spec, weights), target)
        masking = Masking(run.first_position, None)
        collector = Collector(source.vectors, {name: attached}, masking, CPU_BATCH)
        shards = ((shard.first_row, shard.read()) for shard in row_shards(run.rows()))
        vectors = collector.first_vectors(shards, run.recipe.cache.n_tokens)
        x_ND, y_NO = joined(vectors, found.inputs), None if target is None else joined(vectors, target)
        usual_N = _usual(x_ND, run.recipe.cache.sink_ratio)
        x_ND, y_NO = x_ND[usual_N], None if y_NO is None else y_NO[usual_N]
        as_read = Convention("as read", found.spec, weights)
        conventions = [as_read, *(alternatives(found.spec, weights, x_ND) if y_NO is not None else ())]
        progress.begin(f"check · {name}", len(conventions), "conventions")
        fits[name] = []
        for convention in conventions:
            stop.check()
            fits[name].append(fit_of(convention, x_ND, y_NO))
            progress.advance()
        progress.end()
    content = {name: [dataclasses.asdict(fit) for fit in of_one] for name, of_one in fits.items()}
    write_atomically(run.path / CHECKED, orjson.dumps(content))


def _usual(x_ND: Tensor, sink_ratio: float | None) -> Tensor:
    """[N]: all tokens but those of massive norm."""
    norm_N = x_ND.norm(dim=1)
    ratio = float("inf") if sink_ratio is None else sink_ratio
    return norm_N <= ratio * norm_N.median()


@torch.inference_mode()
def fit_of(convention: Convention, x_ND: Tensor, y_NO: Tensor | None) -> Fit:
    """On these tokens, on which thresholds are found first where the dictionary stores none. Raises
    CheckpointError where they can't be."""
    weights, n_columns, thresholds = convention.weights, convention.spec.n_columns, None
    if convention.spec.calibration is not None:
        found = calibrated(Encoder(convention.spec, weights), lambda: iter([x_ND]), len(x_ND))
        finite = found.threshold_F[torch.isfinite(found.threshold_F)]
        thresholds = (float(finite.min()), float(finite.max()))
        weights = dataclasses.replace(weights, threshold_F=found.threshold_F)
    encoder = Encoder(convention.spec, weights)
    codes = encoder.encode(x_ND)
    n_alive = int((torch.bincount(codes.feature_M, minlength=n_columns) > 0).sum())
    fvu = ratio = None
    if y_NO is not None:
        y_hat_NO = encoder.decode(codes, x_ND)
        fvu = unexplained(y_NO, y_hat_NO)
        ratio = float((y_hat_NO.norm(dim=1) / y_NO.norm(dim=1).clamp_min(1e-12)).mean())
    return Fit(
        convention=convention.name,
        n_tokens=len(x_ND),
        l0=len(codes) / max(len(x_ND), 1),
        fvu=fvu,
        n_dead=n_columns - n_alive,
        norm_ratio=ratio,
        thresholds=thresholds,
    )
