"""Portions of a cache, and features done apart, become the run that one process would have made."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import orjson
import pytest
import yaml
from typer.testing import CliRunner

from autointerp import merge as merging
from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import DiskFull, RecipeError, RunBusy, RunError
from autointerp.llm.dialects import Dialect
from autointerp.llm.left_out import FILE, Learned, left_out
from autointerp.merge import merge
from autointerp.portion import Portion
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.types import Json
from autointerp.verify import verify
from fault_server import Behaviour, FaultServer, Script, ok, status
from here import SHARDS, contents, device_here, records
from tiny import Tiny

FEATURES: Json = {"n": 10}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


@pytest.fixture(scope="module")
def whole(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pipeline.explain(made.recipe(cache=SHARDS, features=FEATURES), out=out)
    return out


def portions(made: Tiny, out: Path, n: int) -> list[Path]:
    folders: list[Path] = []
    for index in range(n):
        folders.append(out / Portion(index, n).folder)
        sections: Json = {"cache": SHARDS, "features": FEATURES, "resources": {"shard": f"{index}/{n}"}}
        pipeline.explain(made.recipe(**sections), out=folders[-1], until="cache")
    return folders


@pytest.fixture(scope="module")
def two(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two portions, not to be changed."""
    return portions(made, tmp_path_factory.mktemp("two"), 2)


def copies(folders: list[Path], to: Path) -> list[Path]:
    return [Path(shutil.copytree(folder, to / folder.name)) for folder in folders]


OF_RUNS = ("recipe.yaml",)
"""Holds what each run was asked for."""


def of_the_cache(folder: Path) -> dict[str, bytes]:
    found = contents(folder, without=OF_RUNS)
    return {name: content for name, content in found.items() if name.startswith(("rows/", "cache/"))}


# --- what servers refused ------------------------------------------------------------------------------


def test_what_a_server_refused_of_one_run_is_left_out_in_the_merged_one_and_said(
    made: Tiny, whole: Path, tmp_path: Path
) -> None:
    """Of two runs that asked one LLM one was refused two settings: the union is kept, each score keeps the protocol
    it was made under, the card tells both, and what is asked from then on goes without."""

    def single(refused: tuple[str, ...]) -> Script:
        def script(_number: int, body: Json) -> Behaviour:
            name = next((name for name in refused if name in body), None)
            error = {"message": f"Unsupported parameter: '{name}' is not supported.", "param": name}
            return ok("1: yes\nEXPLANATION: words\nLABEL: words") if name is None else status(400, error)

        return script

    def asked(out: Path, refused: tuple[str, ...], **features: object) -> list[Json]:
        with FaultServer(single(refused)) as server:
            llm = {"use": "openai", "model": "tiny", "base_url": server.url, "first_wait_s": 0.01}
            llms = {"explainer": llm, "judge": llm}
            pipeline.explain(made.recipe(cache=SHARDS, features=features, llms=llms), out=out)
            return [request.body for request in server.requests]

    ids = [str(feature.index) for feature in Run.open(whole).asked("layers.1")][:6]
    one, two, neither, out = (tmp_path / name for name in ("one", "two", "neither", "out"))
    asked(one, (), ids=ids[:2])
    asked(two, ("temperature", "max_tokens"), ids=ids[2:5])
    pipeline.explain(made.recipe(cache=SHARDS, features={"ids": ids[5:]}), out=neither, until="sample")
    assert (left_out(one), left_out(two)) == ({}, {"tiny": ["temperature", "max_tokens"]})
    for _ in range(2):  # the second time there is nothing to take
        (note,) = [note for note in merge([one, two, neither], out).notes if "tiny" in note]
        assert f"{one}: nothing; {two}: temperature, max_tokens)" in note and str(neither) not in note
        assert left_out(out) == {"tiny": ["temperature", "max_tokens"]}
    (found, _) = summarise(Run.open(out), "layers.1", jobs=1).scores
    n_one, n_two = (
        len(list(Run.open(run).score("layers.1", "plain", "detection").records())) for run in (one, two)
    )
    first, behind = found.protocol.split(" | ")
    assert first.startswith(f"of {n_two} scores: ") and "without temperature, which the server" in first
    assert behind.startswith(f"of {n_one} scores: ") and "without" not in behind
    bodies = asked(out, ("temperature", "max_tokens"), ids=ids)
    assert bodies and all(body.keys().isdisjoint({"temperature", "max_tokens"}) for body in bodies)


