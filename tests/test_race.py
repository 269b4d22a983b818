"""Explainers that choose: on select windows alone, every candidate readable, and no luck in the score.

A scripted judge answers by a coin: its answers say nothing of a text, so every difference between texts is luck.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from autointerp import pipeline
from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, RecipeError, Refused, Unreadable
from autointerp.evidence import Evidence, needs_of, uses_of
from autointerp.explainers.protocol import Explained
from autointerp.explainers.race import Race
from autointerp.explainers.refine import Refine
from autointerp.llm.exchange import Reply
from autointerp.llm.protocol import LLMIdentity
from autointerp.llm.scripted import Answer, ScriptedLLM
from autointerp.metrics import measure
from autointerp.prompting import Prompt
from autointerp.scorers.detection import Detection
from autointerp.sections import instance
from autointerp.splits import Heldout, Select, Shown
from autointerp.stages.expected import expected
from autointerp.types import Json, Window
from tiny import Tiny

N = 20


def windows(kind: str, n: int, *, active: bool) -> tuple[Window, ...]:
    return tuple(
        Window("0" * 16, 0, (0, 1), (kind, f" {number}"), (1.0, 0.5) if active else (0.0, 0.0), 0 if active else None,
               None if active else "random")
        for number in range(n)
    )  # fmt: skip


SHOWN = Shown(windows("shown", 6, active=True), windows("shown other", 6, active=False))
SELECT = Select(windows("select", N, active=True), windows("select other", N, active=False))
HELDOUT = Heldout(windows("heldout", N, active=True), windows("heldout other", N, active=False))
EVIDENCE = Evidence(SHOWN, SELECT)


def asking(answer: Answer, feature: str = "a/1") -> Asking:
    return Asking(ScriptedLLM(LLMIdentity("scripted"), answer), feature)


def coin(*parts: object) -> float:
    """Uniform in [0, 1) by what is given."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) / 2**64


def judge(prompt: Prompt, right: float, *key: object) -> str:
    """Answers each window rightly with this probability, by a coin of its own."""
    lines: list[str] = []
    for number, view in enumerate(prompt.variables["views"], 1):
        is_active = view.window.maximum > 0
        says = (
            is_active if coin(view.window, prompt.variables["explanation"], *key) < right else not is_active
        )
        lines.append(f"{number}: {'yes' if says else 'no'}")
    return "\n".join(lines)


def of_race(feature: str, right: dict[str, float], **sections: Json) -> Explained:
    """A race of texts that a judge answers rightly with these probabilities."""

    def answer(prompt: Prompt, index: int) -> str:
        if prompt.template.name.startswith("explain/"):
            n_marked = sum(len(example.view.marks) for example in prompt.variables["examples"])
            return f"EXPLANATION: text {n_marked}\nLABEL: {n_marked}"
        return judge(prompt, right[prompt.variables["explanation"]], feature)

    race = Race(among=sections or {"few": {"use": "plain", "threshold": 0.7}, "many": {"use": "plain"}})
    return asyncio.run(race.explain(EVIDENCE, asking(answer, feature)))


def test_the_better_one_wins_and_all_stay_readable() -> None:
    """`few` marks one token a window, `many` both. Balanced accuracies are 1 and 0 by the judge's hand."""
    explained = of_race("a/1", {"text 6": 0.0, "text 12": 1.0})
    assert (explained.text, explained.label) == ("text 12", "12")
    assert explained.details == {
        "winner": "many",
        "candidates": {
            "few": {"text": "text 6", "label": "6", "select": 0.0},
            "many": {"text": "text 12", "label": "12", "select": 1.0},
        },
    }
    assert of_race("a/1", {"text 6": 1.0, "text 12": 1.0}).details["winner"] == "few"  # of equals the first


