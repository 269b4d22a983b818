"""What is published beside explanations and scores: controls, what pushing features does, what it all took."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import PublishedError, SecretFound
from autointerp.publish.importing import import_published
from autointerp.publish.manifest import read_manifest, sha256_of
from autointerp.rescore import rescore
from autointerp.run import Run
from autointerp.stages.spent import spent, spent_in_all
from autointerp.view.folder import write_folder
from here import device_here
from test_publish import SCRIPTED, SHORT, all_records, built, copy_of, shown
from test_published import judged, write
from tiny import Tiny

PUSHED = {"n_shown": 5, "n_select": 5, "n_heldout": 6, "targets": [0.33, 1.0], "shortest": 2, "always": True}


@pytest.fixture(scope="module")
def run(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Pushed and ablated features, two kinds of controls, requests that are counted."""
    recipe = made.recipe(
        sampling=SHORT | {"minimum": 100, "minimum_full": 200},
        features={"n": 6},
        llms={"explainer": SCRIPTED, "judge": SCRIPTED},
        scorers={"detection": {"use": "detection"}},
        intervention=PUSHED | {"ablate": True},
        controls={"panel": 4},
    )
    with device_here():
        return pipeline.explain(recipe, out=tmp_path_factory.mktemp("beside") / "run")


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    built(run, folder)
    return folder


@pytest.fixture(scope="module")
def again(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return import_published(folder, tmp_path_factory.mktemp("imported") / "again").run


def test_control_and_effect_records_come_back_as_they_were(run: Run, again: Run) -> None:
    before, after = all_records(run), all_records(again)
    assert before == after
    kinds = {place.split("/")[2] for place in before if place.startswith("control/")}
    assert kinds == {"shuffled", "top_tokens", "lexical"}
    pushed = [record for record in before["intervene/layers.1"] if record["status"] == "ok"]
    assert (
        pushed and pushed[0]["ablated"] and len(pushed[0]["heldout"]["steered"]) == 6
    )  # 3 arms, 2 strengths


def test_status_show_view_and_rescore_say_the_same_of_the_imported_run(
    run: Run, again: Run, tmp_path: Path
) -> None:
    said = [CliRunner().invoke(app, ["status", str(one.path)]).output for one in (run, again)]
    assert said[0].replace(str(run.path), "") == said[1].replace(str(again.path), "")
    assert "shuffled explanation" in said[1] and "LLM requests" in said[1]
    feature = again.controls().to_pylist()[0]["feature"]
    assert shown(run, feature) == shown(again, feature)
    rescored = rescore(again)
    assert all(not one.changes for one in rescored)
    assert {one.place.parts[0] for one in rescored} == {"score", "control"}
    write_folder(again, tmp_path / "view")  # reads the effects' windows


def test_controls_are_a_table_of_the_panel(run: Run, again: Run) -> None:
    table = run.controls()
    assert table.equals(again.controls())
    rows = table.to_pylist()
    records = {place: all_records(run)[place] for place in all_records(run) if place.startswith("control/")}
    assert len(rows) == sum(map(len, records.values())) > 8
    for row in rows:
        place = f"{row['control']}/{row['explainer']}" if row["lender"] else row["control"]
        (record,) = [
            one
            for one in records[f"control/layers.1/{place}/detection"]
            if one["key"].partition("<")[0] == row["feature"]
        ]
        assert row["value"] == record["metrics"]["values"][row["headline"]]["value"]
        assert (row["lender"] is None) == (row["text"] is not None)
        assert row["lender"] != row["feature"]


def test_show_names_the_controls_of_a_feature_on_the_panel_alone(run: Run) -> None:
    rows = run.controls().to_pylist()
    on_panel = rows[0]["feature"]
    text = shown(run, on_panel)
    lent = next(row for row in rows if row["feature"] == on_panel and row["lender"])
    assert f"shuffled explanation by plain · detection  balanced accuracy {lent['value']:.3f} [" in text
    assert f"that of {lent['lender']}" in text and "top-token list · detection" in text
    others = {row["feature"] for row in run.scores().to_pylist()} - {row["feature"] for row in rows}
    assert others and "Controls" not in shown(run, min(others))


def test_the_table_of_effects_reads_as_text(run: Run, folder: Path) -> None:
    (path,) = folder.rglob("effects-*.parquet")
    rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == "heldout"]
    assert rows
    windows = pq.read_table(next(folder.rglob("examples-*.parquet"))).to_pylist()
    for row in rows:
        active = [
            one
            for one in windows
            if (one["feature"], one["split"]) == (row["feature"], "heldout") and one["band"] is not None
        ]
        for prompt, window, begin, end in zip(
            row["prompts"], row["windows"], row["begins"], row["ends"], strict=True
        ):
            assert prompt == "".join(active[window]["tokens"][begin:end])
        for one in row["steered"]:
            assert len(one["texts"]) == len(one["text_ids"]) and one["arm"] in ("feature", "random", "other")
            assert len(one["raised"]) == len(one["raised_effects"]) == 10


