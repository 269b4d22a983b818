"""A run's records as rows of the published tables, one unit of features at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from autointerp.activations.histogram import EDGES
from autointerp.activations.random_rates import RandomRates
from autointerp.panel import control_places
from autointerp.publish.effect_rows import effect_rows
from autointerp.publish.levels import Levels, p_adjusted
from autointerp.publish.local import public
from autointerp.publish.quoting import visible
from autointerp.publish.records import ASSUMED
from autointerp.publish.schema import TRIAL_COLUMNS, TableName
from autointerp.run import NO_EXPLAINER, Run
from autointerp.sampling.store import Windows
from autointerp.sampling.text import SPLITS
from autointerp.stages.sample import unit_windows, window_stores
from autointerp.subject.vocabulary import Vocabulary
from autointerp.tables import random_rates
from autointerp.trials import NO_COLUMNS
from autointerp.types import EXPLAINABLE, FeatureId, Json, Window

_TRIAL_NAMES: Final = [column.name for column in TRIAL_COLUMNS]
_OF_SAMPLE: Final = (
    *("status", "contrast", "maximum", "mean", "n_tokens", "n_fired"),
    *("n_rows", "n_documents", "n_windows", "donors"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and the free text in it, which is looked through for secrets."""

    name: str
    """Of the record, to be named in an error."""
    values: Json
    text: str


class MakesRows(Protocol):
    def __call__(self, unit: str) -> Iterator[Row]: ...