def test_two_names_of_a_limit_that_servers_refused_are_learned_again(
    made: Tiny, whole: Path, tmp_path: Path
) -> None:
    """Each run's server refused the other name: without both there is no request."""
    names = {"one": ["seed", "max_tokens"], "two": ["max_completion_tokens"]}
    llm = {"use": "openai", "model": "tiny", "base_url": "http://127.0.0.1:9/v1"}
    ids = [str(feature.index) for feature in Run.open(whole).asked("layers.1")]
    for (name, refused), one in zip(names.items(), ids, strict=False):
        recipe = made.recipe(cache=SHARDS, features={"ids": [one]}, llms={"explainer": llm, "judge": llm})
        run = pipeline.explain(recipe, out=tmp_path / name, until="sample")
        (run.path / "usage/x").mkdir(parents=True)
        (run.path / "usage/x/0.0.jsonl").touch()
        (run.path / FILE).write_bytes(orjson.dumps({"tiny": refused}))
    (note,) = [
        one for one in merge([tmp_path / name for name in names], tmp_path / "out").notes if "tiny" in one
    ]
    assert "but for the two names of a limit (max_completion_tokens, max_tokens)" in note
    assert left_out(tmp_path / "out") == {"tiny": ["seed"]}


def test_both_names_of_a_limit_in_a_file_are_none(tmp_path: Path) -> None:
    (tmp_path / "usage").mkdir()
    (tmp_path / FILE).write_bytes(orjson.dumps({"tiny": ["max_tokens", "seed", "max_completion_tokens"]}))
    learned = Learned(Dialect(), tmp_path, "tiny")
    assert learned.names == ("seed",) and learned.dialect.max_tokens_field == "max_tokens"


# --- portions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_portions_make_the_cache_of_one_process(made: Tiny, tmp_path: Path, whole: Path, n: int) -> None:
    folders = portions(made, tmp_path, n)
    merged = merge(folders, tmp_path / "run")
    assert not merged.notes
    assert of_the_cache(tmp_path / "run") == of_the_cache(whole)
    pipeline.run_line(Run.open(tmp_path / "run"))
    assert records(tmp_path / "run") == records(whole)
    assert contents(tmp_path / "run") == contents(whole)
    assert not verify(Run.open(tmp_path / "run")).faults


def test_a_portion_holds_its_shards_and_the_front(two: list[Path], whole: Path) -> None:
    """What fires is shared out; of rows also the first are everywhere, on which dictionaries are checked."""
    units = Run.open(whole).row_units()
    assert len(units) > 15
    for index, folder in enumerate(two):
        fired = sorted(path.name.split(".")[0] for path in folder.glob("cache/layers.1/*.safetensors"))
        assert fired == units[index::2]
        rows = {path.name.split(".")[0] for path in folder.glob("rows/*.npy")}
        assert rows > set(fired) and len(rows) < len(units)
        assert {path.name for path in folder.glob("cache/*/check.*")} == {"check.0001.jsonl"}
        assert Run.open(folder).is_cached_whole()
        assert not verify(Run.open(folder)).faults


def test_nothing_behind_the_cache_is_made_of_a_portion(two: list[Path]) -> None:
    with pytest.raises(RecipeError, match=r"portion 0/2 of a cache.*--until cache.*merge"):
        pipeline.run_line(Run.open(two[0]))


