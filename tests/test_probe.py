"""Sensitivity, and the stage in which the subject reads texts: by hand, on the demo, after a kill."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from asked import asking, golden, make_window
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp import pipeline
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import reader_of
from autointerp.errors import RecipeChanged, RecipeError, RunError, Unreadable
from autointerp.llm.clauses import matches, written_for
from autointerp.metrics import measure
from autointerp.needs import check_needs
from autointerp.pack import pack
from autointerp.progress import Silent
from autointerp.prompting import Prompt, View
from autointerp.resolve import resolve
from autointerp.run import Run
from autointerp.scorers.sensitivity import Sensitivity, read_texts
from autointerp.splits import Heldout, Probed
from autointerp.stages.expected import expected
from autointerp.stages.probe import Probing
from autointerp.stages.sources import open_source
from autointerp.types import FeatureId, Json
from here import contents, device_here
from tiny import Tiny

GOLDEN = Path(__file__).parent / "golden"


# --- the scorer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "texts"),
    [
        ('["a b", "c"]', ["a b", "c"]),
        ('Here they are:\n```json\n["a b", " ", "c"]\n```', ["a b", "c"]),
        ("1. a b\n2) c\n\n3: d", ["a b", "c", "d"]),
        ('["a", 3]', []),
        ('["a", "b', []),
        ("I would rather not.", []),
        ("", []),
    ],
)
def test_replies_are_read_strictly(reply: str, texts: list[str]) -> None:
    assert read_texts(reply) == texts


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip())), max_size=5))
def test_any_texts_come_back(texts: list[str]) -> None:
    assert read_texts(json.dumps(texts)) == texts


def test_what_cannot_be_read_is_asked_once_more_and_then_given_up() -> None:
    asked: list[Prompt] = []

    def late(prompt: Prompt, index: int) -> str:
        asked.append(prompt)
        return "no" if index == 0 else '["one", "two", "three"]'

    assert asyncio.run(Sensitivity(n=2).write("words", asking(late))) == ["one", "two"]
    assert [prompt.variables["again"] for prompt in asked] == [False, True]
    with pytest.raises(Unreadable, match="asked twice"):
        asyncio.run(Sensitivity().write("words", asking(lambda prompt, index: "no")))


def test_the_share_by_hand() -> None:
    """Of six texts five were written and one has no token: four are usable; 2.0 and 0.5 reach the 0.5 of the
    weakest window, 0.4 and 0 do not. As in the paper, by any activation 0.4 counts too."""
    probed = Probed(("a", "b", "c", "d", "e"), (2.0, 0.5, 0.4, 0.0, None), smallest=0.5)
    heldout = Heldout((), (), probed=probed)
    to = asking(lambda prompt, index: "")
    found = asyncio.run(Sensitivity(n=6, active="as sampled").judge("x", heldout, to))
    assert found.active == [True, True, False, False, None, None] and found.threshold == [0.5] * 6
    numbers = measure(found)
    # Clopper and Pearson's interval of 2 of 4
    value = numbers.value
    assert value is not None and value.value == 0.5
    assert (value.low, value.high) == (pytest.approx(0.0676, abs=1e-4), pytest.approx(0.9324, abs=1e-4))
    assert (numbers.n, numbers.n_unreadable) == (6, 2)
    at_all = asyncio.run(Sensitivity(n=6).judge("x", heldout, to))  # the paper's, and so the default
    assert at_all.active == [True, True, True, False, None, None]
    unwritten = measure(asyncio.run(Sensitivity(n=6).judge("x", Heldout((), ()), to)))
    assert unwritten.value is None and unwritten.n_unreadable == 6


def test_golden_prompt() -> None:
    prompts: list[Prompt] = []

    def answer(prompt: Prompt, index: int) -> str:
        prompts.append(prompt)
        return '["a"]'

    asyncio.run(Sensitivity(n=4).write('The word "bank" after "river".', asking(answer)))
    golden(GOLDEN / "sensitivity.txt", prompts[0])


@pytest.mark.parametrize(
    "explanation",
    [
        'The token " raise"; any token after "def".',
        'The tokens "(", "[" after "print".',
        "Birds and other animals.",
    ],
)
@pytest.mark.parametrize("number", range(4))
def test_lexical_texts_fit_the_explanation(explanation: str, number: int) -> None:
    pieces = re.findall(r"\s*\w+|\s*[^\w\s]", written_for(explanation, number))
    assert matches(explanation, View(make_window(pieces)))
    assert not matches(explanation, View(make_window(["nothing", " of", " it"])))


def test_without_a_model_the_recipe_is_refused(made: Tiny, tmp_path: Path) -> None:
    mapping = made.recipe(scorers={"sensitivity": {"use": "sensitivity"}})
    resolved = pipeline.prepare(mapping, tmp_path / "run")[0]
    check_needs(resolved)
    with pytest.raises(RecipeError, match=r"scorers\.sensitivity: it needs texts read by the model"):
        check_needs(dataclasses.replace(resolved, model=None))


# --- a run ---------------------------------------------------------------------------------------------------

N_TEXTS = 6
RECIPE: Json = {
    "dictionaries": {"auto": {"path": "demo"}},
    "cache": {"n_tokens": 60_000},
    "sampling": {"minimum": 20},
    "features": {"n": 32},
    "explainers": {"lexical": {"use": "lexical"}},
    "scorers": {"sensitivity": {"use": "sensitivity", "n": N_TEXTS}},
}
PLACE = ("layers.2", "lexical", "sensitivity")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe") / "run"
    with device_here():
        pipeline.explain(RECIPE, out=out)
    return out


@pytest.fixture(scope="module")
def probing(scored: Path) -> Probing:
    run = Run.open(scored)
    resolved = resolve(run.recipe)
    return Probing(run, PLACE[0], resolved, open_source(run, resolved, "cpu", None, Silent()))


def test_every_explanation_is_scored(scored: Path) -> None:
    run = Run.open(scored)
    explained = {one["key"] for one in run.explain(*PLACE[:2]).records() if one["status"] == "ok"}
    scores = {one["key"]: one for one in run.score(*PLACE).records()}
    assert scores.keys() == explained and len(scores) >= 8
    for score in scores.values():
        assert score["status"] == "ok" and score["trials"]["kind"] == "responded"
        assert score["metrics"]["n"] == N_TEXTS
        assert set(score["trials"]["threshold"]) == {0.0}
    assert len(run.trials()) == N_TEXTS * len(scores)


def test_the_maxima_are_what_model_and_dictionary_say(scored: Path, probing: Probing) -> None:
    """Slowly: one text at a time, all features of all tokens."""
    run = Run.open(scored)
    resolved = resolve(run.recipe)
    source = open_source(run, resolved, "cpu", None, Silent())
    found = resolved.dictionaries[PLACE[0]]
    encoder = Encoder(found.spec, reader_of(found.spec).load(found.spec, "cpu"))
    assert source.vectors is not None
    records = sorted(run.responses(*PLACE).records(), key=lambda one: one["key"])[:3]
    texts = {one["key"]: one["texts"] for one in run.texts(*PLACE).records()}
    for record in records:
        feature = FeatureId.parse(record["key"])
        for text, maximum in zip(texts[record["key"]], record["maxima"], strict=True):
            ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
            if run.recipe.cache.prepend_bos:
                ids = [source.tokenizer.bos_token_id, *ids]
            captured = source.vectors.capture(torch.tensor([ids]), list(found.inputs), np.zeros(1, np.int64))
            codes = encoder.encode(captured[found.site][0, run.first_position :])
            values = codes.value_M[codes.feature_M == feature.column(found.spec.n_poles)].tolist()
            assert maximum == pytest.approx(max(values, default=0.0), rel=1e-3, abs=1e-6)


def test_texts_of_an_explanation_activate_its_feature_more_than_those_of_others(
    scored: Path, probing: Probing
) -> None:
    """The same texts, each feature reading those of the next one."""
    run = Run.open(scored)
    texts = {one["key"]: one["texts"] for one in run.texts(*PLACE).records()}
    scores = {
        one["key"]: one["metrics"]["values"]["sensitivity"]["value"] for one in run.score(*PLACE).records()
    }
    keys = sorted(scores)
    shuffled: list[float] = []
    for key, other in zip(keys, [*keys[1:], keys[0]], strict=True):
        maxima = probing.maxima(FeatureId.parse(key), texts[other])
        shuffled.append(sum(one is not None and one > 0 for one in maxima) / len(maxima))
    own = [scores[key] for key in keys]
    print(f"sensitivity: own {np.mean(own):.3f}, shuffled {np.mean(shuffled):.3f} over {len(keys)} features")
    assert np.mean(own) > np.mean(shuffled) + 0.1
    difference = np.array(own) - np.array(shuffled)
    assert difference.mean() > 2 * difference.std(ddof=1) / len(keys) ** 0.5


def test_a_text_without_tokens_is_no_answer(probing: Probing) -> None:
    feature = FeatureId(PLACE[0], 5)
    maxima = probing.maxima(feature, ["", "import os, sys", ""])
    assert maxima[0] is None and maxima[2] is None and maxima[1] is not None
    assert probing.maxima(feature, ["import os, sys"]) == [maxima[1]]


def test_what_a_kill_left_out_is_made_again_to_the_byte(scored: Path, tmp_path: Path) -> None:
    """Texts are there, responses and scores are gone or half there: nothing is written anew but these."""
    before = contents(scored)
    out = tmp_path / "run"
    shutil.copytree(scored, out)
    shutil.rmtree(out / "score")
    shutil.rmtree(Run.open(out).responses(*PLACE).folder)
    with device_here():
        pipeline.run_line(Run.open(out))
    assert contents(out) == before


@pytest.mark.child
def test_a_child_reads_the_texts_as_this_process_does(scored: Path, tmp_path: Path) -> None:
    """The process that a user's run starts for the stage; of one that is whole it starts none."""
    before = contents(scored)
    out = tmp_path / "run"
    shutil.copytree(scored, out)
    shutil.rmtree(Run.open(out).responses(*PLACE).folder)
    outcome = pipeline.run_line(Run.open(out))
    assert contents(out) == before and (out / "device.log").exists()
    assert "probe" in outcome.seconds
    assert "probe" not in pipeline.run_line(Run.open(out)).seconds


