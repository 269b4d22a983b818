"""The vllm backend around a stand-in for vLLM: processes, failures, cards, and when it is the default."""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import orjson
import pytest
import yaml

from autointerp import pipeline
from autointerp import recipe as recipes
from autointerp.errors import LLMBadRequest, LLMStopped, LLMUnavailable, RecipeError
from autointerp.llm import engine_pids, engine_process, gpus, vllm
from autointerp.llm.protocol import EngineResources, Place
from autointerp.llm.vllm import DEFAULT_MODEL, Vllm, VllmLLM
from autointerp.prompting import Prompt, Template
from autointerp.run import Run
from test_cli import on
from tiny import Tiny

T = TypeVar("T")

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in in place of vLLM, on a machine with one card; what happens in it."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(vllm, "needs_gpu", lambda: True)
    monkeypatch.setattr(vllm, "visible_gpus", lambda: ("0",))
    file = tmp_path / "events"
    file.touch()
    monkeypatch.setenv("AUTOINTERP_STAND_IN", str(file))
    return file


def prompt(user: str, system: str = "", template: str = "test") -> Prompt:
    turns = (("system", jinja2.Template("{{ system }}")), ("user", jinja2.Template("{{ user }}")))
    return Prompt(Template(template, "0", turns), {"system": system, "user": user})  # type: ignore[arg-type]


def using(work: Callable[[VllmLLM], Awaitable[T]], place: Place | None = None, **options: Any) -> T:
    """Connects, works and closes, in an event loop of its own. Nothing of the engine is left."""

    async def run() -> T:
        llm = Vllm(**({"model": "org/model"} | options)).connect(place or Place())
        try:
            return await work(llm)
        finally:
            await llm.close()

    result = asyncio.run(run())
    assert not list(engine_pids.folder().glob("*.json"))
    return result


def pids(events: Path) -> list[int]:
    return [int(line.split()[1]) for line in events.read_text().splitlines() if line.startswith("pid ")]


def living(events: Path) -> list[int]:
    return [pid for pid in pids(events) if engine_pids._process(pid)]


