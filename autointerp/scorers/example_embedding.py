"""Example embedding: are a feature's active windows more alike than active and silent ones? (arXiv 2507.08473;
EleutherAI/delphi, scorers/example_embedding.)

Needs no explanation: it says how much there is to explain. Half of the active windows, by a keyed draw, are what
others are compared with; the number of each other window, active or silent, is its mean cosine with that half. The
paper's active/active minus active/non-active likeness is the difference of the means of the two kinds. Differs: the
paper compares all active windows with each other, so that every number hangs on every other, and an interval that
takes them for independent is too narrow; with half of them set apart each tested window counts once. The headline is
the area under the ROC curve of these numbers, which has the same scale for every embedder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.evidence import ScorerNeed
from autointerp.llm.protocol import Capabilities, Role
from autointerp.scorers.similar import Vectors, ranked, texts_of, unit_vectors
from autointerp.splits import Heldout
from autointerp.trials import Ranked


@dataclass(frozen=True, slots=True)
class ExampleEmbedding:
    """Ranks windows by the likeness of their embedding to those of the active windows; needs no explanation."""

    version: ClassVar[str] = "2"
    needs_llm: ClassVar[bool] = True
    needs_explanation: ClassVar[bool] = False
    needs: ClassVar[frozenset[ScorerNeed]] = frozenset({"embed"})
    role: ClassVar[Role] = "embedder"
    judges_strata: ClassVar[bool] = True

    def templates(self) -> tuple[str, ...]:
        return ()

    def protocol(self, capabilities: Capabilities) -> str:
        return (
            f"example_embedding {self.version}: mean cosine with half of the active windows, of the others and the "
            "silent ones; AUROC; no explanation"
        )

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> Ranked:
        """One trial a held-out window that others are not compared with; `explanation` is not looked at. None for a
        feature with a single active window, which can be compared with none."""
        order = asking.order(len(heldout.active), "compared with")
        reference = sorted(order[: len(order) // 2])
        if not reference:
            return Ranked()
        x_NK = await unit_vectors(texts_of(heldout.active + heldout.silent), asking)
        tested = [n for n in range(len(x_NK)) if n not in set(reference)]
        return ranked(heldout, likeness(x_NK[tested], x_NK[reference]), tested)


def likeness(x_NK: Vectors, y_AK: Vectors) -> list[float]:
    """[N]: mean cosine of each x with all y."""
    return (x_NK @ y_AK.T).mean(axis=1).tolist()
