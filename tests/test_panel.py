"""Controls of a run: who borrows whose explanation, what is scored once, and what a run that grows keeps."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import shutil
from collections.abc import Generator
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autointerp import pipeline
from autointerp.errors import LLMUnavailable, RecipeError
from autointerp.merge import merge
from autointerp.panel import Control, controls_of, lenders, panel_of
from autointerp.prompting import Prompt
from autointerp.recipe import Recipe, parse
from autointerp.report.panel import ControlSummary
from autointerp.report.summary import summarise
from autointerp.report.terminal import print_summary
from autointerp.rescore import rescore
from autointerp.run import Run
from autointerp.scored import Instance, scored
from autointerp.stages.expected import expected
from autointerp.trials import of as trials_of
from autointerp.types import Json, digest
from autointerp.verify import verify
from here import SHARDS, contents, device_here, records
from judge import answer
from tiny import Tiny

SCRIPTED: Json = {"use": "scripted", "function": "judge:answer"}
SILENT: Json = {"contrast": "silent", "minimum": 20, "width": 8, "context_before": 3, "overlap": 8}
DETECTION: Json = {"detection": {"use": "detection"}}

# --- who borrows ------------------------------------------------------------------------------------------


def test_each_borrows_from_the_next_that_has_an_explanation() -> None:
    ok, bad = {"status": "ok"}, {"status": "refused"}
    panel = ["a", "b", "c", "d"]
    assert lenders(panel, dict.fromkeys(panel, ok)) == {"a": "b", "b": "c", "c": "d", "d": "a"}
    assert lenders(panel, {"a": ok, "b": bad, "c": ok, "d": ok}) == {"a": "c", "c": "d", "d": "a"}
    # Of b nothing is known yet: whether a borrows from it or from c can't be said, so a waits.
    assert lenders(panel, {"a": ok, "c": ok, "d": ok}) == {"c": "d", "d": "a"}
    assert lenders(panel, {"a": ok, "b": bad, "c": bad, "d": bad}) == {}


@given(st.lists(st.sampled_from(["ok", "refused", None]), max_size=12))
def test_nobody_borrows_its_own_and_what_is_said_early_holds(statuses: list[str | None]) -> None:
    """With everything known it is a permutation without a fixed point; with less known, a part of that."""
    panel = [f"{n:02d}" for n in range(len(statuses))]
    early = {key: {"status": status} for key, status in zip(panel, statuses, strict=True) if status}
    late = {key: early.get(key, {"status": "unreadable"}) for key in panel}
    whole, part = lenders(panel, late), lenders(panel, early)
    able = [key for key in panel if late[key]["status"] == "ok"]
    assert sorted(whole.values()) == sorted(whole) == (able if len(able) > 1 else [])
    assert all(feature != other for feature, other in whole.items())
    assert part.items() <= whole.items()


# --- which are scored -------------------------------------------------------------------------------------


def of_recipe(**sections: object) -> Recipe:
    return parse({"dictionaries": {"auto": {"path": "demo"}}} | sections)


def kinds(recipe: Recipe) -> set[str]:
    return {control.place for control in controls_of(recipe)}


def test_what_the_run_writes_itself_is_not_written_again() -> None:
    served: Json = {"llms": {"explainer": {"use": "openai", "model": "m", "base_url": "http://localhost/v1"}}}
    both: Json = {"plain": {"use": "plain"}, "words": {"use": "lexical"}}
    of_llm = of_recipe(**served, scorers=DETECTION)
    assert kinds(of_llm) == {"shuffled/plain/detection", "top_tokens/detection", "lexical/detection"}
    counted = of_recipe(llms={"explainer": {"use": "lexical"}}, scorers=DETECTION)
    assert kinds(counted) == {"shuffled/plain/detection", "top_tokens/detection"}
    assert kinds(of_recipe(**served, scorers=DETECTION, explainers=both)) == {
        "shuffled/plain/detection", "shuffled/words/detection", "top_tokens/detection"
    }  # fmt: skip


def test_variants_and_scorers_of_features_are_left_out_unless_named() -> None:
    scorers: Json = DETECTION | {
        "hard": {"use": "fuzzing", "wrong": "active"},
        "odd": {"use": "intruder"},
        "pushed": {"use": "intervention"},
    }
    only: Json = {"kinds": ["shuffled"]}
    assert kinds(of_recipe(scorers=scorers, controls=only)) == {"shuffled/plain/detection"}
    named = of_recipe(scorers=scorers, controls=only | {"scorers": ["hard", "odd"]})
    assert kinds(named) == {"shuffled/plain/hard"}


@pytest.mark.parametrize("off", [False, None, "off"])
def test_controls_can_be_left_out(off: object) -> None:
    assert controls_of(of_recipe(controls=off)) == []


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"panel": 1}, "controls.panel: at least 2"),
        ({"scorers": ["detecton"]}, "no scorer is called 'detecton'. Did you mean 'detection'"),
        ({"kinds": ["random"]}, "controls.kinds"),
    ],
)
def test_faults_are_told(controls: Json, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        of_recipe(controls=controls)


# --- a run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


def recipe_of(made: Tiny, **sections: object) -> Json:
    judged: Json = {
        "cache": SHARDS,
        "sampling": SILENT,
        "features": {"n": 9},
        "llms": {"explainer": SCRIPTED, "judge": SCRIPTED},
        "scorers": DETECTION,
        "controls": {"panel": 4},
    }
    return made.recipe(**judged | sections)


@pytest.fixture(scope="module")
def without(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has no controls yet; not to be changed."""
    out = tmp_path_factory.mktemp("panel") / "run"
    pipeline.explain(recipe_of(made, controls=None), out=out)
    return out


