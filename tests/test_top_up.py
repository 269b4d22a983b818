"""Further rows for features that lack windows: what is kept of them, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from test_sources import dumped
from typer.testing import CliRunner

import delphi_files
from autointerp import pipeline
from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.activations.rows import (
    SHORTEST_TAIL,
    START,
    Mark,
    Rows,
    RowShard,
    behind,
    make_rows,
    row_shards,
    save_rows,
)
from autointerp.activations.top_up import lacking
from autointerp.cli import app
from autointerp.errors import CorpusError, DiskFull, RecipeChanged, RecipeError, RunError
from autointerp.journal import unit_of_feature
from autointerp.merge import merge
from autointerp.pack import pack
from autointerp.portion import Portion
from autointerp.progress import Silent, Stop
from autointerp.repair import repair
from autointerp.run import ALL_ROWS, Run
from autointerp.stages import cache as caching
from autointerp.stages import rows as row_stage
from autointerp.stages.sample import load_vocabulary, unit_windows
from autointerp.types import Json
from autointerp.verify import verify
from here import contents, device_here, records
from tiny import CONTEXT, WIDTH, Tiny

NAME = "layers.1"
MORE = 15_000
SMALL: Json = {
    "minimum": 5,
    "minimum_full": 40,
    "minimum_split": 1,
    "minimum_documents": 2,
    "contrast": "silent",
}
"""Sampling settings with which most features have a sample."""
THRESHOLD = 28.0
"""Of a jumprelu dictionary: passed by some features a token."""
ALONE: Json = {"batch_tokens": 1}
"""Each row through the model alone: what fires on it can't depend on which rows share its shard."""


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


# --- rows ----------------------------------------------------------------------------------------------


def packed(
    lengths: list[int], context: int, per_shard: int, n_tokens: int, begin: Mark = START
) -> tuple[list[Rows], Mark]:
    """Shards of documents of these lengths, made behind `begin`, and the mark behind the last."""
    made: list[Rows] = []
    end = begin

    def lists() -> Iterator[tuple[int, NDArray[np.uint32]]]:
        for number in range(begin.n_documents, len(lengths)):
            yield number, np.arange(lengths[number], dtype=np.uint32) + 1000 * (number + 1)

    def on_shard(rows: Rows, mark: Mark) -> None:
        nonlocal end
        made.append(rows)
        end = mark

    make_rows(
        lists(), context_length=context, bos=0, rows_per_shard=per_shard, n_tokens=n_tokens,
        on_shard=on_shard, begin=begin,
    )  # fmt: skip
    return made, end


def on_disk(folder: Path, shards: list[Rows]) -> list[RowShard]:
    found: list[RowShard] = []
    first = 0
    for rows in shards:
        path = folder / f"{first}.npy"
        save_rows(path, rows)
        found.append(RowShard(str(first), first, len(rows), path))
        first += len(rows)
    return found


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=9),
    context=st.sampled_from([5, 18, 24, 40]),
    per_shard=st.integers(1, 4),
    n_tokens=st.integers(1, 250),
    n_more=st.integers(1, 250),
)
def test_rows_go_on_where_the_budget_ended(
    lengths: list[int], context: int, per_shard: int, n_tokens: int, n_more: int
) -> None:
    """The further rows are those that a corpus read in one go has behind the last row that is there."""
    shards, end = packed(lengths, context, per_shard, n_tokens)
    if not shards:
        return
    with tempfile.TemporaryDirectory() as folder:
        first = behind(end, on_disk(Path(folder), shards))
    more, _ = packed(lengths, context, per_shard, first.n_tokens + n_more, first)
    unbroken = np.concatenate(packed(lengths, context, 1, 10**6)[0])
    last = shards[-1][-1]
    same = (unbroken["document"] == last["document"]) & (unbroken["position"] == last["position"])
    n_before = int(np.flatnonzero(same)[0]) + 1
    n_tokens_before = int((unbroken["length"][:n_before] - 1).sum())
    expected = np.concatenate(packed(lengths, context, 1, n_tokens_before + n_more)[0])[n_before:]
    together = np.concatenate(more) if more else unbroken[:0]
    assert together.tobytes() == expected.tobytes()
    assert all(len(rows) == per_shard for rows in more[:-1])


