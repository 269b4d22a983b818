"""Windows, and judges that are functions: what tests of scorers run on."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from autointerp.asking import Asking
from autointerp.llm.protocol import Capabilities, LLMIdentity
from autointerp.llm.scripted import Answer, ScriptedLLM
from autointerp.prompting import Prompt, View
from autointerp.scorers.protocol import Scorer
from autointerp.splits import Heldout
from autointerp.trials import Trials
from autointerp.types import Window


def make_window(texts: Sequence[str], firing: dict[int, float] | None = None) -> Window:
    """A window that fires at these positions; silent, of stratum `random`, without any."""
    firing = firing or {}
    return Window(
        document="0123456789abcdef",
        position=0,
        token_ids=tuple(range(len(texts))),
        texts=tuple(texts),
        activations=tuple(firing.get(n, 0.0) for n in range(len(texts))),
        band=0 if firing else None,
        stratum=None if firing else "random",
    )


def asking(answer: Answer, feature: str = "layers.0/1", *, at_once: bool = False) -> Asking:
    llm = ScriptedLLM(LLMIdentity("scripted"), answer)
    llm.capabilities = Capabilities(all_windows_at_once=at_once)
    return Asking(llm, feature)


def views_in(prompt: Prompt) -> list[View]:
    if "view" in prompt.variables:
        return [prompt.variables["view"]]
    return list(prompt.variables["views"])


def judge(says: Callable[[View], bool]) -> Callable[[Prompt, int], str]:
    """Answers each view by itself."""

    def answer(prompt: Prompt, index: int) -> str:
        words = ["yes" if says(view) else "no" for view in views_in(prompt)]
        if "view" in prompt.variables:
            return words[0]
        return "{" + ",".join(f'"{n}":"{word}"' for n, word in enumerate(words, 1)) + "}"

    return answer


def heldout_of(n_active: int, n_silent: int, rng: random.Random, lengths: Sequence[int] = (32,)) -> Heldout:
    """Active windows fire on 1 to 4 tokens, the late ones rather than the early ones."""

    def draw(active: bool) -> Window:
        length = rng.choice(lengths)
        texts = [rng.choice([" a", " b", " c", ".", "\n"]) for _ in range(length)]
        first = rng.randrange(length // 3, length)
        firing = {n: rng.uniform(0.4, 1.0) for n in range(first, min(length, first + rng.randint(1, 4)))}
        return make_window(texts, firing if active else None)

    return Heldout(tuple(draw(True) for _ in range(n_active)), tuple(draw(False) for _ in range(n_silent)))


def judged(scorer: Scorer, heldout: Heldout, to: Asking) -> Trials:
    return asyncio.run(scorer.judge("an explanation", heldout, to))


def golden(path: Path, prompt: Prompt) -> None:
    text = "\n".join(f"[[{turn.role}]]\n{turn.content}" for turn in prompt.messages) + "\n"
    if os.environ.get("AUTOINTERP_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