def test_without_examples_no_effects_leave_and_cut_ones_lose_their_prompts(run: Run, tmp_path: Path) -> None:
    manifest = built(run, tmp_path / "none", examples=False)
    assert not [name for name in manifest.files if "effects" in name or "examples" in name]
    assert import_published(tmp_path / "none", tmp_path / "again").run.controls().equals(run.controls())
    built(run, tmp_path / "cut", max_quote=5)
    rows = pq.read_table(next((tmp_path / "cut").rglob("effects-*.parquet"))).to_pylist()
    assert rows and all(row["prompts"] is None for row in rows)
    cut = import_published(tmp_path / "cut", tmp_path / "short").run
    assert all_records(cut)["intervene/layers.1"] == all_records(run)["intervene/layers.1"]


def test_what_is_hidden_is_not_looked_through(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret in a prompt stops a set that quotes it, and none that does not."""
    rows = pq.read_table(next(folder.rglob("effects-*.parquet"))).to_pylist()
    said = {text for row in rows if row["clean"] for text in row["clean"]}
    prompt = next(
        text for row in rows for text in row["prompts"] or () if len(text) > 12 and not {text.strip()} & said
    )
    monkeypatch.setenv("OUR_TOKEN", prompt)
    with pytest.raises(SecretFound, match=r"effects-.*pushed on \w+ windows: the value of \$OUR_TOKEN"):
        built(run, tmp_path / "whole")
    built(run, tmp_path / "cut", max_quote=5)


def test_what_it_took_is_in_card_and_manifest_and_comes_back(run: Run, folder: Path, again: Run) -> None:
    total = spent_in_all(run)
    assert total.n_requests > 10 and spent(run).keys() >= {
        "explain/layers.1/plain",
        "score/layers.1/plain/detection",
    }
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert sum(one["n_requests"] for one in manifest["spent"].values()) == total.n_requests
    card = (folder / "README.md").read_text()
    assert f"It took {total.n_requests:,} requests" in card and "| all | " in card
    assert spent(again) == spent(run)
    for table in ("controls", "effects"):
        assert f"| `layers.1.{table}` |" in card and f"- **{table}**:" in card


def test_a_control_of_unknown_kind_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set")
    (path,) = (tmp_path / "set").rglob("controls-*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "control", [["made up"] * table.num_rows]).cast(table.schema), path)
    manifest = orjson.loads((tmp_path / "set" / "manifest.json").read_bytes())
    name = str(path.relative_to(tmp_path / "set"))
    manifest["files"][name] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (tmp_path / "set" / "manifest.json").write_bytes(orjson.dumps(manifest))
    assert read_manifest(tmp_path / "set" / "manifest.json").files[name].table == "controls"
    with pytest.raises(PublishedError, match="a control score is of 'made up'"):
        import_published(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_imported_run_resumes_where_its_windows_are_there(again: Run, tmp_path: Path) -> None:
    """Done: there is nothing to do. With scores missing: they are made again, and are the same."""
    whole = copy_of(again, tmp_path / "whole")
    done = CliRunner().invoke(app, ["resume", str(whole.path)])
    assert done.exit_code == 0, done.output
    half = copy_of(again, tmp_path / "half")
    for stage in ("score", "control"):
        for path in (half.path / stage).rglob("*.jsonl"):
            path.unlink()
    done = CliRunner().invoke(app, ["resume", str(half.path)])
    assert done.exit_code == 0, done.output
    assert all_records(Run.open(half.path)) == all_records(again)


def test_resuming_what_another_program_made_says_what_it_is(tmp_path: Path) -> None:
    results = write(tmp_path / "results", {"detection": {3: judged(8, 1)}}, {3: "words"})
    runner = CliRunner()
    assert runner.invoke(app, ["import", str(results), "--out", str(tmp_path / "run")]).exit_code == 0
    path = str(tmp_path / "run")
    for command in (["resume", path], ["explain", "--out", path, "--explainer", "cot"]):
        done = runner.invoke(app, command)
        assert done.exit_code == 2 and "another program made" in done.output and "compare" in done.output
        assert "Traceback" not in done.output
