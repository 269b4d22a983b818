"""Rows of the published tables -> records of a run's journals: the inverse of `rows.py`. What is in no record
(`levels.py`) is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import orjson

from autointerp.activations.histogram import EDGES
from autointerp.run import NO_EXPLAINER
from autointerp.sampling.text import SPLITS
from autointerp.types import Json

_OF_SAMPLE: Final = (
    *("status", "contrast", "n_tokens", "n_fired", "n_rows", "n_documents", "n_windows"),
    *("maximum", "mean"),
)
_OF_EXPLANATION: Final = {
    "explainer": "explainer",
    "status": "explanation_status",
    "text": "explanation",
    "label": "label",
    "llm": "llm",
}

ASSUMED: Final = {
    "n_known": "silent_known",
    "n_assumed": "silent_assumed",
    "p_silent": "silent_probability",
}
"""Columns of what silent windows are worth, where silence was not looked for everywhere."""

Refs = dict[str, Json]
"""Of one feature, by split: which windows it holds."""


def sample(row: Json, refs: Refs | None) -> Json:
    """`refs`: None where no windows were published."""
    record: Json = {name: row[name] for name in _OF_SAMPLE}
    bins = [_bin_from(low) for low in row["histogram_from"]]
    if row["silent_known"] is not None:
        record["assumed"] = {field: row[name] for field, name in ASSUMED.items()}
    return record | {
        "histogram": {str(at): n for at, n in zip(bins, row["histogram_counts"], strict=True)},
        "top_tokens": list(map(list, zip(row["top_token_ids"], row["top_token_counts"], strict=True))),
        "rates": row["rates_by_position"],
        "donors": row["donors"],
        **{name: (refs or {}).get(name, _NO_WINDOWS) for name in SPLITS},
    }


_NO_WINDOWS: Final[Json] = {"rows": [], "starts": [], "bands": [], "strata": []}


def _bin_from(low: float) -> int:
    """The bin that begins there. Edges are half octaves, so their logarithms are far apart."""
    return 0 if low <= 0 else 1 + round(2 * (math.log2(low) - math.log2(float(EDGES[0]))))


def refs(places: Sequence[Json]) -> Json:
    """Which windows a split holds; `places`: their rows, starts, bands and strata, in order."""
    kinds = [(one["band"], one["stratum"]) for one in places]
    runs = [(kind, len(list(group))) for kind, group in groupby(kinds)]
    return {
        "rows": [one["row"] for one in places],
        "starts": [one["start"] for one in places],
        "bands": [[band, n] for (band, stratum), n in runs if stratum is None],
        "strata": [[stratum, n] for (_, stratum), n in runs if stratum is not None],
    }


def directions(row: Json) -> Json | None:
    """None where nothing is known of the feature's weights."""
    if row["neighbours"] is None:
        return None
    record: Json = {"neighbours": row["neighbours"], "similarity": row["neighbour_similarity"]}
    for name in ("promoted", "suppressed"):
        ids, effects = (row[f"{name}_{column}"] for column in ("ids", "effects"))
        record[name] = None if ids is None else {"ids": ids, "effects": effects}
    return record


def explanation(row: Json) -> Json | None:
    """None where the row has none."""
    if row["explainer"] is None:
        return None
    record: Json = {name: row[column] for name, column in _OF_EXPLANATION.items()}
    record["prompts"] = {one["name"]: one["digest"] for one in row["prompts"]}
    record["reason"] = row["reason"]
    if row["details"] is not None:
        record["details"] = orjson.loads(row["details"])
    if row["refused_by"] is not None:
        record["refused_by"] = row["refused_by"]
    return record


def score(row: Json) -> Json:
    trials = {name: column for name, column in row["trials"].items() if column is not None}
    sequential: Json = {} if row["sequential"] is None else orjson.loads(row["sequential"])
    stopping = {"sequential": sequential.pop("stopping")} if "stopping" in sequential else {}
    return {
        "explainer": row["explainer"] or NO_EXPLAINER,
        "scorer": row["scorer"],
        "status": row["status"],
        "explanation": row["explanation_id"],
        "protocol": row["protocol"],
        "llm": row["llm"],
        "contrast": row["contrast"],
        "facts": {
            "density": row["density"],
            "prevalence": row["prevalence"],
            "mass": row["mass_by_band"],
        },
        "metrics": None if row["headline"] is None else _metrics(row),
        "trials": {"kind": row["kind"]} | trials | sequential,
        "reason": row["reason"],
        **stopping,
    }


def control(row: Json) -> Json:
    said: Json = {"control": row["control"], "lender": row["lender"]}
    return said | ({} if row["text"] is None else {"text": row["text"]}) | score(row)


def _metrics(row: Json) -> Json:
    groups: dict[str, Json] = {}
    for one in row["groups"]:
        group = groups.setdefault(one["by"], {})
        if one["name"] is not None:
            counts = {"n": one["n"], "n_unreadable": one["n_unreadable"]}
            group[one["name"]] = {"value": _interval(one)} | counts
    bounds = None if row["worst"] is None else [row["worst"], row["best"]]
    return {
        "headline": row["headline"],
        "values": {one["name"]: _interval(one) for one in row["values"]},
        "groups": groups,
        **{name: row[name] for name in ("n", "n_positive", "n_negative", "n_unreadable")},
        "bounds": bounds,
        "chance": row["chance"],
        "p_value": row["p_value"],
        "flags": row["flags"],
    }


def _interval(one: Json) -> Any:
    return None if one["value"] is None else {end: one[end] for end in ("value", "low", "high")}
