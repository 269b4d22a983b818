"""The whole line on a tiny model: records, resuming, growing, and what must not change them."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

import judge
from autointerp import pipeline
from autointerp.errors import LLMBadRequest, LLMStopped, RecipeChanged, RunBusy, RunNotFound
from autointerp.run import Run
from autointerp.sampling import cofiring
from autointerp.types import Json
from here import device_processes, records, state
from tiny import WIDTH, Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
SCRIPTED_LLMS = {"explainer": SCRIPTED, "judge": SCRIPTED}


@pytest.fixture(scope="session")
def unbroken(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nobody disturbed, with the scripted LLM."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    pipeline.explain(made.recipe(llms=SCRIPTED_LLMS), out=out)
    return out


def test_the_line_ends_with_scores(unbroken: Path) -> None:
    run = Run.open(unbroken)
    scores = run.scores().to_pydict()
    features = run.features().to_pylist()
    assert len(features) == 40
    explained = [row for row in features if row["explanation"] is not None]
    assert len(explained) > 30
    assert len(scores["feature"]) == 2 * len(explained)
    assert set(scores["status"]) == {"ok"}
    assert set(scores["scorer"]) == {"detection", "fuzzing"}
    for value, low, high in zip(
        scores["balanced_accuracy"],
        scores["balanced_accuracy_low"],
        scores["balanced_accuracy_high"],
        strict=True,
    ):
        assert 0 <= low <= value <= high <= 1
    trials = run.trials()
    assert trials.num_rows == sum(scores["n_positive"]) + sum(scores["n_negative"])


def test_explanations_are_the_llms_and_a_reply_that_could_not_be_read_was_asked_again(unbroken: Path) -> None:
    rows = Run.open(unbroken).features().to_pylist()
    texts = [row["explanation"] for row in rows if row["explanation"]]
    assert all(text.startswith("words like ") for text in texts)
    assert all(row["label"].startswith("words ") for row in rows if row["label"])


def test_running_again_does_nothing(unbroken: Path, made: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*.jsonl")}

    async def never(*_: object) -> str:
        raise AssertionError("asked again")

    monkeypatch.setattr(judge, "answer", never)
    pipeline.explain(made.recipe(llms=SCRIPTED_LLMS), out=unbroken)
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*.jsonl")} == before


def test_features_in_two_steps_and_in_another_order_give_the_same_records(
    unbroken: Path, made: Tiny, tmp_path: Path
) -> None:
    """First some of the features by hand, backwards, one request at a time; then all, eight at a time."""
    asked = [str(feature.index) for feature in Run.open(unbroken).asked("layers.1")]
    some = {"ids": asked[:15][::-1]}
    one = {"n_in_flight": 1}
    pipeline.explain(made.recipe(llms=SCRIPTED_LLMS, features=some, resources=one), out=tmp_path / "run")
    eight = {"n_in_flight": 8}
    pipeline.explain(made.recipe(llms=SCRIPTED_LLMS, resources=eight), out=tmp_path / "run")
    assert records(tmp_path / "run") == records(unbroken)


def test_a_sliceable_run_that_grew_has_the_samples_of_one_made_at_once(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many columns are cached so far says nothing of where windows lie in which a feature alike fires."""
    for name, value in (("FEWEST_TOKENS", 100), ("SAMPLED_FIRINGS", 20_000), ("SLICEABLE_TOKENS", 1_000)):
        monkeypatch.setattr(cofiring, name, value)
    sae = tmp_path / "relu"
    shutil.copytree(made.sae, sae)
    config = json.loads((sae / "cfg.json").read_text())
    del config["k"]
    (sae / "cfg.json").write_text(json.dumps(config | {"architecture": "standard"}))
    weights = load_file(sae / "sae_weights.safetensors")
    weights["b_enc"] -= 12.0  # sparse enough for silent windows
    save_file(weights, sae / "sae_weights.safetensors")
    sampling = {"contrast": "silent", "width": 8, "context_before": 3, "overlap": 6, "minimum": 20}

    def sampled(out: str, *ids: str) -> list[bytes]:
        recipe = made.recipe(
            dictionaries={"auto": {"path": str(sae)}}, features={"ids": list(ids)}, sampling=sampling
        )
        pipeline.explain(recipe, out=tmp_path / out, until="sample")
        return records(tmp_path / out, "sample")["sample/layers.1"]

    first = sampled("grown", "0-2")
    grown = sampled("grown", "0-2", "50-70")
    assert {*first} <= {*grown}
    assert grown == sampled("at once", "0-2", "50-70")
    assert b'"neighbour"' in b"".join(grown)


