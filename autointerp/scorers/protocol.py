"""What a scorer is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from autointerp.asking import Asking
from autointerp.llm.protocol import Capabilities, Role
from autointerp.splits import Heldout
from autointerp.trials import AnyTrials


def role_of(scorer: object) -> Role:
    """Whom it asks."""
    return getattr(scorer, "role", "judge")


class Scorer(Protocol):
    """The plug-in: a frozen dataclass whose fields are its options in the recipe.

    One that also asks about the windows chosen to be hard (every stratum of `Heldout.silent`) says so by a
    class attribute `judges_strata = True`: the plan counts their requests. Others that may be left out:
    `needs: ClassVar[frozenset[ScorerNeed]]`, without which it can't work, and `needs_windows = False`, where it also
    scores explanations of features that have no windows. `role: ClassVar[Role]`: whom it asks, else the judge.
    `needs_explanation = False`: it scores the feature itself, once, whoever explains it; its `judge` is given an
    empty explanation. `controlled = False`: what control explanations score is not asked unless a recipe names it.
    `as_control: ClassVar[Mapping[str, object]]`: options under which they are scored, in the place of the recipe's.
    One that needs `probe` also has `async write(explanation, asking) -> list[str]`: the texts that the subject is to
    read before `judge` is called; it raises Unreadable, Refused, and the LLM's own errors. `added: ClassVar[Json]`:
    options that earlier versions had not, at values that change nothing; at these they are not digested, so that what
    was scored before stays done. `replica_only: ClassVar[Json]`: options that may differ from these values only in
    a recipe marked `replica`, for they let a judge get by without reading.
    """

    version: ClassVar[str]
    """Digested: raise it when the same input would give other trials or another prompt."""
    needs_llm: ClassVar[bool]

    def templates(self) -> tuple[str, ...]:
        """Names of the prompt templates it uses; their text is digested."""
        ...

    def protocol(self, capabilities: Capabilities) -> str:
        """What is done, in a line that names every setting a reader must know to compare two scores."""
        ...

    async def judge(self, explanation: str, heldout: Heldout, asking: Asking) -> AnyTrials:
        """The trials, of one of the kinds of `trials.py`: `metrics` makes all numbers from them. An answer that
        can't be read is None in its trial.

        Raises the LLM's own errors. May be called again from the start after a crash.
        """
        ...