def gone_within(events: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while left := living(events):
        if time.monotonic() > until:
            print(left)
            return False
        time.sleep(0.05)
    return True


async def failure(work: Awaitable[object]) -> Exception:
    with pytest.raises((LLMBadRequest, LLMUnavailable, LLMStopped)) as caught:
        await work
    return caught.value


# --- answers -------------------------------------------------------------------------------------------


def test_hundreds_are_in_flight_at_once_and_each_gets_its_own_answer(events: Path) -> None:
    async def work(llm: VllmLLM) -> list[str]:
        # The first wait longest. One after another they would take 90 s.
        asked = [llm.generate(prompt(f"wait {0.6 - n / 1000} {n}"), max_tokens=5) for n in range(300)]
        return [reply.text for reply in await asyncio.gather(*asked)]

    began = time.monotonic()
    texts = using(work)
    assert time.monotonic() - began < 60
    assert [int(text.split()[-1]) for text in texts] == list(range(300))
    assert events.read_text().count("started") == 1
    assert "shutdown" in events.read_text()
    assert gone_within(events, 0)


def test_a_reply_has_text_usage_and_finish_reason_and_no_thought(events: Path) -> None:
    async def work(llm: VllmLLM) -> None:
        reply = await llm.generate(prompt("hi"), max_tokens=5)
        assert (reply.text, reply.finish_reason, reply.label_logprobs) == ("said: hi", "stop", None)
        usage = reply.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (2, 3, 2)
        assert usage.latency_s > 0
        assert (await llm.generate(prompt("think"), max_tokens=5)).text == "yes"
        assert (await llm.generate(prompt("a\ud800"), max_tokens=5)).text == "said: a?"

    using(work)


def test_label_probabilities_are_sums_over_spellings_at_the_first_word(events: Path) -> None:
    async def work(llm: VllmLLM) -> None:
        labels = ["Yes", "no", "perhaps"]
        reply = await llm.generate(prompt("hi"), max_tokens=5, label_tokens=labels, choices=["a"])
        assert reply.label_logprobs == {
            "Yes": pytest.approx(math.log(math.exp(-1) + math.exp(-2))),
            "no": pytest.approx(-3.0),
        }
        behind_thought = await llm.generate(prompt("think"), max_tokens=5, label_tokens=labels)
        assert behind_thought.label_logprobs is None
        assert "no single tokens" in str(
            await failure(llm.generate(prompt("hi"), max_tokens=5, label_tokens=["perhaps"]))
        )

    using(work)


def test_choices_and_schemas_are_constraints_and_settings_arrive(events: Path) -> None:
    async def work(llm: VllmLLM) -> None:
        ask = prompt("settings")
        assert (
            await llm.generate(ask, max_tokens=5, choices=["a", "b"])
        ).text == "{'choice': ['a', 'b']} 16384 0.25"
        said = (await llm.generate(ask, max_tokens=5, schema={"type": "object"})).text
        assert said == "{'json': {'type': 'object'}} 16384 0.25"
        assert await llm.logprobs(prompt("ab"), "cde") == [-0.2, -0.3, -0.4]
        assert await llm.logprobs(prompt("ab"), "") == []
        assert "no embeddings" in str(await failure(llm.embed(["a"])))
        assert llm.capabilities.logprobs and not llm.capabilities.embed

    using(work, Place(EngineResources(memory=0.5), n_sharing=2))


# --- failures ------------------------------------------------------------------------------------------


def test_a_refused_request_fails_alone(events: Path) -> None:
    async def work(llm: VllmLLM) -> None:
        asked = [
            failure(llm.generate(prompt("refused"), max_tokens=5)),
            failure(llm.generate(prompt("x" * 100), max_tokens=5)),
            failure(llm.generate(prompt("hi", "no system"), max_tokens=5)),
            failure(llm.generate(prompt("failed"), max_tokens=5)),
        ]
        refused, long, template, failed = await asyncio.gather(*asked)
        assert isinstance(refused, LLMBadRequest) and "the prompt is bad" in str(refused)
        assert isinstance(long, LLMBadRequest) and "100 tokens" in str(long) and "104" in str(long)
        assert isinstance(template, LLMBadRequest) and "there is no system role" in str(template)
        assert isinstance(failed, LLMUnavailable) and "this time" in str(failed)
        assert (await llm.generate(prompt("hi"), max_tokens=5)).text == "said: hi"

    using(work, context_length=104)


@pytest.mark.parametrize(
    ("last_words", "said"),
    [
        ("kill me", "exit status -9"),
        ("dead", "EngineDeadError: see above"),
        ("bug", "TypeError: nobody foresaw this"),
    ],
)
def test_an_engine_that_dies_leaves_what_it_was_asked_open(events: Path, last_words: str, said: str) -> None:
    async def work(llm: VllmLLM) -> None:
        waiting = [failure(llm.generate(prompt(f"wait 50 {n}"), max_tokens=5)) for n in range(20)]
        await asyncio.sleep(0)
        await llm.generate(prompt("hi"), max_tokens=5)
        errors = await asyncio.gather(*waiting, failure(llm.generate(prompt(last_words), max_tokens=5)))
        errors.append(await failure(llm.generate(prompt("hi"), max_tokens=5)))  # and none is started anew
        assert all(isinstance(error, LLMUnavailable) for error in errors)
        assert all(said in str(error) and "The end of" in str(error) for error in errors)
        assert gone_within(events, 1)

    using(work)
    assert events.read_text().count("started") == 1


def test_a_killed_guard_takes_its_engine_along(events: Path) -> None:
    async def work(llm: VllmLLM) -> None:
        waiting = asyncio.ensure_future(failure(llm.generate(prompt("wait 50"), max_tokens=5)))
        await llm.generate(prompt("hi"), max_tokens=5)
        engine = llm._engines[0]
        assert engine._guard is not None
        engine._guard.kill()
        for pid in pids(events)[:1]:
            os.kill(pid, signal.SIGKILL)
        assert isinstance(await waiting, LLMUnavailable)
        assert gone_within(events, 1)

    using(work)


def test_a_model_that_does_not_load_stops_the_run(events: Path) -> None:
    async def work(llm: VllmLLM) -> None:
        asked = [failure(llm.generate(prompt(f"{n}"), max_tokens=5)) for n in range(5)]
        for error in await asyncio.gather(*asked):
            assert isinstance(error, LLMStopped)
            assert "org/missing can't start: OSError: there is no such model" in str(error)
            assert "The end of" in str(error)

    using(work, model="org/missing")
    assert gone_within(events, 1)


def test_a_cancelled_request_is_given_up_by_the_engine(events: Path) -> None:
    async def work(llm: VllmLLM) -> None:
        await llm.generate(prompt("hi"), max_tokens=5)
        waiting = [asyncio.ensure_future(llm.generate(prompt(f"wait 50 {n}"), max_tokens=5)) for n in (1, 2)]
        await asyncio.sleep(0.3)
        waiting[0].cancel()
        await asyncio.sleep(0.3)
        assert events.read_text().count("aborted") == 1
        waiting[1].cancel()
        await llm.generate(prompt("hi"), max_tokens=5)

    using(work)


def test_without_a_request_nothing_starts_and_a_start_can_be_given_up(events: Path) -> None:
    async def nothing(llm: VllmLLM) -> None: ...

    using(nothing)
    assert events.read_text() == ""

    async def work(llm: VllmLLM) -> None:
        asked = asyncio.ensure_future(llm.generate(prompt("hi"), max_tokens=5))
        while not pids(events):
            await asyncio.sleep(0.05)
        asked.cancel()

    began = time.monotonic()
    asyncio.run(_closed(work, "org/slow"))
    assert time.monotonic() - began < 20
    assert gone_within(events, 0)


async def _closed(work: Callable[[VllmLLM], Awaitable[None]], model: str) -> None:
    llm = Vllm(model).connect()
    await work(llm)
    await llm.close()


# --- kill -9 -------------------------------------------------------------------------------------------

PARENT = """
import asyncio, sys
import jinja2
import autointerp.llm.vllm as vllm
from autointerp.prompting import Prompt, Template
vllm.needs_gpu = lambda: False
prompt = Prompt(Template("test", "0", (("user", jinja2.Template("wait 100")),)), {})

async def main():
    llm = vllm.Vllm(sys.argv[1]).connect()
    await asyncio.gather(*(llm.generate(prompt, max_tokens=5) for _ in range(50)))

asyncio.run(main())
"""


@pytest.mark.parametrize("model", ["org/model", "org/slow"])  # at work; loading, with the interpreter's lock
def test_kill_9_of_the_parent_leaves_nothing(events: Path, model: str) -> None:
    path = os.pathsep.join([str(STAND_IN), *filter(None, sys.path)])
    parent = subprocess.Popen([sys.executable, "-c", PARENT, model], env=os.environ | {"PYTHONPATH": path})
    try:
        until = time.monotonic() + 60
        while len(pids(events)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        assert len(living(events)) == 2
    finally:
        parent.kill()
        parent.wait()
    assert gone_within(events, 10)
    assert engine_pids.orphans() == []
    assert not list(engine_pids.folder().glob("*.json"))


def test_an_orphan_is_named_and_another_process_of_its_number_is_not(
    events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "ENDING_S", 0.1)
    with subprocess.Popen(["sleep", "1000"]) as left:
        known = engine_pids._process(left.pid)
        assert known
        file = engine_pids.folder() / "engine-1.json"
        dead = {"pid": os.getpid(), "start": 0}  # our number, another time

        def write(start: int) -> None:
            processes = [{"pid": left.pid, "start": start}]
            file.write_bytes(orjson.dumps({"parent": dead, "model": "org/old", "processes": processes}))

        async def refused(llm: VllmLLM) -> None:
            error = await failure(llm.generate(prompt("hi"), max_tokens=5))
            assert isinstance(error, LLMStopped)
            assert "org/old" in str(error) and f"kill -9 {left.pid}" in str(error)

        async def fine(llm: VllmLLM) -> None:
            await llm.generate(prompt("hi"), max_tokens=5)

        write(known.start)
        asyncio.run(_closed(refused, "org/model"))
        write(known.start + 1)
        using(fine)
        assert not file.exists()
        left.kill()


# --- cards ---------------------------------------------------------------------------------------------


def test_each_engine_has_its_cards_and_prompts_that_begin_alike_share_one(
    events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "visible_gpus", lambda: ("0", "1", "2", "3", "4", "5", "6"))

    async def work(llm: VllmLLM) -> None:
        async def cards(beginning: str) -> str:
            return (await llm.generate(prompt(f"{beginning}\ncards"), max_tokens=5)).text

        said = await asyncio.gather(*(cards(f"{n}") for n in range(12)))
        assert set(said) == {"0,1", "2,3", "4,5"}
        assert said == await asyncio.gather(*(cards(f"{n}") for n in range(12)))
        alike = "y" * 300
        assert len({await cards(f"{alike}{n}") for n in range(8)}) == 1
        # One that is far behind gets no more, however they begin.
        held = [
            asyncio.ensure_future(llm.generate(prompt(f"{alike}\nwait 50"), max_tokens=5)) for _ in range(90)
        ]
        await asyncio.sleep(0.5)
        assert min(engine.n_waiting for engine in llm._engines) > 15
        # Dead ones get none; what ends engines is asked of two and no more.
        await failure(llm.generate(prompt(f"{alike}\nkill me"), max_tokens=5))
        (left,) = [engine for engine in llm._engines if not engine.is_down]
        assert len({await cards(alike) for _ in range(20)}) == 1 and left.n_waiting > 15
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    using(work, Place(EngineResources(tensor_parallel=2)))
    assert events.read_text().count("started") == 3


def test_what_a_dead_engine_was_asked_a_living_one_answers(
    events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than `fill` gives up after were in flight at it."""
    monkeypatch.setattr(vllm, "visible_gpus", lambda: ("0", "1"))

    async def work(llm: VllmLLM) -> None:
        asked = [
            asyncio.ensure_future(llm.generate(prompt(f"{n}\nwait 3 {n}"), max_tokens=5)) for n in range(80)
        ]
        while events.read_text().count("started") < 2:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        assert min(engine.n_waiting for engine in llm._engines) > 25
        os.kill(pids(events)[0], signal.SIGKILL)
        replies = await asyncio.gather(*asked)
        assert [reply.text for reply in replies] == [f"said: wait 3 {n}" for n in range(80)]
        assert sum(engine.is_down for engine in llm._engines) == 1

    using(work)


def test_resources_are_checked_with_the_recipe(made: Tiny) -> None:
    engine = {"tensor_paralel": 2, "memory": 2}
    with pytest.raises(RecipeError) as caught:
        recipes.parse(made.recipe(resources={"engine": engine}))
    for fault in (
        "resources.engine.tensor_paralel: no such key. Did you mean 'tensor_parallel'?",
        "resources.engine.memory: above 0, at most 1 (found 2)",
    ):
        assert fault in str(caught.value)
    with pytest.raises(RecipeError, match="data_parallel: at least 1"):
        recipes.parse(made.recipe(resources={"engine": {"data_parallel": 0}}))


def test_more_cards_than_there_are_or_none(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LLMStopped, match=r"asks for 1 x 2 cards .* and 1 are visible: 0"):
        Vllm().connect(Place(EngineResources(tensor_parallel=2)))
    monkeypatch.setattr(vllm, "visible_gpus", lambda: ())
    with pytest.raises(LLMStopped, match="needs an NVIDIA GPU, and none is visible") as caught:
        Vllm().connect()
    assert "--llm openai:MODEL" in str(caught.value)


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    with pytest.raises(LLMStopped, match="needs the package vllm, which is not installed here") as caught:
        Vllm().connect()
    assert "[vllm]" in str(caught.value) and "--llm openai:MODEL" in str(caught.value)


LIST = """#!/bin/sh
echo 'GPU 0: NVIDIA H200 (UUID: GPU-aaaa)'
echo 'GPU 1: NVIDIA H200 (UUID: GPU-bbbb)'
"""
MIG = LIST + "echo '  MIG 1g.18gb     Device  0: (UUID: MIG-cccc)'\n"


@pytest.mark.parametrize(
    ("tool", "chosen", "visible"),
    [
        (LIST, None, ("0", "1")),
        (LIST, "1", ("1",)),
        (LIST, "1,0", ("1", "0")),
        (LIST, "", ()),
        (LIST, "-1", ()),
        (LIST, "0,7,1", ("0",)),
        (LIST, "GPU-bbbb", ("GPU-bbbb",)),
        (MIG, None, ("MIG-cccc",)),
        ("#!/bin/sh\necho 'No devices were found'\nexit 6\n", "0", ()),
    ],
)
def test_which_cards_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, chosen: str | None, visible: tuple[str, ...]
) -> None:
    (tmp_path / "nvidia-smi").write_text(tool)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpus.visible_gpus() == visible


# --- the default ---------------------------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where vLLM is not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))


def machine(monkeypatch: pytest.MonkeyPatch, *, installed: bool, cards: tuple[str, ...]) -> None:
    without(monkeypatch)
    find = importlib.util.find_spec
    spec = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if installed and name == "vllm" else find(name)
    )
    monkeypatch.setattr(vllm, "visible_gpus", lambda: cards)


def open_recipe(made: Tiny) -> Any:
    recipe = made.recipe()
    del recipe["llms"]
    return recipe


def test_with_vllm_and_a_card_it_is_the_default_and_is_written_down(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, installed=True, cards=("0",))
    section = {"use": "vllm", "model": DEFAULT_MODEL}
    _, run = pipeline.prepare(open_recipe(made), tmp_path / "run")
    assert run.recipe.llms.explainer == run.recipe.llms.judge == section
    code, stdout, _ = on(made, tmp_path / "run", "--dry-run", llm=None)
    assert code == 0
    assert f"explained by vllm:{DEFAULT_MODEL}; judged by vllm:{DEFAULT_MODEL}" in stdout
    with run.lock():
        run.save()
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["llms"]["judge"] == section
    # A run keeps what it began with, also where it could not begin today.
    machine(monkeypatch, installed=False, cards=())
    assert pipeline.prepare(open_recipe(made), tmp_path / "run")[1].recipe.llms.judge == section


def test_a_run_of_another_llm_keeps_it(made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, installed=True, cards=("0",))
    pipeline.explain(made.recipe(features={"n": 4}), out=tmp_path / "run", until="cache")
    _, run = pipeline.prepare({"features": {"n": 8}}, tmp_path / "run")
    assert run.recipe.llms.judge == {"use": "lexical"}


@pytest.mark.parametrize(("installed", "cards"), [(True, ()), (False, ("0",))])
def test_without_vllm_or_a_card_the_ways_to_choose_are_listed(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, cards: tuple[str, ...]
) -> None:
    machine(monkeypatch, installed=installed, cards=cards)
    with pytest.raises(RecipeError, match="no LLM is chosen") as caught:
        pipeline.prepare(open_recipe(made), tmp_path / "run")
    for way in ("--llm vllm:MODEL", "--llm openai:MODEL", "--llm lexical", DEFAULT_MODEL):
        assert way in str(caught.value)


def test_where_one_llm_is_named_the_other_is_not_guessed(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, installed=True, cards=("0",))
    with pytest.raises(RecipeError, match=r"no LLM is chosen \(the judge LLM"):
        pipeline.prepare(open_recipe(made) | {"llms": {"explainer": {"use": "lexical"}}}, tmp_path / "run")


def test_the_readme_names_the_default() -> None:
    assert f"`{DEFAULT_MODEL}`" in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_demo_stays_lexical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, installed=True, cards=("0",))
    _, run = pipeline.prepare({"dictionaries": {"auto": {"path": "demo"}}}, tmp_path / "run")
    assert run.recipe.llms.judge == {"use": "lexical"}


# --- identity ------------------------------------------------------------------------------------------


def test_what_changes_answers_is_the_identity_and_where_a_folder_lies_is_not(
    made: Tiny, tmp_path: Path
) -> None:
    assert str(Vllm("org/m", revision="abc").identity()) == "org/m@abc"
    plain = Vllm("org/m").identity()
    assert plain == Vllm("org/m", context_length=100).identity()
    others = [
        Vllm("org/m", dtype="float32"),
        Vllm("org/m", quantization="fp8"),
        Vllm("org/m", chat_template_kwargs={"enable_thinking": True}),
        Vllm("org/m", engine_args={"kv_cache_dtype": "fp8"}),
    ]
    assert len({str(other.identity()) for other in others} | {str(plain)}) == 5
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(made.model, moved)
    assert Vllm(str(moved)).identity() == Vllm(str(made.model)).identity()
    assert str(Vllm(str(moved)).identity()).startswith("model@")
    with pytest.raises(RecipeError, match="there is no folder"):
        Vllm(str(tmp_path / "nowhere"))


def test_a_whole_run_writes_records_and_running_again_starts_no_engine(
    made: Tiny, tmp_path: Path, events: Path
) -> None:
    """The stand-in explains nothing that can be read, so each feature ends as such a record."""
    section = {"use": "vllm", "model": "org/model"}
    recipe = made.recipe(llms={"explainer": section, "judge": section}, features={"n": 6})
    pipeline.explain(recipe, out=tmp_path / "run")
    rows = Run.open(tmp_path / "run").existing("explain", "layers.1", "plain").records()
    assert {row["status"] for row in rows} == {"unreadable"}
    assert events.read_text().count("started") == 2  # before caching, and for the work
    assert list((tmp_path / "run").glob("vllm-org-model-0.log"))
    pipeline.explain(recipe, out=tmp_path / "run")
    assert events.read_text().count("started") == 2
