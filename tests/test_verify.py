"""What is spoiled on disk is named, set aside, and made anew to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import RecipeChanged, RunBusy, RunError
from autointerp.progress import Silent, Stop
from autointerp.repair import repair
from autointerp.run import Run
from autointerp.stages.frozen import read_frozen
from autointerp.verify import verify
from here import SHARDS, contents, device_here
from tiny import Tiny


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


@pytest.fixture(scope="module")
def whole(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pipeline.explain(made.recipe(cache=SHARDS, features={"n": 10}), out=out)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lose(path: Path) -> None:
    path.unlink()


def one(folder: Path, pattern: str, at: int = 0) -> Path:
    return sorted(folder.glob(pattern))[at]


BINARY = ("rows/0*.npy", "rows/vocabulary.*.parquet", "cache/*/0*.safetensors", "sample/*/*.parquet")


def check(folder: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", "verify", str(folder), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_run_nobody_touched_is_as_it_was_written(whole: Path) -> None:
    code, output = check(whole)
    assert code == 0, output
    stages = ("rows", "cache", "directions", "sample", "explain", "score")
    n_files = sum(path.is_file() for stage in stages for path in (whole / stage).rglob("*"))
    assert f"{n_files:,} files, " in output and "all as they were written" in output


@pytest.mark.parametrize("pattern", BINARY)
@pytest.mark.parametrize(
    ("damage", "said"), [(flip, "bits flipped"), (cut, "holds"), (lose, "is missing, though")]
)
def test_a_spoiled_file_is_named(copy: Path, pattern: str, damage: Callable[[Path], None], said: str) -> None:
    path = one(copy, pattern, -1)
    damage(path)
    code, output = check(copy)
    assert code == 1
    named = [line for line in output.splitlines() if line.startswith(str(path.relative_to(copy)))]
    assert len(named) == 1 and said in named[0]
    assert output.rstrip().endswith("1 faults")


def test_every_single_bit_counts(copy: Path) -> None:
    """One flipped bit in each of a file's corners."""
    path = one(copy, "cache/*/0*.safetensors", 2)
    content = path.read_bytes()
    for at in (0, 8, len(content) // 3, len(content) - 1):
        spoiled = bytearray(content)
        spoiled[at] ^= 128
        path.write_bytes(spoiled)
        assert [fault.path for fault in verify(Run.open(copy)).faults] == [path]


@pytest.mark.parametrize("damage", [flip, cut, lose])
def test_repair_gives_back_the_same_bytes(copy: Path, whole: Path, damage: Callable[[Path], None]) -> None:
    spoiled = [one(copy, pattern, at) for pattern in BINARY for at in (0, -1)]
    for path in dict.fromkeys(spoiled):
        damage(path)
    code, output = check(copy, "--repair")
    assert code == 0, output
    assert output.count("all as they were written") == 1
    aside = contents(copy / "set-aside")
    assert contents(copy) == contents(whole) | {
        f"set-aside/{name}": content for name, content in aside.items()
    }
    assert len(aside) >= len(set(spoiled)) or damage is lose


def test_what_may_come_of_a_spoiled_file_is_listed_and_stays(copy: Path) -> None:
    flip(one(copy, "cache/*/0*.safetensors"))
    before = contents(copy / "sample") | contents(copy / "score")
    _, output = check(copy, "--repair")
    for place in ("sample/layers.1", "explain/layers.1/plain", "score/layers.1/plain/detection"):
        assert f"{place} (" in output and "may have been made from" in output
    assert "cache/layers.1 (" not in output
    assert contents(copy / "sample") | contents(copy / "score") == before


@pytest.mark.parametrize(
    "pattern",
    [
        "rows/0*.jsonl", "rows/all.*.jsonl", "rows/vocabulary.*.jsonl", "cache/*/check.*.jsonl",
        "cache/*/0*.jsonl", "sample/*/0*.jsonl",
    ],
)  # fmt: skip
@pytest.mark.parametrize("line", [0, 1])
def test_a_spoiled_line_is_named_and_its_part_made_anew(
    copy: Path, whole: Path, pattern: str, line: int
) -> None:
    path = one(copy, pattern, -1)
    spoil_line(path, line)
    found = verify(Run.open(copy))
    assert [(fault.path, fault.lines) for fault in found.faults] == [(path, (line + 1,))]
    repair(Run.open(copy), found, Silent(), Stop())
    assert not verify(Run.open(copy)).faults
    assert contents(copy, without=("set-aside",)).items() >= contents(whole).items()


def spoil_line(path: Path, number: int) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[number] = b"\x00" + lines[number][1:]
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize("line", [0, 2])
def test_of_what_an_llm_said_only_the_spoiled_line_goes(copy: Path, whole: Path, line: int) -> None:
    path = one(copy, "explain/*/*/*.jsonl")
    spoil_line(path, line)
    code, output = check(copy, "--repair")
    assert code == 0, output
    kept, before = path.read_bytes().splitlines(), (whole / path.relative_to(copy)).read_bytes().splitlines()
    assert kept[1:] == [content for number, content in enumerate(before) if number not in (0, line)]
    pipeline.run_line(Run.open(copy))
    assert Run.open(copy).features() == Run.open(whole).features()


def test_what_is_left_of_a_kill_harms_nobody(copy: Path) -> None:
    """A claimed part, a part whose record is torn, its file, and a file half written."""
    (copy / "rows" / "000000000.0002.jsonl").touch()
    (copy / "cache" / "layers.1" / "000000000.0002.safetensors").write_bytes(b"whole, but nobody says so")
    (copy / "sample" / "layers.1" / ".000000000.0009.parquet.77.tmp").write_bytes(b"half")
    code, output = check(copy)
    assert code == 0
    assert output.count("it does no harm") == 3
    code, output = check(copy, "--repair")
    assert code == 0 and output.count(" -> set-aside/") == 3
    assert not (copy / "rows" / "000000000.0002.jsonl").exists()
    assert (copy / "set-aside" / "rows" / "000000000.0002.jsonl").exists()


def test_a_shard_that_is_gone_without_a_trace_is_missed(copy: Path, whole: Path) -> None:
    for path in copy.glob("cache/layers.1/000000032.*"):
        path.unlink()
    code, output = check(copy)
    assert code == 1
    assert "000000032.0001.jsonl is missing, and no other part has its record" in output
    assert check(copy, "--repair")[0] == 0
    assert contents(copy) == contents(whole)


@pytest.mark.parametrize("pattern", ["columns.*.npy", "columns.*.jsonl"])
def test_features_of_a_pass_are_made_anew_with_its_shards(made: Tiny, tmp_path: Path, pattern: str) -> None:
    """Of an elementwise dictionary, which is cached for the features asked for alone."""
    shutil.copytree(made.sae, tmp_path / "relu")
    config = json.loads((made.sae / "cfg.json").read_text())
    del config["k"]
    (tmp_path / "relu" / "cfg.json").write_text(json.dumps(config | {"architecture": "standard"}))
    recipe = made.recipe(dictionaries={"auto": {"path": str(tmp_path / "relu")}}, features={"first": 5})
    run = pipeline.explain(recipe, out=tmp_path / "run", until="sample")
    assert not verify(run).faults and not verify(run).leftovers
    before = contents(run.path)
    flip(one(run.path, f"cache/layers.1/{pattern}"))
    assert len(verify(run).faults) == 1
    repair(run, verify(run), Silent(), Stop())
    assert contents(run.path, without=("set-aside",)).items() >= before.items()


def test_nothing_is_moved_where_the_corpus_is_another_one(made: Tiny, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(made.corpus.read_bytes())
    run = pipeline.explain(made.recipe(corpus={"path": str(corpus)}), out=tmp_path / "run", until="cache")
    flip(one(run.path, "rows/0*.npy"))
    corpus.write_bytes(corpus.read_bytes() + b"<|endoftext|>One more document.")
    with pytest.raises(RecipeChanged, match=r"corpus\.identity"):
        repair(run, verify(run), Silent(), Stop())
    assert not (run.path / "set-aside").exists()


def test_made_from_is_checked_and_written_anew(copy: Path, whole: Path) -> None:
    path = copy / "cache" / "layers.1" / "made_from.json"
    path.write_bytes(path.read_bytes().replace(b'"float32"', b'"float33"').replace(b'"2"', b'"3"'))
    code, output = check(copy)
    assert code == 1 and "its digest is not that of its content" in output
    assert check(copy, "--repair")[0] == 0
    assert path.read_bytes() == (whole / path.relative_to(copy)).read_bytes()


def test_a_run_at_work_is_not_looked_at(copy: Path) -> None:
    run = Run.open(copy)
    with run.lock(), pytest.raises(RunBusy):
        verify(run)


def test_a_verification_reads_in_pieces(tmp_path: Path) -> None:
    """A sealed file of 40 MB costs less than 4 MB."""
    import tracemalloc

    from autointerp.files import seal_of, write_sealed

    seal = write_sealed(tmp_path / "file", bytes(40_000_000))
    tracemalloc.start()
    try:
        assert seal_of(tmp_path / "file") == seal
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


STAGES = (
    "rows/0*", "rows/all.*", "rows/vocabulary.*", "cache/*/0*", "cache/*/check.*", "directions/*/*", "sample/*/*",
    "explain/*/*/*", "score/*/*/*/*",
)  # fmt: skip


@pytest.mark.parametrize("pattern", STAGES)
def test_a_flipped_bit_of_a_record_is_found(copy: Path, pattern: str) -> None:
    """Also one that leaves a record of other numbers, which any reader takes."""
    path = sorted(copy.glob(f"{pattern}.jsonl"))[-1]
    content = path.read_bytes()
    line_of = [1 + content[:at].count(b"\n") for at in range(len(content))]
    digits = [at for at, byte in enumerate(content) if byte in b"0123456789"]
    run = Run.open(copy)
    for at in {*digits[:: max(1, len(digits) // 6)], digits[-1], len(content) - 1}:
        spoiled = bytearray(content)
        spoiled[at] ^= 1
        path.write_bytes(spoiled)
        found = [fault for fault in verify(run).faults if fault.path == path]
        assert len(found) == 1 and line_of[at] in found[0].lines, (at, content[at - 20 : at + 5])


def test_the_spoiled_numbers_of_a_sample_are_made_anew(copy: Path, whole: Path) -> None:
    path = one(copy, "sample/*/*.jsonl")
    content = path.read_bytes()
    at = content.index(b'"n_fired":') + len(b'"n_fired":')
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    code, output = check(copy)
    assert code == 1 and f"{path.relative_to(copy)}" in output and "line 2" in output
    assert check(copy, "--repair")[0] == 0
    assert path.read_bytes() == (whole / path.relative_to(copy)).read_bytes()


def test_parts_from_before_lines_were_sealed_are_whole(copy: Path, whole: Path) -> None:
    for path in copy.rglob("*.jsonl"):
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        for line in lines:
            del line["crc32"]
        path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    for path in copy.rglob("manifest.json"):
        content = orjson.loads(path.read_bytes())
        del content["checksum"]
        path.write_bytes(orjson.dumps(content))
    run = Run.open(copy)
    assert not verify(run).faults
    assert pipeline.run_line(run).run.features() == Run.open(whole).features()


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_spoiled_manifest_is_named_and_its_like_comes_back(
    copy: Path, whole: Path, damage: Callable[[Path], None]
) -> None:
    """With the next shard that is made; here one is missing."""
    path = one(copy, "cache/*/manifest.json")
    damage(path)
    with pytest.raises(RunError, match=r"manifest\.json is not what was written.*--repair") as caught:
        read_frozen(Run.open(copy))
    assert str(copy) in str(caught.value)
    for shard in copy.glob("cache/layers.1/000000032.*"):
        shard.unlink()
    code, output = check(copy)
    assert code == 1 and "cache/layers.1/manifest.json is not what was written" in output
    assert check(copy, "--repair")[0] == 0
    assert path.read_bytes() == (whole / path.relative_to(copy)).read_bytes()


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.write_bytes(b"[]")])
def test_spoiled_identities_are_named_with_the_way_on(copy: Path, damage: Callable[[Path], None]) -> None:
    before = contents(copy)
    damage(copy / "identities.json")
    with pytest.raises(RunError, match=r"identities\.json.* writes it anew") as caught:
        Run.open(copy)
    assert f"--recipe {copy / 'recipe.yaml'} --out {copy}" in str(caught.value)
    (copy / "identities.json").unlink()
    pipeline.explain(copy / "recipe.yaml", out=copy)
    assert contents(copy) == before
