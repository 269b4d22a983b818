"""Publishing to a hub on loopback: what goes there, in which commits, and what a broken line costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import huggingface_hub
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import HubError, PublishError, SecretFound
from autointerp.merge import merge
from autointerp.pack import pack
from autointerp.publish import uploading
from autointerp.publish.hub import Target, fetch
from autointerp.publish.importing import import_published
from autointerp.publish.manifest import Options
from autointerp.publish.publication import publication_of
from autointerp.publish.publishing import Outcome, publish
from autointerp.run import Run
from here import device_here
from test_publish import SCRIPTED, SECRET, SHORT, copy_of, said_by
from tiny import Tiny
from writable_hub import WritableHub

TO = "org/features"


@pytest.fixture(scope="module")
def run(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Features in one unit; another dictionary's folders are made by hand where they are needed."""
    llms = {"explainer": SCRIPTED, "judge": SCRIPTED}
    scorers = {"detection": {"use": "detection"}}
    recipe = made.recipe(sampling=SHORT, features={"n": 6}, llms=llms, scorers=scorers, controls={"panel": 3})
    with device_here():
        run = pipeline.explain(recipe, out=tmp_path_factory.mktemp("hub") / "run")
    publication_of(run.path)  # copies of it are the same run
    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[WritableHub]:
    """The client library of this process talks to it, without Xet."""
    constants: Any = huggingface_hub.constants
    pattern = "/{repo_id}/resolve/{revision}/{filename}"
    with WritableHub(tmp_path / "hub") as server:
        settings = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        settings |= {"HUGGINGFACE_CO_URL_TEMPLATE": server.url + pattern}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_ours")
        yield server


def published(run: Run, folder: Path, target: Target | None = None, **options: Any) -> Outcome:
    return publish(run, folder, target or Target(TO), Options(**options))


def main(hub: WritableHub) -> Path:
    return hub.root / "datasets" / TO


def content(hub: WritableHub) -> dict[str, bytes]:
    """Of main."""
    return {str(p.relative_to(main(hub))): p.read_bytes() for p in main(hub).rglob("*") if p.is_file()}


