"""What the plan says of requests about pushed features, against what a run then sends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autointerp import pipeline
from autointerp.journal import Journal
from autointerp.llm.exchange import Reply, Request
from autointerp.llm.protocol import ANYWHERE, Capabilities, LLMIdentity, Place
from autointerp.llm.scripted import ScriptedLLM
from autointerp.progress import Silent, Stop
from autointerp.prompting import Prompt
from autointerp.run import Run
from autointerp.stages.expected import expected
from autointerp.stages.preflight import preflight
from autointerp.types import Json
from here import device_here
from tiny import Tiny

N_TARGETS, N_SELECT, N_HELDOUT = 2, 5, 6
SMALL = {
    "n_shown": 5, "n_select": N_SELECT, "n_heldout": N_HELDOUT, "targets": [0.33, 1.0], "shortest": 2,
}  # fmt: skip


class _LikelyLLM(ScriptedLLM):
    """Writes another explanation each time, and finds the one with the most words in common the likeliest."""

    async def answer(self, request: Request) -> Reply:
        return Reply(f"EXPLANATION: explanation {request.index}\nLABEL: it")

    async def logprobs(self, prompt: Prompt, continuation: str) -> list[float]:
        text = prompt.messages[-1].content
        return [0.0 if word in text else -1.0 for word in continuation.split()]


@dataclass(frozen=True, slots=True)
class Likely:
    """A paid backend with log-probabilities."""

    version: ClassVar[str] = "1"
    paid: ClassVar[bool] = True
    local: ClassVar[bool] = False
    queues: ClassVar[bool] = False

    def identity(self) -> LLMIdentity:
        return LLMIdentity("likely")

    def connect(self, place: Place = ANYWHERE) -> ScriptedLLM:
        llm = _LikelyLLM(self.identity(), lambda prompt, index: "")
        llm.capabilities = Capabilities(logprobs=True)
        return llm


def recipe(made: Tiny, **intervention: object) -> Json:
    llm = {"use": "test_expected_pushes:Likely"}
    return made.recipe(
        intervention=SMALL | intervention,
        features={"first": 8},
        explainers={"effect": {"use": "effect"}},
        scorers={"intervention": {"use": "intervention"}},
        llms={"explainer": llm, "judge": llm},
    )


def planned(run: Run) -> dict[str, int]:
    return {one.role: one.n_requests for one in asyncio.run(expected(run))}


def test_without_samples_every_strength_counts(made: Tiny, tmp_path: Path) -> None:
    """Five candidates, each looked for behind the clean and two pushed texts of five prompts. The one that is scored:
    six prompts with a clean text and three arms of two pushes."""
    run = pipeline.prepare(recipe(made), tmp_path / "run")[1]
    explained = 5 + 5 * N_SELECT * (1 + N_TARGETS)
    judged = N_HELDOUT * (1 + 3 * N_TARGETS)
    assert planned(run) == {"explainer": 8 * explained, "judge": 8 * judged}
    run = pipeline.prepare(recipe(made, ablate=True), tmp_path / "ablated")[1]
    assert planned(run)["judge"] == 8 * (judged + N_HELDOUT * 2)
    run = pipeline.prepare(recipe(made, minimum=N_SELECT + 1), tmp_path / "few")[1]
    assert planned(run) == {}


def test_with_what_was_pushed_the_plan_is_what_is_sent(made: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with device_here():
        run = pipeline.explain(recipe(made), out=out, until="sample")
        before = planned(run)
        run = pipeline.explain(recipe(made), out=out, until="intervene")
        after = planned(run)
        run = pipeline.explain(recipe(made), out=out)
    journals = {
        "explainer": run.explain("layers.1", "effect"),
        "judge": run.score("layers.1", "effect", "intervention"),
    }
    share = sum(record["status"] in ("full", "small") for record in run.sample("layers.1").records()) / 8
    for role, journal in journals.items():
        sent = len(list(run.beside("requests", journal).records()))
        assert sent > 100
        assert after[role] * share == sent, role
        # At most: not every strength is found, and weak pushes change no word of some texts.
        assert sent <= before[role] * share < 2 * sent, role


def test_the_preflight_asks_about_pushed_text(made: Tiny, tmp_path: Path) -> None:
    """The explainer's five candidates on one prompt with its two pushes; of the judge's one prompt all arms."""
    run = pipeline.prepare(recipe(made), tmp_path / "run")[1]
    asyncio.run(preflight(run, Silent(), Stop()))
    tried = Journal(run.path / "requests" / "preflight", None)
    assert [len(tried.read(turn)) for turn in tried.units()] == [5 + 5 * 3 + 7]
