"""A packed run explains and scores without the cache it came from."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import RunError
from autointerp.merge import merge
from autointerp.pack import pack
from autointerp.run import Run
from autointerp.verify import verify
from here import SHARDS, contents, device_here, records
from tiny import Tiny

SCRIPTED = {"use": "scripted", "function": "judge:answer"}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


@pytest.fixture(scope="module")
def sampled(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sampled") / "run"
    llms = {"explainer": SCRIPTED, "judge": SCRIPTED}
    pipeline.explain(made.recipe(cache=SHARDS, features={"n": 10}, llms=llms), out=out, until="sample")
    return out


@pytest.fixture(scope="module")
def whole(sampled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, to its end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(sampled, out)
    pipeline.run_line(Run.open(out))
    return out


def moved(sampled: Path, tmp_path: Path, **options: bool) -> Path:
    """A pack of a run that is deleted then."""
    shutil.copytree(sampled, tmp_path / "run")
    pack(Run.open(tmp_path / "run"), tmp_path / "packed", with_requests=options.get("with_requests", False))
    shutil.rmtree(tmp_path / "run")
    return tmp_path / "packed"


def test_explaining_and_scoring_go_on_in_a_pack_alone(
    made: Tiny, sampled: Path, whole: Path, tmp_path: Path
) -> None:
    """The original is gone, and so are model, dictionary and corpus."""
    packed = moved(sampled, tmp_path)
    assert not list(packed.rglob("*.safetensors")) and not list(packed.rglob("*.npy"))
    hidden = [(path, tmp_path / path.name) for path in (made.model, made.sae, made.corpus)]
    for path, away in hidden:
        shutil.move(path, away)
    try:
        pipeline.run_line(Run.open(packed))
    finally:
        for path, away in hidden:
            shutil.move(away, path)
    for stage in ("sample", "explain", "score"):
        assert records(packed, stage) == records(whole, stage)
    digests = {str(j.folder.relative_to(packed)): j.digest for j in Run.open(packed).journals()}
    assert digests == {str(j.folder.relative_to(whole)): j.digest for j in Run.open(whole).journals()}
    assert not verify(Run.open(packed)).faults


def test_a_finished_pack_can_be_read(whole: Path, tmp_path: Path) -> None:
    packed = moved(whole, tmp_path)
    scores = Run.open(packed).scores()
    assert scores == Run.open(whole).scores() and scores.num_rows
    feature = scores.to_pylist()[0]["feature"]
    for words in (["show", str(packed), feature], ["status", str(packed)]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output


def test_replies_are_taken_along_when_asked_for(whole: Path, tmp_path: Path) -> None:
    assert not (moved(whole, tmp_path / "without") / "requests").exists()
    kept = moved(whole, tmp_path / "with", with_requests=True)
    assert contents(kept / "requests") == contents(whole / "requests")


def test_more_features_are_refused_with_the_reason(made: Tiny, sampled: Path, tmp_path: Path) -> None:
    packed = moved(sampled, tmp_path)
    before = contents(packed)
    with pytest.raises(RunError, match=r"packed without its cache.*10 features that it has no samples of"):
        pipeline.explain({"features": {"n": 20}}, out=packed)
    more = {"dictionaries": {"second": {"path": str(made.sae), "hook": "layers.0"}}}
    with pytest.raises(RunError, match=r"packed without its cache.*dictionary 'second'"):
        pipeline.explain(more, out=packed)
    assert contents(packed) == before


def test_packs_of_one_cache_come_together_again(sampled: Path, whole: Path, tmp_path: Path) -> None:
    """Two machines take half of the features each."""
    asked = [str(feature.index) for feature in Run.open(sampled).asked("layers.1")]
    for name, ids in (("one", asked[:5]), ("two", asked[5:])):
        pack(Run.open(sampled), tmp_path / name, with_requests=False)
        pipeline.explain({"features": {"ids": ids}}, out=tmp_path / name)
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "run")
    assert Run.open(tmp_path / "run").is_packed
    for stage in ("sample", "explain", "score"):
        assert records(tmp_path / "run", stage) == records(whole, stage)


def test_nothing_is_packed_over(sampled: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "mine").touch()
    with pytest.raises(RunError, match="there already, and not empty"):
        pack(Run.open(sampled), tmp_path / "packed", with_requests=False)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_packing_from_the_command_line(sampled: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pack", str(sampled), str(tmp_path / "packed")])
    assert result.exit_code == 0, result.output
    assert f"autointerp resume {tmp_path / 'packed'}" in result.output
    assert Run.open(tmp_path / "packed").is_packed
