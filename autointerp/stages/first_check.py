"""The first check of a run's dictionaries: what each does on the first tokens, before anything costly is made of it.

A record of the cache's journal, made once; what it measures decides whether the run goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from autointerp.activations.collect import Check, Collector
from autointerp.activations.rows import RowShard
from autointerp.dictionaries.caveats import caveats, kept_caveats, silence
from autointerp.errors import CheckpointError
from autointerp.fits import density
from autointerp.journal import Part
from autointerp.progress import Progress
from autointerp.run import CHECK, Run
from autointerp.sources import DictionaryFound


def first_checks(
    run: Run,
    found: Mapping[str, DictionaryFound],
    collector: Collector,
    shards: list[RowShard],
    progress: Progress,
) -> dict[str, Check]:
    """Of each dictionary, from its record or made now, on the first tokens of `shards`. Raises CheckpointError where
    one is silent or doesn't fit, ModelError where activations are NaN or infinite."""
    known = {name: run.cache(name).read(CHECK).get(CHECK) for name in found}
    made = {} if all(known.values()) else collector.check((shard.first_row, shard.read()) for shard in shards)
    checks: dict[str, Check] = {}
    for name, record in known.items():
        if record is not None:
            checks[name] = Check(**{field.name: record[field.name] for field in dataclasses.fields(Check)})
            continue
        check = checks[name] = made[name]
        explained = " on" if check.fvu is None else f", explains {1 - check.fvu:.1%} of the variance of"
        progress.note(f"{name}: {check.l0:.1f} features a token{explained} {check.n_tokens:,} tokens")
        for sentence in caveats(found[name].spec):
            progress.note(f"{name}: {sentence}")
        silent = silence(found[name].spec, check.n_tokens, check.l0)
        if silent is not None and run.recipe.model.weights == "trained":
            raise CheckpointError(f"dictionary '{name}' is silent: {silent}; other ones need another --out.")
        if (dense := density(check.l0, run.identities.widths[name])) is not None:
            progress.note(f"{name} is {dense}")
        if check.fvu is not None and not (check.n_tokens and check.fvu < 1):
            raise CheckpointError(
                f"dictionary '{name}' does not fit these activations: on {check.n_tokens:,} tokens its "
                f"reconstruction is no better than the mean (FVU {check.fvu:.3g}, L0 {check.l0:.1f}). Check "
                f"whether the checkpoint is complete, and --model, --hook and cache.prepend_bos; give other "
                f"ones together with another --out."
            )
    for name, record in known.items():  # behind all refusals: a dictionary that is refused leaves no trace
        if record is None:
            with Part(run.cache(name), CHECK) as part:
                part.append(CHECK, dataclasses.asdict(checks[name]) | kept_caveats(found[name].spec))
    return checks
