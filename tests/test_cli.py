"""The command line as a user meets it: help, plans, messages for what is wrong, what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

import tiny
from autointerp.cli import app
from fault_server import FaultServer, ok, refused_url, status
from tiny import Tiny


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def on(made: Tiny, out: Path, *more: object, llm: str | None = "lexical") -> tuple[int, str, str]:
    given: list[object] = ["--sae", made.sae, "--model", made.model, "--corpus", made.corpus, "--out", out]
    chosen: list[object] = ["--llm", llm] if llm else []
    small = ["--set", "cache.n_tokens=20000", "--set", "sampling.minimum=20", "--n-features", "10"]
    return run("explain", *given, *small, *chosen, *more)


@pytest.fixture(scope="module")
def done(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    code, stdout, _ = on(made, out)
    assert code == 0, stdout
    return out


def test_help_starts_with_something_to_paste() -> None:
    command = typer.main.get_command(app)
    assert "Example: autointerp explain --sae demo" in str(command.help)
    for name, verb in command.commands.items():  # type: ignore[attr-defined]
        assert verb.help, f"{name} is missing its help"
        assert f"Example: autointerp {name}" in verb.help


def test_help_and_import_are_quick() -> None:
    """No time fails this test but a wildly slow one; the command's own time is about 0.2 s."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "autointerp", "--help"], check=True, capture_output=True)
    assert time.monotonic() - began < 10


def test_a_run_ends_with_the_funnel_scores_times_and_what_to_type_next(made: Tiny, tmp_path: Path) -> None:
    code, stdout, stderr = on(made, tmp_path / "run")
    assert code == 0, stderr
    for words in (
        "asked", "alive", "enough windows", "explained · plain", "scored · plain · detection",
        "balanced accuracy", "Time: ", f"Run: {tmp_path}/run", f"Next: autointerp show {tmp_path}/run layers.1/",
    ):  # fmt: skip
        assert words in stdout
    assert stdout.count("[") >= 4  # intervals


def test_status_tells_how_far_a_run_is(made: Tiny, tmp_path: Path, done: Path) -> None:
    code, stdout, _ = on(made, tmp_path / "run", "--until", "sample")
    assert code == 0
    assert "not sampled yet" not in stdout
    assert re.search(r"\d open", run("status", tmp_path / "run")[1])
    assert not re.search(r"\d open", run("status", done)[1])


def test_show_prints_windows_explanations_and_every_trial(done: Path) -> None:
    from autointerp.run import Run

    scores = Run.open(done).scores().to_pylist()
    feature = scores[0]["feature"]
    code, stdout, stderr = run("show", done, feature.partition("/")[2])
    assert code == 0, stderr
    assert "fires on" in stdout and "Shown to the explainer" in stdout
    assert "most on " in stdout and "by position " in stdout and "activations from " in stdout
    strata = ("same_token", "neighbour", "same_document", "density", "embedding")
    counts = ("n_positive", "n_negative", *(f"{name}_n" for name in strata))
    n_trials = sum(row[name] or 0 for row in scores if row["feature"] == feature for name in counts)
    assert stdout.count(" truth ") == n_trials


