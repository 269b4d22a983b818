"""Versions that are digested, and names of units and files in a run's folder."""

from __future__ import annotations

from typing import Final

CACHE_VERSION: Final = "2"
TOP_UP_VERSION: Final = "1"
DIRECTIONS_VERSION: Final = "1"
SAMPLE_VERSION: Final = "3"
INTERVENE_VERSION: Final = "1"
PROBE_VERSION: Final = "1"
CALIBRATION_VERSION: Final = "1"
"""Digested: raise them when the same input would give other shards, directions, windows or thresholds."""
SCORE_VERSION: Final = "2"
"""Digested: raise it when a score's record keeps other things. Not when only numbers are made otherwise from the
same trials: `autointerp rescore` does that."""

N_NEIGHBOURS: Final = 16
N_TOKENS: Final = 10
"""Kept of a feature: its nearest others; the tokens it promotes most, and those it suppresses most."""

ALL_ROWS: Final = "all"
"""Unit and key of the record that says: the corpus is read to its end, and makes so many rows."""

CALIBRATION: Final = "calibration"
"""Unit and key of the thresholds that a dictionary has from the run's own tokens."""
CHECK: Final = "check"
"""Unit and key of what a dictionary does on the first tokens."""
VOCABULARY: Final = "vocabulary"
"""Unit and key of the table of token texts."""
TOKEN_EMBEDDING: Final = "embedding"
"""Unit and key of the table of token embeddings, by which windows are compared."""

NO_EXPLAINER: Final = "_"
"""In the place of an explainer's name, which never looks so, where a scorer needs no explanation: the folder of its
scores, one a feature."""

PACKED: Final = "packed.json"
PUBLICATION: Final = "publication.json"
ENVIRONMENT: Final = "environment.json"
RECIPE: Final = "recipe.yaml"
IDENTITIES: Final = "identities.json"
