"""Probe: the subject reads texts that were written for explanations; kept is what the feature does on each. Runs in
a device child.

Texts are read as the corpus is: the same BOS, the same tokens passed over, the same precision and thresholds. Those
of one feature are batches of their own, so a record is the same whatever else is read, and after a kill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.activations.collect import Attached, Check, Collector
from autointerp.activations.looked_at import Masking
from autointerp.activations.rows import Rows, row_dtype
from autointerp.dictionaries.encode import Encoder
from autointerp.journal import Part
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import CHECK, Run
from autointerp.stages.cache import choose_device
from autointerp.stages.calibrating import weights_of
from autointerp.stages.frozen import CPU_BATCH, read_frozen
from autointerp.stages.sources import Source, open_source
from autointerp.subject.tokenizer import bos_of
from autointerp.trials import to_4_digits
from autointerp.types import FeatureId


def run_probe(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> None:
    """Records what is missing. Raises InputErrors, DiskFull, Interrupted."""
    left = {name: list(run.without_responses(name)) for name in run.recipe.dictionaries}
    if not any(left.values()):
        return
    device = choose_device(run.recipe.resources.device)
    source = open_source(run, resolved, device, read_frozen(run), progress)
    n_features = sum(len(texts) for of_one in left.values() for *_, texts in of_one)
    progress.begin("probe", n_features, "features")
    for name, of_one in left.items():
        if not of_one:
            continue
        probing = Probing(run, name, resolved, source)
        for explainer, scorer, unit, texts in of_one:
            with Part(run.responses(name, explainer, scorer), unit) as part:
                for key, record in texts.items():
                    stop.check()
                    part.append(key, {"maxima": probing.maxima(FeatureId.parse(key), record["texts"])})
                    progress.advance()
    progress.end()


class Probing:
    """The subject with one dictionary."""

    def __init__(self, run: Run, name: str, resolved: Resolved, source: Source) -> None:
        assert source.vectors is not None  # `needs` refuses recipes without a model
        cache, found = run.recipe.cache, resolved.dictionaries[name]
        weights = weights_of(run, name, found, str(source.vectors.device))
        self._tokenizer = source.tokenizer
        self._bos = bos_of(source.tokenizer) if cache.prepend_bos else None
        assert cache.context_length is not None  # filled by `resolve`
        self._context_length = cache.context_length
        self._first = run.first_position
        product_dtype = getattr(torch, cache.encode_in)
        encoder = Encoder(found.spec, weights, product_dtype=product_dtype, place=found.place)
        self._whole = Attached(found.inputs, encoder, None)
        check = run.cache(name).read(CHECK)[CHECK]
        self._median = Check(
            **{field.name: check[field.name] for field in dataclasses.fields(Check)}
        ).median_norm
        frozen = read_frozen(run)
        masking = Masking(self._first, cache.sink_ratio)
        self._collector = Collector(
            source.vectors, {"": self._whole}, masking, frozen.batch_tokens if frozen else CPU_BATCH
        )

    def maxima(self, feature: FeatureId, texts: Sequence[str]) -> list[float | None]:
        """The feature's largest activation on each text; None where a text has no token to look at. Texts longer
        than a row are cut there."""
        rows, places = self._rows(texts)
        found: list[float | None] = [None] * len(texts)
        if not len(rows):
            return found
        spec = self._whole.encoder.spec
        column = feature.column(spec.n_poles)
        attached = (
            dataclasses.replace(self._whole, encoder=self._whole.encoder.sliced([column]))
            if spec.feature_sliceable
            else dataclasses.replace(self._whole, only=np.array([column], np.uint32))
        )
        collected = self._collector.turned_to({"": attached}).shard(rows, 0, {"": self._median})
        firings = collected[""].kept().firings
        largest = np.zeros(len(rows), np.float32)
        np.maximum.at(largest, firings.tokens // self._context_length, firings.values)
        for place, value in zip(places, largest.tolist(), strict=True):
            found[place] = to_4_digits(value)
        return found

    def _rows(self, texts: Sequence[str]) -> tuple[Rows, list[int]]:
        """A row a text that has tokens to look at, and which texts these are."""
        # As the corpus is read: "<|endoftext|>" in a text is text.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        begin = [] if self._bos is None else [self._bos]
        ids = [
            [*begin, *one][: self._context_length]
            for one in self._tokenizer(list(texts), **options)["input_ids"]
        ]
        places = [n for n, one in enumerate(ids) if len(one) > self._first]
        rows: NDArray[np.void] = np.zeros(len(places), row_dtype(self._context_length))
        for row, place in zip(rows, places, strict=True):
            row["length"] = len(ids[place])
            row["tokens"][: len(ids[place])] = ids[place]
        return rows, places
