"""The tables of a published run: five a dictionary, of fixed types, so that no shard can drift from another.

    explanations  a row a feature and explainer; one without an explanation still has its row
    scores        a row a feature, explainer and scorer: numbers with intervals, and every trial they come from
    examples      a row a window: tokens and activations
    controls      a row a feature of the panel, control and scorer: as scores
    effects       a row a feature and split: prompts, and what the model writes when the feature is pushed

Together they hold what a run's journals do, so that a run can be made of them again (`importing.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import pyarrow as pa

from autointerp import tables

SCHEMA: Final = 2
"""Raise it when the same records would give other rows: every shard is then made anew."""
READ: Final = (1, SCHEMA)
"""Schemas of sets that can be read. In 1 scores had no `p_adjusted`."""

TableName = Literal["explanations", "scores", "examples", "controls", "effects"]
TABLES: Final[tuple[TableName, ...]] = ("explanations", "scores", "examples", "controls", "effects")
QUOTING: Final[frozenset[TableName]] = frozenset({"examples", "effects"})
"""Those of the corpus' windows: what is done to a feature is done behind the beginnings of windows."""

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
            *((name, _INT) for name in ("silent_known", "silent_assumed")),
            ("silent_probability", _FLOAT),
        ]
    )


SCORES: Final = pa.schema(
    [
        *((name, _STRING) for name in ("feature", "explainer", "scorer", "status", "headline")),
        *((name, _FLOAT) for name in ("value", "low", "high", "worst", "best", "chance")),
        *((name, _FLOAT) for name in ("p_value", "p_adjusted")),
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
        ("sequential", _STRING),  # JSON: how a sequential test went, its rule; null where there was none
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


_UNADJUSTED: Final = [column for column in SCORES if column.name != "p_adjusted"]
CONTROLS: Final = pa.schema([("control", _STRING), ("lender", _STRING), ("text", _STRING), *_UNADJUSTED])

_IDS: Final = pa.list_(pa.int32())
_STEERED: Final = pa.struct(
    [
        ("arm", _STRING),
        ("target_kl", _FLOAT),
        ("status", _STRING),
        ("strength", _FLOAT),
        ("kl", _FLOAT),
        *(
            (f"{direction}{end}", kind)
            for direction in ("raised", "lowered")
            for end, kind in (("", _STRINGS), ("_ids", _IDS), ("_effects", _FLOATS))
        ),
        ("texts", _STRINGS),
        ("text_ids", pa.list_(_IDS)),
    ]
)

EFFECTS: Final = pa.schema(
    [
        *((name, _STRING) for name in ("feature", "status", "other", "split")),
        *((name, _IDS) for name in ("windows", "begins", "ends")),
        ("prompts", _STRINGS),
        ("clean", _STRINGS),
        ("clean_ids", pa.list_(_IDS)),
        ("steered", pa.list_(_STEERED)),
    ]
)


def schema_of(table: TableName, scorers: Sequence[str], schema: int = SCHEMA) -> Any:
    """A pyarrow.Schema. `schema`: one of `READ`."""
    if table == "explanations":
        return explanations(scorers)
    if table == "scores" and schema == 1:
        return pa.schema(_UNADJUSTED)
    return {"scores": SCORES, "examples": EXAMPLES, "controls": CONTROLS, "effects": EFFECTS}[table]


def config_name(dictionary: str, table: TableName) -> str:
    """How the table is asked for: `load_dataset(repository, name)`."""
    return dictionary if table == "explanations" else f"{dictionary}.{table}"