def test_another_batch_size_gives_nearly_the_same_firings(unbroken: Path, made: Tiny, tmp_path: Path) -> None:
    """The same up to 1e-4 and 99.9% of firings."""
    from autointerp.activations.firing_store import FiringStore, firing_shards

    small = made.recipe(llms=SCRIPTED_LLMS, resources={"batch_tokens": 100})
    pipeline.explain(small, out=tmp_path / "run", until="sample")
    stores = [
        FiringStore(list(firing_shards(Run.open(path).cache("layers.1"))), 64).read(0, WIDTH)
        for path in (unbroken, tmp_path / "run")
    ]
    values: list[dict[tuple[int, int], float]] = []
    for store in stores:
        features = store.features.repeat(store.offsets[1:] - store.offsets[:-1]).tolist()
        keys = zip(features, store.tokens.tolist(), strict=True)
        values.append(dict(zip(keys, store.values.tolist(), strict=True)))
    shared = values[0].keys() & values[1].keys()
    assert len(shared) >= 0.999 * max(map(len, values))
    assert max(abs(values[0][key] - values[1][key]) for key in shared) < 1e-4


def test_a_scorer_and_an_explainer_extend_a_run(unbroken: Path, made: Tiny, tmp_path: Path) -> None:
    """A run with one scorer grows another scorer, then another explainer; only what is new is asked."""
    out = tmp_path / "run"
    pipeline.explain(made.recipe(llms=SCRIPTED_LLMS, scorers={"detection": {"use": "detection"}}), out=out)
    log = tmp_path / "log"
    os.environ[judge.LOG] = str(log)
    try:
        pipeline.explain({"scorers": {"fuzzing": {"use": "fuzzing"}}}, out=out)
        n_fuzzing = len(log.read_text().split())
        assert records(out) == records(unbroken)
        n_requests = sum(1 for _ in Run.open(out).beside("requests", fuzzing(out)).records())
        assert n_fuzzing == n_requests  # nothing but fuzzing was asked, and no preflight: nothing is cached
        pipeline.explain({"explainers": {"words": {"use": "lexical"}}}, out=out)
    finally:
        del os.environ[judge.LOG]
    assert set(Run.open(out).features().to_pydict()["explainer"]) >= {"plain", "words"}
    assert set(Run.open(out).scores().to_pydict()["explainer"]) == {"plain", "words"}


def fuzzing(out: Path) -> Any:
    return Run.open(out).score("layers.1", "plain", "fuzzing")


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"sampling": {"n_shown": 30}}, "sampling.n_shown: was 40, is now 30"),
        ({"seed": 1}, "seed: was 0, is now 1"),
        ({"cache": {"n_tokens": 9}}, "cache.n_tokens: was 20000, is now 9"),
        (
            {"explainers": {"plain": {"threshold": 0.5}}},
            "explainers.plain.options.threshold: was 0.3, is now 0.5",
        ),
        ({"llms": {"judge": {"revision": "b"}}}, "llms.judge.revision: was '', is now 'b'"),
    ],
)
def test_a_recipe_changed_under_a_run_names_the_field(
    unbroken: Path, made: Tiny, section: Json, field: str
) -> None:
    before = (unbroken / "recipe.yaml").read_bytes()
    with pytest.raises(RecipeChanged) as caught:
        pipeline.explain(section, out=unbroken)
    assert field in str(caught.value)
    assert "--out" in str(caught.value)
    assert (unbroken / "recipe.yaml").read_bytes() == before