class Rows:
    """Of one dictionary. Memory: the records of one unit, and its window store."""

    def __init__(self, run: Run, dictionary: str, levels: Levels, *, max_quote: int | None) -> None:
        """`max_quote`: characters of each window that are quoted; None: all."""
        self._run, self._dictionary, self._levels, self._max_quote = run, dictionary, levels, max_quote
        self._vocabulary = Vocabulary.load(run.vocabulary)
        self._random: RandomRates | None = random_rates(run, dictionary)
        self._scores_of: list[tuple[str, str]] = run.scored()

    def of(self, table: TableName) -> MakesRows:
        makers: dict[TableName, MakesRows] = {
            "explanations": self._explanations,
            "scores": self._scores,
            "examples": self._examples,
            "controls": self._controls,
            "effects": self._effects,
        }
        return makers[table]

    def _samples(self, unit: str) -> dict[str, Json]:
        """By key, in the order of the features."""
        records = self._run.existing("sample", self._dictionary).read(unit)
        return {key: records[key] for key in sorted(records, key=FeatureId.parse)}

    def _records(self, *place: str, unit: str) -> dict[str, Json]:
        stage, *instance = place
        return self._run.existing(stage, self._dictionary, *instance).read(unit)

    # --- explanations ---

    def _explanations(self, unit: str) -> Iterator[Row]:
        directions = self._records("directions", unit=unit)
        explained = {name: self._records("explain", name, unit=unit) for name in self._run.recipe.explainers}
        scored = {
            pair: self._records("score", *pair, unit=unit)
            for pair in self._scores_of
            if pair[0] != NO_EXPLAINER
        }
        for key, sample in self._samples(unit).items():
            row = self._feature(key, sample) | self._weights(directions.get(key))
            found = [(name, records[key]) for name, records in explained.items() if key in records]
            if not found:
                yield Row(key, row, "")
            for name, record in found:
                values = row | _explanation(record)
                for (explainer, scorer), records in scored.items():
                    if explainer == name and key in records:
                        values |= _named(f"score_{scorer}", _headline(records[key]))
                said = (record["label"], record["text"], record["reason"], values["details"])
                yield Row(f"{key} by {name}", values, "\n".join(filter(None, said)))

    def _feature(self, key: str, sample: Json) -> Json:
        feature = FeatureId.parse(key)
        counts: dict[str, int] = sample["histogram"]
        row: Json = {name: sample[name] for name in _OF_SAMPLE}
        row |= {"feature": key, "index": feature.index, "pole": feature.pole}
        row |= {
            "density": sample["n_fired"] / sample["n_tokens"] if sample["n_tokens"] else None,
            "top_token_ids": [token for token, _ in sample["top_tokens"]],
            "top_token_counts": [n for _, n in sample["top_tokens"]],
            "histogram_from": [float(EDGES[int(at) - 1]) if int(at) else 0.0 for at in counts],
            "histogram_counts": list(counts.values()),
            "rates_by_position": sample["rates"],
        }
        row["top_tokens"] = self._texts(row["top_token_ids"])
        if "assumed" in sample:
            row |= {name: sample["assumed"][field] for field, name in ASSUMED.items()}
        if self._random is not None:
            counted = self._random.of(self._run.identities.columns([feature])[0].item())
            if counted is not None:
                numbers = (("n_tokens", counted.n_tokens), ("n_fired", counted.n_fired))
                row |= {f"random_{name}": n for name, n in (*numbers, ("maximum", counted.maximum))}
        return row

    def _weights(self, directions: Json | None) -> Json:
        if directions is None:
            return {}
        row: Json = {
            "neighbours": directions["neighbours"],
            "neighbour_similarity": directions["similarity"],
        }
        for name in ("promoted", "suppressed"):
            effects: Json | None = directions[name]
            if effects is not None:
                row[name] = self._texts(effects["ids"])
                row |= {f"{name}_{column}": effects[column] for column in ("ids", "effects")}
        return row

    def _texts(self, tokens: Sequence[int]) -> list[str]:
        return [self._vocabulary.pieces([token])[0] for token in tokens]

    # --- scores ---

    def _scores(self, unit: str) -> Iterator[Row]:
        records = {pair: self._records("score", *pair, unit=unit) for pair in self._scores_of}
        keys = {key for of_pair in records.values() for key in of_pair}
        for key in sorted(keys, key=FeatureId.parse):
            for pair, of_pair in records.items():
                if key in of_pair:
                    record = of_pair[key]
                    texts: list[str] = record["trials"].get("text") or []
                    said = "\n".join([record["reason"] or "", *texts])
                    values = score_row(key, record)
                    values["p_adjusted"] = p_adjusted(record, self._levels.get(pair))
                    yield Row(f"{key} by {', '.join(pair)}", values, said)

    def _controls(self, unit: str) -> Iterator[Row]:
        found: list[tuple[FeatureId, str, Json]] = []
        for place in control_places(self._run.path, self._run.recipe, self._dictionary):
            for key, record in self._records("control", *place.split("/"), unit=unit).items():
                found.append((FeatureId.parse(key.partition("<")[0]), place, record))
        for feature, place, record in sorted(found, key=lambda one: (*one[:2], one[2]["lender"] or "")):
            texts: list[str] = record["trials"].get("text") or []
            said = "\n".join([record["reason"] or "", record.get("text") or "", *texts])
            of_control = {name: record.get(name) for name in ("control", "lender", "text")}
            yield Row(f"{feature} by {place}", score_row(str(feature), record) | of_control, said)

    # --- examples, and what is done to them ---

    def _effects(self, unit: str) -> Iterator[Row]:
        effects = self._records("intervene", unit=unit)
        keys = sorted(effects, key=FeatureId.parse)
        stores = unit_windows(self._run, self._dictionary, unit, keys, self._vocabulary)
        for key in keys:
            told = effect_rows(
                key, effects[key], stores[key], self._vocabulary, with_prompts=self._max_quote is None
            )
            for values, text in told:
                yield Row(f"{key}, pushed on {values.get('split')} windows", values, text)

    def _examples(self, unit: str) -> Iterator[Row]:
        located = self._run.existing("sample", self._dictionary).located(unit)
        samples = {
            key: located[key][0]
            for key in sorted(located, key=FeatureId.parse)
            if located[key][0]["status"] in EXPLAINABLE
        }
        stores = window_stores(located, samples, self._vocabulary)
        for key, sample in samples.items():
            windows: Windows = stores[key]
            for split in SPLITS:
                of_split = getattr(windows, split)(key)
                refs: Json = sample[split]
                all_windows = (*of_split.active, *of_split.silent)
                places = zip(all_windows, refs["rows"], refs["starts"], strict=True)
                for number, (window, row, start) in enumerate(places):
                    values = self._window(window)
                    text = "".join(filter(None, values["tokens"]))
                    values |= {"feature": key, "split": split, "number": number, "row": row, "start": start}
                    yield Row(f"{key}, {split} window {number}", values, text)

    def _window(self, window: Window) -> Json:
        seen = visible(window.texts, window.activations, self._max_quote)
        ids: list[int | None] = [None] * len(window.texts)
        texts: list[str | None] = [None] * len(window.texts)
        ids[seen], texts[seen] = window.token_ids[seen], window.texts[seen]
        return {
            "band": window.band,
            "stratum": window.stratum,
            "maximum": window.maximum,
            "tokens": texts,
            "token_ids": ids,
            "activations": window.activations,
            "document": window.document,
            "position": window.position,
        }


