"""What a plug-in that talks to an LLM gets for its work on one feature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autointerp import draw
from autointerp.llm.protocol import LLM
from autointerp.prompting import Prompt, Template, load_template


@dataclass(frozen=True, slots=True)
class Asking:
    """An LLM, the prompts, and keyed randomness for one feature."""

    llm: LLM
    feature: str
    """Feature id: keys the draws, is never shown to an LLM."""
    seed: int = 0
    prompts: Path | None = None
    """The user's own prompt folder, looked into first."""
    judge: LLM | None = None
    """Who judges the candidates of an explainer that chooses; None: who is asked for them."""

    def of_judge(self) -> Asking:
        """The same, of who judges candidates."""
        return self if self.judge is None else replace(self, llm=self.judge, judge=None)

    def prompt(self, name: str, **variables: object) -> Prompt:
        """Template `name` with these variables."""
        return Prompt(self.template(name), variables)

    def template(self, name: str) -> Template:
        """Raises UnknownName where there is none of that name."""
        return load_template(name, self.prompts)

    def order(self, n: int, *purpose: str | int) -> list[int]:
        """A permutation of range(n) that depends on seed, feature and purpose alone."""
        key = draw.key(self.seed, "order", self.feature, *purpose)
        return draw.smallest(draw.mix(key, np.arange(n, dtype=np.uint64)), n).tolist()