@settings(max_examples=100)
@example(lengths=[39, 40, 0], n_tokens=1, n_more=40)  # 24 left: a row of 23, a tail too short
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=12),
    n_tokens=st.integers(1, 250),
    n_more=st.integers(1, 250),
)
def test_prefetch_reads_as_many_documents(lengths: list[int], n_tokens: int, n_more: int) -> None:
    """Both budgets one behind the other and a short tail, as `prefetch` reads, end behind no earlier
    document."""
    asked = 0

    def lists(first: int = 0) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        nonlocal asked
        for number in range(first, len(lengths)):
            asked = number + 1
            yield number, np.full(lengths[number], 5, np.uint32)

    def read(source: Iterator[tuple[int, NDArray[np.uint32]]], n_tokens: int) -> None:
        make_rows(
            source, context_length=24, bos=0, rows_per_shard=2, n_tokens=n_tokens, on_shard=lambda *_: None
        )  # fmt: skip

    source = lists()
    read(source, n_tokens)
    read(source, n_more)
    read(source, SHORTEST_TAIL)
    prefetched, asked = asked, 0
    shards, end = packed(lengths, 24, 2, n_tokens)
    if shards:
        with tempfile.TemporaryDirectory() as folder:
            first = behind(end, on_disk(Path(folder), shards))
        make_rows(
            lists(first.n_documents), context_length=24, bos=0, rows_per_shard=2,
            n_tokens=first.n_tokens + n_more, on_shard=lambda *_: None, begin=first,
        )  # fmt: skip
        assert asked <= prefetched


def test_a_budget_inside_a_document_costs_the_rest_of_its_last_row() -> None:
    """Documents of 100 and 30 tokens, rows of 1 + 20: a budget of 50 makes rows of 20 and 20 (the tail of 10
    is too short) and spends the other 10 on the second document, whose row ends there. Behind it come its
    last 10 tokens, too few, then the third document."""
    shards, end = packed([100, 30, 40], 21, 3, 50)
    assert [row["length"] - 1 for row in shards[0]] == [20, 20, 10]
    with tempfile.TemporaryDirectory() as folder:
        first = behind(end, on_disk(Path(folder), shards))
    assert first == Mark(3, 50, 1, 1)
    (more,), mark = packed([100, 30, 40], 21, 3, 50 + 35, first)
    assert [(int(row["document"]), int(row["position"])) for row in more] == [(2, 0)]
    assert mark == Mark(4, 70, 3, 0)


# --- a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rare(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A dictionary of which two features fire on a token: a feature fires in about one row in three."""
    sae = tmp_path_factory.mktemp("rare") / "sae"
    shutil.copytree(made.sae, sae)
    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps(config | {"k": 2}))
    return Tiny(made.model, sae, made.corpus)


