"""A run's records as Arrow tables: for notebooks, pandas (`.to_pandas()`), polars (`pl.from_arrow`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa

from autointerp.activations.random_rates import RandomRates
from autointerp.identities import Identities
from autointerp.journal import Journal
from autointerp.metrics.claims import adjusted
from autointerp.panel import controls_of
from autointerp.recipe import Recipe
from autointerp.subject.vocabulary import Vocabulary
from autointerp.trials import NO_COLUMNS
from autointerp.types import FeatureId, Json

Table = Any
"""A pyarrow.Table; the library ships no types."""


class Journals(Protocol):
    """What a run is to its tables."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def identities(self) -> Identities: ...

    @property
    def vocabulary(self) -> Path: ...

    def existing(self, *place: str) -> Journal: ...

    def scored(self) -> list[tuple[str, str]]: ...


_METRICS: Final = (
    "balanced_accuracy",
    "f1",
    "true_positive_rate",
    "true_negative_rate",
    "auroc",
    "auprc",
    "precision_at_prevalence",
    "mass_recall",
    "accuracy",
    "correlation",
    "sensitivity",
    "gain",
    "gain_per_token",
)
_COUNTS: Final = ("n", "n_positive", "n_negative", "n_unreadable")
_HARD: Final = ("same_token", "neighbour", "same_document", "density", "embedding")
"""Strata beside the headline: their false positive rates (`auroc` where windows are ranked) and trials are
columns of their own."""

_FEATURES: Final = pa.schema(
    [
        ("feature", pa.string()),
        ("dictionary", pa.string()),
        ("index", pa.int64()),
        ("pole", pa.string()),
        ("status", pa.string()),
        ("contrast", pa.string()),
        ("density", pa.float64()),
        ("random_rate", pa.float64()),
        ("n_fired", pa.int64()),
        ("n_rows", pa.int64()),
        ("n_tokens", pa.int64()),
        ("n_documents", pa.int64()),
        ("n_windows", pa.int64()),
        ("maximum", pa.float64()),
        ("mean", pa.float64()),
        ("promoted", pa.list_(pa.string())),
        ("suppressed", pa.list_(pa.string())),
        ("explainer", pa.string()),
        ("explanation_status", pa.string()),
        ("label", pa.string()),
        ("explanation", pa.string()),
    ]
)

_SCORES: Final = pa.schema(
    [
        ("feature", pa.string()),
        ("explainer", pa.string()),
        ("scorer", pa.string()),
        ("status", pa.string()),
        ("headline", pa.string()),
        *((f"value{end}", pa.float64()) for end in ("", "_low", "_high")),
        ("worst", pa.float64()),
        ("best", pa.float64()),
        ("chance", pa.float64()),
        ("p_value", pa.float64()),
        ("p_adjusted", pa.float64()),
        ("flags", pa.list_(pa.string())),
        *((name + end, pa.float64()) for name in _METRICS for end in ("", "_low", "_high")),
        *((name, pa.int64()) for name in _COUNTS),
        ("contrast", pa.string()),
        *((f"{name}_windows{end}", pa.float64()) for name in _HARD for end in ("", "_low", "_high")),
        *((f"{name}_n", pa.int64()) for name in _HARD),
        ("decision", pa.string()),
        ("decided_by", pa.string()),
        ("in_panel", pa.bool_()),
        ("llm", pa.string()),
        ("protocol", pa.string()),
        ("reason", pa.string()),
    ]
)

_CONTROLS: Final = pa.schema(
    [("feature", pa.string()), *((name, pa.string()) for name in ("control", "lender", "text"))]
    + [column for column in _SCORES if column.name not in ("feature", "p_adjusted")]
)

