"""Example embedding: are a feature's active windows more alike than active and silent ones? (arXiv 2507.08473;
EleutherAI/delphi, scorers/example_embedding.)

Needs no explanation: it says how much there is to explain. Each window's number is its mean cosine with the active
windows other than itself; the paper's active/active minus active/non-active likeness is the difference of the
means of the two kinds. Differs: the headline is the area under the ROC curve of these numbers, which has the same
scale for every embedder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.evidence import ScorerNeed
from autointerp.llm.protocol import Capabilities, Role
from autointerp.scorers.similar import Vectors, ranked, texts_of, unit_vectors
from autointerp.trials import Ranked
from autointerp.types import Heldout


@dataclass(frozen=True, slots=True)
class ExampleEmbedding:
    """Ranks windows by the likeness of their embedding to those of the active windows; needs no explanation."""

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    needs_explanation: ClassVar[bool] = False
    needs: ClassVar[frozenset[ScorerNeed]] = frozenset({"embed"})
    role: ClassVar[Role] = "embedder"
    judges_strata: ClassVar[bool] = True

    def templates(self) -> tuple[str, ...]:
        return ()

    def protocol(self, capabilities: Capabilities) -> str:
        return f"example_embedding {self.version}: mean cosine with the other active windows; AUROC; no explanation"

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Ranked:
        """One trial a held-out window; `explanation` is not looked at."""
        x_NK = await unit_vectors(texts_of(heldout.active + heldout.silent), asking)
        return ranked(heldout, likeness(x_NK, len(heldout.active)))


def likeness(x_NK: Vectors, n_active: int) -> list[float]:
    """[N]: mean cosine with the active windows, which come first, other than itself; 0.0 where there is no other."""
    cosine_NA = x_NK @ x_NK[:n_active].T
    sums, counts = cosine_NA.sum(axis=1), [n_active - (n < n_active) for n in range(len(x_NK))]
    own = cosine_NA.diagonal().tolist()
    return [
        (total - (own[n] if n < n_active else 0.0)) / count if count else 0.0
        for n, (total, count) in enumerate(zip(sums.tolist(), counts, strict=True))
    ]