def test_a_set_is_made_in_one_commit_that_has_card_and_manifest(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    outcome = published(run, tmp_path / "set")
    assert outcome.uploaded is not None and outcome.uploaded.n_commits == 1
    (commit,) = hub.state.commits
    tables = {
        f"data/layers.1/{name}-000000000.parquet"
        for name in ("explanations", "scores", "examples", "controls")
    }
    assert commit["added"].keys() >= {*tables, "README.md", "manifest.json", "run/recipe.yaml"}
    lines = [line for line in hub.requests if line.split()[0] in ("PUT", "POST")]
    assert [line for line in lines if "/commit/" in line] == lines[-1:]  # content first
    assert {p.name for p in main(hub).rglob("*") if p.is_file()} >= {"README.md", "manifest.json"}


def test_what_is_there_unchanged_makes_no_commit_and_sends_nothing(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    published(run, tmp_path / "set")
    hub.requests.clear()
    outcome = published(run, tmp_path / "set")
    assert outcome.uploaded is not None and outcome.uploaded.n_commits == 0
    assert len(hub.state.commits) == 1 and not [line for line in hub.requests if line.startswith("PUT")]
    # From another machine, without the folder, no table is even made.
    outcome = published(run, tmp_path / "elsewhere")
    assert outcome.uploaded is not None and outcome.uploaded.n_commits == 0 and outcome.built.n_made == 0
    assert not list((tmp_path / "elsewhere").rglob("data/**/*.parquet"))


def test_a_run_that_grew_publishes_what_differs_and_takes_away_what_is_no_more(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    mine = copy_of(run, tmp_path / "run")
    shutil.rmtree(mine.path / "score")
    shutil.rmtree(mine.path / "control")
    published(mine, tmp_path / "set")
    (first,) = hub.state.commits
    assert not [name for name in first["added"] if "scores" in name]
    published(run, tmp_path / "set")
    second = hub.state.commits[1]
    assert {name for name in second["added"] if "scores" in name} and not second["deleted"]
    assert "run/vocabulary.parquet" not in second["added"] and "run/recipe.yaml" not in second["added"]
    published(run, tmp_path / "set", examples=False)
    assert hub.state.commits[2]["deleted"] == ["data/layers.1/examples-000000000.parquet"]
    assert import_published(fetch(f"hub:{TO}"), tmp_path / "again").run.scores().equals(run.scores())


def test_an_upload_that_breaks_off_leaves_nothing_to_be_seen_and_goes_on(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    broken: list[str] = []

    def breaks(request: str) -> int | None:
        if request.startswith("PUT") and len(hub.state.puts) == 2:
            broken.append(request)
            return 403
        return None

    hub.state.breaks = breaks
    monkey = pytest.MonkeyPatch()
    monkey.setattr(huggingface_hub._commit_api, "UPLOAD_BATCH_MAX_NUM_FILES", 1)
    with monkey.context(), pytest.raises(HubError, match="the same command goes on"):
        published(run, tmp_path / "set")
    assert broken and not hub.state.commits and not list(main(hub).rglob("*"))
    hub.state.breaks = lambda request: None
    sent = set(hub.state.puts)
    published(run, tmp_path / "set")
    assert len(hub.state.commits) == 1
    assert len(hub.state.puts) == len(set(hub.state.puts)) == 5 and sent < set(hub.state.puts)


def test_larger_sets_come_to_main_at_once_and_go_on_where_they_broke_off(
    run: Run, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a pull request that is merged when it is whole: until then main is what it was, whatever breaks."""
    published(run, tmp_path / "set", max_quote=0)
    before = content(hub)
    monkeypatch.setattr(uploading, "FILES_A_COMMIT", 1)
    whole = copy_of(run, tmp_path / "run")
    said_by(whole, "something else")  # all four tables differ
    for broken in (lambda r: "/commit/" in r and len(hub.state.commits) == 3, lambda r: "/merge" in r):
        hub.state.breaks = lambda request, broken=broken: 500 if broken(request) else None
        with pytest.raises(HubError, match="broken on purpose"):
            published(whole, tmp_path / "set")
        assert content(hub) == before
    hub.state.breaks = lambda request: None
    n_sent, n_commits = len(hub.state.puts), len(hub.state.commits)
    outcome = published(whole, tmp_path / "set")
    assert (len(hub.state.puts), len(hub.state.commits)) == (n_sent, n_commits)  # only the merge was missing
    assert outcome.uploaded is not None and outcome.uploaded.url.endswith("/discussions/1")
    commits = hub.state.commits[1:]
    assert {commit["revision"] for commit in commits} == {"refs/pr/1"} and hub.state.merged == [1]
    data = [name for commit in commits for name in commit["added"] if name.startswith("data/")]
    assert len(data) == len(set(data)) == 4  # none was committed twice
    again = import_published(fetch(f"hub:{TO}"), tmp_path / "again").run
    assert again.features().equals(whole.features())
    outcome = published(whole, tmp_path / "set")
    assert outcome.uploaded is not None and outcome.uploaded.n_commits == 0


def test_a_pull_request_that_is_to_be_reviewed_is_not_merged_by_a_larger_upload(
    run: Run, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(run, tmp_path / "set", max_quote=0)
    published(run, tmp_path / "set", Target(TO, create_pr=True), max_quote=5)
    monkeypatch.setattr(uploading, "FILES_A_COMMIT", 1)
    published(said_by(copy_of(run, tmp_path / "run"), "something else"), tmp_path / "set")
    assert hub.state.merged == [2] and hub.state.pull_requests[0]["status"] == "open"


def another(run: Run, path: Path) -> Run:
    """The same records, of a run that nobody knows yet."""
    mine = copy_of(run, path)
    (mine.path / "publication.json").unlink()
    return mine


def test_a_set_of_another_run_is_left_alone_unless_it_is_meant_to_go(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    theirs = another(run, tmp_path / "theirs")
    published(theirs, tmp_path / "set")
    before = content(hub)
    with pytest.raises(PublishError, match=r"(?s)set of another run \(of layers\.1\).*--replace"):
        published(run, tmp_path / "ours")
    with pytest.raises(PublishError, match="set of another run"):
        published(run, tmp_path / "ours", Target(TO, create_pr=True))
    assert content(hub) == before and len(hub.state.commits) == 1
    with pytest.raises(PublishError, match=r"(?s)holds the set of another run.*--out"):
        published(run, tmp_path / "set", Target("org/more"))
    assert publish(run, tmp_path / "ours", Target(TO), replace=True).uploaded
    assert import_published(fetch(f"hub:{TO}"), tmp_path / "again").run.scores().equals(run.scores())
    with pytest.raises(PublishError, match="set of another run"):
        published(theirs, tmp_path / "set")


@pytest.mark.parametrize("name", ["README.md", "data/train-00000-of-00001.parquet", "train.csv"])
def test_somebodys_own_files_are_left_alone_unless_they_are_meant_to_go(
    run: Run, hub: WritableHub, tmp_path: Path, name: str
) -> None:
    for path in (name, ".gitattributes"):
        (main(hub) / path).parent.mkdir(parents=True, exist_ok=True)
        (main(hub) / path).write_text("theirs")
    with pytest.raises(PublishError, match=r"1 files that this run did not put there \(.*--replace"):
        published(run, tmp_path / "set")
    assert (main(hub) / name).read_text() == "theirs" and not hub.state.commits
    assert publish(run, tmp_path / "set", Target(TO), replace=True).uploaded
    left = {one for one, text in content(hub).items() if text == b"theirs"}
    # What load_dataset would take for rows goes, what it would not read stays.
    assert left == {".gitattributes"} | ({name} if name == "train.csv" else set())


def test_what_others_add_beside_a_set_stays_when_it_is_published_again(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    published(run, tmp_path / "set")
    added = main(hub) / "data" / "notes" / "more.parquet"
    added.parent.mkdir()
    added.write_text("theirs")
    published(run, tmp_path / "set", examples=False)
    assert added.read_text() == "theirs"
    assert hub.state.commits[1]["deleted"] == ["data/layers.1/examples-000000000.parquet"]


def test_runs_that_differ_in_explainer_alone_have_pull_requests_of_their_own(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    twin = another(run, tmp_path / "twin")
    main(hub).mkdir(parents=True)
    published(run, tmp_path / "one", Target(TO, create_pr=True))
    published(twin, tmp_path / "two", Target(TO, create_pr=True))
    assert [commit["revision"] for commit in hub.state.commits] == ["refs/pr/1", "refs/pr/2"]
    # The same run goes on in its own, also when it is packed and merged, or made of what was published.
    imported = import_published(tmp_path / "one", tmp_path / "imported").run
    pack(run, tmp_path / "pack", with_requests=False)
    merge([tmp_path / "pack"], tmp_path / "merged")
    for one in (imported, Run.open(tmp_path / "pack"), Run.open(tmp_path / "merged")):
        published(one, tmp_path / "three", Target(TO, create_pr=True), max_quote=3)
    assert {commit["revision"] for commit in hub.state.commits[2:]} == {"refs/pr/1"}


def test_a_pull_request_and_a_branch_together_are_refused(run: Run, hub: WritableHub, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="--revision v2 is not main"):
        published(run, tmp_path / "set", Target(TO, revision="v2", create_pr=True))
    assert not hub.requests and published(run, tmp_path / "set", Target(TO, revision="main")).uploaded


def test_a_branch_and_a_pull_request_leave_main_as_it_is(run: Run, hub: WritableHub, tmp_path: Path) -> None:
    published(run, tmp_path / "set", max_quote=0)
    before = content(hub)
    published(run, tmp_path / "set", Target(TO, revision="v2"))
    outcome = published(run, tmp_path / "set", Target(TO, create_pr=True))
    assert content(hub) == before
    assert [commit["revision"] for commit in hub.state.commits] == ["main", "v2", "refs/pr/1"]
    assert outcome.uploaded is not None and outcome.uploaded.url.endswith("/discussions/1")
    whole = import_published(fetch(f"hub:{TO}@v2"), tmp_path / "v2")
    cut = import_published(fetch(f"hub:{TO}"), tmp_path / "main")
    assert not whole.notes and "cut to 0 characters" in cut.notes[0]


def test_a_pull_request_that_broke_off_goes_on_where_it_was(
    run: Run, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its commits the hub fails once: the next try commits to the same request, and sends nothing twice."""
    published(run, tmp_path / "set", max_quote=0)
    monkeypatch.setattr(uploading, "FILES_A_COMMIT", 1)
    n_before = len(hub.state.commits)
    hub.state.breaks = lambda request: (
        500 if "/commit/" in request and len(hub.state.commits) > n_before else None
    )
    with pytest.raises(HubError, match="broken on purpose"):
        published(run, tmp_path / "set", Target(TO, create_pr=True))
    assert len(hub.state.pull_requests) == 1
    hub.state.breaks = lambda request: 403 if "repos/create" in request else None  # a proposer may not
    outcome = published(run, tmp_path / "set", Target(TO, create_pr=True))
    commits = hub.state.commits[n_before:]
    assert {commit["revision"] for commit in commits} == {"refs/pr/1"} and len(hub.state.pull_requests) == 1
    data = [name for commit in commits for name in commit["added"] if name.startswith("data/")]
    assert len(data) == len(set(data)) > 2 and "README.md" in commits[-1]["added"]
    assert "manifest.json" in commits[0]["added"]
    assert outcome.uploaded is not None and outcome.uploaded.url.endswith("/discussions/1")
    again = published(run, tmp_path / "set", Target(TO, create_pr=True))
    assert again.uploaded is not None and again.uploaded.n_commits == 0
    assert again.uploaded.url.endswith("/discussions/1")


@pytest.mark.parametrize(
    "change", [{"status": "merged"}, {"author": {"name": "else"}}, {"title": "Fix a typo"}]
)
def test_a_pull_request_that_is_closed_or_not_ours_is_left_alone(
    run: Run, hub: WritableHub, tmp_path: Path, change: dict[str, Any]
) -> None:
    published(run, tmp_path / "set", max_quote=0)
    published(run, tmp_path / "set", Target(TO, create_pr=True))
    hub.state.pull_requests[0] |= change
    published(run, tmp_path / "set", Target(TO, create_pr=True))
    assert [commit["revision"] for commit in hub.state.commits] == ["main", "refs/pr/1", "refs/pr/2"]


def test_a_secret_stops_everything_before_the_hub_hears_of_it(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    with pytest.raises(SecretFound):
        published(said_by(copy_of(run, tmp_path / "run"), f"on {SECRET}"), tmp_path / "set")
    assert not [line for line in hub.requests if not line.startswith("GET")]


@pytest.mark.parametrize(
    ("status", "said"), [(401, "token may not do that"), (403, "token may not do that"), (500, "refused")]
)
def test_what_the_hub_refuses_is_said_in_one_line(
    run: Run, hub: WritableHub, tmp_path: Path, status: int, said: str
) -> None:
    hub.state.breaks = lambda request: status if "repos/create" in request else None
    with pytest.raises(HubError, match=said) as raised:
        published(run, tmp_path / "set")
    assert "\n" not in str(raised.value)


def test_nobody_logged_in_and_no_such_set(
    run: Run, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="no dataset 'org/nothing'"):
        fetch("hub:org/nothing")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="hf auth login"):
        published(run, tmp_path / "set")


LOADS = """
import sys, json
from datasets import load_dataset, get_dataset_config_names
from huggingface_hub import DatasetCard
to = sys.argv[1]
declared = DatasetCard.load(to, repo_type="dataset").data.to_dict()["dataset_info"]
found = {}
for config in get_dataset_config_names(to):
    plain = load_dataset(to, config, split="train")
    stream = load_dataset(to, config, split="train", streaming=True)
    assert plain.features == stream.features, config
    rows = list(stream)
    assert rows == plain.to_list(), config
    names = [one["name"] for info in declared if info["config_name"] == config for one in info["features"]]
    assert names == plain.column_names, config
    found[config] = len(plain)
default = load_dataset(to, split="train")
print(json.dumps({"configs": found, "default": default.column_names}))
"""


def test_every_config_loads_plain_and_streaming_with_the_declared_features(
    run: Run, hub: WritableHub, tmp_path: Path
) -> None:
    command = ["publish", str(run.path), "--to", TO, "--out", str(tmp_path / "set")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "files in 1 commits" in done.output
    # The libraries read their settings once, when they are loaded.
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_ours",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS, TO], env=environment, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    found = orjson.loads(loaded.stdout.splitlines()[-1])
    rows = {
        name: sum(pq.read_metadata(path).num_rows for path in (tmp_path / "set").rglob(f"{name}-*.parquet"))
        for name in ("explanations", "scores", "examples", "controls")
    }
    assert found["configs"] == {
        "layers.1": rows["explanations"],
        "layers.1.scores": rows["scores"],
        "layers.1.examples": rows["examples"],
        "layers.1.controls": rows["controls"],
    }
    assert min(rows.values()) > 0 and found["default"][:4] == ["feature", "index", "pole", "label"]


def test_the_same_goes_by_xet(
    run: Run, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content goes to Xet's own store in a folder; the commit names it by the same SHA-256."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    manifest = published(run, tmp_path / "set").built.manifest
    (commit,) = hub.state.commits
    tables = {name: file.sha256 for name, file in manifest.files.items() if name.endswith(".parquet")}
    assert {name: commit["added"][name] for name in tables} == tables
    assert not hub.state.puts and list((hub.root / "xet").rglob("*"))