@pytest.fixture(scope="module")
def run(without: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, with controls; not to be changed."""
    out = tmp_path_factory.mktemp("controlled") / "run"
    shutil.copytree(without, out)
    return pipeline.explain({"controls": {"panel": 4}}, out=out)


def panel(run: Run) -> list[str]:
    return panel_of(run.recipe, run.identities, "layers.1", run.sample("layers.1"))


def of_kind(run: Run, *place: str) -> dict[str, Json]:
    return {record["key"]: record for record in run.existing("control", "layers.1", *place).records()}


def own(run: Run) -> dict[str, Json]:
    journal = run.existing("score", "layers.1", "plain", "detection")
    return {record["key"]: record for record in journal.records()}


def test_controls_extend_a_run_and_change_nothing_of_it(run: Run, without: Path) -> None:
    before = contents(without / "score") | contents(without / "explain")
    assert contents(run.path / "score") | contents(run.path / "explain") == before
    instance = Instance("layers.1", "plain", "detection")
    assert scored(run, instance) == scored(Run.open(without), instance)
    assert run.scores().num_rows == len(own(run))
    assert not verify(run).faults


def test_the_judge_is_asked_about_the_same_windows_with_another_explanation(run: Run) -> None:
    explained = {r["key"]: r for r in run.existing("explain", "layers.1", "plain").records()}
    found, order = of_kind(run, "shuffled", "plain", "detection"), panel(run)
    assert len(order) == 4 and set(order) <= set(own(run))
    assert set(found) == {f"{a}<{b}" for a, b in zip(order, order[1:] + order[:1], strict=True)}
    for key, record in found.items():
        feature, lender = key.split("<")
        assert record["lender"] == lender and record["control"] == "shuffled"
        assert record["explanation"] == digest(explained[lender]["text"])
        assert record["explanation"] != own(run)[feature]["explanation"]
        for column in ("window", "truth", "document", "band"):
            assert record["trials"][column] == own(run)[feature]["trials"][column]
        assert record["trials"]["answer"] != own(run)[feature]["trials"]["answer"]


def test_lists_and_counts_are_made_of_the_features_own_windows(run: Run) -> None:
    for kind in ("top_tokens", "lexical"):
        found = of_kind(run, kind, "detection")
        assert set(found) == set(panel(run))
        assert all(record["explanation"] == digest(record["text"]) for record in found.values())
        assert len({record["text"] for record in found.values()}) > 1
    assert all(r["text"].startswith("The tokens ") for r in of_kind(run, "top_tokens", "detection").values())


def by_hand(run: Run, kind: str) -> list[tuple[float, float]]:
    """(own, control) of each feature of the panel."""
    found = (
        of_kind(run, "shuffled", "plain", "detection")
        if kind == "shuffled"
        else of_kind(run, kind, "detection")
    )
    values: list[tuple[float, float]] = []
    for key, record in found.items():
        one, other = own(run)[key.split("<")[0]], record
        values.append(tuple(r["metrics"]["values"]["balanced_accuracy"]["value"] for r in (one, other)))
    return values


def test_the_summary_pairs_them(run: Run) -> None:
    found = summarise(run, "layers.1").controls
    assert [(one.explainer, one.scorer, one.kind) for one in found] == [
        ("plain", "detection", kind) for kind in ("shuffled", "top_tokens", "lexical")
    ]
    for one in found:
        values = by_hand(run, one.kind)
        assert one.own.n == one.control.n == one.difference.n == 4
        assert one.own.value == pytest.approx(sum(a for a, _ in values) / 4)
        assert one.control.value == pytest.approx(sum(b for _, b in values) / 4)
        assert one.difference.value == pytest.approx(sum(a - b for a, b in values) / 4)
        assert one.difference.low is not None and one.difference.low < one.difference.value


def test_status_shows_them_as_rows(run: Run) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_summary(console, summarise(run, "layers.1"), {})
    beside = console.export_text().partition("Beside controls")[2].splitlines()
    named = ["shuffled explanation", "top-token list", "lexical baseline"]
    assert [name for line in beside for name in named if f" {name} " in line] == named


def test_an_explainer_of_the_runs_own_stands_for_a_control(run: Run, tmp_path: Path) -> None:
    """What it scores on the panel is the control's score, and is not asked again."""
    shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "control" / "layers.1" / "lexical")
    again = pipeline.explain({"explainers": {"words": {"use": "lexical"}}}, out=tmp_path / "run")
    assert not (again.path / "control" / "layers.1" / "lexical").exists()
    before, after = (
        {(one.explainer, one.kind): one for one in summarise(of, "layers.1").controls} for of in (run, again)
    )
    assert after["plain", "lexical"] == before["plain", "lexical"]
    assert ("words", "lexical") not in after and ("words", "shuffled") in after