TRIALS: Final = pa.schema(
    [
        ("feature", pa.string()),
        ("explainer", pa.string()),
        ("scorer", pa.string()),
        ("kind", pa.string()),
        ("window", pa.int32()),
        ("truth", pa.bool_()),
        ("answer", pa.bool_()),
        ("probability", pa.float64()),
        ("value", pa.float64()),
        ("band", pa.int16()),
        ("stratum", pa.string()),
        ("marks", pa.list_(pa.int16())),
        ("offset", pa.int16()),
        ("document", pa.string()),
        ("maximum", pa.float64()),
        ("length", pa.int16()),
        ("look", pa.int16()),
        ("right", pa.int16()),
        ("chosen", pa.int16()),
        ("n_options", pa.int16()),
        ("documents", pa.list_(pa.string())),
        ("predicted", pa.list_(pa.float64())),
        ("actual", pa.list_(pa.float64())),
        ("text", pa.string()),
        ("active", pa.bool_()),
        ("threshold", pa.float64()),
        ("arm", pa.string()),
        ("prompt", pa.int32()),
        ("target_kl", pa.float64()),
        ("kl", pa.float64()),
        ("logp_steered", pa.float64()),
        ("logp_clean", pa.float64()),
        ("n_tokens", pa.int32()),
    ]
)
"""Every column of every kind of trials (`trials.py`); null where a kind has none."""


def features(run: Journals) -> Table:
    """A row a sampled feature and explainer; without an explanation its columns are null.

    `random_rate`: share of random tokens on which it fires; null where that was not asked for.
    `promoted` and `suppressed`: texts of the tokens whose logits the feature's direction raises and lowers
    most, the strongest first; null where that is not known.
    """
    return _table(_FEATURES, _feature_rows(run))


def _feature_rows(run: Journals) -> Iterator[Json]:
    names = _FEATURES.names
    text_of = _token_texts(run)
    for dictionary in run.recipe.dictionaries:
        samples = run.existing("sample", dictionary)
        rates = random_rates(run, dictionary)
        for unit in samples.units():
            directions = run.existing("directions", dictionary).read(unit)
            explained = {
                name: run.existing("explain", dictionary, name).read(unit) for name in run.recipe.explainers
            }
            for key, sample in sorted(samples.read(unit).items()):
                row = {name: sample.get(name) for name in names}
                feature = FeatureId.parse(key)
                row |= {"feature": key, "dictionary": dictionary, "index": feature.index}
                row["pole"] = feature.pole
                for name in ("promoted", "suppressed"):
                    effects = directions.get(key, {}).get(name)
                    row[name] = None if effects is None else [text_of(token) for token in effects["ids"]]
                counted = rates.of(run.identities.columns([feature])[0].item()) if rates else None
                row["random_rate"] = None if counted is None else counted.rate
                row["density"] = sample["n_fired"] / sample["n_tokens"] if sample["n_tokens"] else 0.0
                found = [(name, records[key]) for name, records in explained.items() if key in records]
                if not found:
                    yield row
                for name, record in found:
                    yield row | {
                        "explainer": name,
                        "explanation_status": record["status"],
                        "label": record["label"],
                        "explanation": record["text"],
                    }


def random_rates(run: Journals, dictionary: str) -> RandomRates | None:
    """None where the recipe doesn't ask for them. Raises RunError."""
    asked = run.recipe.random_tokens
    return RandomRates(run.existing("cache", dictionary), asked.unit) if asked else None


def _token_texts(run: Journals) -> Callable[[int], str]:
    """Token id -> its text. The vocabulary is read when the first is asked for."""

    @cache
    def vocabulary() -> Vocabulary:
        return Vocabulary.load(run.vocabulary)

    return lambda token: vocabulary().pieces([token])[0]


def scores(run: Journals) -> Table:
    """A row a feature, explainer and scorer. `value` is what `headline` names; `worst` and `best` what it would
    be if every unreadable answer were wrong, or right. `decision`, `decided_by` and `in_panel` say how the test of a
    sequential scorer ended: means over features are right over the panel alone. `p_adjusted` is `p_value` among those
    of its dictionary, explainer and scorer (Benjamini and Hochberg): features at or below 0.05 are those that
    `status` counts as above chance."""
    return pa.concat_tables([_SCORES.empty_table(), *map(_claimable, _score_tables(run))])