def test_merging_again_takes_nothing_and_links_where_it_can(two: list[Path], tmp_path: Path) -> None:
    folders = copies(two, tmp_path)
    merge(folders, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert merge(folders, tmp_path / "run").n_parts == 0
    assert contents(tmp_path / "run") == before
    shard = next((folders[0] / "cache" / "layers.1").glob("*.safetensors"))
    assert shard.samefile(tmp_path / "run" / shard.relative_to(folders[0]))


def test_where_links_are_refused_files_are_copied(
    two: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    merge(two, tmp_path / "run")
    assert of_the_cache(tmp_path / "run") == of_the_cache(whole)


def test_a_missing_portion_is_told_of_and_resume_makes_it(
    two: list[Path], tmp_path: Path, whole: Path
) -> None:
    merged = merge(two[1:], tmp_path / "run")
    assert "some shards of the cache are in none of these runs" in merged.notes[0]
    pipeline.run_line(Run.open(tmp_path / "run"))
    assert records(tmp_path / "run") == records(whole)


@pytest.mark.parametrize("n_carried", [0, 1, 7, 30])
def test_a_merge_killed_anywhere_is_done_again(
    two: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_carried: int
) -> None:
    """A full disk stands for the kill: it comes before the n-th file."""
    left, carry = iter(range(n_carried)), merging.carry

    def full(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise DiskFull("no room")
        carry(source, target)

    monkeypatch.setattr(merging, "carry", full)
    with pytest.raises(DiskFull):
        merge(two, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    monkeypatch.undo()
    merge(two, tmp_path / "run")
    assert of_the_cache(tmp_path / "run") == of_the_cache(whole)


@pytest.mark.parametrize(
    ("text", "said"), [("4/4", "0/4 to 3/4"), ("-1/4", "expected i/n"), ("a", "expected i/n"), ("0/0", "0/0")]
)
def test_a_portion_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Portion.parse(text)


# --- what does not go together -------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(two: list[Path], made: Tiny, tmp_path: Path) -> None:
    other = made.recipe(cache=SHARDS, features=FEATURES, seed=3, sampling={"n_shown": 7})
    pipeline.explain(other, out=tmp_path / "other", until="cache")
    with pytest.raises(RunError) as caught:
        merge([two[0], tmp_path / "other"], tmp_path / "run")
    assert "seed: 0 in the first, 3 in the second" in str(caught.value)
    assert "sampling.n_shown: 40 in the first, 7 in the second" in str(caught.value)
    assert not list((tmp_path / "run").glob("rows"))


def test_records_that_contradict_each_other_are_named(two: list[Path], tmp_path: Path) -> None:
    """A front shard, which both portions hold."""
    folders = copies(two, tmp_path)
    part = next((folders[1] / "rows").glob("000000000.*.jsonl"))
    lines = part.read_bytes().splitlines()
    changed = orjson.loads(lines[1]) | {"n_tokens": 1}
    part.write_bytes(lines[0] + b"\n" + orjson.dumps(changed) + b"\n")
    with pytest.raises(RunError, match="hold different records of '000000000'") as caught:
        merge(folders, tmp_path / "run")
    assert str(part) in str(caught.value) and str(tmp_path / "run" / "rows") in str(caught.value)


def test_portions_checked_before_and_since_there_were_caveats_go_together(
    two: list[Path], tmp_path: Path
) -> None:
    """The sentences beside a check's numbers, of which the first that is there counts; other numbers are refused."""
    folders = copies(two, tmp_path)
    part = next((folders[1] / "cache").glob("*/check.*.jsonl"))
    header, check = part.read_bytes().splitlines()
    part.write_bytes(header + b"\n" + orjson.dumps(orjson.loads(check) | {"caveats": ["A."]}) + b"\n")
    merge(folders, tmp_path / "run")
    part.write_bytes(header + b"\n" + orjson.dumps(orjson.loads(check) | {"l0": 1.0}) + b"\n")
    with pytest.raises(RunError, match="hold different records of 'check'"):
        merge(folders, tmp_path / "other")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("dtype", "bfloat16", r"dtype bfloat16.*float32.*model\.dtype=float32"),
        ("device", "cuda", r"device cuda.*cpu.*resources\.device=cpu"),
    ],
)
def test_another_precision_or_device_is_refused(
    two: list[Path], tmp_path: Path, field: str, value: str, said: str
) -> None:
    folders = copies(two, tmp_path)
    change_manifest(folders[1], **{field: value})
    with pytest.raises(RunError, match=said):
        merge(folders, tmp_path / "run")


def test_other_batches_are_noted_and_a_gpus_check_may_round_differently(
    two: list[Path], tmp_path: Path
) -> None:
    folders = copies(two, tmp_path)
    change_manifest(folders[0], device="cuda", batch_tokens=4096)
    change_manifest(folders[1], device="cuda", batch_tokens=8192)
    part = next((folders[1] / "cache" / "layers.1").glob("check.*"))
    part.write_bytes(part.read_bytes().replace(b'"l0":', b'"l0":1'))
    notes = merge(folders, tmp_path / "run").notes
    assert any("batch_tokens is 4096 in one portion and 8192 in another" in note for note in notes)
    assert any("GPUs round differently" in note for note in notes)


def change_manifest(folder: Path, **fields: object) -> None:
    path = folder / "cache" / "layers.1" / "manifest.json"
    content = orjson.loads(path.read_bytes()) | fields
    del content["checksum"]
    path.write_bytes(orjson.dumps(content))


def test_a_file_that_is_not_whole_is_not_taken(two: list[Path], tmp_path: Path) -> None:
    folders = copies(two, tmp_path)
    path = next((folders[1] / "cache" / "layers.1").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"not whole.*cache verify --repair"):
        merge(folders, tmp_path / "run")


def test_a_run_at_work_is_not_merged(two: list[Path], tmp_path: Path) -> None:
    with Run.open(two[1]).lock(), pytest.raises(RunBusy):
        merge(two, tmp_path / "run")
    with pytest.raises(RunError, match="one of the runs to merge"):
        merge(two, two[0])


# --- features done apart -------------------------------------------------------------------------------


def test_features_of_two_machines_become_one_run(made: Tiny, whole: Path, tmp_path: Path) -> None:
    """The same cache, packed for each; each with a scripted LLM that is paid, as one would be."""
    llm = {"use": "scripted", "function": "judge:answer"}
    asked = [feature.index for feature in Run.open(whole).asked("layers.1")]
    ids = {"one": asked[:6], "two": asked[4:]}
    for name, features in ids.items():
        shutil.copytree(whole, tmp_path / name)
        for stage in ("sample", "explain", "score"):
            shutil.rmtree(tmp_path / name / stage)
        sections: Json = {
            "llms": {"explainer": llm, "judge": llm},
            "features": {"ids": [str(feature) for feature in features]},
        }
        pipeline.explain(sections, out=tmp_path / name)
    everything: Json = {"cache": SHARDS, "features": FEATURES, "llms": {"explainer": llm, "judge": llm}}
    pipeline.explain(made.recipe(**everything), out=tmp_path / "whole")
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert [feature.index for feature in run.asked("layers.1")] == asked
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    requests = Path("requests", "score", "layers.1", "plain", "detection")
    together = {r["key"] for r in run.existing(*requests.parts).records()}
    assert together == {r["key"] for r in Run.open(tmp_path / "whole").existing(*requests.parts).records()}
    before = contents(tmp_path / "run", without=("recipe.yaml",))
    pipeline.run_line(run)  # nothing is left to do
    assert contents(tmp_path / "run", without=("recipe.yaml",)) == before
    assert not verify(run).faults


# --- from the command line, killed ---------------------------------------------------------------------


def test_a_portion_killed_and_resumed_merges_to_what_one_process_makes(
    made: Tiny, whole: Path, tmp_path: Path
) -> None:
    """Two processes; one is killed with -9 as soon as it has written a shard, and started again."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(made.recipe(cache=SHARDS, features=FEATURES)))
    out, rng = tmp_path / "run", random.Random(0)

    def start(index: int) -> subprocess.Popen[bytes]:
        command = ["explain", "--recipe", recipe, "--out", out, "--until", "cache", "--shard", f"{index}/2"]
        words = [sys.executable, "-m", "autointerp", *map(str, command)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    second = start(1)
    folder = out / "shard-1-of-2" / "cache" / "layers.1"
    while not list(folder.glob("*.safetensors")) and second.poll() is None:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    second.kill()
    second.wait()
    for index in (0, 1):
        process = start(index)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()
        assert f"autointerp merge {out}/shard-*-of-2 --out {out}" in output.decode()
    folders = sorted(map(str, out.glob("shard-*-of-2")))
    result = CliRunner().invoke(app, ["merge", *folders, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert of_the_cache(out).keys() >= of_the_cache(whole).keys()
    binary = {name: content for name, content in of_the_cache(whole).items() if not name.endswith("l")}
    assert {name: of_the_cache(out)[name] for name in binary} == binary
    pipeline.run_line(Run.open(out))
    assert records(out) == records(whole)