def test_a_recipe_edited_in_the_folder_is_noticed(unbroken: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(unbroken, tmp_path / "run")
    path = tmp_path / "run" / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["sampling"]["width"] = 16
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeChanged, match=r"sampling\.width: was 32, is now 16"):
        Run.open(tmp_path / "run").check()


def test_a_corpus_that_changed_is_noticed(made: Tiny, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(made.corpus.read_bytes())
    recipe = made.recipe(corpus={"path": str(corpus)})
    pipeline.explain(recipe, out=tmp_path / "run", until="cache")
    corpus.write_bytes(made.corpus.read_bytes() + b"<|endoftext|>One more document, not seen before.")
    with pytest.raises(RecipeChanged, match=r"corpus\.identity"):
        pipeline.explain(recipe, out=tmp_path / "run", until="cache")


def test_two_processes_do_not_work_on_one_run(unbroken: Path) -> None:
    run = Run.open(unbroken)
    with run.lock(), pytest.raises(RunBusy, match=f"process {os.getpid()}"):
        pipeline.run_line(run)


def test_no_run_lies_there(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match=r"recipe\.yaml"):
        Run.open(tmp_path)


def test_explaining_works_inside_a_running_event_loop(made: Tiny, tmp_path: Path, unbroken: Path) -> None:
    """As in a notebook."""

    async def cell() -> Run:
        return pipeline.explain(made.recipe(llms=SCRIPTED_LLMS), out=tmp_path / "run")

    asyncio.run(cell())
    assert records(tmp_path / "run") == records(unbroken)


def test_later_stages_need_neither_corpus_nor_shards(made: Tiny, tmp_path: Path, unbroken: Path) -> None:
    import shutil

    recipe = made.recipe(llms=SCRIPTED_LLMS)
    out = tmp_path / "run"
    pipeline.explain(recipe, out=out, until="sample")
    for path in (out / "cache").rglob("*.safetensors"):
        path.unlink()
    for path in (out / "rows").rglob("*.npy"):
        path.unlink()
    moved = tmp_path / "corpus-away"
    shutil.move(made.corpus, moved)
    try:
        pipeline.run_line(Run.open(out))
    finally:
        shutil.move(moved, made.corpus)
    assert records(out, "explain", "score") == records(unbroken, "explain", "score")


# --- kills ---------------------------------------------------------------------------------------------


IN_FLIGHT = 4


def start(
    recipe: Path, out: Path, log: Path, wait: str = "0.01", new_session: bool = False
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "autointerp", "explain", "--recipe", str(recipe), "--out", str(out)]
    environment = os.environ | {
        judge.LOG: str(log),
        judge.WAIT: wait,
        "PYTHONPATH": str(Path(__file__).parent),
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=new_session,
    )


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def n_written(out: Path, stage: str) -> int:
    return sum(n_lines(path) for path in (out / stage).rglob("*.jsonl"))


LINE = ("rows", "cache", "sample", "explain", "score")


def reached(out: Path) -> str:
    """The last stage that has written anything."""
    stages = [stage for stage in LINE if n_written(out, stage)]
    return stages[-1] if stages else "start"


EARLY = ("rows", "cache", "sample")


def kill_at_a_random_moment(
    process: subprocess.Popen[bytes], rng: random.Random, out: Path, log: Path, most: int, early: str | None
) -> bool:
    """Kills after a random time or a random number of requests; with an `early` stage, as soon as that or a later
    one has written something new. False if it ended before."""
    until = time.monotonic() + (rng.uniform(0.2, 6.0) if not early and rng.random() < 0.3 else 120.0)
    requests = n_lines(log) + rng.randint(1, most)
    stages = LINE[LINE.index(early or "rows") :]
    written = sum(n_written(out, stage) for stage in stages) + rng.randint(1, 2)
    while time.monotonic() < until:
        done = sum(n_written(out, stage) for stage in stages) if early else n_lines(log)
        if done >= (written if early else requests):
            break
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def broken_line(
    made: Tiny, folder: Path, n_kills: int, seed: int, n_features: int
) -> tuple[Path, collections.Counter[str], list[str]]:
    """Kills the run at random moments and starts it again; the run, what the LLM was asked, and the stage
    that each kill met."""
    recipe, out, log = folder / "recipe.yaml", folder / "run", folder / "log"
    sections = {"llms": SCRIPTED_LLMS, "resources": {"n_in_flight": IN_FLIGHT}}
    recipe.write_text(yaml.safe_dump(made.recipe(**sections, features={"n": n_features})))
    rng = random.Random(seed)
    met: list[str] = []
    # About 17 requests a feature: spread over them, the last kill still meets the run alive.
    most = max(2, 17 * n_features // n_kills)
    n_early = n_kills // 4
    while len(met) < n_kills:
        process = start(recipe, out, log, wait="0.03")
        early = EARLY[len(met) * 3 // n_early] if len(met) < n_early else None
        if not kill_at_a_random_moment(process, rng, out, log, most, early):
            assert process.returncode == 0
            break
        met.append(reached(out))
    process = start(recipe, out, log, wait="0.03")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return out, collections.Counter(log.read_text().split()), met


def check_broken_line(
    made: Tiny, tmp_path: Path, unbroken: Path, n_kills: int, seed: int, n_features: int = 40
) -> list[str]:
    out, asked, met = broken_line(made, tmp_path, n_kills, seed, n_features)
    assert records(out) == records(unbroken)
    # At a kill at most 4 requests were in flight.
    repeated = sum(n - 1 for n in asked.values())
    assert repeated <= len(met) * IN_FLIGHT, f"{repeated} requests paid twice in {len(met)} kills"
    print(f"{len(met)} kills in {dict(collections.Counter(met))}; {len(asked)} requests, {repeated} of them "
          "asked again (in flight at a kill)")  # fmt: skip
    return met


def test_killed_and_resumed_a_run_has_the_records_of_an_unbroken_one(
    made: Tiny, tmp_path: Path, unbroken: Path
) -> None:
    assert len(check_broken_line(made, tmp_path, unbroken, n_kills=4, seed=0)) == 4


@pytest.mark.slow
def test_killed_thirty_times_a_run_has_the_records_of_an_unbroken_one(made: Tiny, tmp_path: Path) -> None:
    """All stages of a 200-feature run, 30 kills."""
    recipe = made.recipe(llms=SCRIPTED_LLMS, features={"n": 200})
    pipeline.explain(recipe, out=tmp_path / "unbroken")
    met = check_broken_line(made, tmp_path, tmp_path / "unbroken", n_kills=30, seed=1, n_features=200)
    assert len(met) == 30
    assert {"rows", "cache", "sample", "explain", "score"} <= set(met)


def test_a_killed_parent_leaves_no_child(made: Tiny, tmp_path: Path) -> None:
    """kill -9 of the parent while the device stage works: the child goes by itself."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(made.recipe(llms=SCRIPTED_LLMS)))
    process = start(recipe, out, tmp_path / "log")
    until = time.monotonic() + 120
    while not (children := device_processes(process.pid)):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() and "Z" not in state(child) for child in children):
        assert time.monotonic() < until, "the child outlives its parent"
        time.sleep(0.1)


def test_ctrl_c_in_the_device_stage_ends_with_the_way_on(made: Tiny, tmp_path: Path) -> None:
    """As a terminal sends it: to the whole process group, while the child still starts up."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(made.recipe(llms=SCRIPTED_LLMS)))
    process = start(recipe, out, tmp_path / "log", new_session=True)
    until = time.monotonic() + 120
    while not device_processes(process.pid):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert f"Go on: autointerp resume {out}" in errors.decode()
    assert "Traceback" not in errors.decode()


def test_resume_notices_that_the_dictionary_changed(made: Tiny, tmp_path: Path) -> None:
    """A cache half made from one dictionary is not finished with another."""
    import shutil

    shutil.copytree(made.sae, tmp_path / "sae")
    recipe = made.recipe(dictionaries={"auto": {"path": str(tmp_path / "sae")}})
    out = tmp_path / "run"
    pipeline.explain(recipe, out=out, until="cache")
    next((out / "cache" / "layers.1").glob("0*.jsonl")).unlink()  # one shard is missing
    weights = tmp_path / "sae" / "sae_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RecipeChanged, match=r"dictionaries\.layers\.1\.identity"):
        pipeline.run_line(Run.open(out))


def test_another_process_recipe_is_not_written_into_a_busy_run(unbroken: Path, made: Tiny) -> None:
    before = (unbroken / "recipe.yaml").read_bytes()
    with Run.open(unbroken).lock(), pytest.raises(RunBusy):
        pipeline.explain({"features": {"n": 50}}, out=unbroken)
    assert (unbroken / "recipe.yaml").read_bytes() == before


def test_an_llm_with_too_short_a_context_is_noticed_before_the_cache(made: Tiny, tmp_path: Path) -> None:
    short = {"use": "scripted", "function": "judge:short_context"}
    with pytest.raises(LLMBadRequest, match=r"full size.*n_shown"):
        pipeline.explain(made.recipe(llms={"explainer": short, "judge": short}), out=tmp_path / "run")
    assert not (tmp_path / "run" / "rows").exists()


def test_a_dead_llm_is_noticed_before_a_run_caches_more(made: Tiny, tmp_path: Path) -> None:
    """Also on a run whose first check went well."""
    pipeline.explain(made.recipe(llms=SCRIPTED_LLMS, features={"n": 3}), out=tmp_path / "run")
    dead = {"use": "scripted", "function": "judge:dead"}
    more = {"dictionaries": {"second": {"path": str(made.sae), "hook": "layers.0"}}}
    with pytest.raises(LLMStopped):
        pipeline.explain(more | {"llms": {"explainer": dead, "judge": dead}}, out=tmp_path / "run")
    assert not (tmp_path / "run" / "cache" / "second").exists()


@pytest.mark.parametrize("n_in_flight", [1, 8])
def test_no_more_requests_are_in_flight_than_asked_for(made: Tiny, tmp_path: Path, n_in_flight: int) -> None:
    judge.MOST_AT_ONCE = judge.AT_ONCE = 0
    sections = {"llms": SCRIPTED_LLMS, "resources": {"n_in_flight": n_in_flight}}
    pipeline.explain(made.recipe(**sections, features={"n": 10}), out=tmp_path / "run")
    assert n_in_flight == judge.MOST_AT_ONCE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_what_is_finished_and_says_how_to_go_on(
    made: Tiny, tmp_path: Path, unbroken: Path, number: signal.Signals
) -> None:
    recipe, out, log = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "log"
    recipe.write_text(yaml.safe_dump(made.recipe(llms=SCRIPTED_LLMS, resources={"n_in_flight": 2})))
    process = start(recipe, out, log)
    until = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split()) > 20):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Go on: autointerp resume {out}" in errors.decode()
    assert "Traceback" not in errors.decode()
    again = subprocess.run(
        [sys.executable, "-m", "autointerp", "resume", str(out)],
        env=os.environ | {judge.LOG: str(log), "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr.decode()
    assert records(out) == records(unbroken)
    asked = collections.Counter(log.read_text().split())
    assert max(asked.values()) == 1  # what was in flight came to its end
    assert not list((out / "failed").rglob("*.jsonl"))