def test_a_packed_run_keeps_what_was_read_and_reads_no_more(scored: Path, tmp_path: Path) -> None:
    """What is there is served; without any of it the run says where it can be had."""
    pack(Run.open(scored), tmp_path / "packed", with_requests=False)
    scores = list(Run.open(scored).score(*PLACE).records())
    done = pipeline.run_line(Run.open(tmp_path / "packed")).run
    assert list(done.score(*PLACE).records()) == scores
    shutil.rmtree(tmp_path / "packed" / "score")
    shutil.rmtree(tmp_path / "packed" / "probe")
    with pytest.raises(RunError, match=r"packed .* scorer 'sensitivity' has the model read texts"):
        pipeline.run_line(Run.open(tmp_path / "packed"))


def test_the_plan_counts_a_request_a_feature(tmp_path: Path) -> None:
    llm = {"use": "openai", "model": "unknown", "base_url": "http://127.0.0.1:1/v1"}
    run = pipeline.prepare(RECIPE | {"llms": {"explainer": llm, "judge": llm}}, tmp_path / "run")[1]
    (planned,) = asyncio.run(expected(run))
    assert planned.role == "judge" and planned.n_requests == 32 and planned.prompt_tokens > 32 * 150


def test_another_number_of_texts_is_refused_where_there_are_scores(scored: Path) -> None:
    changed = {"scorers": {"sensitivity": {"use": "sensitivity", "n": N_TEXTS + 1}}}
    with pytest.raises(RecipeChanged, match=r"sensitivity.*options.*n|options"):
        pipeline.prepare(RECIPE | changed, scored)