@pytest.fixture(scope="module")
def n_first(rare: Tiny, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Tokens of some first documents: a budget that cuts none."""
    run = cached(rare, tmp_path_factory.mktemp("first") / "run", {"n_tokens": 13_000})
    rows = np.concatenate([shard.read() for shard in row_shards(run.rows())])
    n_whole = int(np.flatnonzero(rows["document"] != rows["document"][-1])[-1]) + 1
    return int((rows["length"][:n_whole] - 1).sum())


def recipe(made: Tiny, cache: Json, **sections: object) -> Json:
    cache = {"shard_tokens": 2_048, "sink_ratio": None} | cache
    return made.recipe(**{"cache": cache, "sampling": SMALL, "resources": ALONE} | sections)


def cached(made: Tiny, out: Path, cache: Json, **sections: object) -> Run:
    return pipeline.explain(recipe(made, cache, **sections), out=out, until="cache")


@pytest.fixture(scope="module")
def base(rare: Tiny, n_first: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache without a top-up. Not to be changed."""
    out = tmp_path_factory.mktemp("base") / "run"
    cached(rare, out, {"n_tokens": n_first})
    return out


@pytest.fixture(scope="module")
def below(base: Path) -> int:
    """A number of rows in which about a third of the features fire in fewer."""
    return int(np.sort(slow_rows_fired(Run.open(base)))[WIDTH // 3]) + 1


def slow_rows_fired(run: Run) -> NDArray[np.int64]:
    rows: list[set[int]] = [set() for _ in range(WIDTH)]
    for feature, token, _ in fired(run, base_only=True):
        rows[feature].add(token // CONTEXT)
    return np.array([len(of_one) for of_one in rows])


def fired(run: Run, *, base_only: bool = False) -> list[tuple[int, int, float]]:
    """(feature, token, value) of everything that is stored."""
    journals = [run.cache(NAME)] + ([] if base_only or not run.recipe.cache.top_up else [run.top_up(NAME)])
    shards = [shard for journal in journals for shard in firing_shards(journal)]
    found = FiringStore(shards, CONTEXT).read(0, WIDTH)
    features = found.features.repeat(np.diff(found.offsets)).tolist()
    return list(zip(features, found.tokens.tolist(), found.values.tolist(), strict=True))


@pytest.fixture(scope="module")
def topped(base: Path, below: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, topped up. Not to be changed."""
    out = tmp_path_factory.mktemp("topped") / "run"
    shutil.copytree(base, out)
    top_up(out, below)
    return out


def top_up(out: Path, below: int, until: pipeline.Stage = "cache") -> Run:
    cache = {"top_up": MORE, "top_up_below": below}
    return pipeline.explain({"cache": cache}, out=out, until=until)


@pytest.fixture(scope="module")
def longer(rare: Tiny, n_first: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of everything on all tokens that the topped-up run has read."""
    out = tmp_path_factory.mktemp("longer") / "run"
    cached(rare, out, {"n_tokens": n_first + MORE})
    return out


def lacks(run: Run) -> set[int]:
    return set(lacking(run.top_up(NAME)).tolist())


def test_what_lacks_windows_is_what_a_count_says(base: Path, topped: Path, below: int) -> None:
    expected = np.flatnonzero(slow_rows_fired(Run.open(base)) < below).tolist()
    assert lacks(Run.open(topped)) == set(expected) and 30 < len(expected) < WIDTH // 2


def test_the_cache_itself_stays(base: Path, topped: Path) -> None:
    before, after = contents(base, without=("recipe.yaml",)), contents(topped, without=("recipe.yaml",))
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"top-up"}
    digests = {str(j.folder.relative_to(base)): j.digest for j in Run.open(base).journals()}
    for journal in Run.open(topped).journals():
        place = str(journal.folder.relative_to(topped))
        if place in ("rows", f"cache/{NAME}", f"directions/{NAME}"):
            assert journal.digest == digests[place]


def test_rows_and_firings_of_lacking_features_are_those_of_a_longer_cache(topped: Path, longer: Path) -> None:
    """Row for row; of other features nothing is stored behind the cache's rows."""
    one, other = Run.open(topped), Run.open(longer)
    shards = [*row_shards(one.rows()), *row_shards(one.top_up_rows())]
    assert [shard.first_row for shard in shards] == np.cumsum([0, *(s.n_rows for s in shards)])[:-1].tolist()
    rows = [np.concatenate([shard.read() for shard in of]) for of in (shards, row_shards(other.rows()))]
    assert rows[0].tobytes() == rows[1].tobytes()
    n_base = one.rows().read(ALL_ROWS)[ALL_ROWS]["n_rows"]
    assert one.top_up_rows().read(ALL_ROWS)[ALL_ROWS]["n_tokens"] == MORE
    of_these, everything = lacks(one), fired(other)
    expected = [f for f in everything if f[0] in of_these or f[1] < n_base * CONTEXT]
    assert fired(one) == expected
    assert len(expected) < 0.8 * len(everything)  # and it is worth it


def test_samples_of_features_that_do_not_lack_are_those_without_a_top_up(
    base: Path, topped: Path, below: int, tmp_path: Path
) -> None:
    plain, more = (Path(shutil.copytree(one, tmp_path / one.parent.name)) for one in (base, topped))
    pipeline.run_line(Run.open(plain), until="sample")
    pipeline.run_line(Run.open(more), until="sample")
    of_these = lacks(Run.open(more))
    before, after = sampled(plain), sampled(more)
    assert before.keys() == after.keys() and len(before) == 40
    same = {feature for feature in before if before[feature] == after[feature]}
    assert same == {feature for feature in before if feature not in of_these}
    assert 5 < len(same) < 35
    # What fires together is counted where all features are known, so features alike are those of before.
    donors = [{feature: record["donors"] for feature, (record, _) in of.items()} for of in (before, after)]
    assert donors[0] == donors[1] and any(donors[0][feature] for feature in of_these & before.keys())


def sampled(out: Path) -> dict[int, tuple[Json, object]]:
    """Of each feature the record, and every window."""
    run = Run.open(out)
    vocabulary = load_vocabulary(run)
    found: dict[int, tuple[Json, object]] = {}
    for record in run.sample(NAME).records():
        index = int(record["key"].partition("/")[2])
        unit = unit_of_feature(index)
        store = unit_windows(run, NAME, unit, [record["key"]], vocabulary)[record["key"]]
        splits = (store.shown(record["key"]), store.select(record["key"]), store.heldout(record["key"]))
        found[index] = record, splits
    return found


def test_samples_of_lacking_features_are_those_of_a_longer_cache(
    topped: Path, longer: Path, below: int, tmp_path: Path
) -> None:
    """Record and windows, where no window is chosen by what other features do."""
    alone = {"sampling": {"n_neighbour": 0, "n_density": 0, "n_same_document": 4}}
    found: list[dict[int, tuple[Json, object]]] = []
    for one in (topped, longer):
        out = Path(shutil.copytree(one, tmp_path / one.parent.name))
        pipeline.explain(alone, out=out, until="sample")
        found.append(sampled(out))
    of_these = [feature for feature in found[0] if feature in lacks(Run.open(topped))]
    assert len(of_these) > 5
    for feature in of_these:
        assert found[0][feature] == found[1][feature]


@pytest.mark.parametrize("sampling", [{"n_neighbour": 20}, {"n_neighbour": 0, "n_density": 20}])
def test_no_window_is_silent_where_a_longer_cache_has_a_firing(
    topped: Path, longer: Path, tmp_path: Path, sampling: Json
) -> None:
    """Activations of every window, of lacking features and others, are those of the longer cache."""
    out = Path(shutil.copytree(topped, tmp_path / "run"))
    pipeline.explain({"sampling": sampling}, out=out, until="sample")
    there = Run.open(longer)
    rows = np.concatenate([shard.read() for shard in row_shards(there.rows())])
    place = {
        (int(row["document"]), int(row["position"]) + at): number * CONTEXT + at + 1
        for number, row in enumerate(rows)
        for at in range(int(row["length"]) - 1)
    }
    values = {(feature, token): value for feature, token, value in fired(there)}
    n_silent = n_lacking = 0
    for feature, (_, splits) in sampled(out).items():
        for active, silent in ((s.active, s.silent) for s in splits):  # type: ignore[attr-defined]  # a Shown, Select or Heldout
            for window in (*active, *silent):
                token = place[int(window.document, 16), window.position]
                expected = [values.get((feature, token + at), 0.0) for at in range(len(window.token_ids))]
                assert list(window.activations) == expected
            n_silent += len(silent)
            n_lacking += len(silent) if feature in lacks(Run.open(out)) else 0
    assert n_lacking > 200 and n_silent - n_lacking > 200


def test_lacking_features_count_over_all_rows_and_others_over_the_cache(topped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(topped, tmp_path / "run"))
    run = pipeline.run_line(Run.open(out), until="sample").run
    n_tokens = [
        sum(r["n_tokens"] for r in j.records() if r["key"] == ALL_ROWS)
        for j in (run.rows(), run.top_up_rows())
    ]
    for feature, (record, _) in sampled(out).items():
        assert record["n_tokens"] == (sum(n_tokens) if feature in lacks(run) else n_tokens[0])


# --- which features are asked for ----------------------------------------------------------------------


def test_asking_for_more_features_needs_no_other_top_up(topped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(topped, tmp_path / "run"))
    before = contents(out / "top-up")
    assert pipeline.explain({"features": {"n": 60}}, out=out, until="sample").is_cached_whole()
    assert contents(out / "top-up") == before


def test_where_columns_are_cached_alone_further_ones_are_topped_up_apart(made: Tiny, tmp_path: Path) -> None:
    """Features in two steps, a pass each; what fires is what it is where all are cached."""
    sliceable = Tiny(made.model, tmp_path / "jumprelu", made.corpus)
    shutil.copytree(made.sae, sliceable.sae)
    config = json.loads((sliceable.sae / "cfg.json").read_text())
    del config["k"]
    (sliceable.sae / "cfg.json").write_text(json.dumps(config | {"architecture": "jumprelu"}))
    weights = sliceable.sae / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["threshold"] = np.full(WIDTH, THRESHOLD, np.float32)
    save_numpy(tensors, weights)
    cache = {"n_tokens": 9_000, "top_up": 4_000}

    def asked(out: str, *ids: str, **more: Json) -> Run:
        return cached(sliceable, tmp_path / out, cache | more.get("cache", {}), features={"ids": list(ids)})

    whole = asked("whole", "0-207", cache={"top_up": 0})
    n_rows = slow_rows_fired(whole)
    below = {"top_up_below": int(np.sort(n_rows)[WIDTH // 2])}
    first = lacks(asked("some", "0-2", cache=below))
    others = set(np.flatnonzero(n_rows < below["top_up_below"]).tolist()) - first
    new = [str(max(others)), str(min(others))]
    run = asked("some", "0-2", *new, cache=below)
    everything = asked("all", "0-207", cache=below)
    assert first < lacks(run) < lacks(everything)
    folder = run.top_up(NAME).folder
    assert len(list(folder.glob("columns.*.npy"))) == 2
    assert len(list(folder.glob("0*.safetensors"))) == 2 * len(run.top_up_units())
    known = {int(f) for path in run.cache(NAME).folder.glob("columns.*.npy") for f in np.load(path)}
    assert lacks(run) == lacks(everything) & known
    assert fired(run) == [f for f in fired(everything) if f[0] in known]
    assert not verify(run).faults and verify(run).n_to_make == 0
    asked("some", "1", new[0], cache=below)  # all there
    assert len(list(folder.glob("0*.safetensors"))) == 2 * len(run.top_up_units())
    for path in (*run.cache(NAME).folder.glob("columns.*.npy"), *folder.glob("columns.*.npy")):
        path.write_bytes(path.read_bytes()[:-1])
    repair(run, verify(run), Silent(), Stop())
    assert fired(Run.open(run.path)) == fired(run) and not verify(run).faults


def test_where_nothing_lacks_nothing_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the model loaded."""
    out = Path(shutil.copytree(base, tmp_path / "run"))

    def never(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(caching, "open_source", never)
    run = pipeline.explain({"cache": {"top_up": MORE, "top_up_below": 1}}, out=out, until="sample")
    assert lacks(run) == set(np.flatnonzero(slow_rows_fired(run) == 0)) == set()
    assert run.is_cached_whole() and not run.top_up_rows().units()


# --- on the command line, killed, spoiled, in portions, packed -----------------------------------------


def test_help_and_plan_tell_of_it(base: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["explain", "--help"])
    assert "--top-up" in result.output and "TOKENS" in result.output
    out = Path(shutil.copytree(base, tmp_path / "run"))
    words = ["explain", "--sae", str(Run.open(out).recipe.dictionaries[NAME].path), "--out", str(out)]
    more = CliRunner().invoke(app, [*words, "--dry-run", "--until", "cache", "--top-up", "50000000"])
    assert more.exit_code == 0, more.output
    assert "50,000,000 more for features that fire in fewer than 200 rows" in " ".join(more.output.split())
    # 4 bytes of each token, and 8 of each of two firings at most
    assert "about 1.00 GB" in more.output
    plain = CliRunner().invoke(app, [*words, "--dry-run", "--until", "cache"])
    assert "more for features" not in plain.output and "about 0.00 GB" in plain.output


def test_killed_and_resumed_it_is_the_same(base: Path, topped: Path, below: int, tmp_path: Path) -> None:
    """kill -9 as soon as a further shard has its firings; what is done is not done again."""
    out = Path(shutil.copytree(base, tmp_path / "run"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"cache": {"top_up_below": below}}))
    words = ["explain", "--recipe", str(recipe), "--top-up", str(MORE), "--until", "cache", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "autointerp", *words], stdout=subprocess.DEVNULL)
    while not list(out.glob("top-up/cache/*/0*.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    times = {path: path.stat().st_mtime_ns for path in out.glob("top-up/*/*/0*.safetensors")}
    assert not Run.open(out).is_topped_up(NAME)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert records(out) == records(topped) and not verify(Run.open(out)).faults
    assert fired(Run.open(out)) == fired(Run.open(topped))


@pytest.mark.parametrize("n_saved", [0, 1, 5])
def test_stopped_among_the_rows_it_goes_on(
    base: Path, topped: Path, below: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_saved: int
) -> None:
    """A full disk stands for the kill."""
    out = Path(shutil.copytree(base, tmp_path / "run"))
    left, save = iter(range(n_saved)), row_stage.save_rows

    def full(path: Path, rows: Rows) -> Json:
        if next(left, None) is None:
            raise DiskFull("no room")
        return save(path, rows)

    monkeypatch.setattr(row_stage, "save_rows", full)
    with pytest.raises(DiskFull):
        top_up(out, below)
    monkeypatch.undo()
    assert len(list(out.glob("top-up/rows/0*.npy"))) == n_saved
    source = top_up(out, below)
    assert records(out, "top-up") == records(topped, "top-up") and fired(source) == fired(Run.open(topped))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_what_is_spoiled_is_named_and_made_anew(
    topped: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    out = Path(shutil.copytree(topped, tmp_path / "run"))
    spoiled = [
        sorted(out.glob(pattern))[-1]
        for pattern in ("top-up/rows/0*.npy", "top-up/cache/*/0*.safetensors", "top-up/cache/*/columns.*.npy")
    ]
    for path in spoiled:
        damage(path)
    found = verify(Run.open(out))
    assert {fault.path for fault in found.faults} == set(spoiled)
    repair(Run.open(out), found, Silent(), Stop())
    after = {name: content for name, content in contents(out).items() if not name.startswith("set-aside")}
    assert after == contents(topped)


def test_a_lost_shard_is_a_fault_once_there_are_samples(topped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(topped, tmp_path / "run"))
    last = sorted(out.glob("top-up/cache/*/0*.jsonl"))[-1]
    last.unlink()
    found = verify(Run.open(out))
    assert not found.faults and found.n_to_make == 1
    pipeline.run_line(Run.open(out), until="sample")
    last.unlink()
    assert [fault.path for fault in verify(Run.open(out)).faults] == [last]


def test_portions_are_merged_first(
    rare: Tiny, n_first: int, topped: Path, below: int, tmp_path: Path
) -> None:
    folders = [tmp_path / Portion(index, 2).folder for index in (0, 1)]
    for index, folder in enumerate(folders):
        shard = ALONE | {"shard": f"{index}/2"}
        cached(rare, folder, {"n_tokens": n_first}, resources=shard)
        with pytest.raises(
            RecipeError, match=r"portion of a cache can't be topped up.*0|1/2.*autointerp merge"
        ):
            top_up(folder, below)
    merge(folders, tmp_path / "run")
    run = top_up(tmp_path / "run", below)
    assert fired(run) == fired(Run.open(topped))
    with pytest.raises(RunError, match=r"cache\.top_up: 15000 in the first, 0 in the second"):
        merge(folders, tmp_path / "run")


def test_a_pack_of_it_goes_on_and_merges_back(topped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(topped, tmp_path / "run"))
    pipeline.run_line(Run.open(out), until="sample")
    pack(Run.open(out), tmp_path / "packed", with_requests=False)
    assert not list((tmp_path / "packed").rglob("*.npy"))
    pipeline.run_line(Run.open(tmp_path / "packed"))
    merged = merge([out, tmp_path / "packed"], tmp_path / "both").run
    assert merged.is_cached_whole() and records(tmp_path / "both", "score")
    assert contents(tmp_path / "both" / "top-up") == contents(out / "top-up")


# --- what can't be topped up ---------------------------------------------------------------------------


def test_a_run_that_was_sampled_without_is_told(base: Path, below: int, tmp_path: Path) -> None:
    out = Path(shutil.copytree(base, tmp_path / "run"))
    pipeline.run_line(Run.open(out), until="sample")
    with pytest.raises(RecipeChanged, match=r"cache\.top_up: was None, is now 15000"):
        top_up(out, below)
    shutil.rmtree(out / "sample")
    top_up(out, below, until="sample")
    with pytest.raises(RecipeChanged, match=r"cache\.top_up: was 15000, is now 16000"):
        pipeline.explain({"cache": {"top_up": 16_000}}, out=out, until="cache")


def test_a_corpus_that_has_no_more_is_told_and_the_run_goes_on_without(
    rare: Tiny, below: int, tmp_path: Path
) -> None:
    run = cached(rare, tmp_path / "run", {"n_tokens": 10**6, "shard_tokens": 2**16}, resources={})
    n_tokens = run.rows().read(ALL_ROWS)[ALL_ROWS]["n_tokens"]
    said = f"cache.top_up is 15,000, but the corpus .* ends with the {n_tokens:,} tokens .* --top-up 0"
    with pytest.raises(CorpusError, match=said):
        top_up(tmp_path / "run", 10**6)
    run = pipeline.explain({"cache": {"top_up": 0}}, out=tmp_path / "run", until="cache")
    assert run.is_cached_whole()


def test_stored_activations_top_up_alike(
    rare: Tiny, longer: Path, topped: Path, n_first: int, below: int, tmp_path: Path
) -> None:
    """The vectors of the longer cache's rows, from files: the shards of the run that had the model."""
    (tmp_path / "dump").mkdir()
    for shard in row_shards(Run.open(longer).rows()):
        arrays = dumped(Run.open(longer), rare, shard, batch_tokens=1)
        save_file(arrays, tmp_path / "dump" / f"{shard.unit}.safetensors")
    given = recipe(rare, {"n_tokens": n_first})
    given.pop("corpus")
    given["activations"] = {"path": str(tmp_path / "dump")}
    pipeline.explain(given, out=tmp_path / "run", until="cache")
    run = top_up(tmp_path / "run", below)
    assert fired(run) == fired(Run.open(topped)) and lacks(run) == lacks(Run.open(topped))
    for name in ("top-up/rows", f"top-up/cache/{NAME}"):
        files = [sorted(path.glob("0*.[ns]*")) for path in (run.path / name, topped / name)]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    given["cache"] |= {"n_tokens": 10**6, "top_up": 5}
    with pytest.raises(RecipeError, match=r"cache\.top_up is 5, but the [\d,]+ tokens .* --top-up 0"):
        pipeline.explain(given, out=tmp_path / "other", until="cache")


def test_delphis_cache_is_refused(made: Tiny, tmp_path: Path) -> None:
    tokens = np.arange(3 * CONTEXT).reshape(3, CONTEXT) % 290
    locations = np.array([[0, 1, 2], [1, 3, 4]])
    folder = tmp_path / "latents" / NAME
    delphi_files.write(folder, tokens, locations, np.ones(2), [0, WIDTH])
    given = {
        "activations": {"path": str(tmp_path), "tokenizer": str(made.model)},
        "cache": {"top_up": 100},
        "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
    }
    with pytest.raises(RecipeError, match=r"cache\.top_up is 100, but what fires is in .* of every feature"):
        pipeline.explain(given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["top_up", "top_up_below"])
def test_numbers_that_can_not_be_are_refused(made: Tiny, tmp_path: Path, field: str) -> None:
    with pytest.raises(RecipeError, match=rf"cache\.{field}: at least [01] \(found -1\)"):
        pipeline.prepare(recipe(made, {field: -1}), tmp_path / "run")


def test_both_poles_of_a_signed_dictionary_are_topped_up(rare: Tiny, n_first: int, tmp_path: Path) -> None:
    """Columns, of which there are twice as many as features: those that lack have the firings of a longer cache."""
    shutil.copytree(rare.sae, tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config | {"architecture": "abstopk", "k": 1}))
    signed = Tiny(rare.model, tmp_path / "sae", rare.corpus)
    more: Json = {"n_tokens": n_first, "top_up": 4_000, "top_up_below": 10**6}
    run = cached(signed, tmp_path / "run", more)
    longer = cached(signed, tmp_path / "longer", {"n_tokens": n_first + 4_000})
    columns = lacking(run.top_up(NAME))
    assert columns.max() >= WIDTH
    both = [*firing_shards(run.cache(NAME)), *firing_shards(run.top_up(NAME))]
    counts = FiringStore(both, CONTEXT).counts(2 * WIDTH)
    expected = FiringStore(list(firing_shards(longer.cache(NAME))), CONTEXT).counts(2 * WIDTH)
    np.testing.assert_array_equal(counts[columns], expected[columns])