def test_the_select_figure_of_a_winner_is_biased_up_and_the_held_out_one_is_not() -> None:
    """Five texts of true accuracy 0.7 each, 300 features. A figure over 20 + 20 windows has a standard error of
    sqrt(0.7 * 0.3 / 40) = 0.072, and the largest of five lies 1.16 of them above the mean: 0.784."""
    on_select: list[float] = []
    on_heldout: list[float] = []
    for number in range(300):
        feature = f"a/{number}"

        def answer(prompt: Prompt, index: int, feature: str = feature) -> str:
            if prompt.template.name.startswith("explain/"):
                return f"EXPLANATION: {coin(prompt.messages[-1].content, feature)}\nLABEL: x"
            return judge(prompt, 0.7, feature)

        race = Race(among={f"p{n}": {"use": "plain", "prompt": "explain/plain", "threshold": t}
                           for n, t in enumerate((0.0, 0.2, 0.4, 0.6, 0.8))})  # fmt: skip
        explained = asyncio.run(race.explain(_varied(), asking(answer, feature)))
        on_select.append(explained.details["candidates"][explained.details["winner"]]["select"])
        trials = asyncio.run(Detection().judge(explained.text, HELDOUT, asking(answer, feature)))
        measured = measure(trials).value
        assert measured is not None
        on_heldout.append(measured.value)
    standard_error = 0.072 / 300**0.5
    assert statistics.mean(on_heldout) == pytest.approx(0.7, abs=4 * standard_error)
    assert statistics.mean(on_select) == pytest.approx(0.784, abs=0.01)
    assert statistics.mean(on_select) > 0.7 + 10 * standard_error


def _varied() -> Evidence:
    """Windows that every threshold marks in another way."""
    active = tuple(
        Window("0" * 16, 0, tuple(range(6)), tuple("abcdef"), (1.0, 0.9, 0.7, 0.5, 0.3, 0.1), 0)
        for _ in range(3)
    )
    return Evidence(Shown(active, ()), SELECT)


def test_one_that_gives_no_text_drops_out() -> None:
    def answer(prompt: Prompt, index: int) -> str | Reply:
        if prompt.template.name == "explain/plain":
            return Reply("", "content_filter")
        if prompt.template.name == "explain/cot":
            return "EXPLANATION: a\nLABEL: b"
        return judge(prompt, 1.0)

    race = Race(among={"first": {"use": "plain"}, "second": {"use": "cot"}})
    explained = asyncio.run(race.explain(EVIDENCE, asking(answer)))
    assert explained.details["winner"] == "second"
    assert explained.details["candidates"]["first"]["status"] == "refused"
    with pytest.raises(Refused):
        asyncio.run(
            Race(among={"a": {"use": "plain"}, "b": {"use": "plain"}}).explain(EVIDENCE, asking(answer))
        )


def test_one_that_cant_be_judged_drops_out_and_a_refused_rewrite_keeps_the_draft() -> None:
    """A server that answers 400 to what it is asked about one text."""

    def answer(prompt: Prompt, index: int) -> str:
        if prompt.template.name == "explain/refine":
            raise LLMBadRequest("too long")
        if prompt.template.name.startswith("explain/"):
            return f"EXPLANATION: of {prompt.template.name}\nLABEL: b"
        if prompt.variables["explanation"] == "of explain/plain":
            raise LLMBadRequest("content policy")
        return judge(prompt, 0.7)

    race = Race(among={"first": {"use": "plain"}, "second": {"use": "cot"}})
    explained = asyncio.run(race.explain(EVIDENCE, asking(answer)))
    assert explained.details["winner"] == "second"
    assert explained.details["candidates"]["first"]["status"] == "bad_request"
    rewritten = asyncio.run(Refine(draft={"use": "cot"}).explain(EVIDENCE, asking(answer)))
    assert rewritten.text == "of explain/cot" and rewritten.details["ended"] == "too long"


def test_what_a_race_declares_follows_from_who_runs() -> None:
    race = Race(among={"a": {"use": "plain"}, "b": {"use": "contrastive"}, "c": {"use": "output_centric"}})
    assert needs_of(race) == {"select", "hard", "directions"}
    assert uses_of(race) == {"select", "hard", "directions", "effects"}
    assert race.templates() == (
        "explain/plain", "explain/contrastive", "explain/output_centric", "score/detection"
    )  # fmt: skip
    other = Race(among={"a": {"use": "plain", "threshold": 0.5}, "b": {"use": "contrastive"}})
    assert len({race.version, other.version}) == 2


