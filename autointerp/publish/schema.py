"""The tables of a published run: three a dictionary, of fixed types, so that no shard can drift from another.

    explanations  a row a feature and explainer; one without an explanation still has its row
    scores        a row a feature, explainer and scorer: numbers with intervals, and every trial they come from
    examples      a row a window: tokens and activations

Together they hold what a run's journals do, so that a run can be made of them again (`importing.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import pyarrow as pa

from autointerp import tables

SCHEMA: Final = 1
"""Raise it when the same records would give other rows: every shard is then made anew."""

TableName = Literal["explanations", "scores", "examples"]
TABLES: Final[tuple[TableName, ...]] = ("explanations", "scores", "examples")

_STRING, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_STRINGS, _INTS, _FLOATS = pa.list_(_STRING), pa.list_(_INT), pa.list_(_FLOAT)

TRIAL_COLUMNS: Final = pa.struct(
    [
        (column.name, pa.list_(column.type))
        for column in tables.TRIALS
        if column.name not in ("feature", "explainer", "scorer", "kind")
    ]
)
"""Trials as columns: lists of one length, null for those that the kind of trial doesn't have."""


def explanations(scorers: Sequence[str]) -> Any:
    """`scorers`: those that have a column of their own, by name. A pyarrow.Schema."""
    return pa.schema(
        [
            ("feature", _STRING),
            ("index", _INT),
            ("pole", _STRING),
            ("label", _STRING),
            ("explanation", _STRING),
            *((f"score_{name}{end}", _FLOAT) for name in scorers for end in ("", "_low", "_high")),
            ("status", _STRING),
            ("explainer", _STRING),
            ("explanation_status", _STRING),
            ("llm", _STRING),
            ("reason", _STRING),
            ("refused_by", _STRINGS),
            ("details", _STRING),
            ("prompts", pa.list_(pa.struct([("name", _STRING), ("digest", _STRING)]))),
            ("contrast", _STRING),
            ("density", _FLOAT),
            ("maximum", _FLOAT),
            ("mean", _FLOAT),
            *((name, _INT) for name in ("n_tokens", "n_fired", "n_rows", "n_documents", "n_windows")),
            *((f"random_{name}", _INT) for name in ("n_tokens", "n_fired")),
            ("random_maximum", _FLOAT),
            ("top_tokens", _STRINGS),
            ("top_token_ids", _INTS),
            ("top_token_counts", _INTS),
            *(
                (f"{direction}{end}", kind)
                for direction in ("promoted", "suppressed")
                for end, kind in (("", _STRINGS), ("_ids", _INTS), ("_effects", _FLOATS))
            ),
            ("neighbours", _INTS),
            ("neighbour_similarity", _FLOATS),
            ("histogram_from", _FLOATS),
            ("histogram_counts", _INTS),
            ("rates_by_position", _FLOATS),
            ("donors", _INTS),
        ]
    )


SCORES: Final = pa.schema(
    [
        *((name, _STRING) for name in ("feature", "explainer", "scorer", "status", "headline")),
        *((name, _FLOAT) for name in ("value", "low", "high", "worst", "best", "chance", "p_value")),
        *((name, _INT) for name in ("n", "n_positive", "n_negative", "n_unreadable")),
        ("flags", _STRINGS),
        (
            "values",
            pa.list_(pa.struct([("name", _STRING), *((n, _FLOAT) for n in ("value", "low", "high"))])),
        ),
        (
            "groups",
            pa.list_(
                pa.struct(
                    [
                        *((name, _STRING) for name in ("by", "name")),
                        *((name, _FLOAT) for name in ("value", "low", "high")),
                        *((name, _INT) for name in ("n", "n_unreadable")),
                    ]
                )
            ),
        ),
        *((name, _STRING) for name in ("contrast", "llm", "protocol", "reason", "explanation_id")),
        ("density", _FLOAT),
        ("prevalence", _FLOAT),
        ("mass_by_band", _FLOATS),
        ("kind", _STRING),
        ("trials", TRIAL_COLUMNS),
    ]
)

EXAMPLES: Final = pa.schema(
    [
        ("feature", _STRING),
        ("split", _STRING),
        ("number", pa.int32()),
        ("band", pa.int16()),
        ("stratum", _STRING),
        ("maximum", pa.float32()),
        ("tokens", _STRINGS),
        ("activations", pa.list_(pa.float32())),
        ("token_ids", pa.list_(pa.int32())),
        ("document", _STRING),
        ("position", pa.int32()),
        ("row", _INT),
        ("start", pa.int32()),
    ]
)


def schema_of(table: TableName, scorers: Sequence[str]) -> Any:
    """A pyarrow.Schema."""
    if table == "explanations":
        return explanations(scorers)
    return SCORES if table == "scores" else EXAMPLES


def config_name(dictionary: str, table: TableName) -> str:
    """How the table is asked for: `load_dataset(repository, name)`."""
    return dictionary if table == "explanations" else f"{dictionary}.{table}"
