"""No language model: corpus statistics that answer prompts from their variables.

The embedded default, and the baseline every LLM must beat. `lexical_explaining.py` looks for what sets the shown
active windows apart from the silent ones and writes it in the language of `clauses.py`, whose `matches` reads
it, or anybody's explanation, and judges windows. Replies have the format an LLM is asked for, so explainers
and scorers see no difference.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from autointerp.errors import LLMBadRequest
from autointerp.llm.clauses import matches, odd_one_out, written_for
from autointerp.llm.exchange import Reply, Request
from autointerp.llm.lexical_explaining import explain_by_output, explain_lexically
from autointerp.llm.protocol import ANYWHERE, ByRequest, Capabilities, LLMIdentity, Place
from autointerp.prompting import Prompt, View
from autointerp.splits import Shown
from autointerp.types import Window

VERSION: Final = "1"
"""Raise it when the same windows would give another explanation or another verdict."""


@dataclass(frozen=True, slots=True)
class Lexical:
    """Corpus statistics instead of a language model: free, instant, deterministic."""

    version: ClassVar[str] = VERSION
    paid: ClassVar[bool] = False
    local: ClassVar[bool] = False
    queues: ClassVar[bool] = False

    def identity(self) -> LLMIdentity:
        return LLMIdentity("lexical", VERSION)

    def connect(self, place: Place = ANYWHERE) -> LexicalLLM:
        return LexicalLLM()


class LexicalLLM(ByRequest):
    """Answers `explain/...` prompts from `shown`, without windows from `promoted`; `score/...` prompts
    from `explanation` and its `view` or `views`."""

    @property
    def identity(self) -> LLMIdentity:
        return LLMIdentity("lexical", VERSION)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(all_windows_at_once=True)

    async def answer(self, request: Request) -> Reply:
        """Raises LLMBadRequest for a prompt that is neither an explainer's nor a binary scorer's."""
        prompt = request.prompt
        match prompt.template.name.partition("/")[0], dict(prompt.variables):
            case "explain", {"shown": Shown() as shown}:
                text, label = explain_lexically(shown)
                return Reply(f"EXPLANATION: {text}\nLABEL: {label}")
            case "explain", {"promoted": [*promoted], "raised": [*raised]}:
                text, label = explain_by_output([str(token) for token in (*raised, *promoted)])
                return Reply(f"EXPLANATION: {text}\nLABEL: {label}")
            case "score", {"explanation": str() as explanation, "n": int() as n}:
                return Reply(json.dumps([written_for(explanation, number) for number in range(n)]))
            case "score", {"explanation": str() as explanation, "view": View() as view}:
                return Reply("yes" if matches(explanation, view) else "no")
            case "score", {"explanation": str() as explanation, "views": [*views]}:
                verdicts = ("yes" if matches(explanation, view) else "no" for view in views)
                return Reply("\n".join(f"{n}: {verdict}" for n, verdict in enumerate(verdicts, 1)))
            case "score", {
                "explanation": str() as explanation,
                "window": Window() as window,
                "at": int() as at,
            }:
                marked = View(window, (at,))
                return Reply(str(prompt.variables["highest"] if matches(explanation, marked) else 0))
            case "score", {"views": [*views]}:
                return Reply(str(odd_one_out(views) + 1))
            case _:
                raise LLMBadRequest(
                    f"the lexical backend can't answer prompt '{prompt.template.name}'. It answers explain/"
                    " prompts with a variable 'shown' or 'promoted', score/ prompts with 'views', 'view', 'window'"
                    " or 'n'."
                )

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        raise LLMBadRequest("the lexical backend has no log-probabilities")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise LLMBadRequest("the lexical backend has no embeddings")

    async def close(self) -> None:
        """Nothing to free."""
