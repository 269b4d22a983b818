"""Output-centric: what a feature makes the model say, not what it fires on (Gur-Arieh et al., arXiv 2501.08319:
"VocabProj", and "TokenChange" where the intervene stage has recorded it).

The LLM sees tokens that the feature's decoder row promotes and suppresses and, where there are any, tokens whose
probability rose and fell when the feature was pushed. No windows are needed, so features with too few of them, or
none, get an explanation too; it can't be tested on windows, and the report says how many those are. The paper shows
50 tokens of each list; a run keeps fewer of the vocabulary (`run.N_TOKENS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autointerp.asking import Asking
from autointerp.effects import EffectTexts
from autointerp.errors import NoEvidence, RecipeError
from autointerp.evidence import Evidence, Need
from autointerp.explainers.logits import distinct
from autointerp.explainers.protocol import Explained
from autointerp.explainers.two_lines import ask


@dataclass(frozen=True, slots=True)
class OutputCentric:
    """Shows an LLM the tokens that a feature raises and lowers; needs no windows."""

    n_tokens: int = 50
    """Most tokens of each list."""
    max_tokens: int = 300
    temperature: float = 0.0
    prompt: str = "explain/output_centric"

    version: ClassVar[str] = "1"
    needs_llm: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"directions"})
    uses: ClassVar[frozenset[Need]] = frozenset({"effects"})
    needs_windows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise RecipeError(f"output_centric: n_tokens is {self.n_tokens}; it must be 1 or more.")

    def templates(self) -> tuple[str, ...]:
        return (self.prompt,)

    async def explain(self, evidence: Evidence, asking: Asking) -> Explained:
        """Raises NoEvidence for a feature whose decoder row says nothing and of which no effects are known."""
        assert evidence.directions is not None  # declared
        lists = {
            "promoted": evidence.directions.promoted,
            "suppressed": evidence.directions.suppressed,
            **_changed(evidence.effects),
        }
        if not any(lists.values()):
            raise NoEvidence("its decoder row promotes no tokens, and no effects of it are known")
        return await ask(
            asking,
            self.prompt,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            **{name: distinct(tokens)[: self.n_tokens] for name, tokens in lists.items()},
        )


def _changed(effects: EffectTexts | None) -> dict[str, tuple[str, ...]]:
    """Tokens that the strongest push raised and lowered, which stand out most from chance."""
    pushes = [one for one in effects.shown.of("feature") if one.status == "ok"] if effects else []
    if not pushes:
        return {"raised": (), "lowered": ()}
    return {"raised": pushes[-1].raised, "lowered": pushes[-1].lowered}
