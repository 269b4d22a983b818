"""A run as tables with a card, and a run made of them again: nothing is lost, nothing leaves that should not."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from autointerp import comparison, pipeline, trials
from autointerp.cli import app
from autointerp.errors import PublishedError, PublishError, SecretFound
from autointerp.files import write_atomically
from autointerp.floors import Floor, Row, save
from autointerp.journal import Part
from autointerp.metrics import MeanOver
from autointerp.metrics.differences import Difference
from autointerp.prompting import inert
from autointerp.publish import records, rows, shards
from autointerp.publish.folder import build
from autointerp.publish.importing import import_published
from autointerp.publish.local import public
from autointerp.publish.manifest import Manifest, Options, sha256_of
from autointerp.publish.quoting import visible
from autointerp.publish.schema import EXAMPLES, SCORES, explanations
from autointerp.publish.secrets import Guard
from autointerp.publish.stores import HIDDEN
from autointerp.published.delphi_results import NO_EXPLANATION
from autointerp.published.importing import import_delphi
from autointerp.report.markdown import escaped, fenced
from autointerp.report.summary import summarise
from autointerp.rescore import rescore
from autointerp.results import Explanation, Score
from autointerp.run import Run
from autointerp.scored import instances
from autointerp.sequential import Sequential
from autointerp.types import Json, Sample
from here import device_here
from test_published import judged, write
from tiny import Tiny
from viewed import make_viewed_run

SCRIPTED = {"use": "scripted", "function": "judge:answer"}
SHORT: Json = {
    "contrast": "silent",
    "minimum": 800,
    "minimum_full": 1_000,
    "width": 8,
    "context_before": 3,
    "overlap": 8,
}
SECRET = "hf_" + "a1B2" * 9


@pytest.fixture(scope="module")
def run(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two explainers, scorers with and without explanations, features with too few windows, random rates."""
    recipe = made.recipe(
        sampling=SHORT,
        features={"n": 12},
        llms={"explainer": SCRIPTED, "judge": SCRIPTED},
        explainers={"plain": {"use": "plain"}, "terse": {"use": "plain", "max_tokens": 40}},
        scorers={"detection": {"use": "detection"}, "intruder": {"use": "intruder"}},
    )
    recipe["cache"] = {**recipe.get("cache", {}), "random_tokens": 500}
    with device_here():
        return pipeline.explain(recipe, out=tmp_path_factory.mktemp("publish") / "run")


def built(run: Run, folder: Path, **options: Any) -> Manifest:
    return build(run, folder, Options(**options), to="org/name", licence="unknown").manifest


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    built(run, folder)
    return folder


def copy_of(run: Run, path: Path) -> Run:
    shutil.copytree(run.path, path)
    return Run.open(path)


def all_records(run: Run) -> dict[str, list[Json]]:
    """Every record that a reader of results looks at, by journal."""
    folders = {
        path.parent.relative_to(run.path)
        for stage in ("sample", "directions", "intervene", "explain", "score", "control")
        for path in (run.path / stage).rglob("*.jsonl")
    }
    return {str(place): list(run.existing(*place.parts).records()) for place in folders}


def shown(run: Run, feature: str) -> str:
    done = CliRunner().invoke(app, ["show", str(run.path), feature])
    assert done.exit_code == 0, done.output
    return done.output


# --- there and back ------------------------------------------------------------------------------------