def controls(run: Journals) -> Table:
    """A row a feature of the panel, control and scorer: what an explanation scored that should not fit, or that
    nobody had to think about (`panel.py`). `lender`: the feature whose explanation was borrowed; its explainer is
    `explainer`. `text`: the explanation, where it was made for the control. The others are as in `scores`."""
    return _table(_CONTROLS, _control_rows(run))


def _control_rows(run: Journals) -> Iterator[Json]:
    for dictionary in run.recipe.dictionaries:
        for control in controls_of(run.recipe):
            for record in run.existing("control", dictionary, *control.place.split("/")).records():
                yield _score_row(record, record["key"].partition("<")[0], _CONTROLS)


def _score_tables(run: Journals) -> Iterator[Table]:
    """One a journal."""
    for dictionary in run.recipe.dictionaries:
        for explainer, scorer in run.scored():
            records = run.existing("score", dictionary, explainer, scorer).records()
            yield _table(_SCORES, (_score_row(record, record["key"], _SCORES) for record in records))


def _claimable(of_journal: Table) -> Table:
    """With p-values among each other."""
    is_ok = [status == "ok" for status in of_journal["status"].to_pylist()]
    known = zip(of_journal["p_value"].to_pylist(), is_ok, strict=True)
    found = adjusted([p_value if ok else None for p_value, ok in known])
    at = _SCORES.get_field_index("p_adjusted")
    return of_journal.set_column(at, _SCORES.field(at), pa.array(found, pa.float64()))


def _score_row(record: Json, feature: str, schema: Any) -> Json:
    row: Json = {name: record.get(name) for name in schema.names}
    row["feature"] = feature
    if sequential := record.get("sequential"):
        row |= {"decision": sequential["decision"], "decided_by": sequential["why"]}
        row["in_panel"] = sequential["in_panel"]
    metrics: Json = record["metrics"] or {}
    values: Json = metrics.get("values", {})
    row |= {name: metrics.get(name) for name in (*_COUNTS, "headline", "chance", "p_value", "flags")}
    row["worst"], row["best"] = metrics.get("bounds") or (None, None)
    row |= _ends("value", values.get(metrics.get("headline", "")) or _NO_INTERVAL)
    for name in _METRICS:
        row |= _ends(name, values.get(name) or _NO_INTERVAL)
    for name, stratum in metrics.get("groups", {}).get("stratum", {}).items():
        if name in _HARD:
            row |= _ends(f"{name}_windows", stratum["value"] or _NO_INTERVAL)
            row[f"{name}_n"] = stratum["n"]
    return row


_NO_INTERVAL: Final[Json] = {"value": None, "low": None, "high": None}


def _ends(name: str, interval: Json) -> Json:
    return {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}


def score_records(run: Journals) -> Iterator[Json]:
    """Every score record of every journal."""
    for dictionary in run.recipe.dictionaries:
        for explainer, scorer in run.scored():
            yield from run.existing("score", dictionary, explainer, scorer).records()


def trials(run: Journals) -> Table:
    """A row a trial."""
    return _table(TRIALS, _trial_rows(run))


def _trial_rows(run: Journals) -> Iterator[Json]:
    for record in score_records(run):
        columns: Json = dict(record["trials"])
        of_all = {"kind": columns.pop("kind"), "feature": record["key"]}
        for name in NO_COLUMNS:
            columns.pop(name, None)
        of_all |= {name: record[name] for name in ("explainer", "scorer")}
        for values in zip(*columns.values(), strict=True):
            yield of_all | dict(zip(columns, values, strict=True))


_ROWS_A_BATCH: Final = 10_000


def _table(schema: Any, rows: Iterator[Json]) -> Table:
    batches: list[Any] = []
    chunk: list[Json] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_A_BATCH:
            batches.append(pa.RecordBatch.from_pylist(chunk, schema))
            chunk = []
    batches.append(pa.RecordBatch.from_pylist(chunk, schema))
    return pa.Table.from_batches(batches, schema)