# --- resuming, growing, merging ----------------------------------------------------------------------------


def asked(run: Run) -> dict[str, bytes]:
    return contents(run.path / "requests")


def test_what_a_kill_left_is_done_and_nothing_is_paid_twice(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    for part in (tmp_path / "run" / "control").rglob("*.jsonl"):
        lines = part.read_bytes().split(b"\n")
        part.write_bytes(b"\n".join(lines[:2]) + b'\n{"key":"layers')  # a record is whole, the next one torn
    pipeline.run_line(Run.open(tmp_path / "run"))
    again = Run.open(tmp_path / "run")
    assert records(again.path, "control") == records(run.path, "control")
    assert asked(again) == asked(run)


def test_a_larger_sample_keeps_the_panel(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    before = contents(run.path / "control")
    again = pipeline.explain({"features": {"n": 12}}, out=tmp_path / "run")
    assert panel(again) == panel(run) and contents(again.path / "control") == before
    assert len(own(again)) > len(own(run))


def test_a_larger_panel_adds_pairs_and_keeps_those_there_are(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    again = pipeline.explain({"controls": {"panel": 6}}, out=tmp_path / "run")
    assert panel(again)[:4] == panel(run) and len(panel(again)) == 6
    before, after = (of_kind(one, "shuffled", "plain", "detection") for one in (run, again))
    # The fourth borrowed from the first, and now from the fifth: one pair more than there are features.
    assert before.items() <= after.items() and len(after) == 7
    found = {one.kind: one for one in summarise(again, "layers.1").controls}
    assert found["shuffled"].control.n == 6


def summaries(run: Run) -> list[ControlSummary]:
    return summarise(run, "layers.1").controls


def test_features_done_apart_get_the_controls_of_one_run(without: Path, run: Run, tmp_path: Path) -> None:
    """Who lends lies in the other portion for some: they wait until the merged run is resumed."""
    shutil.copytree(without, tmp_path / "cache")
    for stage in ("sample", "explain", "score", "requests", "usage"):
        shutil.rmtree(tmp_path / "cache" / stage)
    order = panel(run)
    ids = [str(feature) for feature in run.asked("layers.1")]
    halves = {
        "one": [key for key in ids if key in order[::2]],
        "two": [key for key in ids if key not in order[::2]],
    }
    for name, features in halves.items():
        shutil.copytree(tmp_path / "cache", tmp_path / name)
        pipeline.explain({"features": {"ids": features}, "controls": {"panel": 4}}, out=tmp_path / name)
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "run")
    merged = Run.open(tmp_path / "run")
    assert panel(merged) == order
    found = of_kind(merged, "shuffled", "plain", "detection")
    assert not {f"{a}<{b}" for a, b in zip(order, order[1:] + order[:1], strict=True)} <= set(found)
    before = own(merged)
    pipeline.run_line(merged)
    assert summaries(merged) == summaries(run)
    assert own(merged) == before == own(run)
    done = contents(merged.path / "control")
    pipeline.run_line(merged)
    assert contents(merged.path / "control") == done


AWAY: list[str] = []
"""What is shown of the feature about which the server doesn't answer: the first that is asked about."""


async def partly(prompt: Prompt, index: int) -> str:
    """As `answer`, but for the explanation of one feature."""
    if prompt.template.name.startswith("explain/"):
        shown = prompt.variables["shown"].active[0].text
        if not AWAY:
            AWAY.append(shown)
        if shown in AWAY:
            raise LLMUnavailable("the server is away.")
    return await answer(prompt, index)


def test_who_borrows_from_an_open_explanation_waits(without: Path, tmp_path: Path) -> None:
    llm: Json = {"use": "scripted", "function": "test_panel:partly"}
    shutil.copytree(without, tmp_path / "run")
    for stage in ("explain", "score", "requests", "usage"):
        shutil.rmtree(tmp_path / "run" / stage)
    changed: Json = {"llms": {"explainer": llm, "judge": llm}, "controls": {"panel": 9}}
    run = pipeline.explain(changed, out=tmp_path / "run")
    explained = {record["key"] for record in run.existing("explain", "layers.1", "plain").records()}
    (missing,) = set(panel(run)) - explained
    order = panel(run)
    waiting = order[order.index(missing) - 1]
    found = {key.split("<")[0] for key in of_kind(run, "shuffled", "plain", "detection")}
    assert found == set(order) - {missing, waiting}
    AWAY[:] = ["another"]
    pipeline.run_line(run)
    found = {key.split("<")[0] for key in of_kind(run, "shuffled", "plain", "detection")}
    assert found == set(order)


def test_rescoring_mends_controls_too(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    part = next((tmp_path / "run" / "control" / "layers.1" / "shuffled").rglob("*.jsonl"))
    header, first, *rest = part.read_bytes().split(b"\n")
    record = orjson.loads(first)
    right = record["metrics"]["values"]["balanced_accuracy"]["value"]
    record["metrics"]["values"]["balanced_accuracy"]["value"] = right + 0.1
    part.write_bytes(b"\n".join([header, orjson.dumps(record), *rest]))
    changed = [change for one in rescore(Run.open(tmp_path / "run")) for change in one.changes]
    assert [(change.key, change.after) for change in changed] == [(record["key"], right)]
    assert contents(tmp_path / "run" / "control") == contents(run.path / "control")


def test_the_plan_counts_what_is_asked_about_controls(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "control")
    without = Run.open(tmp_path / "run")
    planned = {one.role: one for one in asyncio.run(expected(without))}
    assert planned.keys() == {"judge of controls"} and asyncio.run(expected(run)) == []
    requests = [
        record for journal in (run.path / "requests" / "control").rglob("*.jsonl")
        for record in run.existing(*journal.parent.relative_to(run.path).parts).records()
    ]  # fmt: skip
    assert len(trials_of(next(iter(own(run).values()))["trials"])) > 0
    assert planned["judge of controls"].n_requests == pytest.approx(len(requests), rel=0.15)
    off = dataclasses.replace(without, recipe=dataclasses.replace(run.recipe, controls=None))
    assert asyncio.run(expected(off)) == []


def test_controls_are_of_this_runs_settings(run: Run) -> None:
    """Other lists of tokens, or another judge, would be other records: their journals carry that."""
    made_from = run.control("layers.1", Control("top_tokens", None, "detection")).made_from
    assert made_from is not None and made_from["explainers"]["options"] == {"n_tokens": 10}
    assert made_from["sample"] == run.sample("layers.1").digest
    lent = run.control("layers.1", Control("shuffled", "plain", "detection")).made_from
    assert lent is not None and lent["explanations"] == run.explain("layers.1", "plain").digest


# --- the demo ----------------------------------------------------------------------------------------------


def test_on_the_demo_own_explanations_are_above_shuffled_ones(tmp_path: Path) -> None:
    """Explained and judged by counting, on few tokens: the intervals are apart all the same."""
    recipe: Json = {
        "dictionaries": {"auto": {"path": "demo"}},
        "cache": {"n_tokens": 40_000},
        "sampling": {"n_same_token": 0, "n_neighbour": 0},
        "features": {"n": 24},
        "controls": {"kinds": ["shuffled"]},
    }
    run = pipeline.explain(recipe, out=tmp_path / "run")
    found = summarise(run, "layers.2").controls
    assert [one.scorer for one in found] == ["detection", "fuzzing"]
    for one in found:
        assert one.own.n > 20 and one.own.low is not None and one.control.high is not None
        assert one.own.low > one.control.high, one
        assert one.difference.low is not None and one.difference.low > 0.05