def test_a_run_made_of_its_dataset_has_the_same_records_numbers_and_windows(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    again = import_published(folder, tmp_path / "again").run
    before, after = all_records(run), all_records(again)
    assert before.keys() == after.keys()
    for place, expected in before.items():
        assert after[place] == expected, place
    statuses = {record["status"] for record in before["sample/layers.1"]}
    assert statuses == {"full", "small", "too_few"}
    assert run.scores().equals(again.scores()) and run.scores().num_rows > 20
    assert run.trials().equals(again.trials())
    assert run.features().equals(again.features())
    assert all(not one.changes and one.n_records for one in rescore(again))
    pairs = [one for one in comparison.compare(run, again) if one.first.scorer == "detection"]
    assert [one.how for one in pairs] == ["paired", "paired"]
    assert [one.difference.value for one in pairs if one.difference] == [0, 0]
    scored = after["score/layers.1/plain/detection"][0]["key"]
    dead = next(r["key"] for r in before["sample/layers.1"] if r["status"] not in ("full", "small"))
    for feature in (scored, dead):
        assert shown(run, feature) == shown(again, feature)


def test_status_of_the_imported_run_says_the_same(run: Run, folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["import", str(folder), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    said = [runner.invoke(app, ["status", str(path)]).output for path in (run.path, tmp_path / "again")]
    tables = [text[: text.index("Run: ")] for text in said]
    assert tables[0] == tables[1] and "enough windows" in tables[0]


def slow_adjusted(p_values: list[float]) -> list[float]:
    """Benjamini and Hochberg by their definition: a claim holds at a level where some rank k at or above its own
    has p(k) <= k / m * level."""
    m, by_size = len(p_values), sorted(p_values)
    return [min(1, *(at * m / k for k, at in enumerate(by_size, 1) if at >= p)) for p in p_values]


def test_published_p_values_are_adjusted_among_their_dictionary_explainer_and_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over five files, as `Run.scores()` has them; what is scored since changes every file of scores."""
    monkeypatch.setattr("autointerp.publish.folder.span_of", lambda run, name, kept: 256)
    mine = make_viewed_run(tmp_path / "run", 10)
    before = built(mine, tmp_path / "set").files
    names = [name for name in before if "scores" in name]
    assert len(names) == 5
    found = [row for name in names for row in pq.read_table(tmp_path / "set" / name).to_pylist()]
    assert len({row["p_adjusted"] for row in found}) > 5
    for pair in {(row["explainer"], row["scorer"]) for row in found}:
        alike = [row for row in found if (row["explainer"], row["scorer"]) == pair]
        claims = [row for row in alike if row["status"] == "ok"]
        assert all(row["p_adjusted"] is None for row in alike if row["status"] != "ok")
        expected = slow_adjusted([row["p_value"] for row in claims])
        assert [row["p_adjusted"] for row in claims] == pytest.approx(expected)

    def claims_of(told: list[Json]) -> dict[tuple[str, ...], float | None]:
        return {(one["feature"], one["explainer"] or "_", one["scorer"]): one["p_adjusted"] for one in told}

    again = import_published(tmp_path / "set", tmp_path / "again").run
    for run in (mine, again):
        assert claims_of(run.scores().to_pylist()) == claims_of(found)
    # As if the first two features had been scored later: of the others nothing else changes.
    (part, *_) = sorted((mine.path / "score/bench/plain/detection").glob("*.jsonl"))
    part.unlink()
    after = built(mine, tmp_path / "set").files
    assert not [name for name in names if before[name].sha256 == after[name].sha256]
    others = {name for name in before if "scores" not in name and before[name] != after[name]}
    assert {Path(name).stem.split("-")[1] for name in others if "data" in name} == {"000000000"}


def test_a_set_of_schema_1_has_no_adjusted_p_values_and_is_imported_the_same(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    old = tmp_path / "set"
    shutil.copytree(folder, old)
    (path,) = old.rglob("scores-*.parquet")
    pq.write_table(pq.read_table(path).drop_columns("p_adjusted"), path)
    manifest = orjson.loads((old / "manifest.json").read_bytes())
    assert manifest["schema"] == 2
    name = path.relative_to(old).as_posix()
    manifest["files"][name] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_atomically(old / "manifest.json", orjson.dumps(manifest))
    with pytest.raises(PublishedError, match="other columns"):
        import_published(old, tmp_path / "again")
    write_atomically(old / "manifest.json", orjson.dumps(manifest | {"schema": 1}))
    again = import_published(old, tmp_path / "again").run
    assert run.scores().equals(again.scores())
    assert any(one is not None for one in again.scores()["p_adjusted"].to_pylist())


INTERVALS = st.none() | st.sampled_from(
    [{"value": 0.1, "low": 0.0, "high": 1 / 3}, {"value": 1.0, "low": 0.5, "high": 1.0}]
)
NAMES = st.sampled_from(["f1", "auroc", "accuracy", "neighbour"])
GROUP = st.fixed_dictionaries(
    {"value": INTERVALS, "n": st.integers(0, 99), "n_unreadable": st.integers(0, 9)}
)
METRICS = st.none() | st.fixed_dictionaries(
    {
        "headline": NAMES,
        "values": st.dictionaries(NAMES, INTERVALS),
        "groups": st.dictionaries(st.sampled_from(["band", "stratum"]), st.dictionaries(NAMES, GROUP)),
        **dict.fromkeys(("n", "n_positive", "n_negative", "n_unreadable"), st.integers(0, 99)),
        "bounds": st.none() | st.lists(st.floats(0, 1), min_size=2, max_size=2),
        "chance": st.none() | st.floats(0, 1),
        "p_value": st.none() | st.floats(0, 1),
        "flags": st.lists(st.just("unreliable")),
    }
)
TRIALS: list[trials.AnyTrials] = [
    trials.Trials(
        [0, 3], [True, False], [None, True], [0.25, None], [4, None], [None, "random"], [[1, 2], []],
        [3, None], ["ab", "cd"], [1.5, 0.0], [8, 8],
    ),
    trials.InBlocks(
        [0, 3], [True, False], [None, True], [0.25, None], [4, None], [None, "random"], [[1, 2], []],
        [3, None], ["ab", "cd"], [1.5, 0.0], [8, 8], [0, None], Sequential((2, 4), panel=0.5), True,
    ),
    trials.Ranked([1], [True], [None], [0], [None], ["ab"], [2.0], [7]),
    trials.Choices([2], [None], [5], [9], [["ab", "cd"]]),
    trials.Predictions([[0.5, None]], [[0.0, 3.25]], [1], [None], ["ab"]),
    trials.Responses(["said\0 \u202e"], [0.1], [None], [0.25]),
    trials.Differences(["feature"], [0], ["ab"], [0.33], [None], [-1.5], [None], [4]),
    trials.Trials(),
]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.sampled_from(TRIALS), METRICS, st.sampled_from(["plain", "_"]), st.text("aé\0\u202e😀", max_size=9))
def test_a_score_of_any_kind_of_trials_comes_back_from_its_row(
    of_score: trials.AnyTrials, metrics: Json | None, explainer: str, text: str
) -> None:
    facts = {"density": 0.1, "prevalence": None, "mass": [0.75, 0.25]}
    record: Json = dict.fromkeys((f.name for f in dataclasses.fields(Score) if f.name != "feature"), text)
    record |= {"explainer": explainer, "facts": facts, "metrics": metrics, "trials": trials.record(of_score)}
    made = rows.score_row("layers.1/3", record)
    (row,) = pa.RecordBatch.from_pylist([made], SCORES).to_pylist()
    assert records.score(row) == orjson.loads(orjson.dumps(record))


def test_every_field_of_a_record_has_its_place() -> None:
    """A field that somebody adds, and that no column holds, would be lost without a word."""
    told: Json = {"trials": {}, "mass_by_band": [], "sequential": '{"stopping": {}}'}
    (score,) = pa.RecordBatch.from_pylist([told], SCORES).to_pylist()
    assert {f.name for f in dataclasses.fields(Score)} - {"feature"} == records.score(score).keys()
    row = dict.fromkeys(explanations([]).names)
    lists = ("prompts", "histogram_from", "histogram_counts", "top_token_ids", "top_token_counts")
    row |= {name: [] for name in (*lists, "refused_by", "neighbours")}
    row |= {"explainer": "plain", "details": "{}", "silent_known": 3}
    explanation = records.explanation(row)
    assert explanation is not None
    assert {f.name for f in dataclasses.fields(Explanation)} - {"feature"} == explanation.keys()
    assert {f.name for f in dataclasses.fields(Sample)} - {"feature"} == records.sample(row, None).keys()


def test_what_others_published_is_published_on_and_the_card_says_what_is_not_known(tmp_path: Path) -> None:
    scores = {"detection": {3: judged(8, 1), 70: judged(6, 4)}, "fuzz": {3: judged(10, 0)}}
    results = write(tmp_path / "results", scores, {3: "words", 70: "numbers", 71: NO_EXPLANATION})
    theirs = import_delphi(results, tmp_path / "run").run
    built(theirs, tmp_path / "set")
    again = import_published(tmp_path / "set", tmp_path / "again").run
    for table in (Run.features, Run.scores, Run.trials):
        assert table(theirs).equals(table(again)) and table(again).num_rows
    said = (tmp_path / "set/README.md").read_text()
    assert "how windows were drawn" in said and "tokens asked for" not in said and "weights `" not in said


def test_controls_stand_in_the_card_and_come_back(run: Run, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    built(mine, tmp_path / "set")
    assert "None were run" in (tmp_path / "set/README.md").read_text()
    above = Difference(0.15, 0.1, 0.2, 0.7, 0.55, (5, 5), 0.01)
    floors = [
        Floor("random dictionary", MeanOver(0.55, 0.5, 0.6, 5), 6, above),
        Floor("random model", None, 6, None),
    ]
    with device_here():
        mine = pipeline.explain({"controls": {"panel": 4, "kinds": ["shuffled"]}}, out=mine.path)
    real = MeanOver(0.7, 0.65, 0.75, 5)
    made = [Row(one, "balanced_accuracy", real, 6, floors) for one in instances(mine)]
    save(mine, made)
    built(mine, tmp_path / "set")
    said = (tmp_path / "set/README.md").read_text()
    row = (
        "random dictionary | 5 | 0.550 [0.500, 0.600] | 0.700 [0.650, 0.750] | 0.150 [0.100, 0.200] | 0.01 |"
    )
    assert f"| plain · detection on layers.1 | {row}" in said
    assert "| plain · detection on layers.1 | random model | 0 | – | 0.700 [0.650, 0.750] | – | – |" in said
    (shuffled,) = (
        one
        for one in summarise(mine, "layers.1").controls
        if (one.explainer, one.scorer) == ("plain", "detection")
    )
    assert f"| shuffled explanation | {shuffled.control.n} | {shuffled.control.value:.3f} [" in said
    again = import_published(tmp_path / "set", tmp_path / "again").run
    assert (again.path / "controls.json").read_bytes() == (mine.path / "controls.json").read_bytes()


# --- what of it leaves -----------------------------------------------------------------------------------


def test_without_examples_trials_are_kept_and_windows_stand_for_themselves(run: Run, tmp_path: Path) -> None:
    manifest = built(run, tmp_path / "set", examples=False)
    assert not [name for name in manifest.files if "examples" in name]
    assert not list((tmp_path / "set").rglob("examples*"))
    found = import_published(tmp_path / "set", tmp_path / "again")
    assert run.trials().equals(found.run.trials())
    said = shown(
        found.run, next(iter(run.existing("score", "layers.1", "plain", "detection").records()))["key"]
    )
    assert HIDDEN in said and "no windows were published" in found.notes[0]


@pytest.mark.parametrize("is_whole", [True, False])
def test_tables_that_are_no_longer_published_leave_the_folder_and_others_files_stay(
    run: Run, tmp_path: Path, is_whole: bool
) -> None:
    """Also where the build before was killed and left no manifest, and a file half written."""
    folder = tmp_path / "set"
    built(run, folder)
    (quoting,) = folder.rglob("examples-*.parquet")
    (quoting.parent / ".examples-000000000.parquet.123.tmp").write_bytes(b"text")
    pq.write_table(pa.table({"theirs": [1]}), quoting.parent / "more.parquet")
    if not is_whole:
        (folder / "manifest.json").unlink()
    manifest = built(run, folder, examples=False)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet*")}
    assert left == {name for name in manifest.files if "parquet" in name} | {"data/layers.1/more.parquet"}
    assert not [name for name in left if "examples" in name]


def test_a_table_that_the_hub_has_leaves_no_other_one_in_the_folder(run: Run, tmp_path: Path) -> None:
    """The text in full of an earlier build, where a cut one is named by the manifest and lies on the hub."""
    cut = built(run, tmp_path / "cut", max_quote=5)
    built(run, tmp_path / "set")
    build(
        run,
        tmp_path / "set",
        Options(max_quote=5),
        to="org/name",
        licence="unknown",
        there=lambda name, made_from: cut.files[name] if cut.files[name].made_from == made_from else None,
    )
    assert not list((tmp_path / "set").rglob("examples-*.parquet"))


@given(
    st.lists(st.tuples(st.text("ab ", max_size=5), st.sampled_from([0.0, 1.0, 2.0])), max_size=12),
    st.none() | st.integers(0, 30),
)
def test_a_quote_is_one_piece_around_the_strongest_token_and_as_long_as_may_be(
    tokens: list[tuple[str, float]], most: int | None
) -> None:
    texts, activations = [text for text, _ in tokens], [value for _, value in tokens]
    seen = visible(texts, activations, most)
    n_quoted = sum(map(len, texts[seen]))
    if most is None:
        assert texts[seen] == texts
        return
    assert n_quoted <= most
    if not texts:
        return
    strongest = activations.index(max(activations)) if max(activations) > 0 else len(texts) // 2
    if len(texts[strongest]) > most:
        assert seen == slice(0, 0)
        return
    assert seen.start <= strongest < seen.stop
    neighbours = texts[max(seen.start - 1, 0) : seen.start] + texts[seen.stop : seen.stop + 1]
    assert all(len(text) > most - n_quoted for text in neighbours)


def test_a_cut_window_keeps_its_places_and_activations(run: Run, folder: Path, tmp_path: Path) -> None:
    built(run, tmp_path / "set", max_quote=10)
    name = "data/layers.1/examples-000000000.parquet"
    whole, cut = (pq.read_table(where / name).to_pylist() for where in (folder, tmp_path / "set"))
    assert len(whole) == len(cut) > 100
    for before, after in zip(whole, cut, strict=True):
        assert after["activations"] == before["activations"]
        kept = [text for text in after["tokens"] if text is not None]
        assert len("".join(kept)) <= 10
        pairs = zip(before["tokens"], after["tokens"], after["token_ids"], strict=True)
        assert all(new in (None, old) and (new is None) == (token is None) for old, new, token in pairs)
    assert any(None in row["tokens"] for row in cut)
    found = import_published(tmp_path / "set", tmp_path / "again")
    assert run.trials().equals(found.run.trials()) and "cut to 10 characters" in found.notes[0]


def said_by(run: Run, text: str) -> Run:
    """A copy of a run in which the first explanation says something else."""
    part = next((run.path / "explain" / "layers.1" / "plain").glob("*.jsonl"))
    header, first, *others = part.read_bytes().splitlines()
    record = orjson.loads(first) | {"text": text, "status": "ok"}
    part.write_bytes(b"\n".join([header, orjson.dumps(record), *others, b""]))
    return run


def test_a_secret_is_named_with_its_place_and_the_file_is_not_made(run: Run, tmp_path: Path) -> None:
    leaky = said_by(copy_of(run, tmp_path / "run"), f"fires on {SECRET} and the like")
    with pytest.raises(SecretFound) as raised:
        built(leaky, tmp_path / "set")
    said = str(raised.value)
    assert "data/layers.1/explanations-000000000.parquet, layers.1/" in said and "by plain" in said
    assert "Hugging Face token" in said and SECRET not in said
    assert (
        not list((tmp_path / "set").rglob("explanations*")) and not (tmp_path / "set/manifest.json").exists()
    )


def test_a_secret_of_the_environment_is_found_whatever_its_form(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_SERVER_PASSWORD", "correct horse battery")
    leaky = said_by(copy_of(run, tmp_path / "run"), "says correct horse battery staple")
    with pytest.raises(SecretFound, match=r"the value of \$OUR_SERVER_PASSWORD"):
        built(leaky, tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("sk-proj-" + "Ab1_" * 12, "OpenAI key"),
        ("sk-ant-api03-" + "Ab1_" * 12, "Anthropic key"),
        ("AKIA" + "QWERTYUIOP123456", "AWS key id"),
        ("ghp_" + "a1" * 18, "GitHub token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ("postgres://bob:hunter2hunter2@db.example.org/x", "password in an address"),
        ("sk-learn-is-a-library-that-many-people-like-to-use", None),
        ("https://example.org:8000/a@b.c and AKIA is a word", None),
        ("the token gh in weight, 000hf_ and xox", None),
    ],
)
def test_forms_of_secrets(text: str, kind: str | None) -> None:
    guard = Guard(values={})
    assert guard.look(f"before {text} after", "file", "record") == (kind is None)
    assert [kind in one for one in guard.found] == ([] if kind is None else [True])


def test_looking_takes_a_time_that_grows_as_the_text_does() -> None:
    """Each of these would take hours if every place of it were read to the end."""
    guard = Guard(values={})
    for piece in ("sk-", "://a:", "-----BEGIN A ", "gh", "xoxb-", "github_pat_", "hf_"):
        is_key = piece in ("xoxb-", "github_pat_")  # by its form
        assert guard.look(piece * 100_000, "file", "record") != is_key, piece


def test_nothing_names_a_place_of_this_machine(run: Run, folder: Path) -> None:
    texts = [p.read_bytes() for p in folder.rglob("*") if p.suffix in (".md", ".json", ".yaml")]
    place = str(run.path.parent.parent).encode()
    assert b"tiny" in run.path.joinpath("recipe.yaml").read_bytes()
    assert not [text for text in texts if place in text]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/data/models/llama@main", "llama@main"),
        ("~/ckpt/", "ckpt"),
        ("./sae", "sae"),
        ("C:\\sae\\one", "one"),
        ("org/name", "org/name"),
        ("gpt2@1", "gpt2@1"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("/\n/", "/\n/"),
    ],
)
def test_paths_lose_what_lies_before_their_last_part(text: str, said: str) -> None:
    assert public(text) == said


# --- going on --------------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again_and_what_changed_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = copy_of(run, tmp_path / "run")
    made: list[str] = []
    write = shards.write_shard

    def counted(path: Path, *rest: Any) -> bool:
        made.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr("autointerp.publish.folder.write_shard", counted)
    first = built(mine, tmp_path / "set")
    assert len(made) == 3
    card = (tmp_path / "set/README.md").read_bytes()
    made.clear()
    assert built(mine, tmp_path / "set") == first and not made
    assert (tmp_path / "set/README.md").read_bytes() == card
    said_by(mine, "something else")
    second = built(mine, tmp_path / "set")
    assert len(made) == 3
    changed = [name for name, file in second.files.items() if file.sha256 != first.files[name].sha256]
    assert "data/layers.1/explanations-000000000.parquet" in changed


def test_processes_make_the_same_set_and_tell_what_they_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four features in two files of each table; each process looks for secrets, and the two finds come together."""
    mine = make_viewed_run(tmp_path / "run", 4)
    monkeypatch.setattr(
        "autointerp.publish.folder.span_of",
        lambda run, name, kept: shards.span_of(run, name, kept, per_file=1),
    )
    one, two = (
        build(mine, tmp_path / str(jobs), Options(), to="org/name", licence="unknown", jobs=jobs)
        for jobs in (1, 2)
    )
    assert one.n_made == two.n_made == 6
    assert one.manifest == two.manifest and len(one.manifest.files) > 6
    for name in (*one.manifest.files, "README.md"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    units = mine.existing("explain", "bench", "plain").units()
    said = [
        next(iter(mine.existing("explain", "bench", "plain").read(unit).values()))["text"] for unit in units
    ]
    for number, text in enumerate(said):
        monkeypatch.setenv(f"NUMBER_{number}_TOKEN", text)
    with pytest.raises(SecretFound, match=r"(?s)value of \$NUMBER_0_TOKEN.*value of \$NUMBER_1_TOKEN"):
        build(mine, tmp_path / "3", Options(), to="org/name", licence="unknown", jobs=2)


def test_an_unfinished_run_is_published_as_far_as_it_is(run: Run, tmp_path: Path) -> None:
    part_done = copy_of(run, tmp_path / "run")
    shutil.rmtree(part_done.path / "score" / "layers.1" / "terse")
    built(part_done, tmp_path / "set")
    card = (tmp_path / "set/README.md").read_text()
    assert "Not finished" in card and "not done yet" in card
    again = import_published(tmp_path / "set", tmp_path / "again").run
    assert part_done.scores().equals(again.scores())
    assert {row["explainer"] for row in again.scores().to_pylist()} == {"plain", "_"}


def test_a_run_without_samples_is_refused(run: Run, tmp_path: Path) -> None:
    empty = copy_of(run, tmp_path / "run")
    shutil.rmtree(empty.path / "sample")
    with pytest.raises(PublishError, match="nothing to publish"):
        built(empty, tmp_path / "set")


@pytest.mark.parametrize("n_asked", [1, 40, 2_000, 16_000])
def test_files_hold_ranges_of_a_power_of_two_units_and_some_features_each(
    n_asked: int,
) -> None:
    """Of 16,384 features in 64 units, 100 a file: the span doubles while it holds at most 100 of those asked for."""

    units = [f"{at * 256:09d}" for at in range(64)]
    journal = SimpleNamespace(units=lambda: units)
    fake: Any = SimpleNamespace(
        identities=SimpleNamespace(widths={"d": 16_384}),
        asked=lambda dictionary: range(n_asked),
        existing=lambda *place: journal,
    )
    found = shards.shards(fake, "d", shards.span_of(fake, "d", None, per_file=100))
    sizes = {len(shard.units) for shard in found}
    assert sizes == {{1: 64, 40: 64, 2_000: 2, 16_000: 1}[n_asked]}
    assert [unit for shard in found for unit in shard.units] == units


@pytest.mark.parametrize(
    ("n_asked", "span"),
    [(5_000, 4_096), (10_000, 4_096), (16_384, 4_096), (100, 4_096), (32_768, 4_096), (32_769, 512)],
)
def test_files_of_a_run_that_grows_keep_their_ranges_until_they_would_be_too_large(
    n_asked: int, span: int
) -> None:
    """Of 16,384 features 5,000 are asked for first: 4,096 features a file hold 1,250 of them. With two poles there
    may be 32,768 and more, of which 4,096 in width hold 8,192, the most; beyond, files are of 2,048 again."""
    fake: Any = SimpleNamespace(
        identities=SimpleNamespace(widths={"d": 16_384}), asked=lambda dictionary: range(n_asked)
    )
    assert shards.span_of(fake, "d", 4_096) == span


def test_a_run_that_grew_writes_files_of_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two features a file at most the four features would need smaller files than the first two had."""
    mine = make_viewed_run(tmp_path / "run", 4)
    monkeypatch.setattr("autointerp.publish.folder.span_of", lambda run, name, kept: kept or 512)
    first = built(mine, tmp_path / "set")
    monkeypatch.setattr("autointerp.publish.folder.span_of", lambda run, name, kept: kept or 256)
    assert first.spans == {"bench": 512} and built(mine, tmp_path / "again").files == first.files
    imported = import_published(tmp_path / "set", tmp_path / "imported").run
    assert built(imported, tmp_path / "third").spans == {"bench": 512}


def test_the_card_of_an_imported_run_says_when_it_was_written_not_imported(run: Run, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    parts = [path for stage in ("explain", "score") for path in (mine.path / stage).rglob("*.jsonl")]
    days = [datetime(2024, 3, 4, tzinfo=UTC), datetime(2024, 3, 9, tzinfo=UTC)]
    for number, path in enumerate(parts):
        os.utime(path, (days[number % 2].timestamp(),) * 2)
    assert built(mine, tmp_path / "set").written == ("2024-03-04", "2024-03-09")
    imported = import_published(tmp_path / "set", tmp_path / "again").run
    built(imported, tmp_path / "more")
    assert "Written from 2024-03-04 to 2024-03-09 (UTC)" in (tmp_path / "more/README.md").read_text()
    # What is added to it is of its own day.
    later = datetime.now(UTC) + timedelta(days=2)
    new = next((imported.path / "explain").rglob("*.jsonl"))
    os.utime(new, (later.timestamp(),) * 2)
    assert built(imported, tmp_path / "more").written == ("2024-03-04", later.strftime("%Y-%m-%d"))


def test_a_row_group_ends_at_its_rows_or_at_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows of 1,024 bytes and 4 a letter of text, at most 10,000 bytes and 5 rows a group."""
    monkeypatch.setattr(shards, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 5)
    n_letters = [0, 0, 0, 0, 0, 0, 3_000, 0, 1_300, 1_300, 0]
    made = [
        rows.Row(str(at), {"feature": "d/1", "number": at, "tokens": ["x" * n]}, "x" * n)
        for at, n in enumerate(n_letters)
    ]
    path = tmp_path / "shard.parquet"
    assert shards.write_shard(path, "examples", EXAMPLES, iter(made), "digest", Guard(values={}), "name")
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
    assert sizes == [5, 2, 3, 1]
    assert [row["number"] for row in file.read().to_pylist()] == list(range(11))
    assert shards.made_from_of(path) == "digest"


# --- from outside ------------------------------------------------------------------------------------------


def spoil_bytes(folder: Path) -> None:
    path = next(folder.rglob("scores-*.parquet"))
    path.write_bytes(path.read_bytes()[:-5] + b"12345")


def spoil_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 2', b'"schema": 99'))


def escape(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"run/recipe.yaml"', b'"../recipe.yaml"'))


def lose(folder: Path) -> None:
    next(folder.rglob("examples-*.parquet")).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_bytes, "its content differs"),
        (spoil_manifest, "schema 99"),
        (escape, "outside"),
        (lose, "is missing"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_and_nothing_is_left(
    folder: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    shutil.copytree(folder, tmp_path / "set")
    spoil(tmp_path / "set")
    with pytest.raises(PublishedError, match=said):
        import_published(tmp_path / "set", tmp_path / "again")
    assert not list(tmp_path.glob("*again*"))


# --- hostile text --------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>", "</details><img src=x onerror=alert(1)>", "a|b|c", "`x` ``y``", "[a](javascript:b)",
    "https://evil.example www.evil.example @somebody", "\u202eright to left\u202c", "\u200bzero\u200dwidth",
    "NUL\0NUL", "<!-- comment", "\x1b[31mred",
    "line\nbreak\r\n# heading\n- item", "```\nfence", "$x$ \\(y\\)", "{{ 7 * 7 }} {% raw %}", "---\nyaml: true\n---",
    "\ud800".encode("utf-8", "replace").decode(), "é" * 50_000, "x" * 1_000_000,
]  # fmt: skip


def hostile_texts() -> Iterator[str]:
    """1,000 of them."""
    for number in range(1_000):
        yield f"{HOSTILE[number % len(HOSTILE)] if number < 40 or number % 19 not in (15, 16) else '#'}{number}"


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@settings(max_examples=300)
@given(
    st.sampled_from([text[:400] for text in HOSTILE])
    | st.text("|\\`*_<>[]()!#+-=.1&;:@~$\n\t w/é\u202e\0", max_size=40)
)
def test_text_in_a_cell_of_the_card_is_read_as_it_stands_and_does_nothing(text: str) -> None:
    tokens = MARKDOWN.parse(f"| a | b |\n|---|---|\n| x | {escaped(text)} |\n")
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content for cell in cells[:3]] == ["a", "b", "x"] and len(cells) == 4
    pieces = cells[3].children or []
    assert {piece.type for piece in pieces} <= {"text", "text_special"}
    assert "".join(piece.content for piece in pieces) == inert(text).replace("\t", " ").strip()
    # What the hub makes of text beyond that: links of addresses, mentions.
    assert "://" not in escaped(text) and "www." not in escaped(text) and "@" not in escaped(text)


@given(st.text("`~\n a", max_size=30))
def test_a_block_of_code_ends_where_its_text_does(text: str) -> None:
    tokens = MARKDOWN.parse(fenced(text, "jinja") + "\n\nbehind")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content.rstrip() == text.rstrip()


def test_hostile_text_comes_back_as_it_is_and_does_nothing_in_the_card(run: Run, tmp_path: Path) -> None:
    hostile = copy_of(run, tmp_path / "run")
    journal = hostile.explain("layers.1", "plain")
    samples = list(hostile.existing("sample", "layers.1").records())
    template = next(iter(hostile.existing("explain", "layers.1", "plain").records()))
    shutil.rmtree(journal.folder)
    texts = list(hostile_texts())
    dead = next(record for record in samples if record["status"] not in ("full", "small"))
    widths = {"layers.1": 2_000}
    hostile = dataclasses.replace(hostile, identities=dataclasses.replace(hostile.identities, widths=widths))
    with (
        Part(hostile.existing("sample", "layers.1"), "000000000") as sampled,
        Part(journal, "000000000") as said,
    ):
        sampled.attach(".parquet", lambda path: {"bytes": 0, "checksum": path.write_bytes(b"") and ""})
        for number, text in enumerate(texts):
            key = f"layers.1/{1_000 + number}"
            sampled.append(key, {name: value for name, value in dead.items() if name != "key"})
            said.append(key, template | {"key": key, "text": text, "label": text[:9], "status": "ok"})
    built(hostile, tmp_path / "set")
    found = pq.read_table(tmp_path / "set/data/layers.1/explanations-000000000.parquet").to_pylist()
    assert [row["explanation"] for row in found if row["index"] >= 1_000] == texts
    body = (tmp_path / "set/README.md").read_text().split("\n---\n", 1)[1]
    drawn = body[body.index("## What it says") : body.index("## How far it got")]
    assert "<" not in drawn.replace("&lt;", "") and "](" not in drawn
    assert "49" not in [cell.strip() for line in drawn.splitlines() for cell in line.split("|")]
