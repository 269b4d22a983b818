"""How a dictionary that stores no threshold gets one: what its format says of it; `calibrate.py` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

NO_CANDIDATES: Final = "outside of the pool that calibration chose, so that they can't fire"
"""What features are whose threshold is infinite."""
Rule = Literal["batch_topk", "mutual_choice", "feature_choice", "sampled"]
ColumnScore = Literal["l2", "entropy"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a dictionary that in training chose among the activations of a whole batch gets the thresholds by
    which it is JumpReLU from then on, so that a token's code never depends on other tokens (`calibrate.py`)."""

    rule: Rule
    """`batch_topk` (arXiv 2412.06410): one threshold, the mean over batches of the smallest activation that is
    among the k a token largest of its batch. `mutual_choice` (arXiv 2411.02124): one threshold, above which k
    a token lie on average. `feature_choice` (the same): one a feature, above which each has an equal share of
    these. `sampled` (arXiv 2508.21324): as mutual_choice, among a fixed pool of features; the others never
    fire."""
    k: float
    """Codes that a token has on average. For feature_choice: m tokens of a batch of B, of F features: m F / B."""
    batch_tokens: int = 4_096
    """For batch_topk: tokens of a batch."""
    pool: int | None = None
    """For sampled: candidates (K l in the paper), those with the largest scores on all calibration tokens."""
    column_score: ColumnScore = "l2"
    """For sampled: the norm of a feature's activations, or the entropy of how they spread over tokens."""