def test_a_candidate_sees_what_it_would_see_alone() -> None:
    """Hard windows are not for `plain`, though another candidate asked for them."""
    hard = windows("hard", 2, active=False)
    evidence = Evidence(
        Shown(SHOWN.active, (*SHOWN.silent, *(one._replace(stratum="neighbour") for one in hard))), SELECT
    )
    seen: dict[str, int] = {}

    def answer(prompt: Prompt, index: int) -> str:
        if prompt.template.name.startswith("score/"):
            return judge(prompt, 1.0)
        seen[prompt.template.name] = len(prompt.variables["shown"].silent)
        return "EXPLANATION: a\nLABEL: b"

    race = Race(among={"a": {"use": "plain"}, "b": {"use": "contrastive"}})
    asyncio.run(race.explain(evidence, asking(answer)))
    assert seen == {"explain/plain": 6, "explain/contrastive": 8}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"use": "race", "among": {"a": {"use": "plain"}}}, "1 explainer runs, and two or more must"),
        (
            {"use": "race", "among": {"a": {"use": "plane"}, "b": {"use": "cot"}}},
            "among.a: .*Did you mean 'plain'",
        ),
        (
            {"use": "race", "among": {"a": {"use": "plain", "x": 1}, "b": {"use": "cot"}}},
            "among.a: no option 'x'",
        ),
        ({"use": "refine", "rounds": 0}, "refine: rounds is 0"),
        ({"use": "refine", "scorer": {"use": "intruder"}}, "scorer: it looks at no explanation"),
        ({"use": "refine", "draft": {"use": "nothing"}}, "draft: no explainer is called 'nothing'"),
    ],
)
def test_a_section_that_cant_be_run_names_the_place(section: Json, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        instance("explainers", section)


# --- refine ------------------------------------------------------------------------------------------------


def refined(right: list[float], **options: int) -> tuple[Explained, list[Prompt]]:
    """Drafts that a judge answers rightly with these probabilities, one after the other."""
    prompts: list[Prompt] = []

    def answer(prompt: Prompt, index: int) -> str:
        if prompt.template.name.startswith("score/"):
            return judge(prompt, right[int(prompt.variables["explanation"].split()[-1])])
        if index == 0:
            prompts.append(prompt)
        n = len(prompts) - 1
        return f"EXPLANATION: draft {n}\nLABEL: d{n}" if right[n] >= 0 else "What?"

    return asyncio.run(Refine(**options).explain(EVIDENCE, asking(answer))), prompts


def test_refine_keeps_the_better_on_select_and_shows_the_mistakes() -> None:
    explained, prompts = refined([0.6, 0.2, 0.9], rounds=2, n_missed=3, n_wrong=4)
    drafts = explained.details["drafts"]
    assert explained.text == "draft 2" and explained.details["kept"] == 2
    assert [draft["text"] for draft in drafts] == ["draft 0", "draft 1", "draft 2"]
    assert drafts[1]["select"] < drafts[0]["select"] < drafts[2]["select"]
    for prompt in prompts[1:]:  # the second rewrite is of draft 0, which is still the best
        assert prompt.variables["explanation"] == "draft 0"
        assert [len(prompt.variables[name]) for name in ("missed", "wrong")] == [3, 4]
        assert {example.view.window.texts[0] for example in prompt.variables["missed"]} == {"select"}
        assert {view.window.texts[0] for view in prompt.variables["wrong"]} == {"select other"}


def test_refine_ends_without_mistakes_and_where_nothing_better_can_be_had() -> None:
    explained, prompts = refined([1.0], rounds=3)
    assert explained.text == "draft 0" and len(prompts) == 1 and len(explained.details["drafts"]) == 1
    explained, _ = refined([0.5, -1], rounds=3)
    assert explained.text == "draft 0" and "asked twice" in explained.details["ended"]
    with pytest.raises(Unreadable):
        refined([-1])


def test_the_judge_judges_where_there_is_one() -> None:
    """Who explains is asked for texts alone, and its own opinion of them has no part in the choice."""
    asked: dict[str, set[str]] = {"explainer": set(), "judge": set()}

    def who(role: str, likes: str) -> Answer:
        def answer(prompt: Prompt, index: int) -> str:
            kind = prompt.template.name.partition("/")[0]
            asked[role].add(kind)
            if kind == "explain":
                n_marked = sum(len(example.view.marks) for example in prompt.variables["examples"])
                return f"EXPLANATION: text {n_marked}\nLABEL: {n_marked}"
            return judge(prompt, 1.0 if prompt.variables["explanation"] == likes else 0.5)

        return answer

    race = Race(among={"few": {"use": "plain", "threshold": 0.7}, "many": {"use": "plain"}})
    alone = asking(who("explainer", "text 6"))
    apart = replace(alone, judge=ScriptedLLM(LLMIdentity("other"), who("judge", "text 12")))
    found = asyncio.run(race.explain(EVIDENCE, apart))
    assert asked == {"explainer": {"explain"}, "judge": {"score"}}
    assert (found.text, found.details["judge"]) == ("text 12", "other")
    found = asyncio.run(race.explain(EVIDENCE, alone))
    assert found.text == "text 6" and "judge" not in found.details
    assert asked["explainer"] == {"explain", "score"}


def test_who_judges_candidates_is_part_of_what_they_are_made_from(made: Tiny, tmp_path: Path) -> None:
    """Only where it is another LLM than explains, so what was explained and judged by one stays done."""

    def digests(name: str, judge_model: str | None) -> list[str]:
        explainer = {"use": "scripted", "function": "judge:answer"}
        llms: Json = {"explainer": explainer | {"fallback": explainer | {"model": "second"}}}
        if judge_model is not None:
            llms["judge"] = explainer | {"model": judge_model}
        explainers = {"plain": {"use": "plain"}, "race": {"use": "race"}, "refine": {"use": "refine"}}
        scorers = {} if judge_model is None else {"detection": {"use": "detection"}}
        recipe = made.recipe(llms=llms, explainers=explainers, scorers=scorers)
        run = pipeline.prepare(recipe, tmp_path / name)[1]
        return [run.explain("layers.1", explainer).digest for explainer in explainers]

    nobody, same, other, third = (
        digests(name, model)
        for name, model in (("a", None), ("b", "scripted"), ("c", "other"), ("d", "third"))
    )
    assert nobody == same
    assert same[0] == other[0] == third[0]
    for at in (1, 2):
        assert len({same[at], other[at], third[at]}) == 3


# --- in the line -------------------------------------------------------------------------------------------


def test_every_explainer_runs_without_an_llm(made: Tiny, tmp_path: Path) -> None:
    """Records, details in them, and scores; features too few windows are explained by what they promote."""
    explainers: Json = {
        name: {"use": name} for name in ("plain", "cot", "contrastive", "logits", "output_centric")
    }
    explainers |= {name: {"use": name} for name in ("multi_concept", "refine", "lexical")}
    explainers["race"] = {"use": "race", "among": {"a": {"use": "plain"}, "b": {"use": "output_centric"}}}
    recipe = made.recipe(
        features={"first": 4}, explainers=explainers, scorers={"detection": {"use": "detection"}}
    )
    run = pipeline.explain(recipe, out=tmp_path / "run")
    assert run.recipe.sampling.n_shown_hard == 20
    for name in explainers:
        records = list(run.explain("layers.1", name).records())
        assert records and {record["status"] for record in records} == {"ok"}, name
        assert all(len(record["label"].split()) <= 6 for record in records)
        assert all(
            bool(record.get("details")) == (name in ("multi_concept", "refine", "race")) for record in records
        )
    assert len(list(run.explain("layers.1", "output_centric").records())) == 4


def readable(prompt: Prompt, index: int) -> str:
    """Another explanation from each prompt; yes to every window."""
    if prompt.template.name.startswith("explain/"):
        return f"EXPLANATION: by {prompt.template.name}\nLABEL: it"
    return "\n".join(f"{number}: yes" for number in range(1, len(prompt.variables["views"]) + 1))


def test_in_a_run_the_judge_is_asked_and_planned(made: Tiny, tmp_path: Path) -> None:
    """Its requests about candidates are its own in the plan, and its replies lie beside the explainer's."""
    explainer = {"use": "scripted", "function": "test_race:readable"}
    llms: Json = {"explainer": explainer, "judge": explainer | {"model": "other"}}
    recipe = made.recipe(
        llms=llms, features={"first": 3}, explainers={"race": {"use": "race"}},
        scorers={"detection": {"use": "detection"}}, sampling={"minimum": 20, "n_same_token": 0, "n_neighbour": 0},
    )  # fmt: skip
    run = pipeline.explain(recipe, out=tmp_path / "run", until="sample")
    planned = {one.role: one.n_requests for one in asyncio.run(expected(run))}
    run = pipeline.explain(recipe, out=tmp_path / "run")
    records = list(run.explain("layers.1", "race").records())
    assert {record["details"]["judge"] for record in records} == {"other"}
    assert {record["llm"] for record in records} == {"scripted"}
    journals = run.explain("layers.1", "race"), run.score("layers.1", "race", "detection")
    in_all, of_winners = (len(list(run.beside("requests", journal).records())) for journal in journals)
    assert len(records) == 3 and planned["explainer"] == 3 * 2
    assert planned["judge"] == in_all - 3 * 2 + of_winners and in_all > 3 * 2 + 3 * 2
