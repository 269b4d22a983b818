"""A run whose features are sampled already, made up: what explaining and scoring alone is measured and tested on."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Final

from autointerp.bench.made_up_cache import N_IDS, CacheSize, make_cache, open_cache
from autointerp.identities import Identities
from autointerp.journal import Part
from autointerp.recipe import parse
from autointerp.run import PACKED, VOCABULARY, Run
from autointerp.sampling.sample import Sampler
from autointerp.stages.sample import blocks, save_samples
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import FeatureId

DICTIONARY: Final = "bench"
TOKENS_A_FEATURE: Final = 1_000
"""Of the made-up cache, so that each feature fires on some 2,000."""


def make_run(path: Path, n_features: int, *, every: int = 1, **sections: Any) -> Run:
    """Writes the samples, windows and token texts of so many features, as a run that was packed. Their indices are
    the multiples of `every`: with 128 two share a unit. `sections` of the recipe say who explains and judges them,
    and how. Several `dictionaries` fire alike; windows are drawn for each."""
    mapping: dict[str, Any] = {
        "dictionaries": {DICTIONARY: {"path": "made-up", "hook": "layers.0"}},
        "model": {"path": "made-up"},
        "corpus": {"path": "made-up"},
        "cache": {"context_length": CacheSize().context_length, "prepend_bos": True},
        "features": {"ids": [str(number * every) for number in range(n_features)]},
        "controls": None,  # what is measured is the work on a feature
    } | sections
    names = list(mapping["dictionaries"])
    identities = Identities(
        model="made-up",
        corpus="made-up",
        dictionaries=dict.fromkeys(names, "made-up"),
        widths=dict.fromkeys(names, n_features * every),
        sites=dict.fromkeys(names, "layers.0"),
        sliceable=dict.fromkeys(names, True),
        poles=dict.fromkeys(names, 1),
    )
    run = Run(path, parse(mapping), identities)
    run.save()
    (path / PACKED).write_bytes(b"{}")  # there is no cache to resume
    with Part(run.rows(), VOCABULARY) as part:
        vocabulary = Vocabulary([b""] + [f" w{number}".encode() for number in range(1, N_IDS + 1)])
        part.append(VOCABULARY, part.attach(".parquet", vocabulary.save))
    _sample(run, n_features, every)
    return run


def _sample(run: Run, n_features: int, every: int) -> None:
    recipe = run.recipe
    with tempfile.TemporaryDirectory() as temporary:
        size = CacheSize(n_tokens=max(100_000, n_features * TOKENS_A_FEATURE), n_features=n_features)
        make_cache(Path(temporary), size)
        cache = open_cache(Path(temporary))
        sampler = Sampler(
            cache.rows, cache.firings, recipe.sampling, seed=recipe.seed, first=run.first_position
        )
        counts = cache.firings.counts(n_features)
        for dictionary in recipe.dictionaries:
            features = [FeatureId(dictionary, index) for index in range(n_features)]
            for block in blocks(features, counts, recipe.resources.sample_firings):
                sampled = sampler.sample(block)
                names = [str(FeatureId(dictionary, feature.index * every)) for feature in block]
                samples = [
                    dataclasses.replace(sample, feature=name)
                    for sample, name in zip(sampled.samples, names, strict=True)
                ]
                save_samples(run.sample(dictionary), dataclasses.replace(sampled, samples=samples))