def _explanation(record: Json) -> Json:
    details = record.get("details")
    return {
        "explainer": record["explainer"],
        "explanation_status": record["status"],
        "label": record["label"],
        "explanation": record["text"],
        "llm": public(record["llm"]),
        "reason": record["reason"],
        "refused_by": [public(llm) for llm in record["refused_by"]] if "refused_by" in record else None,
        "details": orjson.dumps(details).decode() if details else None,
        "prompts": [{"name": name, "digest": digest} for name, digest in record["prompts"].items()],
    }


def score_row(key: str, record: Json) -> Json:
    trials: Json = record["trials"]
    row: Json = {
        "feature": key,
        "explainer": None if record["explainer"] == NO_EXPLAINER else record["explainer"],
        "llm": public(record["llm"]),
        "explanation_id": record["explanation"],
        "density": record["facts"]["density"],
        "prevalence": record["facts"]["prevalence"],
        "mass_by_band": record["facts"]["mass"],
        "kind": trials["kind"],
        "trials": {name: trials.get(name) for name in _TRIAL_NAMES},
    }
    row |= {name: record[name] for name in ("scorer", "status", "contrast", "protocol", "reason")}
    sequential = {name: trials[name] for name in NO_COLUMNS if name in trials}
    if "sequential" in record:
        sequential["stopping"] = record["sequential"]
    if sequential:
        row["sequential"] = orjson.dumps(sequential).decode()
    metrics: Json | None = record["metrics"]
    if metrics is None:
        return row
    row |= _named("", _headline(record))
    row["worst"], row["best"] = metrics["bounds"] or (None, None)
    counts = ("n", "n_positive", "n_negative", "n_unreadable")
    row |= {name: metrics[name] for name in ("headline", "chance", "p_value", "flags", *counts)}
    row["values"] = [{"name": name} | (value or {}) for name, value in metrics["values"].items()]
    row["groups"] = list(_groups(metrics["groups"]))
    return row


def _groups(groups: Json) -> Iterator[Json]:
    """An empty group, too, has a row: one without a name."""
    for by, of_name in groups.items():
        if not of_name:
            yield {"by": by}
        for name, one in of_name.items():
            yield {"by": by, "name": name, "n": one["n"], "n_unreadable": one["n_unreadable"]} | (
                one["value"] or {}
            )


def _headline(record: Json) -> Json | None:
    metrics: Json | None = record["metrics"]
    return None if metrics is None else metrics["values"].get(metrics["headline"])


def _named(name: str, interval: Json | None) -> Json:
    """The columns of a number with its interval; behind `name` where there is one."""
    if interval is None:
        return {}
    columns = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    return dict(zip(columns, (interval[end] for end in ("value", "low", "high")), strict=True))