def test_plugins_are_listed_with_what_they_do() -> None:
    code, stdout, _ = run("plugins")
    assert code == 0
    for name in ("plain", "lexical", "detection", "fuzzing", "openai", "scripted", "saelens", "sparsify"):
        line = next(line for line in stdout.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 3


def test_a_dry_run_prints_the_plan_and_writes_nothing(made: Tiny, tmp_path: Path) -> None:
    code, stdout, _ = on(made, tmp_path / "run", "--dry-run")
    assert code == 0
    assert "Plan: 10 features of layers.1" in stdout and "20,000 tokens" in stdout
    assert not (tmp_path / "run").exists()


def test_features_come_from_a_list_a_file_or_a_range(made: Tiny, tmp_path: Path) -> None:
    from autointerp.run import Run

    wanted = tmp_path / "wanted"
    wanted.write_text("3\n7-9\n")
    given = ["--sae", made.sae, "--model", made.model, "--corpus", made.corpus, "--llm", "lexical"]
    more = ["--set", "cache.n_tokens=5000", "--out", tmp_path / "run", "--until", "sample"]
    assert run("explain", *given, *more, "--features", f"@{wanted}")[0] == 0
    assert [f.index for f in Run.open(tmp_path / "run").asked("layers.1")] == [3, 7, 8, 9]
    assert run("explain", *given, *more, "--first", "2")[0] == 0
    assert [f.index for f in Run.open(tmp_path / "run").asked("layers.1")] == [0, 1]
    assert run("explain", *given, *more, "--n-features", "100000")[0] == 0
    assert len(Run.open(tmp_path / "run").asked("layers.1")) == tiny.WIDTH


# --- wrong inputs: one message and exit code 2 ---------------------------------------------------------


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, stdout, stderr = result
    assert code == 2, stdout + stderr
    assert stderr.count("Error:") == 1
    assert "Traceback" not in stderr + stdout
    for word in words:
        assert word in stderr, stderr


def test_no_such_sae(made: Tiny, tmp_path: Path) -> None:
    refused(run("explain", "--sae", tmp_path / "nowhere", "--llm", "lexical"), "nowhere")


def test_no_such_model(made: Tiny, tmp_path: Path) -> None:
    refused(on(made, tmp_path / "run", "--model", tmp_path / "nowhere"), "nowhere")


def test_an_sae_for_another_width(made: Tiny, tmp_path: Path) -> None:
    tiny.make_sae(tmp_path / "wide", d_in=tiny.D_MODEL + 8)
    refused(
        run("explain", "--sae", tmp_path / "wide", "--model", made.model, "--corpus", made.corpus,
            "--llm", "lexical", "--out", tmp_path / "run"),
        str(tiny.D_MODEL + 8), str(tiny.D_MODEL),
    )  # fmt: skip


def test_an_unknown_hook(made: Tiny, tmp_path: Path) -> None:
    refused(on(made, tmp_path / "run", "--hook", "blocks.1.hook_nonsense"), "blocks.1.hook_nonsense")
    refused(on(made, tmp_path / "run", "--hook", "layers.17"), "17", "3")


def test_a_checkpoint_that_does_not_say_where_it_reads(made: Tiny, tmp_path: Path) -> None:
    tiny.make_sae(tmp_path / "sae", hook=None)
    refused(
        run("explain", "--sae", tmp_path / "sae", "--model", made.model, "--corpus", made.corpus,
            "--llm", "lexical", "--out", tmp_path / "run"),
        "--hook",
    )  # fmt: skip


def test_no_corpus_is_said(made: Tiny, tmp_path: Path) -> None:
    refused(
        run(
            "explain", "--sae", made.sae, "--model", made.model, "--llm", "lexical", "--out", tmp_path / "run"
        ),
        "--corpus",
    )


def test_a_missing_corpus_field(made: Tiny, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"texte": "one"}\n{"texte": "two"}\n')
    refused(on(made, tmp_path / "run", "--corpus", corpus), "texte", "corpus.field")


def test_an_empty_corpus(made: Tiny, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("  \n")
    refused(on(made, tmp_path / "run", "--corpus", corpus), "empty")


def test_a_corpus_of_one_document(made: Tiny, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("One long document. " * 3000)
    refused(on(made, tmp_path / "run", "--corpus", corpus), "document=block:")
    code, _, stderr = on(made, tmp_path / "run", "--corpus", corpus, "--set", "corpus.document=block:400")
    assert code in (0, 2), stderr  # the way out is a way: no complaint about one document any more
    assert "single document" not in stderr


def test_a_feature_out_of_range(made: Tiny, tmp_path: Path) -> None:
    given = ["--sae", made.sae, "--model", made.model, "--corpus", made.corpus, "--llm", "lexical"]
    refused(run("explain", *given, "--features", "5,999"), "999", str(tiny.WIDTH))
    refused(run("explain", *given, "--features", "five"), "five")
    refused(run("explain", *given, "--features", "9-2"), "9-2")


def test_an_unknown_scorer_offers_the_nearest_name(made: Tiny, tmp_path: Path) -> None:
    refused(on(made, tmp_path / "run", "--scorer", "detecton"), "Did you mean 'detection'?")


def test_unknown_recipe_keys_and_wrong_values_are_listed_together(made: Tiny, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            made.recipe(sampling={"n_show": 3, "width": "wide"}, scorers={"d": {"use": "detection", "x": 1}})
        )
    )
    refused(
        run("explain", "--recipe", recipe),
        "sampling.n_show: no such key. Did you mean 'n_shown'?", "sampling.width",
    )  # fmt: skip
    recipe.write_text(yaml.safe_dump(made.recipe(scorers={"d": {"use": "detection", "packng": 1}})))
    refused(run("explain", "--recipe", recipe), "scorers.d: no option 'packng'", "packing")


def test_no_llm_lists_the_ways_to_choose_one(made: Tiny, tmp_path: Path) -> None:
    refused(on(made, tmp_path / "run", llm=None), "--llm openai:MODEL", "--llm lexical")


def test_a_recipe_changed_under_a_run(made: Tiny, done: Path) -> None:
    refused(on(made, done, "--set", "sampling.n_shown=30"), "sampling.n_shown: was 40, is now 30", "--out")


def test_a_server_that_refuses(made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", refused_url())
    refused(
        on(made, tmp_path / "run", llm="openai:tiny"), refused_url().partition("//")[2].partition("/")[0][:9]
    )
    assert not (tmp_path / "run" / "rows").exists()  # nothing expensive started


def test_a_wrong_key(made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(lambda number, body: status(401), models=("tiny",)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-not-the-right-one")
        result = on(made, tmp_path / "run", llm="openai:tiny")
    refused(result, "OPENAI_API_KEY")
    assert "sk-not-the-right-one" not in result[1] + result[2]
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"sk-not-the-right-one" not in path.read_bytes()


def test_a_missing_run(tmp_path: Path) -> None:
    refused(run("resume", tmp_path / "none"), "none")
    refused(run("status", tmp_path / "none"), "none")


def test_a_feature_that_is_not_in_the_run(done: Path) -> None:
    refused(run("show", done, "layers.9/1"), "layers.1")
    refused(run("show", done, "x"), "x")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--features", "layers.9/5"], "layers.9"),
        (["--features", ","], "empty"),
        (["--features", "²"], "²"),
        (["--scorer", ":X"], "module:Class"),
        (["--scorer", "pathlib:Path"], "dataclass"),
        (["--set", "dictionaries=3"], "dictionaries"),
        (["--set", "sampling.n_heldout_silent=-1"], "n_heldout_silent"),
        (["--set", "cache.sink_ratio=-1"], "sink_ratio"),
        (["--set", "sampling.overlap=40"], "overlap"),
        (["--set", "resources.prompts=/nope"], "/nope"),
        (["--set", "resources.device=tpu9"], "tpu9"),
    ],
)
def test_values_that_make_no_sense(made: Tiny, tmp_path: Path, arguments: list[str], word: str) -> None:
    given = ["--sae", made.sae, "--model", made.model, "--corpus", made.corpus, "--llm", "lexical"]
    refused(run("explain", *given, "--out", tmp_path / "run", *arguments), word)


def test_a_recipe_of_another_shape(tmp_path: Path, made: Tiny) -> None:
    recipe = tmp_path / "recipe.yaml"
    for text, word in (
        ("dictionaries: [demo]", "dictionaries"),
        ("dictionaries: {x: demo}", "x"),
        ("- 1", "mapping"),
    ):
        recipe.write_text(text)
        refused(run("explain", "--recipe", recipe, "--hook", "layers.1", "--out", tmp_path / "run"), word)


def test_a_run_folder_that_is_a_file_or_broken(tmp_path: Path, made: Tiny, done: Path) -> None:
    import shutil

    (tmp_path / "file").write_text("")
    refused(on(made, tmp_path / "file"), "--out")
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run" / "identities.json").write_text("{")
    refused(run("status", tmp_path / "run"), "identities.json")
    (tmp_path / "run" / "recipe.yaml").write_text("a: [")
    refused(run("status", tmp_path / "run"), "recipe.yaml")


def test_an_option_of_a_default_scorer_can_be_set(made: Tiny, tmp_path: Path) -> None:
    from autointerp.run import Run

    code, _, stderr = on(
        made, tmp_path / "run", "--set", "scorers.fuzzing.threshold=0.5", "--until", "sample"
    )
    assert code == 0, stderr
    scorers = Run.open(tmp_path / "run").recipe.scorers
    assert scorers["fuzzing"] == {"use": "fuzzing", "threshold": 0.5} and "detection" in scorers


def test_caching_and_sampling_need_no_llm(made: Tiny, tmp_path: Path) -> None:
    assert on(made, tmp_path / "run", "--until", "sample", llm=None)[0] == 0


def test_settings_that_are_none(made: Tiny, tmp_path: Path) -> None:
    refused(on(made, tmp_path / "run", "--set", "sampling"), "--set")
    refused(on(made, tmp_path / "run", "--n-features", "5", "--first", "5"), "--n-features", "--first")


def test_a_dictionary_that_explains_nothing_stops_before_the_cache(made: Tiny, tmp_path: Path) -> None:
    """FVU >= 1: the same dictionary at a site it was not made for, with a decoder that points elsewhere."""
    import torch
    from safetensors.torch import load_file, save_file

    tiny.make_sae(tmp_path / "sae")
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    weights["W_dec"] = -2 * weights["W_dec"]
    weights["b_dec"] = torch.zeros_like(weights["b_dec"])
    save_file(weights, tmp_path / "sae" / "sae_weights.safetensors")
    refused(
        run("explain", "--sae", tmp_path / "sae", "--model", made.model, "--corpus", made.corpus,
            "--llm", "lexical", "--out", tmp_path / "run", "--set", "cache.n_tokens=20000"),
        "does not fit", "FVU",
    )  # fmt: skip
    assert not list((tmp_path / "run" / "cache").rglob("*.safetensors"))


# --- a real server on loopback -------------------------------------------------------------------------


def test_the_line_against_a_real_http_server(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripted answers over HTTP: every feature ends explained and scored, one request an answer."""

    def script(number: int, body: dict[str, object]) -> object:
        text = body["messages"][-1]["content"]  # type: ignore[index]
        n_windows = sum(1 for line in str(text).splitlines() if line[:1].isdigit())
        if "LABEL" in str(body["messages"]):
            return ok("EXPLANATION: some words\nLABEL: words")
        return ok("\n".join(f"{n + 1}: {'yes' if n % 2 else 'no'}" for n in range(n_windows)))

    with FaultServer(script, models=("scripted",)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        code, stdout, stderr = on(made, tmp_path / "run", llm="openai:scripted")
        assert code == 0, stdout + stderr
        n_requests = len([request for request in server.requests if "chat" in request.path])
        assert "some words" in run("show", tmp_path / "run", first_scored(tmp_path / "run"))[1]
        code, _, _ = on(made, tmp_path / "run", llm="openai:scripted")
        assert code == 0
        assert len([r for r in server.requests if "chat" in r.path]) == n_requests


def first_scored(out: Path) -> str:
    from autointerp.run import Run

    return Run.open(out).scores().to_pylist()[0]["feature"]
