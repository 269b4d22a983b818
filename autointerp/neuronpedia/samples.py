"""Published features -> samples: the ordinary sampling on the windows that were published, beside what the files
say of the feature as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final, cast

import numpy as np

from autointerp.activations.histogram import bins
from autointerp.journal import unit_of_feature
from autointerp.neuronpedia.pool import Pool
from autointerp.neuronpedia.reading import Published
from autointerp.sampling.sample import Sampled, Sampler
from autointerp.sampling.settings import SamplingSettings
from autointerp.types import Assumed, FeatureId, Json, Sample, SampleStatus

PER: Final = 1_000_000
"""Tokens that counts are of, where the files say the share alone."""


def settings_for(longest: int) -> SamplingSettings:
    """What the samples of a source are made with. `longest`: tokens of its longest window.

    Only `random` silent windows: that a feature is silent on one of others is a guess, and a poor one where it holds
    the feature's own tokens. Sources publish some 30 windows a feature, so fewer than usual are enough.
    """
    usual = SamplingSettings()
    width = max(2, min(usual.width, longest))
    return SamplingSettings(
        width=width,
        context_before=min(usual.context_before, width // 3),
        overlap=min(usual.overlap, width),
        contrast="silent",
        n_shown_hard=0,
        n_same_token=0,
        n_neighbour=0,
        minimum=15,
    )


def samples_of(
    pool: Pool,
    features: Sequence[Published],
    dictionary: str,
    settings: SamplingSettings,
    said: Json,
    *,
    seed: int,
) -> Iterator[Sampled]:
    """Unit by unit. `features`: those of the pool, ascending. `said`: of the source."""
    sampler = Sampler(pool.rows, pool.firings, settings, seed=seed, first=0)
    for _, group in groupby(features, lambda feature: unit_of_feature(feature.index)):
        piece = list(group)
        sampled = sampler.sample([FeatureId(dictionary, feature.index) for feature in piece])
        samples = [
            _completed(sample, feature, pool, settings, said)
            for sample, feature in zip(sampled.samples, piece, strict=True)
        ]
        explainable = np.array([sample.status in ("full", "small") for sample in samples])
        windows = sampled.windows[explainable[sampled.windows.group]]
        yield dataclasses.replace(sampled, samples=samples, windows=windows)


def _completed(
    sample: Sample, feature: Published, pool: Pool, settings: SamplingSettings, said: Json
) -> Sample:
    neuron, own = feature.neuron, pool.own[feature.index]
    frac: float | None = neuron.get("frac_nonzero")
    frac = None if frac is None or frac < 0 else min(float(frac), 1.0)
    n_tokens = 0 if frac is None else _tokens_seen(said)
    n_documents = len({int(pool.rows.document[row]) for row in pool.fires[feature.index]})
    silent = [
        row for split in (sample.shown, sample.select, sample.heldout) for row in split.rows[split.n_active :]
    ]
    n_fired = round((frac or 0.0) * n_tokens)
    # Counts of tokens are in the measure of all firings, so that their shares are those of the published ones.
    scale = n_fired / max(1, sample.n_fired)
    fields: dict[str, Any] = {
        "rates": [None] * len(sample.rates),  # of windows cut around firings they say nothing
        "top_tokens": [(token, round(n * scale)) for token, n in sample.top_tokens],
        "status": _status(sample, frac, n_documents, settings),
        "n_tokens": n_tokens,
        "n_fired": n_fired,
        "n_documents": n_documents,
        "maximum": max(sample.maximum, neuron.get("maxActApprox") or 0.0),
        "assumed": Assumed(
            n_known=sum(row in own for row in silent),
            n_assumed=sum(row not in own for row in silent),
            p_silent=pool.p_silent[feature.index],
        ),
    }
    if fields["status"] not in ("full", "small"):
        nothing = dataclasses.replace(sample.shown, rows=[], starts=[], bands=[], strata=[])
        fields |= dict.fromkeys(("shown", "select", "heldout"), nothing)
        fields["assumed"] = Assumed(0, 0, pool.p_silent[feature.index])
    return dataclasses.replace(sample, **(fields | _histogram(neuron)))


def _status(sample: Sample, frac: float | None, n_documents: int, settings: SamplingSettings) -> SampleStatus:
    """The pool holds what was published of a feature, so it can look dead or spread wider than it is."""
    if sample.status == "dead" and frac:
        return "too_few"
    if sample.status in ("full", "small") and n_documents < settings.minimum_documents:
        return "too_few"
    return sample.status


def _tokens_seen(said: Json) -> int:
    n_prompts, n_tokens = said.get("num_prompts"), said.get("num_tokens_in_prompt")
    if isinstance(n_prompts, int) and isinstance(n_tokens, int) and n_prompts > 0 and n_tokens > 0:
        return n_prompts * n_tokens
    return PER


def _histogram(neuron: Json) -> Json:
    """Counts and mean of the feature's firings, where a histogram was published; each of its bars counts as its
    middle, whose value was published."""
    heights = np.array(neuron.get("freq_hist_data_bar_heights") or [], float)
    values = np.array(neuron.get("freq_hist_data_bar_values") or [], np.float32)
    if not len(heights) or len(heights) != len(values) or not heights.sum() > 0 or heights.min() < 0:
        return {}
    values = np.maximum(values, np.float32(0))
    places = bins(values)
    counts = {str(at): int(heights[places == at].sum()) for at in sorted(set(places.tolist()))}
    mean = cast(float, (heights * values).sum() / heights.sum())
    return {"histogram": {at: n for at, n in counts.items() if n}, "mean": float(mean)}
